package cli

import (
	"encoding/json"
	"fmt"
	"net"
	"strings"
	"time"

	"github.com/spf13/cobra"

	ui "github.com/cassandra-security-manager/csm/shared/cli"
	"github.com/cassandra-security-manager/csm/shared/fault"
	"github.com/cassandra-security-manager/csm/shared/resource"
)

func (a *app) clusterCommand() *cobra.Command {
	return group("cluster", "Cassandra clusters", a.clusterList(), a.clusterGet(), a.clusterCreate(), a.joinCommand(), a.joinTokens(), a.clusterOnboard(), a.clusterRelease(), a.clusterReadiness(), a.clusterHealth(),
		a.freezeCommand("cluster", "freeze"), a.freezeCommand("cluster", "unfreeze"))
}

func clusterTable(s *session, cs []clusterView) *ui.Table {
	t := &ui.Table{Columns: []ui.Column{{Name: "CLUSTER"}, {Name: "STATE", Style: stateStyle}, {Name: "NODES", Right: true}, {Name: "CONNECTED", Right: true}, {Name: "MOVING"},
		{Name: "AUTHORITY"}, {Name: "BUNDLE", Wide: true, Right: true}, {Name: "CASSANDRA NAME", Wide: true}, {Name: "REGION", Wide: true}, {Name: "CREATED"}}}
	for _, c := range cs {
		var moving []string
		for _, m := range c.Moving {
			moving = append(moving, resource.Last(m))
		}
		t.Add(resource.Last(c.Name), c.State, fmt.Sprint(c.Nodes), fmt.Sprint(c.Connected), strings.Join(moving, ","), resource.Last(c.Authority),
			fmt.Sprint(c.BundleVersion), c.CassandraName, c.Region, s.ago(c.CreateTime))
	}
	return t
}

func (a *app) clusterList() *cobra.Command {
	c := &cobra.Command{Use: "list", Short: "List clusters", Args: cobra.NoArgs, Example: "  csm cluster list\n  csm cluster list -o name"}
	return a.run(c, func(s *session, _ []string) error {
		items, raws, doc, err := list[clusterView](s, s.tenantName()+"/clusters", nil, 0)
		if err != nil {
			return err
		}
		return s.Print(ui.View{Object: doc, Items: raws, Table: clusterTable(s, items)})
	})
}

func (a *app) clusterGet() *cobra.Command {
	c := &cobra.Command{Use: "get [NAME]", Short: "Show a cluster", Args: cobra.MaximumNArgs(1), ValidArgsFunction: a.completeWith(a.clusterNames),
		Example: "  csm cluster get prod-eu\n  csm cluster get prod-eu -o yaml"}
	return a.run(c, func(s *session, args []string) error {
		name, err := s.clusterName(first(args))
		if err != nil {
			return err
		}
		v, raw, err := read[clusterView](s, name, nil)
		if err != nil {
			return err
		}
		return s.Print(ui.View{Object: raw, Table: clusterTable(s, []clusterView{v}), Note: s.notes(v.Frozen, v.Conditions)})
	})
}

func first(args []string) string {
	if len(args) == 0 {
		return ""
	}
	return args[0]
}

func (a *app) clusterCreate() *cobra.Command {
	var authority, cassandraName, region string
	c := &cobra.Command{Use: "create NAME", Short: "Create a cluster whose nodes get certificates of an authority", Args: cobra.ExactArgs(1),
		Example: "  csm cluster create prod-eu --ca main --cassandra-name 'Prod EU' --region eu-west"}
	c.Flags().StringVar(&authority, "ca", "", "authority that signs for its nodes")
	c.Flags().StringVar(&cassandraName, "cassandra-name", "", "cluster_name of cassandra.yaml; agents of another are refused")
	c.Flags().StringVar(&region, "region", "", "prefer issuers of this region")
	_ = c.MarkFlagRequired("ca")
	_ = c.RegisterFlagCompletionFunc("ca", func(cmd *cobra.Command, _ []string, _ string) ([]string, cobra.ShellCompDirective) {
		return a.authorityNames(cmd), cobra.ShellCompDirectiveNoFileComp
	})
	return a.run(c, func(s *session, args []string) error {
		name, err := s.clusterName(args[0])
		if err != nil {
			return err
		}
		ans, err := s.post(resource.Parent(name)+"/clusters", map[string]any{"id": resource.Last(name), "authority": s.authorityName(authority), "cassandraName": cassandraName, "region": region})
		if err != nil {
			return err
		}
		var v clusterView
		if err := decode(ans.body, &v); err != nil {
			return err
		}
		return s.Print(ui.View{Object: ans.body, Table: clusterTable(s, []clusterView{v})})
	})
}

