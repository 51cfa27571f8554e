package cli

import (
	"encoding/json"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	ui "github.com/cassandra-security-manager/csm/shared/cli"
	"github.com/cassandra-security-manager/csm/shared/fault"
	"github.com/cassandra-security-manager/csm/shared/resource"
)

func (a *app) rotationCommand() *cobra.Command {
	c := group("rotation", "Change the CA under a living ring, proved at each step", a.rotationPlan(), a.rotationStart(), a.rotationStatus(), a.rotationExplain(), a.rotationList(),
		a.rotationVerb("pause", "Let no further node begin; what is on the move ends", "  csm rotation pause -c prod-eu --reason 'pager went off'", "no further node begins", "what is on the move ends"),
		a.rotationVerb("resume", "Let a paused or halted rotation go on", "  csm rotation resume -c prod-eu --reason 'disk of n3 is replaced' --wait", "further nodes begin when the gates hold", "nodes that failed are tried again"),
		a.rotationVerb("rollback", "Turn round: leaves of the CA before again, then the new anchors go", "  csm rotation rollback -c prod-eu --reason 'clients complain' --wait",
			"nodes that serve a leaf of the new CA get one of the CA before, wave by wave", "when all are proved, the new anchors go", "keys of before are not used again"),
		a.rotationSetAside(), a.rotationRetire())
	c.Example = "  csm rotation plan -c prod-eu --to root-2027\n  csm rotation start -c prod-eu --to root-2027 --plan HASH --reason 'yearly' --wait\n  csm rotation explain -c prod-eu\n" +
		"  csm rotation retire -c prod-eu --dry-run\n  csm rotation retire -c prod-eu --plan HASH --reason 'all clients have the new root' --wait\n" +
		"  csm rotation plan --system\n  csm rotation start --system --plan HASH --reason 'yearly' --wait"
	c.PersistentFlags().BoolVar(&a.system, "system", false, "the root of the system CA, which signs identities of controllers, agents and administrators")
	return c
}

type rotationReason struct {
	Code, Node, Message, Remedy string
	Since                       time.Time
	// atLeast: it held already at that time.
	atLeast bool
}

type rotationPlanView struct {
	Cluster, Kind, AuthorityBefore, AuthorityAfter, Hash string
	AddSha256, WithdrawSha256, Phases, Notes             []string
	Emergency                                            bool
	Relaxed                                              []struct {
		Code, GivesUp, Risk string
		Who                 []string
	}
	Members         []rotationMember
	Clients         []rotationClient
	Holds, Blockers []rotationReason
}

type rotationMember struct {
	Name, Node, HostID, State, SetAside, Datacenter, Rack string

	Incarnation uint64
	Up          bool
	Unprovable  []string
	Stores      []rotationStore
}

type rotationStore struct {
	Name, Leaf       string
	Moving, Behind   bool
	Trusts, Unproved []string
}

type rotationClient struct {
	Name, Detail string
	Named        bool
}

type rotationView struct {
	Emergency                                                                                       bool
	Name, Cluster, Kind, Phase, State, AuthorityBefore, AuthorityAfter, Rollout, Reason, Next, ETag string
	CreateTime, PhaseTime, EndTime                                                                  time.Time
	Relaxed                                                                                         []string
	Reasons, WayBack                                                                                []rotationReason
	// Of a rotation of the system CA.
	Controllers, Administrators []identityView
	Agents                      agentsTally
	Members                     []rotationMember
	Timeline                    []struct {
		Time                  time.Time
		Phase, Message, Actor string
	}
}

// rotations is the collection of a cluster's rotations.
func (s *session) rotations() (string, error) {
	if s.system {
		return systemRotations, nil
	}
	name, err := s.trustName("")
	return name + "/rotations", err
}

func (a *app) rotationNames(cmd *cobra.Command) []string {
	return a.offered(cmd, func(s *session) string { c, _ := s.rotations(); return c }, resource.Last)
}

// rotation finds a rotation by its id or full name; the newest of the cluster when none is named.
func (s *session) rotation(args []string) (r rotationView, raw json.RawMessage, err error) {
	name := first(args)
	if !strings.HasPrefix(name, "tenants/") && !strings.HasPrefix(name, systemRotations+"/") {
		c, err := s.rotations()
		if err != nil {
			return r, nil, err
		}
		if name == "" {
			items, _, _, err := list[rotationView](s, c, nil, 0)
			if err != nil {
				return r, nil, err
			}
			for _, x := range items {
				if name == "" || x.CreateTime.After(r.CreateTime) {
					name, r = resource.Last(x.Name), x
				}
			}
			if name == "" {
				return r, nil, fault.New(fault.NotFound, "no-rotation", "%s has no rotation", resource.Last(resource.Parent(c))).Do("make one: `csm rotation plan%s`", s.systemFlag())
			}
		}
		name = c + "/" + name
	}
	return read[rotationView](s, name, nil)
}

