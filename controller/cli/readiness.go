package cli

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	ui "github.com/cassandra-security-manager/csm/shared/cli"
	"github.com/cassandra-security-manager/csm/shared/fault"
	"github.com/cassandra-security-manager/csm/shared/readiness"
	"github.com/cassandra-security-manager/csm/shared/resource"
)

var gravities = []string{string(readiness.Blocker), string(readiness.Error), string(readiness.Warning), string(readiness.Info)}

func (a *app) clusterReadiness() *cobra.Command {
	var least, node string
	c := &cobra.Command{Use: "readiness [CLUSTER]", Short: "What stands in the way of managing each node, and what is wrong there today", Args: cobra.MaximumNArgs(1),
		ValidArgsFunction: a.completeWith(a.clusterNames),
		Long: "readiness judges what the agents told and found; agents in mode observe are enough. A blocker is what CSM could not manage, or what\n" +
			"breaks at the next restart, reload or reconnect. What nobody could look at is listed as unseen. Exit code 10 when there are blockers.\n" +
			"-o wide adds what shows each finding; -o json has all of it, node by node, with the end of every certificate in use.",
		Example: "  csm cluster readiness prod-eu\n  csm cluster readiness prod-eu --node n7 --severity info -o wide\n" +
			"  csm cluster readiness prod-eu -o json | jq '.nodes[] | select(.ready | not) | .node'"}
	c.Flags().StringVar(&least, "severity", string(readiness.Warning), "show these and graver ones: "+strings.Join(gravities, ", "))
	c.Flags().StringVar(&node, "node", "", "show one node only")
	_ = c.RegisterFlagCompletionFunc("severity", cobra.FixedCompletions(gravities, cobra.ShellCompDirectiveNoFileComp))
	return a.run(c, func(s *session, args []string) error {
		name, err := s.clusterName(first(args))
		if err != nil {
			return err
		}
		shown := upTo(least)
		if shown == nil {
			return fault.New(fault.Invalid, "bad-severity", "%.40q is no severity", least).Do("one of %s", strings.Join(gravities, ", "))
		}
		r, raw, err := read[readiness.Report](s, name+":checkReadiness", nil)
		if err != nil {
			return err
		}
		if node != "" {
			if r.Nodes = only(r.Nodes, node); len(r.Nodes) == 0 {
				return fault.New(fault.NotFound, "no-node", "there is no node %.80q in %s", node, short(name)).Do("`csm node list -c %s` shows them", short(name))
			}
		}
		if err := s.printReadiness(name, r, raw, shown); err != nil {
			return err
		}
		if r.Blockers > 0 {
			return fault.New(fault.Differs, "blockers", "%d of %d nodes are not ready", r.Total-r.Ready, r.Total).Do("each finding says what to do; `--severity blocker` shows the blockers alone")
		}
		return nil
	})
}

// upTo are the gravities from the gravest to the least one, nil when it is none.
func upTo(least string) map[readiness.Severity]bool {
	out := map[readiness.Severity]bool{}
	for _, s := range gravities {
		out[readiness.Severity(s)] = true
		if s == least {
			return out
		}
	}
	return nil
}

func only(nodes []readiness.NodeReport, name string) []readiness.NodeReport {
	for _, n := range nodes {
		if n.Node == name || short(n.Node) == name || resource.Last(n.Node) == name {
			return []readiness.NodeReport{n}
		}
	}
	return nil
}

// printReadiness shows equal findings of several nodes as one line: a ring tends to have the same fault everywhere.
func (s *session) printReadiness(cluster string, r readiness.Report, raw any, shown map[readiness.Severity]bool) error {
	if s.Machine() || s.Format() == "name" {
		return s.Print(ui.View{Object: raw})
	}
	var p ui.Pairs
	p.Add("cluster", "%s", short(cluster))
	p.Add("ready", "%d of %d nodes", r.Ready, r.Total)
	p.Add("findings", "%d blockers, %d errors, %d warnings", r.Blockers, r.Errors, r.Warnings)
	p.Add("first expiry", "%s", s.at(r.First))
	for _, u := range gatherUnseen(r.Nodes) {
		p.Add("unseen", "%s", u)
	}
	if err := s.Print(ui.View{Pairs: p}); err != nil {
		return err
	}
	t := &ui.Table{Columns: []ui.Column{{Name: "SEVERITY", Style: gravityStyle}, {Name: "NODES"}, {Name: "FINDING"}, {Name: "WHAT"}, {Name: "SHOWN BY", Wide: true}, {Name: "DO"}}}
	for _, g := range gatherFindings(r.Nodes, shown) {
		code := g.Code
		if g.Store != "" {
			code += " (" + g.Store + ")"
		}
		t.Add(string(g.Severity), nodesCell(g.nodes), code, g.Message, g.Evidence, g.Remedy)
	}
	if len(t.Rows) > 0 {
		fmt.Fprintln(s.Out)
		if err := s.Print(ui.View{Table: t}); err != nil {
			return err
		}
	}
	return s.printExpiries(r.Nodes)
}

