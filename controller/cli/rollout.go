package cli

import (
	"encoding/json"
	"fmt"
	"net/http"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/cassandra-security-manager/csm/controller/cli/ringview"
	ui "github.com/cassandra-security-manager/csm/shared/cli"
	"github.com/cassandra-security-manager/csm/shared/fault"
	"github.com/cassandra-security-manager/csm/shared/resource"
)

func (a *app) rolloutCommand() *cobra.Command {
	c := group("rollout", "Change many nodes, wave by wave", a.rolloutPlan(), a.rolloutStart(), a.rolloutStatus(), a.rolloutExplain(), a.rolloutList(),
		a.rolloutVerb("pause", "Let no further node begin; what is on the move ends", "  csm rollout pause --reason 'pager went off'", "no further node begins", "what is on the move ends"),
		a.rolloutVerb("resume", "Let a paused or halted rollout go on; what failed is tried again", "  csm rollout resume --reason 'disk of n3 is replaced' --wait", "further nodes begin as the plan says", "nodes that failed are tried again"),
		a.rolloutVerb("abort", "End a rollout: what has not begun is taken back, what moved stays", "  csm rollout abort renew-1841 --reason 'wrong window' --yes", "what has not begun is taken back", "what moved keeps its new certificate"),
		a.rolloutVerb("rollback", "Take a rollout back: nodes that moved get a leaf of the authority from before", "  csm rollout rollback renew-1841 --reason 'clients complain' --wait",
			"what has not begun is taken back", "the nodes that moved move once more, in reverse order: a new key and leaf of the authority that signed before; keys of before are not used again"))
	c.Example = "  csm rollout plan -c prod-eu\n  csm rollout start -c prod-eu --plan HASH --reason 'yearly' --wait\n  csm rollout explain"
	return c
}

// rolloutFlags are what a plan is made of.
type rolloutFlags struct {
	kind, at, bake                               string
	nodes, windows, blackouts                    []string
	width, canary, maxUnavailable, failureBudget int
}

func (f *rolloutFlags) add(c *cobra.Command) {
	fs := c.Flags()
	fs.StringVar(&f.kind, "kind", "renew", "what the nodes do: renew (trust, leaf and shrink are steps of a rotation)")
	fs.StringSliceVar(&f.nodes, "node", nil, "only these nodes, by short name (default all)")
	fs.IntVar(&f.width, "width", 0, "nodes of a wave that may be on the move at once (default 1)")
	fs.IntVar(&f.canary, "canary", 1, "nodes that go first")
	fs.StringVar(&f.bake, "bake", "1m", "rest between waves")
	fs.IntVar(&f.maxUnavailable, "max-unavailable", 0, "members of the ring that may be down or unproved while further nodes begin")
	fs.IntVar(&f.failureBudget, "failure-budget", 0, "failed nodes that do not halt it")
	fs.StringArrayVar(&f.windows, "window", nil, "nodes begin only then, UTC: 'Mon-Fri 01:00-05:00'")
	fs.StringArrayVar(&f.blackouts, "blackout", nil, "no node begins then: '2026-12-24T00:00:00Z/2026-12-27T00:00:00Z'")
	fs.StringVar(&f.at, "at", "", "no node begins before, RFC 3339")
	_ = c.RegisterFlagCompletionFunc("kind", cobra.FixedCompletions([]string{"renew"}, cobra.ShellCompDirectiveNoFileComp))
}

func (f *rolloutFlags) body() (map[string]any, error) {
	b := map[string]any{"kind": f.kind, "nodes": f.nodes, "width": f.width, "canary": f.canary, "bake": f.bake, "maxUnavailable": f.maxUnavailable,
		"failureBudget": f.failureBudget, "windows": f.windows, "blackouts": f.blackouts}
	if f.at != "" {
		t, err := time.Parse(time.RFC3339, f.at)
		if err != nil {
			return nil, fault.New(fault.Invalid, "bad-time", "--at %.40q is no time", f.at).Do("write it like 2026-12-01T02:00:00Z")
		}
		b["startTime"] = t.UTC()
	}
	for k, v := range b {
		if s, ok := v.([]string); ok && s == nil {
			delete(b, k)
		}
	}
	return b, nil
}

