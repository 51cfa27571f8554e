package rotation

import (
	"crypto/sha256"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/cassandra-security-manager/csm/controller/fleet"
)

// Names under which a person stops waiting for all clients that were only seen, and for those that nobody can see.
const (
	exceptSeen   = "seen"
	exceptUnseen = "unseen"
)

// seenSince is how long before a rotation a client must have been seen to be waited for. One that comes once a week is in
// `csm app clients`.
const seenSince = 24 * time.Hour

// Seen is a client of the ring that speaks TLS and was not seen to connect since a node that it spoke to serves a leaf of the CA
// that comes: a connection from before says nothing of what it trusts.
type Seen struct {
	Client
	// Nodes saw it, by full name.
	Nodes []string
}

// awaited are those that no person has named; of one node, or of all where none is given.
func (v View) awaited(node string) (out []Seen) {
	for _, x := range v.Seen {
		if !x.Named && (node == "" || slices.Contains(x.Nodes, node)) {
			out = append(out, x)
		}
	}
	return out
}

// seen reads them. Of a new issuer under the same root everybody knows the root already; on the way back leaves are of a CA that all
// have trusted before.
func (s *sight) seen(members []Member) ([]Seen, error) {
	var speak []string
	for _, m := range members {
		if m.Node != "" && slices.ContainsFunc(m.Stores, func(x Store) bool { return slices.ContainsFunc(x.Ports, func(p Port) bool { return p.CQL }) }) {
			speak = append(speak, m.Node)
		}
	}
	if s.r.kind == Rekey || s.r.phase.Undo() || s.r.phase == Retire || len(speak) == 0 {
		return nil, nil
	}
	all, err := fleet.Clients(s.ctx, s.q, s.r.cluster)
	if err != nil {
		return nil, err
	}
	named, err := exceptionsOf(s.ctx, s.q, s.r.name)
	if err != nil {
		return nil, err
	}
	out, err := s.seenOf(all.Clients, named)
	if x := blind(all.Looks, speak); x != nil {
		x.Named = named[exceptUnseen]
		out = append(out, *x)
	}
	return out, err
}

// seenOf joins what the nodes tell of one client, whatever the version of TLS, and leaves out who has come back.
func (s *sight) seenOf(clients []fleet.Client, named map[string]bool) ([]Seen, error) {
	since := s.now
	if !s.r.created.IsZero() {
		since = s.r.created
	}
	since = since.Add(-seenSince)
	var out []Seen
	index, back := map[string]int{}, map[string]bool{}
	for _, c := range clients {
		who := strings.Join([]string{c.Address, c.User, c.Driver}, "\x00")
		for _, x := range c.Sights {
			side, err := s.side(x.FreshLeaf)
			if err != nil {
				return nil, err
			}
			back[who] = back[who] || side == After
		}
		if c.TLS == "" || c.Last.Before(since) {
			continue
		}
		i, ok := index[who]
		if !ok {
			i = len(out)
			index[who] = i
			id := fmt.Sprintf("seen-%.8x", sha256.Sum256([]byte(who)))
			out = append(out, Seen{Client: Client{Name: id, Detail: who, Named: named[id] || named[exceptSeen]}})
		}
		for _, x := range c.Sights {
			if !x.Last.Before(since) && !slices.Contains(out[i].Nodes, x.Node) {
				out[i].Nodes = append(out[i].Nodes, x.Node)
			}
		}
	}
	out = slices.DeleteFunc(out, func(x Seen) bool { return back[x.Detail] })
	for i := range out {
		out[i].Detail = s.words(out[i])
	}
	return out[:min(len(out), maxClients)], nil
}

func (s *sight) words(x Seen) string {
	part := strings.Split(x.Detail, "\x00")
	who := part[0]
	if part[1] != "" {
		who += " as " + part[1]
	}
	if part[2] != "" {
		who += " (" + part[2] + ")"
	}
	to := shorts(x.Nodes)
	if s.r.phase == Distribute {
		return who + " speaks TLS to " + to + ": whether it trusts the new CA shows when it connects to a node that serves a leaf of it"
	}
	return who + " speaks TLS to " + to + ", and was not seen to connect since a node serves a leaf of the new CA"
}

