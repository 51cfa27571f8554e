package cli

import (
	"fmt"
	"strings"
	"time"

	"github.com/spf13/cobra"

	ui "github.com/cassandra-security-manager/csm/shared/cli"
	"github.com/cassandra-security-manager/csm/shared/resource"
)

func (a *app) nodeResume() *cobra.Command {
	var keep string
	c := &cobra.Command{Use: "resume NODE", Short: "Let a suspended agent work again", Args: cobra.ExactArgs(1), ValidArgsFunction: a.completeWith(a.nodeNames),
		Long: "When one identity came from two machines (a cloned state folder), --keep says which of them stays: `csm node get` names both.\n" +
			"The other is refused from then on; remove its state folder and let it join as a node of its own.",
		Example: "  csm node resume prod-eu/n7 --reason 'looked into it' --yes\n  csm node resume prod-eu/n7 --keep 3fa4c2d19b07 --reason 'n7 was cloned' --yes"}
	c.Flags().StringVar(&keep, "keep", "", "the machine that stays, as `csm node get` names it")
	return a.run(c, func(s *session, args []string) error {
		name, err := s.nodeName(args[0])
		if err != nil {
			return err
		}
		if err := s.needReason(); err != nil {
			return err
		}
		n, _, err := read[nodeView](s, name, nil)
		if err != nil {
			return err
		}
		effects := []string{"its agent may connect and claim again"}
		if keep != "" {
			effects = append(effects, "only on machine "+keep+": the other one is refused")
		}
		if err := s.confirm(change{verb: "resume", name: name, etag: n.ETag, effects: effects}); err != nil {
			return err
		}
		ans, err := s.post(name+":resume", map[string]any{"reason": s.reason, "keep": keep})
		if err != nil {
			return err
		}
		if err := decode(ans.body, &n); err != nil {
			return err
		}
		return s.Print(ui.View{Object: ans.body, Text: fmt.Sprintf("%s is %s\n", short(name), n.State)})
	})
}

// paste are the flags of commands that print lines for a node.
type paste struct {
	controllers []string
	ttl         time.Duration
	mode, conf  string
}

func (p *paste) flags(c *cobra.Command) {
	f := c.Flags()
	f.StringSliceVar(&p.controllers, "controllers", nil, "controllers as the node reaches them, host:9641 (default: those of this system)")
	f.DurationVar(&p.ttl, "ttl", time.Hour, "the token lives so long")
	f.StringVar(&p.mode, "mode", "observe", "what the agent may do: observe, stage or manage")
	f.StringVar(&p.conf, "config", "/etc/cassandra/cassandra.yaml", "cassandra.yaml on the node")
}

func (a *app) nodeReplace() *cobra.Command {
	var p paste
	var dns, ips []string
	c := &cobra.Command{Use: "replace NODE", Short: "Give a node's name to another host, and print the lines to paste there", Args: cobra.ExactArgs(1), ValidArgsFunction: a.completeWith(a.nodeNames),
		Long: "For a host that is gone for good: same name, new host id and address. The old identity ends at once and its claims lapse, the names\n" +
			"become those of the new host, and a token for it is made. A host that only lost its state folder: `csm node rejoin`.",
		Example: "  csm node replace prod-eu/n7 --ip 10.0.0.17 --dns n7.example --reason 'disk died' --dry-run\n" +
			"  csm node replace prod-eu/n7 --ip 10.0.0.17 --dns n7.example --reason 'disk died' --plan HASH"}
	p.flags(c)
	c.Flags().StringSliceVar(&dns, "dns", nil, "DNS names of the new host (default: with --ip none, else those of the node)")
	c.Flags().StringSliceVar(&ips, "ip", nil, "addresses of the new host")
	return a.run(c, func(s *session, args []string) error {
		name, err := s.nodeName(args[0])
		if err != nil {
			return err
		}
		if err := s.needReason(); err != nil {
			return err
		}
		n, _, err := read[nodeView](s, name, nil)
		if err != nil {
			return err
		}
		names := append(append([]string{}, dns...), ips...)
		effects := []string{fmt.Sprintf("the identity of incarnation %d ends now; its certificates stay valid until they expire or are revoked", n.Incarnation)}
		if len(names) > 0 {
			effects = append(effects, "names now:  "+strings.Join(append(n.Names.DNS, n.Names.IPs...), ", "), "names then: "+strings.Join(names, ", "))
		}
		ch := change{verb: "replace", name: name + " " + strings.Join(names, ","), etag: n.ETag, grave: true, effects: append(effects, "a token for the new host is made")}
		if err := s.confirm(ch); err != nil {
			return err
		}
		ans, err := s.post(name+":replace", map[string]any{"dns": dns, "ips": ips, "ttl": p.ttl.String(), "reason": s.reason})
		if err != nil {
			return err
		}
		return s.printToken(ans.body, resource.Parent(name), p.controllers, p.mode, p.conf, p.ttl)
	})
}

func (a *app) nodeRejoin() *cobra.Command {
	var p paste
	c := &cobra.Command{Use: "rejoin NODE", Short: "Let the same host join again, and print the lines to paste there", Args: cobra.ExactArgs(1), ValidArgsFunction: a.completeWith(a.nodeNames),
		Long: "For a host that was rebuilt, lost its state folder, or was away for longer than its identity's grace. Nothing ends before it joins;\n" +
			"then the old identity does. Another host in its place: `csm node replace`.",
		Example: "  csm node rejoin prod-eu/n7\n  csm node rejoin prod-eu/n7 --ttl 15m -o json | jq -r .token"}
	p.flags(c)
	return a.run(c, func(s *session, args []string) error {
		name, err := s.nodeName(args[0])
		if err != nil {
			return err
		}
		ans, err := s.post(name+":rejoin", map[string]any{"ttl": p.ttl.String()})
		if err != nil {
			return err
		}
		return s.printToken(ans.body, resource.Parent(name), p.controllers, p.mode, p.conf, p.ttl)
	})
}