// again is the command line that starts the plan: the flags that were given, and the hash.
func again(c *cobra.Command, cluster, hash string) string {
	out := "csm rollout start -c " + resource.Last(cluster)
	for _, name := range []string{"kind", "node", "width", "canary", "bake", "max-unavailable", "failure-budget", "window", "blackout", "at"} {
		f := c.Flags().Lookup(name)
		if f == nil || !f.Changed {
			continue
		}
		values := []string{f.Value.String()}
		if several, ok := f.Value.(pflag.SliceValue); ok {
			values = several.GetSlice()
		}
		for _, v := range values {
			if strings.Contains(v, " ") {
				v = "'" + v + "'"
			}
			out += " --" + name + " " + v
		}
	}
	return out + " --reason '…' --plan " + hash
}

type planView struct {
	Cluster, Kind, PlanHash string
	Seconds                 float64
	EndTime                 time.Time
	Width, FailureBudget    int
	Waves                   []waveView
	Left                    []struct{ Node, Why string }
	Now                     []awaitView
}

type waveView struct {
	Title, Why, State string
	Nodes             []rolloutNodeView
}

type rolloutNodeView struct {
	Node, Datacenter, Rack, Phase, Detail string
	Stores                                []string
	Since                                 time.Time
}

type awaitView struct {
	Code, Node, Message, Remedy string
	Since, Until                time.Time
}

type rolloutView struct {
	Name, State, Note, PlanHash, Reason, Creator, Next, ETag string
	Spec                                                     struct{ Cluster, Kind, Owner string }
	Back                                                     bool
	Failures                                                 int
	Waves                                                    []waveView
	Awaits                                                   []awaitView
	AwaitsSince, CreateTime, StateTime, EndTime              time.Time
	ExpectedEnd                                              time.Time `json:"expectedEndTime"`
	Revision                                                 uint64
}

func (s *session) planRollout(f *rolloutFlags) (p planView, raw json.RawMessage, cluster string, body map[string]any, err error) {
	if cluster, err = s.clusterName(""); err != nil {
		return
	}
	if body, err = f.body(); err != nil {
		return
	}
	ctx, cancel := s.Global.Context(s.cmd.Context())
	defer cancel()
	ans, err := s.client.do(ctx, call{method: http.MethodPost, path: "/v1/" + cluster + "/rollouts:plan", body: body})
	if err != nil {
		return
	}
	return p, ans.body, cluster, body, decode(ans.body, &p)
}

func (a *app) rolloutPlan() *cobra.Command {
	f := &rolloutFlags{}
	c := &cobra.Command{Use: "plan", Short: "Show which node would go in which wave, why, and how long it takes", Args: cobra.NoArgs,
		Long: "Nothing is changed or kept. The plan's hash is what `csm rollout start` takes: it covers nodes, stores, waves and all figures, and dies\n" +
			"with what it was made for (exit code 6 at start).",
		Example: "  csm rollout plan -c prod-eu\n  csm rollout plan -c prod-eu --window 'Mon-Fri 01:00-05:00' --bake 10m --failure-budget 2"}
	f.add(c)
	return a.run(c, func(s *session, _ []string) error {
		p, raw, cluster, _, err := s.planRollout(f)
		if err != nil {
			return err
		}
		return s.Print(ui.View{Object: raw, Text: planText(p, s.Now(), again(c, cluster, p.PlanHash[:16]))})
	})
}

// shownReasons is how many things that would hold a plan are told line by line: a large ring that starts has hundreds.
const shownReasons = 12

func planText(p planView, now time.Time, start string) string {
	var b strings.Builder
	nodes := 0
	for _, w := range p.Waves {
		nodes += len(w.Nodes)
	}
	fmt.Fprintf(&b, "%s of %d nodes of %s in %d waves, %d at once; about %s, until %s if nothing holds it\n", p.Kind, nodes, resource.Last(p.Cluster), len(p.Waves), p.Width,
		ui.Span(time.Duration(p.Seconds*float64(time.Second))), p.EndTime.UTC().Format("2006-01-02 15:04 UTC"))
	for i, w := range p.Waves {
		fmt.Fprintf(&b, "wave %d  %s: %s\n", i+1, w.Title, w.Why)
		for _, n := range w.Nodes {
			fmt.Fprintf(&b, "  %-20s %-16s %s\n", short(n.Node), strings.Trim(n.Datacenter+"/"+n.Rack, "/"), strings.Join(n.Stores, ", "))
		}
	}
	for _, l := range p.Left {
		fmt.Fprintf(&b, "not:    %s: %s\n", short(l.Node), l.Why)
	}
	for i, r := range p.Now {
		if i == shownReasons {
			fmt.Fprintf(&b, "now:    and for %d more reasons, see -o json\n", len(p.Now)-i)
			break
		}
		fmt.Fprintf(&b, "now:    it would wait: %s\n", r.Message)
	}
	fmt.Fprintf(&b, "plan %s\nto do it: %s\n", p.PlanHash[:16], start)
	return b.String()
}

