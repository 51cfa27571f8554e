package cli

import (
	"encoding/json"
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	ui "github.com/cassandra-security-manager/csm/shared/cli"
	"github.com/cassandra-security-manager/csm/shared/fault"
	"github.com/cassandra-security-manager/csm/shared/resource"
)

func (a *app) rotationSetAside() *cobra.Command {
	c := &cobra.Command{Use: "set-aside MEMBER", Short: "Leave a member that is down out of the count, while it is down", Args: cobra.ExactArgs(1), ValidArgsFunction: a.completeWith(a.nodeNames),
		Long: "MEMBER is a node, or the host id of a member that CSM does not know. A member that is up cannot be set aside. While it is\n" +
			"down neither gates nor waves wait for it. When it is up again it counts again, at once and for good: its agent brings its stores up to date, anchors\n" +
			"first and then the leaf, at best before Cassandra starts (csm-agent ensure --before-start).",
		Example: "  csm rotation set-aside prod-eu/n7 --reason 'board is broken, INC-4711' --yes"}
	return a.run(c, func(s *session, args []string) error {
		if err := s.needReason(); err != nil {
			return err
		}
		if s.system {
			return fault.New(fault.Invalid, "not-a-ring", "nobody is set aside in a rotation of the system CA").Do("name agents and administrators with `csm rotation resume --system --except`")
		}
		if c, _, ok := strings.Cut(args[0], "/"); ok && !strings.HasPrefix(args[0], "tenants/") {
			s.ctx.Cluster = c
		}
		r, _, err := s.rotation(nil)
		if err != nil {
			return err
		}
		m, err := r.member(resource.Last(args[0]))
		if err != nil {
			return err
		}
		if err := s.confirm(change{verb: "set-aside", name: args[0], etag: r.ETag, effects: []string{m.Name + " no longer holds the phase while it is down",
			"if it starts with old files it may be cut off from its peers until its agent has brought them up to date"}}); err != nil {
			return err
		}
		body := map[string]any{"member": m.HostID, "incarnation": m.Incarnation, "reason": s.reason}
		if m.Node != "" {
			body["member"] = m.Node
		}
		ans, err := s.post(r.Name+":setAside", body)
		if err != nil || s.dryRun {
			return err
		}
		return s.afterRotation(ans.body, "done")
	})
}

func (r rotationView) member(name string) (rotationMember, error) {
	for _, m := range r.Members {
		if m.Name == name || m.HostID == name {
			return m, nil
		}
	}
	return rotationMember{}, fault.New(fault.NotFound, "no-member", "the ring has no member %.100q", name).Do("see `csm rotation status`")
}

type retirePlanView struct {
	Rotation, Hash string
	WithdrawSha256 []string
	Members        []rotationMember
	Clients        []rotationClient
	Reasons        []rotationReason
}

func (a *app) rotationRetire() *cobra.Command {
	var except []string
	c := &cobra.Command{Use: "retire [ROTATION]", Short: "Withdraw the CA before: there is no way back from here", Args: cobra.MaximumNArgs(1), ValidArgsFunction: a.completeWith(a.rotationNames),
		Long: "--dry-run shows the plan: which anchors go, who would break, and what is in the way. --except names clients that may break; the reason holds for them.\n" +
			"--except links accepts that connections between nodes from before the swap live on, where their hosts cannot tell or end them.\n" +
			"Exit code 3 when a gate is closed, 6 when the plan would be another by now.",
		Example: "  csm rotation retire -c prod-eu --dry-run\n  csm rotation retire -c prod-eu --plan 8c1f0e5a99d0b3c7 --reason 'all clients have the new root' --wait\n" +
			"  csm rotation retire -c prod-eu --plan 8c1f0e5a99d0b3c7 --except 3f9a --reason 'old batch job is gone'"}
	c.Flags().StringSliceVar(&except, "except", nil, "clients that may break, as the plan names them")
	return a.run(c, func(s *session, args []string) error {
		r, _, err := s.rotation(args)
		if err != nil {
			return err
		}
		var p retirePlanView
		var raw json.RawMessage
		if err := s.ask(r.Name+":planRetire", nil, &raw, &p); err != nil {
			return err
		}
		if s.dryRun && s.system {
			return s.Print(ui.View{Object: raw, Text: p.systemText()})
		}
		if s.dryRun {
			return s.Print(ui.View{Object: raw, Text: p.text()})
		}
		if err := s.needReason(); err != nil {
			return err
		}
		if err := s.planned(p.Hash, "csm rotation retire"+s.systemFlag()+" --dry-run"); err != nil {
			return err
		}
		ans, err := s.post(r.Name+":retire", map[string]any{"planHash": p.Hash, "except": s.named(except), "reason": s.reason})
		if err != nil {
			return err
		}
		return s.afterRotation(ans.body, "done")
	})
}

func (p retirePlanView) text() string {
	var b strings.Builder
	fmt.Fprintf(&b, "retire of %s: %d anchors go from the truststores of %d members, a canary first\n", resource.Last(p.Rotation), len(p.WithdrawSha256), len(p.Members))
	for _, x := range p.WithdrawSha256 {
		fmt.Fprintf(&b, "  anchor %s\n", x)
	}
	for _, x := range p.Clients {
		fmt.Fprintf(&b, "client:  %s: %s\n", x.Name, x.Detail)
	}
	b.WriteString(reasonLines("closed", p.Reasons))
	fmt.Fprintf(&b, "plan %s\nthere is no way back from a retire; to do it: the same command with --plan %s --reason '…' instead of --dry-run\n", p.Hash[:16], p.Hash[:16])
	return b.String()
}
