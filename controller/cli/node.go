package cli

import (
	"context"
	"encoding/json"
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	ui "github.com/cassandra-security-manager/csm/shared/cli"
	"github.com/cassandra-security-manager/csm/shared/fault"
	"github.com/cassandra-security-manager/csm/shared/resource"
)

func (a *app) nodeCommand() *cobra.Command {
	return group("node", "Cassandra nodes", a.nodeList(), a.nodeGet(), a.nodeApprove(), a.nodeRenew(), a.nodeCycleLinks(), a.nodeSetNames(), a.nodeMoves(),
		a.nodeVerb("suspend", "Close a node's agent out until it is resumed; files stay", "its agent's streams close and its claims are refused", false),
		a.nodeResume(), a.nodeReplace(), a.nodeRejoin(),
		a.nodeVerb("remove", "Revoke the agent's identity for good; files stay", "the node comes back only with a token made with --rejoin", true),
		a.freezeCommand("node", "freeze"), a.freezeCommand("node", "unfreeze"))
}

func nodeTable(s *session, ns []nodeView) *ui.Table {
	t := &ui.Table{Columns: []ui.Column{{Name: "NODE"}, {Name: "STATE", Style: stateStyle}, {Name: "MODE", Style: stateStyle}, {Name: "CONNECTED", Style: stateStyle}, {Name: "DC/RACK"},
		{Name: "STORES", Style: stateStyle}, {Name: "EXPIRES", Style: expiry}, {Name: "NAMES", Wide: true}, {Name: "CASSANDRA", Wide: true}, {Name: "AGENT", Wide: true}, {Name: "WHY"}}}
	for _, n := range ns {
		stores, until := n.worstStore()
		mode := n.Agent.Mode
		if n.Agent.Hold != "" {
			mode += "*"
		}
		t.Add(short(n.Name), n.State, mode, yesNo(n.Agent.Connected), strings.Trim(n.Instance.Datacenter+"/"+n.Instance.Rack, "/"), stores, s.ago(until),
			namesCell(n.Names.DNS, n.Names.IPs), n.Instance.Version, n.Agent.Version, n.Why)
	}
	return t
}

func (a *app) nodeList() *cobra.Command {
	var pending bool
	c := &cobra.Command{Use: "list", Short: "List nodes of a cluster, or of all", Args: cobra.NoArgs, Example: "  csm node list\n  csm node list -c prod-eu -o wide\n  csm node list --pending"}
	c.Flags().BoolVar(&pending, "pending", false, "hosts that wait for csm node approve")
	return a.run(c, func(s *session, _ []string) error {
		if pending {
			return s.listRequests(false)
		}
		cluster := s.tenantName() + "/clusters/-"
		if s.ctx.Cluster != "" {
			var err error
			if cluster, err = s.clusterName(""); err != nil {
				return err
			}
		}
		items, raws, doc, err := list[nodeView](s, cluster+"/nodes", nil, 0)
		if err != nil {
			return err
		}
		return s.Print(ui.View{Object: doc, Items: raws, Table: nodeTable(s, items)})
	})
}

func (a *app) nodeGet() *cobra.Command {
	c := &cobra.Command{Use: "get NODE", Short: "Show a node: agent, Cassandra, stores, what is wrong", Args: cobra.ExactArgs(1), ValidArgsFunction: a.completeWith(a.nodeNames),
		Example: "  csm node get prod-eu/n7\n  csm node get n7 -c prod-eu -o json"}
	return a.run(c, func(s *session, args []string) error {
		name, err := s.nodeName(args[0])
		if err != nil {
			return err
		}
		n, raw, err := read[nodeView](s, name, nil)
		if err != nil {
			return err
		}
		return s.printNode(n, raw)
	})
}