// printExpiries shows the certificates in use that end first.
func (s *session) printExpiries(nodes []readiness.NodeReport) error {
	type end struct {
		readiness.Expiry
		nodes []string
	}
	var ends []*end
	at := map[string]*end{}
	for _, n := range nodes {
		for _, e := range n.Expires {
			key := e.SHA256 + e.Kind
			if at[key] == nil {
				at[key] = &end{Expiry: e}
				ends = append(ends, at[key])
			}
			if x := at[key]; len(x.nodes) == 0 || x.nodes[len(x.nodes)-1] != n.Node {
				x.nodes = append(x.nodes, n.Node)
			}
		}
	}
	if len(ends) == 0 {
		return nil
	}
	sortBy(ends, func(e *end) int64 { return e.NotAfter.Unix() })
	t := &ui.Table{Columns: []ui.Column{{Name: "EXPIRES", Style: expiry}, {Name: "ON"}, {Name: "KIND"}, {Name: "SUBJECT"}, {Name: "NODES"}, {Name: "FILE", Wide: true}, {Name: "SHA256", Wide: true}}}
	for i, e := range ends {
		if i == 20 && s.Format() != "wide" {
			fmt.Fprintf(s.Err, "%d more certificates end later: -o wide shows them\n", len(ends)-i)
			break
		}
		t.Add(s.ago(e.NotAfter), e.NotAfter.UTC().Format(time.DateOnly), e.Kind, e.Subject, nodesCell(e.nodes), e.Path, finger(e.SHA256))
	}
	fmt.Fprintln(s.Out)
	return s.Print(ui.View{Table: t})
}

type gathered struct {
	readiness.Concern
	nodes []string
}

func gatherFindings(nodes []readiness.NodeReport, shown map[readiness.Severity]bool) []*gathered {
	var out []*gathered
	at := map[[5]string]*gathered{}
	for _, n := range nodes {
		for _, f := range n.Findings {
			if !shown[f.Severity] {
				continue
			}
			key := [5]string{string(f.Severity), f.Code, f.Store, f.Message, f.Remedy}
			if at[key] == nil {
				at[key] = &gathered{Concern: f}
				out = append(out, at[key])
			}
			at[key].nodes = append(at[key].nodes, n.Node)
		}
	}
	order := map[readiness.Severity]int64{}
	for i, s := range gravities {
		order[readiness.Severity(s)] = int64(i)
	}
	sortBy(out, func(g *gathered) int64 { return order[g.Severity] })
	return out
}

func gatherUnseen(nodes []readiness.NodeReport) []string {
	var order []string
	count := map[string]int{}
	for _, n := range nodes {
		for _, u := range n.Unseen {
			line := u.What + ": " + u.Why
			if u.Remedy != "" {
				line += "\n" + u.Remedy
			}
			if count[line]++; count[line] == 1 {
				order = append(order, line)
			}
		}
	}
	for i, l := range order {
		what, rest, _ := strings.Cut(l, ": ")
		order[i] = fmt.Sprintf("%s on %d nodes: %s", what, count[l], rest)
	}
	return order
}

func gravityStyle(cell string) ui.Style {
	switch readiness.Severity(cell) {
	case readiness.Blocker, readiness.Error:
		return ui.Bad
	case readiness.Warning:
		return ui.Warn
	}
	return ui.Plain
}

// nodesCell names at most three nodes.
func nodesCell(names []string) string {
	var out []string
	for i, n := range names {
		if i == 3 {
			return strings.Join(out, ",") + fmt.Sprintf(",+%d", len(names)-i)
		}
		out = append(out, resource.Last(n))
	}
	return strings.Join(out, ",")
}

func sortBy[T any](all []T, key func(T) int64) {
	slices.SortStableFunc(all, func(a, b T) int { return cmp.Compare(key(a), key(b)) })
}
