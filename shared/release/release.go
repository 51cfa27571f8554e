// Package release knows what Cassandra's releases do differently when they read their TLS stores again. It is one table,
// read from the sources at the releases' tags (SSLFactory.java, MessagingServiceMBeanImpl.java) and asked with what a node
// reports at that minute, because nodes are upgraded while certificates change.
//
// It refuses to guess: a release that it cannot read has no behaviour, and who needs one waits.
package release

import (
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"

	"github.com/cassandra-security-manager/csm/shared/fault"
)

// Release is a release of Cassandra. What comes before one (alpha, rc, SNAPSHOT) counts as that one.
type Release struct{ Major, Minor, Patch int }

// Parse reads what Cassandra calls itself, such as "5.0.8" or "6.0-alpha2".
func Parse(s string) (r Release, ok bool) {
	s, _, _ = strings.Cut(s, "-")
	parts := strings.Split(s, ".")
	if len(parts) < 2 || len(parts) > 4 {
		return Release{}, false
	}
	for i, into := range []*int{&r.Major, &r.Minor, &r.Patch} {
		if i == len(parts) {
			break
		}
		n, err := strconv.Atoi(parts[i])
		if err != nil || n < 0 {
			return Release{}, false
		}
		*into = n
	}
	return r, true
}

func (r Release) String() string { return fmt.Sprintf("%d.%d.%d", r.Major, r.Minor, r.Patch) }

// Before says whether r is older than o.
func (r Release) Before(o Release) bool {
	switch {
	case r.Major != o.Major:
		return r.Major < o.Major
	case r.Minor != o.Minor:
		return r.Minor < o.Minor
	}
	return r.Patch < o.Patch
}

// Reload is how a release reads changed stores again.
type Reload string

// The behaviours, each since the release beside it in the table.
const (
	// None: stores are read at start only (before CASSANDRA-14222).
	None Reload = "none"
	// Joint: reloadssl validates both TLS sections as one and fails on a bad store; a broken client store keeps the internode
	// certificate old as well. Stores are read again only where a file's time has changed.
	Joint Reload = "joint"
	// Apart: as Joint, but each section by itself (CASSANDRA-16666).
	Apart Reload = "apart"
	// Forced: every cached context is built anew; what could not be loaded is only logged and reloadssl exits 0
	// (CASSANDRA-18681). The legacy port 7001, which kept its old certificate before, is reloaded too.
	Forced Reload = "forced"
)

// since is the table, newest first.
var since = []struct {
	from   Release
	reload Reload
}{
	{Release{4, 1, 4}, Forced}, // and 5.0, 6.0
	{Release{4, 1, 0}, Apart},
	{Release{4, 0, 0}, Joint},
}

// Reload is what the release does.
func (r Release) Reload() Reload {
	for _, s := range since {
		if !r.Before(s.from) {
			return s.reload
		}
	}
	return None
}

// Tells says whether the exit code of reloadssl tells of a store that could not be loaded.
func (r Reload) Tells() bool { return r == Joint || r == Apart }

// ByTime says whether a store is read again only when its file's time has changed since the last look.
func (r Reload) ByTime() bool { return r == Joint || r == Apart }

// OneReload refuses a ring whose nodes do not all read changed stores again, and in one way: such a ring may renew, for that
// concerns one node at a time, but trust that each node reads at another moment and in another way is not rotated. Patches of one
// release line that reload alike pass; lines (4.1 beside 5.0) are mixed only during an upgrade and never pass. versions are
// what the nodes report now, by node.
func OneReload(versions map[string]string) error {
	var node, version string
	var line Release
	for _, n := range slices.Sorted(maps.Keys(versions)) {
		v := versions[n]
		r, ok := Parse(v)
		switch {
		case !ok:
			return fault.New(fault.Refused, "release-unknown", "%s runs a release of Cassandra that is not known (%.64q)", n, v).Do("start Cassandra there, and run the agent as its user")
		case r.Reload() == None:
			return fault.New(fault.Refused, "no-hot-reload", "%s runs Cassandra %.64s, which reads its stores at start only", n, v).Do("upgrade it to 4.1.4 or newer")
		case node != "" && (r.Major != line.Major || r.Minor != line.Minor || r.Reload() != line.Reload()):
			return fault.New(fault.Refused, "releases-mixed", "%s runs Cassandra %.64s, %s runs %.64s: they differ in when and how they read their stores again", n, v, node, version).
				Do("finish the upgrade of Cassandra first; renewals go on meanwhile")
		}
		node, version, line = n, v, r
	}
	return nil
}