func (s *session) printNode(n nodeView, raw json.RawMessage) error {
	if f := s.Format(); f != "table" && f != "wide" {
		return s.Print(ui.View{Object: raw})
	}
	var p ui.Pairs
	p.Add("node", "%s", n.Name)
	p.Add("why", "%s", n.Why)
	p.Add("state", "%s", strings.TrimSpace(n.State+"  "+n.StateReason))
	p.Add("uid", "%s  incarnation %d", n.UID, n.Incarnation)
	p.Add("names", "%s", strings.Join(append(n.Names.DNS, n.Names.IPs...), ", "))
	agent := "has not joined"
	if !n.Agent.JoinTime.IsZero() {
		agent = fmt.Sprintf("%s  mode %s  connected %s (%s, %s)", n.Agent.Version, n.Agent.Mode, yesNo(n.Agent.Connected), n.Agent.Controller, s.ago(n.Agent.TransitionTime))
	}
	p.Add("agent", "%s", agent)
	p.Add("HOLD", "%s", n.Agent.Hold)
	if i := n.Instance; i.ListenAddress != "" {
		p.Add("cassandra", "%s  %s  %s/%s  %s:%d  cql %d  running %s", i.Version, i.ClusterName, i.Datacenter, i.Rack, i.ListenAddress, i.StoragePort, i.NativePort, yesNo(i.Running))
	}
	if n.Frozen != nil {
		p.Add("frozen", "%s", s.freezeText(*n.Frozen))
	}
	for _, c := range n.Conditions {
		p.Add(c.Severity, "%s\n%s", c.Message, c.Remedy)
	}
	for _, f := range n.Instance.Findings {
		p.Add(f.Severity, "%s\n%s", f.Message, f.Remedy)
	}
	if err := s.Print(ui.View{Pairs: p}); err != nil || len(n.Stores) == 0 {
		return err
	}
	fmt.Fprintln(s.Out)
	t := &ui.Table{Columns: []ui.Column{{Name: "STORE"}, {Name: "FORMAT"}, {Name: "STATE", Style: stateStyle}, {Name: "LEAF"}, {Name: "PROVEN"}, {Name: "EXPIRES", Style: expiry}, {Name: "RENEWS"},
		{Name: "GENERATION"}, {Name: "KEYSTORE"}, {Name: "TRUSTSTORE", Wide: true}, {Name: "DETAIL", Wide: true}}}
	for _, st := range n.Stores {
		gen := fmt.Sprint(st.Installed)
		if st.Generation != st.Installed {
			gen += fmt.Sprintf(" -> %d", st.Generation)
		}
		t.Add(resource.Last(st.Name), st.Format, st.State, finger(st.LeafSha256), finger(st.ProvenSha256), s.ago(st.NotAfter), s.ago(st.RenewAt), gen, st.KeystorePath, st.TruststorePath, st.Detail)
	}
	return s.Print(ui.View{Table: t})
}

func (a *app) nodeSetNames() *cobra.Command {
	var dns, ips []string
	c := &cobra.Command{Use: "set-names NODE", Short: "Replace the names that a node's certificates may carry", Args: cobra.ExactArgs(1), ValidArgsFunction: a.completeWith(a.nodeNames),
		Long:    "They hold for the next certificate; `csm node renew` asks for it now.",
		Example: "  csm node set-names prod-eu/n7 --dns n7.example --ip 10.0.0.7 --yes"}
	c.Flags().StringSliceVar(&dns, "dns", nil, "DNS names")
	c.Flags().StringSliceVar(&ips, "ip", nil, "addresses")
	return a.run(c, func(s *session, args []string) error {
		name, err := s.nodeName(args[0])
		if err != nil {
			return err
		}
		n, _, err := read[nodeView](s, name, nil)
		if err != nil {
			return err
		}
		err = s.confirm(change{verb: "set-names", name: name, etag: n.ETag, effects: []string{
			"now:  " + strings.Join(append(n.Names.DNS, n.Names.IPs...), ", "), "then: " + strings.Join(append(dns, ips...), ", ")}})
		if err != nil {
			return err
		}
		ans, err := s.post(name+":setNames", map[string]any{"dns": dns, "ips": ips})
		if err != nil {
			return err
		}
		if err := decode(ans.body, &n); err != nil {
			return err
		}
		return s.Print(ui.View{Object: ans.body, Table: nodeTable(s, []nodeView{n})})
	})
}

