package cli

import (
	"fmt"
	"strings"
	"time"

	"github.com/spf13/cobra"

	ui "github.com/cassandra-security-manager/csm/shared/cli"
	"github.com/cassandra-security-manager/csm/shared/fault"
	"github.com/cassandra-security-manager/csm/shared/resource"
)

type clientsView struct {
	Clients []struct {
		Address, User, Driver, DriverVersion, TLS string
		Protocol, Connections                     int
		Nodes                                     []string
		FirstSeenTime, LastSeenTime               time.Time
	}
	Looks []struct {
		Node, Reason, Unseen string
		Time                 time.Time
		Truncated            bool
	}
}

type healthView struct {
	Look    uint64
	AskTime time.Time
	Members []struct {
		Node, HostID, Address, Unseen string
		Look                          uint64
		SeenTime                      time.Time
		Works                         []struct{ Kind, Detail string }
		Witnesses                     []witnessView
	}
	SingleReplica []string
	Held          []struct {
		Node    string
		Reasons []struct{ Code, Text string }
	}
}

type witnessView struct {
	Node, State, Unprobed string
	Lacks, Up             bool
	Probe                 *struct {
		Table   string
		Answers []struct {
			Consistency, Error string
			OK                 bool
		}
	}
}

func (a *app) appCommand() *cobra.Command {
	return group("app", "Applications that speak to the clusters", a.appClients())
}

func (a *app) appClients() *cobra.Command {
	var plain bool
	c := &cobra.Command{Use: "clients [CLUSTER]", Short: "Who was seen to speak CQL to a cluster in the last thirty days", Args: cobra.MaximumNArgs(1), ValidArgsFunction: a.completeWith(a.clusterNames),
		Long: "Agents read system_views.clients of their own node, hourly and when asked (`csm cluster health --ask`). Applications on one address that\n" +
			"log in and connect alike are one line. Plaintext comes first. Nodes whose clients nobody could see are named, with the reason.",
		Example: "  csm app clients prod-eu\n  csm app clients prod-eu --plaintext\n  csm app clients prod-eu -o json | jq -r '.clients[] | select(.tls | not) | .address'"}
	c.Flags().BoolVar(&plain, "plaintext", false, "only those without TLS")
	return a.run(c, func(s *session, args []string) error {
		name, err := s.clusterName(first(args))
		if err != nil {
			return err
		}
		v, raw, err := read[clientsView](s, name+"/clients", nil)
		if err != nil {
			return err
		}
		t := &ui.Table{Columns: []ui.Column{{Name: "ADDRESS"}, {Name: "USER"}, {Name: "DRIVER"}, {Name: "TLS"}, {Name: "CONNECTIONS", Right: true}, {Name: "NODES", Right: true},
			{Name: "LAST SEEN"}, {Name: "PROTOCOL", Right: true, Wide: true}, {Name: "FIRST SEEN", Wide: true}, {Name: "SEEN BY", Wide: true}}}
		for _, x := range v.Clients {
			tls := x.TLS
			if tls == "" {
				tls = "plaintext"
			} else if plain {
				continue
			}
			t.Add(x.Address, x.User, strings.TrimSpace(x.Driver+" "+x.DriverVersion), tls, fmt.Sprint(x.Connections), fmt.Sprint(len(x.Nodes)), s.ago(x.LastSeenTime),
				fmt.Sprint(x.Protocol), s.ago(x.FirstSeenTime), nodesCell(x.Nodes))
		}
		return s.Print(ui.View{Object: raw, Table: t, Note: unseenClients(v)})
	})
}

// unseenClients names the nodes whose clients are not known, by reason.
func unseenClients(v clientsView) string {
	var out []string
	by, text := map[string][]string{}, map[string]string{}
	var reasons []string
	for _, l := range v.Looks {
		if l.Truncated {
			out = append(out, fmt.Sprintf("%s has more clients than are told", resource.Last(l.Node)))
		}
		if l.Reason == "" {
			continue
		}
		if by[l.Reason] == nil {
			reasons = append(reasons, l.Reason)
		}
		by[l.Reason], text[l.Reason] = append(by[l.Reason], l.Node), l.Unseen
	}
	for _, r := range reasons {
		out = append(out, fmt.Sprintf("not seen on %s (%s): %s", nodesCell(by[r]), r, text[r]))
	}
	return strings.Join(out, "\n")
}

