package cli

import (
	"cmp"
	"fmt"
	"maps"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	ui "github.com/cassandra-security-manager/csm/shared/cli"
	"github.com/cassandra-security-manager/csm/shared/fault"
	"github.com/cassandra-security-manager/csm/shared/resource"
)

func (a *app) drillCommand() *cobra.Command {
	c := group("drill", "Do for practice what must not fail", a.drillRotation())
	c.Example = "  csm drill rotation -c staging --to root-2027 --dry-run"
	return c
}

// drillAsk is how a drill is run.
type drillAsk struct {
	rotationAsk
	bake, keyspace, user, passwordFile, out string
	rate, replicas                          int
	rest                                    time.Duration
	retire                                  bool
	except                                  []string
}

// drillSite is where the load of a drill goes: the addresses of CQL by data centre.
type drillSite struct {
	hosts map[string][]string
	port  int
}

func (d drillSite) datacenters() []string { return slices.Sorted(maps.Keys(d.hosts)) }

func (a *app) drillRotation() *cobra.Command {
	var q drillAsk
	c := &cobra.Command{Use: "rotation", Short: "Change the CA of a ring under a load of its own, and count what fails", Args: cobra.NoArgs,
		Long: "A real rotation: the ring serves leaves of the new CA afterwards. Beside it, a load writes and reads at LOCAL_QUORUM in each data centre, over connections that stay and\n" +
			"over new ones, with certificates that it has from CSM, in keyspaces of its own that are removed at the end. Nothing is retried, so that each failure is counted.\n" +
			"The load is on the ring alone first (--rest), so that there is something to compare with. Without --retire it ends before the old CA is withdrawn: from there\n" +
			"`csm rotation retire` and `csm rotation rollback` go on. It runs where the nodes' CQL ports can be reached. Ctrl-C ends the load; the rotation goes on.\n" +
			"Exit code 0 when no query failed, 1 when one did, or the rotation halted, 3 when it was refused, 6 when the plan would be another by now.",
		Example: "  csm drill rotation -c staging --to root-2027 --dry-run\n  csm drill rotation -c staging --to root-2027 --plan 8c1f0e5a99d0b3c7 --reason 'drill of spring'\n" +
			"  csm drill rotation -c staging --to root-2027 --cql-user drill --cql-password-file pw --retire --plan 8c1f0e5a99d0b3c7 --reason 'drill of spring' --out drill.json"}
	f := c.Flags()
	a.rotationTo(c, &q.rotationAsk)
	f.StringVar(&q.bake, "bake", "", "rest between two waves (default 1m)")
	f.IntVar(&q.rate, "rate", 50, "queries a second in each data centre")
	f.IntVar(&q.replicas, "replicas", 3, "replicas of each row in each data centre; as many as it has nodes at most")
	f.DurationVar(&q.rest, "rest", 30*time.Second, "how long the load runs before anything changes")
	f.StringVar(&q.keyspace, "keyspace", "csm_drill", "how the names of the keyspaces begin")
	f.StringVar(&q.user, "cql-user", "", "login at Cassandra, where it asks for one")
	f.StringVar(&q.passwordFile, "cql-password-file", "", "file with its password; - for stdin")
	f.BoolVar(&q.retire, "retire", false, "withdraw the old CA too, when every gate holds: there is no way back from there")
	f.StringSliceVar(&q.except, "except", nil, "with --retire: clients that may break, as the retire names them")
	f.StringVar(&q.out, "out", "", "write the report to this file, JSON")
	return a.run(c, func(s *session, _ []string) error {
		if err := q.check(); err != nil {
			return err
		}
		p, _, base, err := s.planRotation(q.rotationAsk)
		if err != nil {
			return err
		}
		site, err := s.drillable(p)
		if err != nil {
			return err
		}
		if err := q.known(p); err != nil {
			return err
		}
		if s.dryRun {
			s.Say("%s", strings.TrimRight(p.about(), "\n"))
		}
		if err := s.confirm(change{verb: "drill a rotation of", name: p.Cluster, etag: p.Hash, grave: true, effects: q.effects(site, p)}); err != nil || s.dryRun {
			return err
		}
		if err := s.needReason(); err != nil {
			return err
		}
		password := ""
		if q.passwordFile != "" {
			b, err := s.readInput(q.passwordFile)
			if err != nil {
				return err
			}
			password = strings.TrimRight(string(b), "\r\n")
		}
		d := &drill{session: s, ask: q, site: site, plan: p, base: base, password: password}
		return d.run()
	})
}

var keyspaceName = regexp.MustCompile(`^[a-z][a-z0-9_]{0,39}$`)

// check refuses a load that cannot be.
func (q drillAsk) check() error {
	switch {
	case !keyspaceName.MatchString(q.keyspace):
		return fault.New(fault.Invalid, "bad-keyspace", "%.60q cannot begin a keyspace's name", q.keyspace).Do("use up to 40 small letters, digits and underscores, a letter first")
	case q.rate < 1 || q.rate > 100_000 || q.replicas < 1 || q.rest < 0:
		return fault.New(fault.Invalid, "bad-load", "no load can be made of a rate of %d, %d replicas and %s of rest", q.rate, q.replicas, q.rest).Do("use 1 to 100000 queries a second, 1 replica or more")
	case len(q.except) > 0 && !q.retire:
		return fault.New(fault.Invalid, "bad-exceptions", "nobody is waited for without a retire").Do("add --retire, or leave --except out")
	case q.passwordFile != "" && q.user == "":
		return fault.New(fault.Invalid, "no-user", "there is a password and no user").Do("add --cql-user NAME")
	}
	return nil
}