func (a *app) rolloutStart() *cobra.Command {
	f := &rolloutFlags{}
	c := &cobra.Command{Use: "start", Short: "Begin the rollout of a plan", Args: cobra.NoArgs,
		Long: "Takes the flags that the plan was made with, and its hash. Exit code 6 when the plan would be another by now, 3 when a rollout runs on\n" +
			"this ring. --wait shows it until its end: 0 done, 1 halted, aborted or rolled back, 8 done but for nodes that failed, 9 when it is paused or --timeout ended first.\n" +
			"What was started goes on when csm ends.",
		Example: "  csm rollout start -c prod-eu --plan 8c1f0e5a99d0b3c7 --reason 'yearly renewal' --wait"}
	f.add(c)
	return a.run(c, func(s *session, _ []string) error {
		if err := s.needReason(); err != nil {
			return err
		}
		p, _, cluster, body, err := s.planRollout(f)
		if err != nil {
			return err
		}
		switch {
		case s.plan == "":
			return fault.New(fault.Refused, "plan-needed", "a rollout needs the hash of its plan").Do("look at it with `csm rollout plan`, then %s", again(c, cluster, "HASH"))
		case len(s.plan) < 12 || !strings.HasPrefix(p.PlanHash, s.plan):
			return fault.New(fault.Stale, "plan-hash", "the plan %s is not what would be done now (%s)", s.plan, p.PlanHash[:16]).Do("look at it again with `csm rollout plan`")
		}
		body["planHash"], body["reason"] = p.PlanHash, s.reason
		ans, err := s.post(cluster+"/rollouts:start", body)
		if err != nil || s.dryRun {
			return err
		}
		return s.afterRollout(ans.body, "done")
	})
}

// afterRollout prints a rollout, or follows it with --wait; want is the state that it is to come to.
func (s *session) afterRollout(raw json.RawMessage, want string) error {
	var r rolloutView
	if err := decode(raw, &r); err != nil {
		return err
	}
	if s.wait {
		return s.followRollout(r, raw, want)
	}
	return s.Print(ui.View{Object: raw, Text: pictureText(r.picture(), s.Now()), Name: func(any) string { return r.Name }})
}

func (a *app) rolloutStatus() *cobra.Command {
	c := &cobra.Command{Use: "status [ROLLOUT]", Short: "Show a rollout: the ring by racks, each node's phase, what it waits for", Args: cobra.MaximumNArgs(1), ValidArgsFunction: a.completeWith(a.rolloutNames),
		Long:    "Without a name: the newest of the cluster. --wait shows it live until it ends (see csm rollout start for exit codes).",
		Example: "  csm rollout status\n  csm rollout status renew-1841 --wait --timeout 2h\n  csm rollout status -o json | jq '.awaits'"}
	return a.run(c, func(s *session, args []string) error {
		_, raw, err := s.rollout(args)
		if err != nil {
			return err
		}
		return s.afterRollout(raw, "done")
	})
}

func (a *app) rolloutExplain() *cobra.Command {
	c := &cobra.Command{Use: "explain [ROLLOUT]", Short: "Say what a rollout waits for, since when, and what to do about it", Args: cobra.MaximumNArgs(1), ValidArgsFunction: a.completeWith(a.rolloutNames),
		Example: "  csm rollout explain\n  csm rollout explain renew-1841 -o json"}
	return a.run(c, func(s *session, args []string) error {
		r, _, err := s.rollout(args)
		if err != nil {
			return err
		}
		ans, err := s.get(r.Name+":explain", nil)
		if err != nil {
			return err
		}
		return s.Print(ui.View{Object: ans.body, Text: explainText(r, s.Now())})
	})
}

