package cli

import (
	"encoding/json"
	"strings"
	"time"

	"github.com/spf13/cobra"

	ui "github.com/cassandra-security-manager/csm/shared/cli"
	"github.com/cassandra-security-manager/csm/shared/resource"
)

type requestView struct {
	Name, Cluster, Node, Method, State, Peer, Ring, HostID, ListenAddress, Decider, Reason, KeySha256, CassandraKeySha256, Anchor, Token, ETag string
	Doubts                                                                                                                                     []string
	Names, Attested                                                                                                                            struct{ DNS, IPs []string }
	CreateTime, DecideTime                                                                                                                     time.Time
}

func (a *app) requestCommand() *cobra.Command {
	return group("request", "Joins that wait for a person", a.requestList(), a.requestGet(),
		a.requestVerb("approve", "Approve a join; the agent gets its identity when it asks again", "the host gets an identity and the names it asks for"),
		a.requestVerb("deny", "Deny a join; the agent is told why", "the agent is refused, and ends"))
}

func (a *app) requestNames(cmd *cobra.Command) []string {
	return a.offered(cmd, func(s *session) string { return s.tenantName() + "/requests" }, resource.Last)
}

func (s *session) requestName(arg string) string {
	if strings.HasPrefix(arg, "tenants/") {
		return arg
	}
	return resource.JoinRequest(s.ctx.Tenant, arg)
}

func requestTable(s *session, rs []requestView) *ui.Table {
	t := &ui.Table{Columns: []ui.Column{{Name: "REQUEST"}, {Name: "NODE"}, {Name: "STATE", Style: stateStyle}, {Name: "METHOD", Wide: true}, {Name: "FROM"}, {Name: "SINCE"}, {Name: "NAMES", Wide: true}, {Name: "BY", Wide: true}, {Name: "WHY"}}}
	for _, r := range rs {
		why := r.Reason
		if r.State == "pending" {
			why = strings.Join(r.Doubts, "; ")
		}
		t.Add(resource.Last(r.Name), short(r.Node), r.State, r.Method, r.Peer, s.ago(r.CreateTime), namesCell(r.Names.DNS, r.Names.IPs), actorName(r.Decider), why)
	}
	return t
}

func (a *app) requestList() *cobra.Command {
	var all bool
	c := &cobra.Command{Use: "list", Short: "List joins that wait for a person", Args: cobra.NoArgs, Example: "  csm request list\n  csm request list --all -o wide"}
	c.Flags().BoolVar(&all, "all", false, "those that were decided too")
	return a.run(c, func(s *session, _ []string) error { return s.listRequests(all) })
}

// listRequests shows those that are pending, or all; -o json is the list as REST gives it when all are wanted.
func (s *session) listRequests(all bool) error {
	items, raws, doc, err := list[requestView](s, s.tenantName()+"/requests", nil, 0)
	if err != nil {
		return err
	}
	if !all {
		var open []requestView
		left := []any{}
		for i, r := range items {
			if r.State == "pending" {
				open, left = append(open, r), append(left, raws[i])
			}
		}
		items, raws = open, left
		if doc, err = json.Marshal(map[string]any{"items": left}); err != nil {
			return err
		}
	}
	return s.Print(ui.View{Object: doc, Items: raws, Table: requestTable(s, items)})
}

func (a *app) requestGet() *cobra.Command {
	c := &cobra.Command{Use: "get REQUEST", Short: "Show who asks for what, and why no rule covers it", Args: cobra.ExactArgs(1), ValidArgsFunction: a.completeWith(a.requestNames),
		Example: "  csm request get abcdefghij\n  csm request get abcdefghij -o json"}
	return a.run(c, func(s *session, args []string) error {
		r, raw, err := read[requestView](s, s.requestName(args[0]), nil)
		if err != nil {
			return err
		}
		return s.printRequest(r, raw)
	})
}

func (s *session) printRequest(r requestView, raw json.RawMessage) error {
	if f := s.Format(); f != "table" && f != "wide" {
		return s.Print(ui.View{Object: raw})
	}
	var p ui.Pairs
	p.Add("request", "%s", r.Name)
	p.Add("node", "%s", short(r.Node))
	p.Add("state", "%s", strings.TrimSpace(r.State+"  "+actorName(r.Decider)+"  "+r.Reason))
	for _, d := range r.Doubts {
		p.Add("why", "%s", d)
	}
	p.Add("names", "%s", strings.Join(append(r.Names.DNS, r.Names.IPs...), ", "))
	p.Add("from", "%s (ring %s, listens on %s)", r.Peer, r.Ring, r.ListenAddress)
	p.Add("new key", "%s", r.KeySha256)
	p.Add("method", "%s", r.Method)
	p.Add("evidence", "%s", r.evidence())
	if r.Method != "token" {
		p.Add("attested", "%s", strings.Join(append(r.Attested.DNS, r.Attested.IPs...), ", "))
		p.Add("key in use", "%s", r.CassandraKeySha256)
	}
	return s.Print(ui.View{Pairs: p})
}

// evidence is what the join was believed by, in one line.
func (r requestView) evidence() string {
	if r.Method == "token" {
		return "join token " + resource.Last(r.Token)
	}
	return "it holds the key that Cassandra uses today; the certificate of that key chains to anchor " + resource.Last(r.Anchor)
}

func (a *app) requestVerb(verb, short, effect string) *cobra.Command {
	c := &cobra.Command{Use: verb + " REQUEST", Short: short, Args: cobra.ExactArgs(1), ValidArgsFunction: a.completeWith(a.requestNames),
		Example: "  csm request " + verb + " abcdefghij --reason 'change 4711' --yes"}
	return a.run(c, func(s *session, args []string) error {
		name := s.requestName(args[0])
		if verb == "deny" {
			if err := s.needReason(); err != nil {
				return err
			}
		}
		r, _, err := read[requestView](s, name, nil)
		if err != nil {
			return err
		}
		return s.decide(verb, name, name+":"+verb, r, effect)
	})
}

func (s *session) decide(verb, name, path string, r requestView, effect string) error {
	effects := []string{effect, "node " + r.Node + ", names " + strings.Join(append(r.Names.DNS, r.Names.IPs...), ", ")}
	if err := s.confirm(change{verb: verb, name: name, etag: r.ETag, effects: append(effects, r.Doubts...)}); err != nil {
		return err
	}
	ans, err := s.post(path, map[string]any{"reason": s.reason})
	if err != nil {
		return err
	}
	if err := decode(ans.body, &r); err != nil {
		return err
	}
	return s.Print(ui.View{Object: ans.body, Table: requestTable(s, []requestView{r})})
}

// nodeApprove approves the one pending request of a node.
func (a *app) nodeApprove() *cobra.Command {
	c := &cobra.Command{Use: "approve NODE", Short: "Approve the request of a host to join as this node", Args: cobra.ExactArgs(1),
		Example: "  csm node approve prod-eu/n7 --yes\n  csm node approve n7 -c prod-eu --reason 'change 4711' --dry-run"}
	return a.run(c, func(s *session, args []string) error {
		name, err := s.nodeName(args[0])
		if err != nil {
			return err
		}
		all, _, _, err := list[requestView](s, s.tenantName()+"/requests", nil, 0)
		if err != nil {
			return err
		}
		r := requestView{Node: name}
		for _, x := range all {
			if x.Node == name && x.State == "pending" {
				r = x
			}
		}
		return s.decide("approve", name, name+":approve", r, "the host gets an identity and the names it asks for")
	})
}