func (a *app) nodeVerb(verb, shortHelp, effect string, grave bool) *cobra.Command {
	c := &cobra.Command{Use: verb + " NODE", Short: shortHelp, Args: cobra.ExactArgs(1), ValidArgsFunction: a.completeWith(a.nodeNames),
		Example: fmt.Sprintf("  csm node %s prod-eu/n7 --reason 'disk swap'%s", verb, map[bool]string{true: " --dry-run", false: " --yes"}[grave])}
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
		if err := s.confirm(change{verb: verb, name: name, etag: n.ETag, grave: grave, effects: []string{effect}}); err != nil {
			return err
		}
		ans, err := s.post(name+":"+verb, map[string]any{"reason": s.reason})
		if err != nil {
			return err
		}
		var after nodeView
		if err := decode(ans.body, &after); err != nil {
			return err
		}
		return s.Print(ui.View{Object: ans.body, Text: fmt.Sprintf("%s is %s\n", short(name), after.State)})
	})
}

func (a *app) nodeMoves() *cobra.Command {
	var limit int
	c := &cobra.Command{Use: "moves NODE", Short: "What a node changed, and who proved it", Args: cobra.ExactArgs(1), ValidArgsFunction: a.completeWith(a.nodeNames),
		Example: "  csm node moves prod-eu/n7\n  csm node moves prod-eu/n7 -o json | jq '.items[0].proofs'"}
	c.Flags().IntVar(&limit, "limit", 20, "how many; 0 for all")
	return a.run(c, func(s *session, args []string) error {
		name, err := s.nodeName(args[0])
		if err != nil {
			return err
		}
		items, raws, doc, err := list[moveView](s, name+"/moves", nil, limit)
		if err != nil {
			return err
		}
		t := &ui.Table{Columns: []ui.Column{{Name: "BEGAN"}, {Name: "STORE"}, {Name: "KIND"}, {Name: "OUTCOME", Style: stateStyle}, {Name: "BEFORE"}, {Name: "AFTER"}, {Name: "TOOK", Right: true}, {Name: "PROVED BY"}, {Name: "DETAIL", Wide: true}}}
		for _, m := range items {
			took := ""
			if m.Seconds > 0 {
				took = fmt.Sprintf("%.1fs", m.Seconds)
			}
			t.Add(s.ago(m.OpenTime), resource.Last(m.Store), m.Kind, pick(m.Outcome, m.State), finger(m.BeforeSha256), finger(m.AfterSha256), took, proofsCell(m.Proofs), m.Detail)
		}
		return s.Print(ui.View{Object: doc, Items: raws, Table: t})
	})
}

func proofsCell(ps []proofView) string {
	var out []string
	for _, p := range ps {
		out = append(out, fmt.Sprintf("%s:%d %s", resource.Last(p.Prober), p.Port.Port, p.Verdict))
	}
	return strings.Join(out, ", ")
}

func (a *app) whyCommand() *cobra.Command {
	c := &cobra.Command{Use: "why NODE", Short: "Why does this node (not) move", Args: cobra.ExactArgs(1), ValidArgsFunction: a.completeWith(a.nodeNames), Example: "  csm why prod-eu/n7"}
	return a.run(c, func(s *session, args []string) error {
		name, err := s.nodeName(args[0])
		if err != nil {
			return err
		}
		n, raw, err := read[nodeView](s, name, nil)
		if err != nil {
			return err
		}
		text := n.Why + "\n"
		for _, f := range n.Instance.Findings {
			if f.Severity == "error" || f.Severity == "warning" {
				text += fmt.Sprintf("%s: %s\n  do:  %s\n", f.Severity, f.Message, f.Remedy)
			}
		}
		return s.Print(ui.View{Object: raw, Text: text})
	})
}