// known refuses exceptions that the plan does not name: the retire would refuse them when the rest is done. What was only seen comes and
// goes.
func (q drillAsk) known(p rotationPlanView) error {
	for _, x := range q.except {
		switch {
		case x == "links", x == "seen", x == "unseen", strings.HasPrefix(x, "seen-"):
		case slices.ContainsFunc(p.Clients, func(c rotationClient) bool { return c.Name == x }):
		default:
			return fault.New(fault.NotFound, "no-client", "the plan names no client %.100q", x).Do("name it as the plan does (--dry-run)")
		}
	}
	return nil
}

// drillable refuses what no drill can be made of, and finds where the load goes.
func (s *session) drillable(p rotationPlanView) (drillSite, error) {
	none := drillSite{}
	switch {
	case len(p.Blockers) > 0:
		return none, fault.New(fault.Refused, "rotation-blocked", "the rotation would be refused: %s", p.Blockers[0].Message).Do("%s", p.Blockers[0].Remedy)
	case p.Kind == "takeover":
		return none, fault.New(fault.Refused, "drill-kind", "the leaves of %s are of another CA, so its nodes take no client certificate of ours yet", resource.Last(p.Cluster)).
			Do("take it over by `csm rotation`, and drill the next change")
	}
	nodes, _, _, err := list[nodeView](s, p.Cluster+"/nodes", nil, 0)
	if err != nil {
		return none, err
	}
	site := drillSite{hosts: map[string][]string{}}
	for _, n := range nodes {
		for _, st := range n.Stores {
			for _, port := range st.Ports {
				if port.Kind != "cql" || !n.Instance.Running {
					continue
				}
				if site.port = cmp.Or(site.port, port.Port); site.port != port.Port {
					return none, fault.New(fault.Refused, "drill-ports", "the nodes take CQL on different ports (%d and %d)", site.port, port.Port)
				}
				dc := n.Instance.Datacenter
				site.hosts[dc] = append(site.hosts[dc], port.Address)
			}
		}
	}
	if len(site.hosts) == 0 {
		return none, fault.New(fault.Refused, "no-cql", "no running node of %s tells of a CQL port with TLS", resource.Last(p.Cluster)).Do("see `csm node get NODE`: a drill needs client_encryption_options")
	}
	return site, nil
}

// effects are what a person agrees to.
func (q drillAsk) effects(site drillSite, p rotationPlanView) []string {
	out := []string{fmt.Sprintf("the ring changes from %s to %s, for real: %d members", resource.Last(p.AuthorityBefore), resource.Last(p.AuthorityAfter), len(p.Members))}
	for i, dc := range site.datacenters() {
		out = append(out, fmt.Sprintf("keyspace %s is made on %s (%d nodes, %d replicas), takes %d queries a second, and is removed at the end", q.named(i), dc, len(site.hosts[dc]), q.replication(site, dc), q.rate))
	}
	if q.retire {
		return append(out, "the old CA is withdrawn at the end: there is no way back from there")
	}
	return append(out, "it ends before the old CA is withdrawn; `csm rotation rollback` turns it round")
}

func (q drillAsk) named(i int) string { return fmt.Sprintf("%s_%d", q.keyspace, i) }

func (q drillAsk) replication(site drillSite, dc string) int {
	return min(q.replicas, len(site.hosts[dc]))
}

// drillReport is what a drill found.
type drillReport struct {
	Cluster  string        `json:"cluster"`
	Rotation string        `json:"rotation,omitempty"`
	From     string        `json:"authorityBefore"`
	To       string        `json:"authorityAfter"`
	Phase    string        `json:"phase,omitempty"`
	Seconds  float64       `json:"seconds"`
	Rest     []drillLoad   `json:"rest"`
	During   []drillLoad   `json:"during"`
	Timeline []drillMoment `json:"timeline"`
}

// drillLoad is what the application of one data centre saw.
type drillLoad struct {
	Datacenter  string `json:"datacenter"`
	Queries     uint64 `json:"queries"`
	Connections uint64 `json:"connections"`
	// Failed counts errors of queries and connections, and the reads that did not give what was written (Wrong).
	Failed    uint64            `json:"failed"`
	Wrong     uint64            `json:"wrong"`
	P99Millis float64           `json:"p99Millis"`
	Errors    map[string]uint64 `json:"errors,omitempty"`
}

type drillMoment struct {
	Time time.Time `json:"time"`
	What string    `json:"what"`
}

func (r drillReport) failed() (n uint64) {
	for _, l := range r.During {
		n += l.Failed
	}
	return n
}

func (r drillReport) table() *ui.Table {
	t := &ui.Table{Columns: []ui.Column{{Name: "DATACENTER"}, {Name: "WHEN"}, {Name: "QUERIES"}, {Name: "CONNECTIONS"}, {Name: "FAILED"}, {Name: "P99"}}}
	for _, part := range []struct {
		when  string
		loads []drillLoad
	}{{"at rest", r.Rest}, {"during", r.During}} {
		for _, l := range part.loads {
			t.Add(l.Datacenter, part.when, fmt.Sprint(l.Queries), fmt.Sprint(l.Connections), fmt.Sprint(l.Failed), fmt.Sprintf("%.1f ms", l.P99Millis))
		}
	}
	return t
}
