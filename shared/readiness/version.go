package readiness

import (
	"fmt"
	"strings"

	"github.com/cassandra-security-manager/csm/shared/release"
)

// version says whether this release reads changed stores without a restart, and how well.
func (j *judge) version() {
	i := j.node.Instance
	if i == nil {
		return
	}
	j.report.Version = i.CassandraVersion
	r, ok := release.Parse(i.CassandraVersion)
	if !ok {
		j.unseen("release of Cassandra", "neither its process nor its jar could be seen", "start Cassandra, and run the agent as its user")
		return
	}
	seen := "Cassandra " + i.CassandraVersion
	j.report.HotReload = "yes"
	switch r.Reload() {
	case release.None:
		j.report.HotReload = "no"
		j.add(Concern{Severity: Blocker, Code: "no-hot-reload", Message: "this release reads its stores at start only: each new certificate needs a restart", Evidence: seen, Remedy: "upgrade to 4.1 or newer"})
	case release.Joint:
		j.report.HotReload = "limited"
		j.add(Concern{Severity: Warning, Code: "reload-joint", Message: "both TLS sections are reloaded as one: a broken client store keeps the internode certificate old as well", Evidence: seen, Remedy: "nothing to do; upgrade to 4.1.4 or newer to be rid of it"})
	case release.Apart:
		j.report.HotReload = "limited"
		j.add(Concern{Severity: Warning, Code: "reload-by-time", Message: "a reload looks at file times only, and the legacy port 7001 keeps its old certificate (CASSANDRA-18681)", Evidence: seen, Remedy: "nothing to do; upgrade to 4.1.4 or newer to be rid of it"})
	}
	if strings.HasPrefix(i.Authenticator, "MutualTls") && !r.Before(release.Release{Major: 5}) && r.Before(release.Release{Major: 5, Patch: 7}) {
		j.add(Concern{Severity: Error, Code: "cve-2026-27314", Message: "whoever may create one role can map a certificate onto a superuser (ADD IDENTITY)",
			Evidence: fmt.Sprintf("%s with %s", seen, i.Authenticator), Remedy: "upgrade to 5.0.7 or newer"})
	}
}
