package cli

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	ui "github.com/cassandra-security-manager/csm/shared/cli"
	"github.com/cassandra-security-manager/csm/shared/fault"
)

// reissued is one node in the report of an emergency.
type reissued struct {
	Node    string `json:"node"`
	Result  string `json:"result"`
	Detail  string `json:"detail,omitempty"`
	Seconds int    `json:"seconds,omitempty"`
}

func (a *app) emergencyReissue() *cobra.Command {
	var each time.Duration
	c := &cobra.Command{Use: "reissue", Short: "New certificates for every node of a cluster, one after the other, without bake time", Args: cobra.NoArgs,
		Long: "Each node of the cluster makes a new key, takes a certificate, installs and reloads it and is proved by a neighbour; then the next one begins, at\n" +
			"once. What ends first goes first. Proofs, freezes, HOLD and rollback stay as they are. The first node that fails ends it: the rest keep what\n" +
			"they have. Run again, it goes on with those that are still old. No node is restarted, and none should be.\n" +
			"Exit code 0 when all are proved, 8 when some were left out or one failed.",
		Example: "  csm emergency reissue -c prod-eu --reason 'INC-4711' --dry-run\n  csm emergency reissue -c prod-eu --reason 'INC-4711' --plan HASH"}
	c.Flags().DurationVar(&each, "each", 10*time.Minute, "how long one node may take")
	return a.run(c, func(s *session, _ []string) error {
		cluster, err := s.clusterName("")
		if err != nil {
			return err
		}
		if err := s.needReason(); err != nil {
			return err
		}
		nodes, _, _, err := list[nodeView](s, cluster+"/nodes", nil, 0)
		if err != nil {
			return err
		}
		able, left := reissuePlan(nodes)
		p := change{verb: "reissue", name: cluster, etag: planOf(able), grave: true}
		for _, n := range able {
			_, end := n.worstStore()
			p.effects = append(p.effects, fmt.Sprintf("%s takes new certificates (the first of the old ones ends %s)", short(n.Name), s.at(end)))
		}
		for _, l := range left {
			p.effects = append(p.effects, fmt.Sprintf("%s is left out: %s", l.Node, l.Detail))
		}
		if err := s.confirm(p); err != nil || s.dryRun {
			return err
		}
		s.Timeout = each
		return s.reportReissue(append(s.reissue(able), left...))
	})
}

// reissuePlan puts those whose certificate ends first at the front and leaves out who cannot move. Pure.
func reissuePlan(nodes []nodeView) (able []nodeView, left []reissued) {
	for _, n := range nodes {
		if why := cannotMove(n); why != "" {
			left = append(left, reissued{Node: short(n.Name), Result: "left-out", Detail: why})
			continue
		}
		able = append(able, n)
	}
	slices.SortStableFunc(able, func(a, b nodeView) int {
		_, x := a.worstStore()
		_, y := b.worstStore()
		return x.Compare(y)
	})
	return able, left
}

func cannotMove(n nodeView) string {
	switch {
	case n.State != "active":
		return "its agent is " + n.State
	case !n.Agent.Connected:
		return "its agent is not connected: csm-agent doctor on the node"
	case n.Agent.Mode != "manage":
		return "its agent is in mode " + n.Agent.Mode
	case n.Agent.Hold != "":
		return "held: " + n.Agent.Hold
	case n.Frozen != nil:
		return n.Frozen.Scope + " is frozen: " + n.Frozen.Reason
	case len(n.Stores) == 0:
		return "no TLS store is known of it"
	}
	return ""
}

// planOf is what a plan's hash stands for: these nodes in this order, with the certificates that they have now.
func planOf(nodes []nodeView) string {
	var b strings.Builder
	for _, n := range nodes {
		b.WriteString(n.Name)
		for _, st := range n.Stores {
			b.WriteString(" " + st.LeafSha256)
		}
		b.WriteString("\n")
	}
	return b.String()
}

func (s *session) reissue(nodes []nodeView) (out []reissued) {
	failed := ""
	for i, n := range nodes {
		name := short(n.Name)
		if failed != "" {
			out = append(out, reissued{Node: name, Result: "not-begun", Detail: "stopped at " + failed})
			continue
		}
		s.Say("%d of %d: %s", i+1, len(nodes), name)
		began := s.Now()
		err := s.reissueOne(n.Name)
		r := reissued{Node: name, Result: "proved", Seconds: int(s.Now().Sub(began).Seconds())}
		if err != nil {
			r.Result, r.Detail, failed = "failed", fault.From(err).Message, name
		}
		out = append(out, r)
	}
	return out
}

func (s *session) reissueOne(name string) error {
	ans, err := s.post(name+":renew", map[string]any{"reason": "emergency: " + s.reason})
	if err != nil {
		return err
	}
	var r struct {
		Node       nodeView
		Generation uint64
	}
	if err := decode(ans.body, &r); err != nil {
		return err
	}
	_, _, err = s.waitForNode(name, "", r.Node, r.Generation)
	return err
}

func (s *session) reportReissue(all []reissued) error {
	t := &ui.Table{Columns: []ui.Column{{Name: "NODE"}, {Name: "RESULT"}, {Name: "SECONDS", Right: true}, {Name: "DETAIL"}}}
	var items []any
	good := 0
	for _, r := range all {
		t.Add(r.Node, r.Result, fmt.Sprint(r.Seconds), r.Detail)
		items = append(items, r)
		if r.Result == "proved" {
			good++
		}
	}
	if err := s.Print(ui.View{Object: all, Items: items, Table: t, Name: func(i any) string { return i.(reissued).Node }}); err != nil {
		return err
	}
	if good < len(all) {
		return fault.New(fault.Partial, "not-all", "%d of %d nodes have new certificates", good, len(all)).
			Do("put right what DETAIL says (csm why NODE), then run it again: it begins with what ends first. Do NOT restart Cassandra on the others")
	}
	return nil
}

func (a *app) emergencyCommand() *cobra.Command {
	return group("emergency", "When certificates must be new today", a.emergencyReissue())
}