func (s *session) needReason() error {
	if s.reason == "" {
		return fault.NoReason()
	}
	return nil
}

func (a *app) joinTokens() *cobra.Command {
	c := &cobra.Command{Use: "join-tokens [NAME]", Short: "List the join tokens of a cluster", Args: cobra.MaximumNArgs(1), ValidArgsFunction: a.completeWith(a.clusterNames), Example: "  csm cluster join-tokens prod-eu"}
	return a.run(c, func(s *session, args []string) error {
		name, err := s.clusterName(first(args))
		if err != nil {
			return err
		}
		type view struct {
			Name, Node, State, Creator, Confirmed string
			Uses, Used                            int
			ExpireTime                            time.Time
		}
		items, raws, doc, err := list[view](s, name+"/joinTokens", nil, 0)
		if err != nil {
			return err
		}
		t := &ui.Table{Columns: []ui.Column{{Name: "TOKEN"}, {Name: "NODE"}, {Name: "STATE", Style: stateStyle}, {Name: "USED", Right: true}, {Name: "EXPIRES"}, {Name: "BY"}, {Name: "CONFIRMED", Wide: true}}}
		for _, i := range items {
			t.Add(resource.Last(i.Name), resource.Last(i.Node), i.State, fmt.Sprintf("%d/%d", i.Used, i.Uses), s.ago(i.ExpireTime), actorName(i.Creator), i.Confirmed)
		}
		return s.Print(ui.View{Object: doc, Items: raws, Table: t})
	})
}

func (a *app) joinCommand() *cobra.Command {
	var dns, ips, controllers []string
	var ttl time.Duration
	var uses int
	var rejoin bool
	var mode, conf, method string
	c := &cobra.Command{Use: "join-command NODE", Short: "Print the lines to paste on a node, with a one-time token unless it proves possession", Args: cobra.ExactArgs(1),
		Long: "NODE is CLUSTER/NODE, or a node of -c CLUSTER. The token is bound to that node and its names, and is shown once.\n" +
			"With --method possession the node proves that it holds the key that Cassandra uses today; its CA is registered first (csm trust anchor-add).",
		Example: "  csm cluster join-command prod-eu/n7 --dns n7.example --ip 10.0.0.7\n" +
			"  csm cluster join-command n7 -c prod-eu --ip 10.0.0.7 --controllers csm1:9641,csm2:9641 -o json | jq -r .token\n" +
			"  csm cluster join-command prod-eu/n7 --method possession"}
	f := c.Flags()
	f.StringSliceVar(&dns, "dns", nil, "DNS names that its certificates may carry")
	f.StringSliceVar(&ips, "ip", nil, "addresses that its certificates may carry")
	f.StringSliceVar(&controllers, "controllers", nil, "controllers as the node reaches them, host:9641 (default: those of this system)")
	f.DurationVar(&ttl, "ttl", time.Hour, "the token lives so long")
	f.IntVar(&uses, "uses", 1, "the token may be used so often")
	f.BoolVar(&rejoin, "rejoin", false, "the node has joined before and is replaced")
	f.StringVar(&method, "method", "token", "token, or possession of the key that Cassandra uses today")
	f.StringVar(&mode, "mode", "observe", "what the agent may do: observe, stage or manage")
	f.StringVar(&conf, "config", "/etc/cassandra/cassandra.yaml", "cassandra.yaml on the node")
	return a.run(c, func(s *session, args []string) error {
		node, err := s.nodeName(args[0])
		if err != nil {
			return err
		}
		cluster := resource.Parent(node)
		switch method {
		case "token":
		case "possession":
			return s.possessionLines(node, controllers, mode, conf)
		default:
			return fault.New(fault.Invalid, "unknown-method", "joining by %.40q is not known", method).Do("use --method token or --method possession")
		}
		ans, err := s.post(cluster+"/joinTokens", map[string]any{"node": resource.Last(node), "dns": dns, "ips": ips, "ttl": ttl.String(), "uses": uses, "rejoin": rejoin})
		if err != nil {
			return err
		}
		return s.printToken(ans.body, cluster, controllers, mode, conf, ttl)
	})
}