// rotationAsk is what plan and start ask for.
type rotationAsk struct {
	to        string
	emergency bool
	keep      []string
}

func (q rotationAsk) body(s *session) map[string]any {
	b := map[string]any{"authority": s.authorityName(q.to)}
	if q.emergency || len(q.keep) > 0 {
		b["emergency"], b["keep"] = q.emergency, append([]string{}, q.keep...)
	}
	return b
}

// words are the flags again, for the command that does what a plan says.
func (q rotationAsk) words() string {
	out := "--to " + q.to
	if q.emergency {
		out += " --emergency"
	}
	if len(q.keep) > 0 {
		out += " --keep " + strings.Join(q.keep, ",")
	}
	return out
}

func (s *session) planRotation(q rotationAsk) (p rotationPlanView, raw json.RawMessage, base string, err error) {
	if base, err = s.rotations(); err != nil {
		return
	}
	if q.to == "" {
		err = fault.New(fault.Invalid, "no-authority", "no authority is named").Do("add --to AUTHORITY: `csm ca list`")
		return
	}
	err = s.ask(base+":plan", q.body(s), &raw, &p)
	return
}

// ask posts a question that changes nothing, with and without --dry-run.
func (s *session) ask(path string, body any, raw *json.RawMessage, v any) error {
	ctx, cancel := s.Global.Context(s.cmd.Context())
	defer cancel()
	ans, err := s.client.do(ctx, call{method: http.MethodPost, path: "/v1/" + path, body: body})
	if err != nil {
		return err
	}
	*raw = ans.body
	return decode(ans.body, v)
}

func (a *app) rotationPlan() *cobra.Command {
	var q rotationAsk
	c := &cobra.Command{Use: "plan", Short: "Show what a rotation would do, who would break, and what cannot be proved", Args: cobra.NoArgs,
		Long:    "Nothing is changed or kept. Exit code 0 when it could start, 3 when it would be refused. The plan's hash is what `csm rotation start` takes.",
		Example: "  csm ca create root-2027 --region eu-west\n  csm rotation plan -c prod-eu --to root-2027\n  csm rotation plan -c prod-eu --to root-2027 --emergency"}
	a.rotationTo(c, &q)
	return a.run(c, func(s *session, _ []string) error {
		if s.system {
			return s.showSystemPlan(q)
		}
		p, raw, _, err := s.planRotation(q)
		if err != nil {
			return err
		}
		if err := s.Print(ui.View{Object: raw, Text: p.text(q)}); err != nil || len(p.Blockers) == 0 {
			return err
		}
		return fault.New(fault.Refused, "rotation-blocked", "it would be refused: %s", p.Blockers[0].Message).Do("%s", p.Blockers[0].Remedy)
	})
}

func (a *app) rotationTo(c *cobra.Command, q *rotationAsk) {
	c.Flags().StringVar(&q.to, "to", "", "authority that signs from then on")
	c.Flags().BoolVar(&q.emergency, "emergency", false, "the key of the old CA may be in other hands: give up what the plan lists, withdraw it without a person")
	c.Flags().StringSliceVar(&q.keep, "keep", nil, "with --emergency, what is not given up: width, canary, seen, by-hand")
	_ = c.RegisterFlagCompletionFunc("keep", cobra.FixedCompletions([]string{"width", "canary", "seen", "by-hand"}, cobra.ShellCompDirectiveNoFileComp))
	_ = c.RegisterFlagCompletionFunc("to", func(cmd *cobra.Command, _ []string, _ string) ([]string, cobra.ShellCompDirective) {
		return a.authorityNames(cmd), cobra.ShellCompDirectiveNoFileComp
	})
}

func (p rotationPlanView) text(q rotationAsk) string {
	out := p.about() + fmt.Sprintf("plan %s\n", p.Hash[:16])
	if len(p.Blockers) == 0 {
		out += fmt.Sprintf("to do it: csm rotation start -c %s %s --reason '…' --plan %s\n", resource.Last(p.Cluster), q.words(), p.Hash[:16])
	}
	return out
}