func (a *app) clusterHealth() *cobra.Command {
	var ask bool
	c := &cobra.Command{Use: "health [CLUSTER]", Short: "How the ring is in the eyes of its members, and what holds each node", Args: cobra.MaximumNArgs(1), ValidArgsFunction: a.completeWith(a.clusterNames),
		Long: "For each member what the others say: gossip, and whether a range that it owns could be read at LOCAL_QUORUM, QUORUM and ALL.\n" +
			"--ask has every agent look now and waits for the answers (at most --timeout). Exit code 10 when a node must not be touched.",
		Example: "  csm cluster health prod-eu\n  csm cluster health prod-eu --ask\n  csm cluster health prod-eu -o json | jq '.held'"}
	c.Flags().BoolVar(&ask, "ask", false, "have every agent look now, and wait")
	return a.run(c, func(s *session, args []string) error {
		name, err := s.clusterName(first(args))
		if err != nil {
			return err
		}
		v, raw, err := s.health(name, ask)
		if err != nil {
			return err
		}
		if err := s.Print(ui.View{Object: raw, Table: healthTable(s, v), Note: healthNote(v)}); err != nil {
			return err
		}
		if len(v.Held) > 0 {
			return fault.New(fault.Differs, "ring-held", "%d nodes of %s must not be touched now", len(v.Held), short(name)).Do("the reasons stand above; `csm cluster health %s --ask` looks again", short(name))
		}
		return nil
	})
}

// health reads how the ring is; with ask it waits until every enrolled member has answered, or says what is there by then.
func (s *session) health(name string, ask bool) (v healthView, raw any, err error) {
	var asked struct{ Look uint64 }
	if ask && !s.dryRun {
		ans, err := s.post(name+":askHealth", nil)
		if err != nil {
			return v, nil, err
		}
		if err := decode(ans.body, &asked); err != nil {
			return v, nil, err
		}
	}
	for end := time.Now().Add(askFor); ; {
		if v, raw, err = read[healthView](s, name+":checkHealth", nil); err != nil || asked.Look == 0 || v.answered(asked.Look) || time.Now().After(end) {
			return v, raw, err
		}
		select {
		case <-s.cmd.Context().Done():
			return v, raw, nil
		case <-time.After(time.Second):
		}
	}
}

// askFor is how long answers are waited for: a look takes a minute at most where members have just died.
const askFor = 75 * time.Second

func (v healthView) answered(look uint64) bool {
	for _, m := range v.Members {
		if m.Node != "" && m.Look < look {
			return false
		}
	}
	return true
}

func healthTable(s *session, v healthView) *ui.Table {
	t := &ui.Table{Columns: []ui.Column{{Name: "MEMBER"}, {Name: "ADDRESS"}, {Name: "GOSSIP"}, {Name: "LOCAL_QUORUM"}, {Name: "QUORUM"}, {Name: "ALL"}, {Name: "AT WORK"}, {Name: "ANSWERED"}, {Name: "HOST ID", Wide: true}}}
	for _, m := range v.Members {
		name := resource.Last(m.Node)
		if m.Node == "" {
			name = "(not enrolled)"
		}
		var works []string
		for _, w := range m.Works {
			works = append(works, strings.TrimSpace(w.Kind+" "+w.Detail))
		}
		if len(works) == 0 && m.Unseen != "" {
			works = []string{"? " + m.Unseen}
		}
		t.Add(name, m.Address, gossipCell(m.Witnesses), answerCell(m.Witnesses, "LOCAL_QUORUM"), answerCell(m.Witnesses, "QUORUM"), answerCell(m.Witnesses, "ALL"), strings.Join(works, "; "), s.ago(m.SeenTime), m.HostID)
	}
	return t
}

// gossipCell counts how the witnesses see a member.
func gossipCell(ws []witnessView) string {
	up, worst := 0, ""
	for _, w := range ws {
		switch {
		case w.Lacks:
			worst = "unseen"
		case !w.Up:
			worst = "down"
		case w.State != "normal":
			worst = w.State
		default:
			up++
		}
	}
	return strings.TrimSpace(fmt.Sprintf("%d of %d up %s", up, len(ws), worst))
}

// answerCell counts at how many witnesses a range of the member was read.
func answerCell(ws []witnessView, level string) string {
	ok, all := 0, 0
	for _, w := range ws {
		if w.Probe == nil {
			continue
		}
		for _, a := range w.Probe.Answers {
			if a.Consistency == level {
				all++
				if a.OK {
					ok++
				}
			}
		}
	}
	if all == 0 {
		return "-"
	}
	return fmt.Sprintf("%d of %d", ok, all)
}

func healthNote(v healthView) string {
	var out []string
	for _, h := range v.Held {
		for _, r := range h.Reasons {
			out = append(out, fmt.Sprintf("%s is held (%s): %s", resource.Last(h.Node), r.Code, r.Text))
		}
	}
	unprobed := map[string]bool{}
	for _, m := range v.Members {
		for _, w := range m.Witnesses {
			if w.Unprobed != "" && !unprobed[w.Node] {
				unprobed[w.Node] = true
				out = append(out, fmt.Sprintf("%s read no ranges: %s", resource.Last(w.Node), w.Unprobed))
			}
		}
	}
	if len(v.SingleReplica) > 0 {
		out = append(out, "keyspaces with data of one replica, which nobody can read while its node restarts: "+strings.Join(v.SingleReplica, ", "))
	}
	return strings.Join(out, "\n")
}