func (a *app) nodeRenew() *cobra.Command {
	var store string
	c := &cobra.Command{Use: "renew NODE", Short: "Ask a node to take new certificates when its turn comes", Args: cobra.ExactArgs(1), ValidArgsFunction: a.completeWith(a.nodeNames),
		Long: "The node makes a new key, gets a certificate, installs and reloads it, and a neighbour proves it. --wait shows how it goes:\n" +
			"exit code 0 when it is proved, 1 when it was rolled back or failed, 3 when the node refused it, 9 when --timeout ended first.",
		Example: "  csm node renew prod-eu/n7 --wait --timeout 5m\n  csm node renew prod-eu/n7 --store client --reason 'key rotation'"}
	c.Flags().StringVar(&store, "store", "", "only this store of the node (default all)")
	return a.run(c, func(s *session, args []string) error {
		name, err := s.nodeName(args[0])
		if err != nil {
			return err
		}
		ans, err := s.post(name+":renew", map[string]any{"store": store, "reason": s.reason})
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
		if !s.wait || s.dryRun {
			return s.Print(ui.View{Object: ans.body, Text: fmt.Sprintf("%s: %s\n", short(name), r.Node.Why), Name: func(any) string { return name }})
		}
		n, raw, err := s.waitForNode(name, store, r.Node, r.Generation)
		if err != nil {
			return err
		}
		return s.printNode(n, raw)
	})
}

// waitForNode follows a node until its stores have the generation installed.
func (s *session) waitForNode(name, store string, n nodeView, generation uint64) (nodeView, json.RawMessage, error) {
	ctx, cancel := context.WithTimeout(s.cmd.Context(), s.Timeout)
	defer cancel()
	line := s.Progress()
	moved := false
	var raw json.RawMessage
	line.Show("%s: %s", short(name), n.Why)
	err := s.watchFrom(ctx, resource.Parent(name)+"/nodes", generation, func(e event) error {
		if e.Type != "BOOKMARK" {
			var seen nodeView
			if err := decode(e.Object, &seen); err != nil || seen.Name != name {
				return err
			}
			n, raw = seen, e.Object
		}
		moved = moved || n.Claim != nil
		line.Show("%s: %s", short(name), n.Why)
		done, err := outcome(n, store, generation, moved)
		if err == nil && done {
			return errDone
		}
		if err == nil && n.Claim == nil {
			err = s.refusedMove(name, store, generation)
		}
		return err
	})
	line.Done()
	if err != nil && s.cmd.Context().Err() == nil && ctx.Err() != nil {
		return n, raw, fault.New(fault.Running, "still-running", "%s has not finished: %s", short(name), n.Why).Do("it goes on by itself; see `csm why %s`", short(name))
	}
	if err == nil && raw == nil {
		n, raw, err = read[nodeView](s, name, nil)
	}
	return n, raw, err
}

// refusedMove finds a move of this generation that the node itself refused: nothing was written, and what it says has to
// be put right first. Such a move can be over before its claim was ever seen here.
func (s *session) refusedMove(name, store string, generation uint64) error {
	moves, _, _, err := list[moveView](s, name+"/moves", nil, 5)
	if err != nil {
		return err
	}
	for _, m := range moves {
		if m.Generation >= generation && m.Outcome == "refused" && (store == "" || resource.Last(m.Store) == store) {
			return fault.New(fault.Refused, "move-refused", "%s refused to install the new certificate: %s", short(name), m.Detail).
				Do("nothing was written; see `csm node moves %s`", short(name))
		}
	}
	return nil
}

// outcome says whether a renewal is over. moved is whether a move was seen since it was asked for: a store that was
// rolled back before that says nothing about this one.
func outcome(n nodeView, store string, generation uint64, moved bool) (done bool, err error) {
	done = len(n.Stores) > 0
	for _, st := range n.Stores {
		if store != "" && resource.Last(st.Name) != store {
			continue
		}
		switch {
		case st.Installed >= generation && (st.State == "proven" || st.State == "installed-unproven"):
			continue
		case st.State == "failed", st.State == "contested", st.State == "rolled-back" && moved && n.Claim == nil:
			return false, fault.New(fault.Internal, "move-"+st.State, "%s: store %s is %s: %s", short(n.Name), resource.Last(st.Name), st.State, st.Detail).
				Do("see `csm node moves %s`; where it says rolled-back, the store that was there before is in place", short(n.Name))
		}
		done = false
	}
	return done, nil
}