func shorts(nodes []string) string {
	names := make([]string, len(nodes))
	for i, n := range nodes {
		names[i] = short(n)
	}
	return strings.Join(firstOf(names, 3), ", ")
}

// blind stands for the clients of nodes that cannot tell who speaks to them, or which connections are new; nil when all can. Pure.
func blind(looks []fleet.Look, speak []string) *Seen {
	x := Seen{Client: Client{Name: exceptUnseen}}
	reason := ""
	for _, l := range looks {
		why := l.Unseen
		switch {
		case !slices.Contains(speak, l.Node):
			continue
		case why == "" && l.Truncated:
			why = "it has more clients than are told"
		case why == "":
			why = l.FreshUnseen
		}
		if why == "" {
			continue
		}
		if x.Nodes = append(x.Nodes, l.Node); reason == "" {
			reason = why
		}
	}
	if len(x.Nodes) == 0 {
		return nil
	}
	x.Detail = fmt.Sprintf("who speaks TLS to %s cannot be seen, or not since when: %s", shorts(x.Nodes), reason)
	return &x
}

// canaryGate holds the leaves of all nodes but one until every client of that one was seen to connect to it since.
func canaryGate(v View, who string) (out []Reason) {
	if v.Phase != Reissue || v.relaxes(relaxCanary) || len(v.awaited("")) == 0 || who != "" && who == v.Canary {
		return nil
	}
	if !slices.ContainsFunc(v.Members, func(m Member) bool { return m.Node == v.Canary && m.Node != "" && m.counts() && m.Up }) {
		return []Reason{{Message: "clients of the ring may not trust the new CA: one node gets a leaf of it first, and none is chosen or it is down", Remedy: "wait, or start that node"}}
	}
	for _, x := range v.awaited(v.Canary) {
		out = append(out, Reason{Node: short(v.Canary), Message: "is the first with a leaf of the new CA, and the others wait for a client of it: " + x.Detail,
			Remedy: "let the client connect anew (its pool keeps old connections), and look at it if it cannot; or do not wait for it: `csm rotation resume --except " + x.Name + " --reason ...`"})
	}
	return out
}

// seenGate asks for clients that were only seen, before the way back ends.
func seenGate(v View, _ string) (out []Reason) {
	if v.relaxes(relaxSeen) {
		return nil
	}
	for _, x := range v.awaited("") {
		out = append(out, Reason{Node: x.Name, Message: "may break: " + x.Detail, Remedy: "let it connect anew, or name it: `csm rotation retire --except " + x.Name + " --reason ...`"})
	}
	return out
}

// waitsForCanary says why the waves of the others do not begin yet.
func (g Gates) waitsForCanary(v View) (out []Reason) {
	if v.Phase != Reissue || !slices.ContainsFunc(v.Members, func(m Member) bool { return m.Node == v.Canary && m.Node != "" && m.counts() && m.Up && !lacks(v, m) }) {
		return nil // it has not been chosen, or has to move again itself
	}
	return slices.DeleteFunc(g.Ask(StepLeaf, v, ""), func(r Reason) bool { return r.Code != "canary" })
}

// canary picks who goes first among those that lack a leaf: the one that was chosen before, else the one with most clients. Empty:
// all may go, for no client is waited for. Pure.
func canary(v View, lacking []string) string {
	if v.Phase != Reissue || len(canaryGate(v, "")) == 0 {
		return ""
	}
	best, most := "", -1
	for _, n := range lacking {
		if n == v.Canary {
			return n
		}
		clients := 0
		for _, x := range v.awaited(n) {
			if x.Name != exceptUnseen {
				clients += 2
			} else {
				clients--
			}
		}
		if best == "" || clients > most {
			best, most = n, clients
		}
	}
	return best
}