func explainText(r rolloutView, now time.Time) string {
	var b strings.Builder
	fmt.Fprintf(&b, "%s is %s since %s", short(r.Name), r.State, ui.Ago(now, r.StateTime))
	if r.Note != "" {
		b.WriteString(": " + r.Note)
	}
	b.WriteString("\n")
	b.WriteString(linesText(ringview.WaitLines(r.waits(), now, 0)))
	if r.Next != "" {
		fmt.Fprintf(&b, "next:  %s\n", r.Next)
	}
	return b.String()
}

func (a *app) rolloutList() *cobra.Command {
	c := &cobra.Command{Use: "list", Short: "List the rollouts of a cluster, or of all", Args: cobra.NoArgs, Example: "  csm rollout list\n  csm rollout list -c prod-eu -o json"}
	return a.run(c, func(s *session, _ []string) error {
		cluster := s.tenantName() + "/clusters/-"
		if s.ctx.Cluster != "" {
			var err error
			if cluster, err = s.clusterName(""); err != nil {
				return err
			}
		}
		items, raws, doc, err := list[rolloutView](s, cluster+"/rollouts", nil, 0)
		if err != nil {
			return err
		}
		t := &ui.Table{Columns: []ui.Column{{Name: "ROLLOUT"}, {Name: "CLUSTER"}, {Name: "STATE", Style: stateStyle}, {Name: "PROVED"}, {Name: "FAILED"}, {Name: "BEGAN"}, {Name: "NOTE"}}}
		for _, r := range items {
			n := r.phases()
			t.Add(short(r.Name), resource.Last(r.Spec.Cluster), r.State, fmt.Sprintf("%d/%d", n["proved"], n["all"]), fmt.Sprint(n["failed"]), s.ago(r.CreateTime), r.Note)
		}
		return s.Print(ui.View{Object: doc, Items: raws, Table: t})
	})
}

func (r rolloutView) phases() map[string]int {
	n := map[string]int{}
	for _, w := range r.Waves {
		for _, x := range w.Nodes {
			n[x.Phase]++
			n["all"]++
		}
	}
	return n
}

func (a *app) rolloutVerb(verb, summary, example string, effects ...string) *cobra.Command {
	c := &cobra.Command{Use: verb + " [ROLLOUT]", Short: summary, Args: cobra.MaximumNArgs(1), ValidArgsFunction: a.completeWith(a.rolloutNames), Example: example,
		Long: "Without a name: the newest of the cluster."}
	return a.run(c, func(s *session, args []string) error {
		if err := s.needReason(); err != nil {
			return err
		}
		r, _, err := s.rollout(args)
		if err != nil {
			return err
		}
		if verb != "pause" { // whoever wants it to stop is not asked
			if err := s.confirm(change{verb: verb, name: r.Name, etag: r.ETag, effects: effects}); err != nil {
				return err
			}
		}
		ans, err := s.post(r.Name+":"+verb, map[string]any{"reason": s.reason})
		if err != nil || s.dryRun {
			return err
		}
		return s.afterRollout(ans.body, map[string]string{"abort": "aborted", "rollback": "rolled-back"}[verb])
	})
}

// rollout reads the one that is named, or the newest of the cluster.
func (s *session) rollout(args []string) (r rolloutView, raw json.RawMessage, err error) {
	if len(args) > 0 && strings.HasPrefix(args[0], "tenants/") {
		return read[rolloutView](s, args[0], nil)
	}
	cluster, err := s.clusterName("")
	if err != nil {
		return r, nil, err
	}
	if len(args) > 0 {
		return read[rolloutView](s, cluster+"/rollouts/"+args[0], nil)
	}
	items, _, _, err := list[rolloutView](s, cluster+"/rollouts", nil, 0)
	if err != nil {
		return r, nil, err
	}
	for _, x := range items {
		if r.Name == "" || x.CreateTime.After(r.CreateTime) {
			r = x
		}
	}
	if r.Name == "" {
		return r, nil, fault.New(fault.NotFound, "no-rollout", "%s has had no rollout", resource.Last(cluster)).Do("plan one with `csm rollout plan -c %s`", resource.Last(cluster))
	}
	return read[rolloutView](s, r.Name, nil)
}

func (a *app) rolloutNames(cmd *cobra.Command) []string {
	return a.offered(cmd, func(s *session) string {
		cluster, err := s.clusterName("")
		if err != nil {
			cluster = s.tenantName() + "/clusters/-"
		}
		return cluster + "/rollouts"
	}, resource.Last)
}