// printToken prints the lines to paste on the node that a token is for.
func (s *session) printToken(body json.RawMessage, cluster string, controllers []string, mode, conf string, ttl time.Duration) error {
	if s.dryRun || s.Machine() || s.Format() == "name" {
		return s.Print(ui.View{Object: body, Text: ""})
	}
	var t struct{ Token string }
	if err := decode(body, &t); err != nil {
		return err
	}
	st, _, err := read[statusView](s, "system", nil)
	if err != nil {
		return err
	}
	if len(controllers) == 0 {
		controllers = agentAddresses(st)
	}
	_, err = fmt.Fprint(s.Out, pasteLines(controllers, st.CAPin, cluster, "{method: token, file: /etc/csm/join.token}", mode, conf, tokenLines(t.Token)))
	s.Say("# the token is shown once and ends in %s", ui.Span(ttl))
	return err
}

// agentAddresses are the controllers on the port that agents use by default.
func agentAddresses(st statusView) []string {
	var out []string
	for _, c := range st.Controllers {
		if host, _, err := net.SplitHostPort(c.Address); err == nil {
			out = append(out, net.JoinHostPort(host, "9641"))
		}
	}
	return out
}

// pasteLines begin as root, who alone may make the folders, and go on as the user of Cassandra, whom the agent runs as.
// agent.yaml stays root's, for its mode is the ceiling of what the agent may do. Where a package brought a unit, that starts it.
func pasteLines(controllers []string, pin, cluster, join, mode, conf, evidence string) string {
	return fmt.Sprintf(`# on the node, as root; AS is the user that Cassandra runs as:
AS=cassandra
install -d -m 0755 /etc/csm
install -d -m 0700 -o $AS /var/lib/csm-agent
install -m 0644 /dev/stdin /etc/csm/agent.yaml <<'EOF'
controllers: [%s]
pin: %s
cluster: %s
join: %s
mode: %s
cassandra: [{config: %s}]
EOF
%srunuser -u $AS -- csm-agent join && { systemctl start csm-agent 2>/dev/null || runuser -u $AS -- csm-agent run; }
`, strings.Join(controllers, ", "), pin, cluster, join, mode, conf, evidence)
}

// possessionLines are those of a node that needs no token. It refuses when no CA is registered by which it could join.
func (s *session) possessionLines(node string, controllers []string, mode, conf string) error {
	cluster := resource.Parent(node)
	d, _, err := read[trustView](s, resource.TrustDomain(resource.Segment(cluster, "tenants"), resource.Last(cluster)), nil)
	if err != nil {
		return err
	}
	usable := 0
	for _, x := range d.Anchors {
		if x.Kind == "external" && x.State == "active" {
			usable++
		}
	}
	if usable == 0 {
		return fault.New(fault.Refused, "no-anchor", "no CA of today is registered for %s, so possession proves nothing", short(cluster)).
			Do("csm trust anchor-add %s --file CA.pem --owner WHO --reason WHY --expires 720h", short(cluster))
	}
	st, _, err := read[statusView](s, "system", nil)
	if err != nil {
		return err
	}
	if len(controllers) == 0 {
		controllers = agentAddresses(st)
	}
	lines := pasteLines(controllers, st.CAPin, cluster, "{method: possession, node: "+resource.Last(node)+"}", mode, conf, "")
	return s.Print(ui.View{Object: map[string]any{"node": node, "method": "possession", "lines": lines}, Text: lines})
}

// tokenLines put the token where agent.yaml names it.
func tokenLines(token string) string {
	return "install -m 0600 -o $AS /dev/stdin /etc/csm/join.token <<'EOF'\n" + token + "\nEOF\n"
}