// about says what it would do, without how to do it.
func (p rotationPlanView) about() string {
	var b strings.Builder
	if p.Emergency {
		b.WriteString("EMERGENCY: ")
	}
	fmt.Fprintf(&b, "%s of %s: from %s to %s; %d members\n", p.Kind, resource.Last(p.Cluster), resource.Last(p.AuthorityBefore), resource.Last(p.AuthorityAfter), len(p.Members))
	for _, x := range p.Phases {
		fmt.Fprintf(&b, "  %s\n", x)
	}
	for _, x := range p.Relaxed {
		fmt.Fprintf(&b, "gives up: %s  [%s]\n  risk:    %s\n", x.GivesUp, x.Code, x.Risk)
		for _, w := range x.Who {
			fmt.Fprintf(&b, "  who:     %s\n", w)
		}
	}
	for _, m := range p.Members {
		for _, u := range m.Unprovable {
			fmt.Fprintf(&b, "cannot be proved: %s: %s\n", m.Name, u)
		}
	}
	for _, n := range p.Notes {
		fmt.Fprintf(&b, "note:    %s\n", n)
	}
	for _, x := range p.Clients {
		fmt.Fprintf(&b, "client:  %s: %s\n", x.Name, x.Detail)
	}
	b.WriteString(reasonLines("holds", p.Holds))
	b.WriteString(reasonLines("refused", p.Blockers))
	return b.String()
}

func reasonLines(what string, reasons []rotationReason) string {
	var b strings.Builder
	for _, r := range reasons {
		who := r.Node
		if who != "" {
			who += " "
		}
		fmt.Fprintf(&b, "%-8s %s%s  [%s]\n", what+":", who, r.Message, r.Code)
		if r.Remedy != "" {
			fmt.Fprintf(&b, "  do:    %s\n", r.Remedy)
		}
	}
	return b.String()
}

// planned compares the hash that was given with that of the plan of now.
func (s *session) planned(hash, look string) error {
	switch {
	case s.plan == "":
		return fault.New(fault.Refused, "plan-needed", "this needs the hash of its plan").Do("look at it with `%s`, then give --plan HASH", look)
	case len(s.plan) < 12 || !strings.HasPrefix(hash, s.plan):
		return fault.New(fault.Stale, "plan-hash", "the plan %s is not what would be done now (%.16s)", s.plan, hash).Do("look at it again with `%s`", look)
	}
	return nil
}

func (a *app) rotationStart() *cobra.Command {
	var q rotationAsk
	var bake string
	var except []string
	c := &cobra.Command{Use: "start", Short: "Begin the rotation of a plan", Args: cobra.NoArgs,
		Long: "Exit code 6 when the plan would be another by now, 3 when it is refused. --wait shows it until a person is needed or it ends: 0 waiting for the\n" +
			"retire, or done; 1 halted or rolled back; 9 when it is paused or --timeout ended first. What was started goes on when csm ends.",
		Example: "  csm rotation start -c prod-eu --to root-2027 --plan 8c1f0e5a99d0b3c7 --reason 'yearly' --wait --timeout 4h\n" +
			"  csm rotation start -c prod-eu --to root-2027 --emergency --keep by-hand --plan 51bb20d1c6a7e904 --reason 'INC-4711' --wait"}
	a.rotationTo(c, &q)
	c.Flags().StringVar(&bake, "bake", "", "rest between two waves (default 1m, with --emergency none)")
	c.Flags().StringSliceVar(&except, "except", nil, "clients that may break, as the plan names them")
	return a.run(c, func(s *session, _ []string) error {
		if err := s.needReason(); err != nil {
			return err
		}
		if s.system {
			return s.startSystem(q, bake, except)
		}
		p, _, base, err := s.planRotation(q)
		if err != nil {
			return err
		}
		if err := s.planned(p.Hash, "csm rotation plan"); err != nil {
			return err
		}
		body := q.body(s)
		body["planHash"], body["bake"], body["reason"], body["except"] = p.Hash, bake, s.reason, append([]string{}, except...)
		ans, err := s.post(base, body)
		if err != nil || s.dryRun {
			return err
		}
		return s.afterRotation(ans.body, "done")
	})
}

func (a *app) rotationStatus() *cobra.Command {
	c := &cobra.Command{Use: "status [ROTATION]", Short: "Show a rotation: its phase, each member, what it waits for", Args: cobra.MaximumNArgs(1), ValidArgsFunction: a.completeWith(a.rotationNames),
		Long:    "Without a name: the newest of the cluster. --wait shows it live until a person is needed or it ends (see csm rotation start for exit codes).",
		Example: "  csm rotation status -c prod-eu\n  csm rotation status -c prod-eu --wait --timeout 2h\n  csm rotation status -c prod-eu -o json | jq '.reasons'"}
	return a.run(c, func(s *session, args []string) error {
		_, raw, err := s.rotation(args)
		if err != nil {
			return err
		}
		return s.afterRotation(raw, "done")
	})
}

// afterRotation prints a rotation, or follows it with --wait; want is the phase that it is to come to.
func (s *session) afterRotation(raw json.RawMessage, want string) error {
	var r rotationView
	if err := decode(raw, &r); err != nil {
		return err
	}
	if s.wait {
		return s.followRotation(r, raw, want)
	}
	return s.Print(ui.View{Object: raw, Text: r.text(s.Now()), Name: func(any) string { return r.Name }})
}

// needsAPerson says whether nothing goes on before somebody retires it, or says what becomes of the applications that hold an emergency.
func (r rotationView) needsAPerson() bool {
	return r.Phase == "reissued" && (!slices.Contains(r.Relaxed, "by-hand") || slices.ContainsFunc(r.Reasons, func(x rotationReason) bool { return x.Code == "clients" }))
}

// text is the picture, with what is proved of each store.
func (r rotationView) text(now time.Time) string {
	var b strings.Builder
	b.WriteString(pictureText(r.picture(nil), now))
	b.WriteString(r.identities())
	for _, m := range r.Members {
		for _, st := range m.Stores {
			where := m.State
			if !m.Up {
				where = "down"
			}
			if m.SetAside != "" {
				where += ", set aside"
			}
			fmt.Fprintf(&b, "  %-16s %-8s %-10s leaf %-8s trusts new CA on %d of %d ports\n", m.Name, st.Name, where, st.Leaf, len(st.Trusts), len(st.Trusts)+len(st.Unproved))
		}
	}
	return b.String()
}

func (a *app) rotationExplain() *cobra.Command {
	c := &cobra.Command{Use: "explain [ROTATION]", Short: "Say what a rotation waits for, what to do about it, and what has happened", Args: cobra.MaximumNArgs(1), ValidArgsFunction: a.completeWith(a.rotationNames),
		Example: "  csm rotation explain -c prod-eu\n  csm rotation explain -c prod-eu -o json"}
	return a.run(c, func(s *session, args []string) error {
		r, raw, err := s.rotation(args)
		if err != nil {
			return err
		}
		text := r.text(s.Now()) + reasonLines("no way back", r.WayBack)
		for _, e := range r.Timeline {
			text += fmt.Sprintf("%s  %-15s %s\n", e.Time.UTC().Format("2006-01-02 15:04:05"), e.Phase, e.Message)
		}
		return s.Print(ui.View{Object: raw, Text: text})
	})
}

func (a *app) rotationList() *cobra.Command {
	c := &cobra.Command{Use: "list", Short: "List the rotations of a cluster", Args: cobra.NoArgs, Example: "  csm rotation list -c prod-eu\n  csm rotation list -c prod-eu -o json"}
	return a.run(c, func(s *session, _ []string) error {
		base, err := s.rotations()
		if err != nil {
			return err
		}
		items, raws, doc, err := list[rotationView](s, base, nil, 0)
		if err != nil {
			return err
		}
		t := &ui.Table{Columns: []ui.Column{{Name: "ROTATION"}, {Name: "KIND"}, {Name: "PHASE"}, {Name: "STATE", Style: stateStyle}, {Name: "FROM"}, {Name: "TO"}, {Name: "BEGAN"}, {Name: "REASON"}}}
		for _, r := range items {
			t.Add(resource.Last(r.Name), r.Kind, r.Phase, r.State, resource.Last(r.AuthorityBefore), resource.Last(r.AuthorityAfter), s.ago(r.CreateTime), r.Reason)
		}
		return s.Print(ui.View{Object: doc, Items: raws, Table: t})
	})
}

func (a *app) rotationVerb(verb, summary, example string, effects ...string) *cobra.Command {
	c := &cobra.Command{Use: verb + " [ROTATION]", Short: summary, Args: cobra.MaximumNArgs(1), ValidArgsFunction: a.completeWith(a.rotationNames), Example: example,
		Long: "Without a name: the newest of the cluster."}
	except := []string{}
	switch verb {
	case "resume":
		c.Long += " --except names clients that are not waited for any more; the reason holds for them."
		c.Flags().StringSliceVar(&except, "except", nil, "clients that are not waited for any more, as the reasons name them")
	case "rollback":
		c.Long += " A take-over goes back to the certificates that the agents kept: `csm rotation explain` says before what is in the way. --except leaf-NODE\n" +
			"lets a node keep the certificate of ours, which all trust."
		c.Flags().StringSliceVar(&except, "except", nil, "leaf-NODE: nodes that keep the certificate of ours, as the reasons name them")
	}
	return a.run(c, func(s *session, args []string) error {
		if err := s.needReason(); err != nil {
			return err
		}
		r, _, err := s.rotation(args)
		if err != nil {
			return err
		}
		if verb != "pause" { // whoever wants it to stop is not asked
			if s.system {
				effects = systemEffects[verb]
			}
			if err := s.confirm(change{verb: verb, name: r.Name, etag: r.ETag, effects: effects}); err != nil {
				return err
			}
		}
		ans, err := s.post(r.Name+":"+verb, map[string]any{"reason": s.reason, "except": s.named(except)})
		if err != nil || s.dryRun {
			return err
		}
		want := "done"
		if verb == "rollback" {
			want = "rolled-back"
		}
		return s.afterRotation(ans.body, want)
	})
}
