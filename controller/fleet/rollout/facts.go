package rollout

import (
	"context"
	"fmt"
	"slices"
	"time"

	agentv1 "github.com/cassandra-security-manager/csm/protocol/agent/v1"

	"github.com/cassandra-security-manager/csm/controller/fleet"
	"github.com/cassandra-security-manager/csm/controller/state"
)

// sources are the rows behind facts.
type sources struct {
	stores []storeRow
	nodes  []fleet.Standing
}

// factsOf reads all that the next decision of a rollout depends on.
func factsOf(ctx context.Context, q state.Querier, r row, now time.Time) (Facts, sources, error) {
	f := Facts{Now: now, Spec: r.spec, State: r.state, Note: r.note, Failures: r.failures}
	stores, err := storesOf(ctx, q, r.name)
	if err != nil {
		return f, sources{}, err
	}
	nodes, err := fleet.Standings(ctx, q, r.spec.Cluster, now)
	if err != nil {
		return f, sources{}, err
	}
	f.gone = len(gone(r, stores, nodes)) > 0
	f.Nodes = nodesOf(stores, nodes, r.spec.Canary > 0 && !r.back)
	freezes, err := fleet.FreezesAt(ctx, q, now)
	if err != nil {
		return f, sources{}, err
	}
	for i := range f.Nodes {
		if n := &f.Nodes[i]; n.Phase == Pending || n.Phase == Told {
			if z := freezes.On(n.Name); z != nil {
				n.Frozen = z.Words()
			}
		}
	}
	if err := f.surroundings(ctx, q, nodes); err != nil {
		return f, sources{}, err
	}
	if err := f.look(ctx, q, r); err != nil {
		return f, sources{}, err
	}
	if f.Spec.Undo || f.State == RollingBack {
		f.onTheWayBack()
	}
	return f, sources{stores, nodes}, nil
}

// onTheWayBack leaves out what the way back may be the cure of: members that are down or away, and a ring whose members see each
// other differently. What goes on by itself (a bootstrap, a repair), a freeze, and one node after the other hold as ever. Pure.
func (f *Facts) onTheWayBack() {
	f.Down, f.Unknown = nil, nil
	for i := range f.Nodes {
		n := &f.Nodes[i]
		n.Ring = slices.DeleteFunc(n.Ring, func(r Reason) bool { return r.Code != "busy" })
	}
}

// look reads what the neighbours of the nodes that are next say of the ring. Where no agent has ever told (it may not log in,
// or list nothing), gossip as it was reported is all there is.
func (f *Facts) look(ctx context.Context, q state.Querier, r row) error {
	wave, begun := f.wave()
	f.Looked = r.lookWave == wave
	if wave < 0 || f.State != Running && f.State != RollingBack {
		return nil
	}
	next := f.candidates(wave)
	if len(next) == 0 {
		return nil
	}
	h, err := fleet.Health(ctx, q, r.spec.Cluster)
	if err != nil {
		return err
	}
	need := fleet.HealthNeed{Without: f.away}
	if f.Looked && tells(h) {
		need.Look = r.look
	}
	weighed := h.Weigh(need)
	for _, n := range next {
		for _, x := range weighed.Holds(n.Name) {
			switch {
			case x.Code == "replica-down" || x.Code == "ring-moving": // weighed by the gates, which know how many may be down
			case x.Code == "health-unknown" && (need.Look == 0 || begun): // nobody tells; or it was looked at when the wave began
			default:
				n.Ring = append(n.Ring, Reason{Code: x.Code, Node: n.Name, Message: x.Text, Remedy: "wait, or see what `nodetool status`, `netstats` and `compactionstats` say there"})
			}
		}
	}
	return nil
}

// candidates are the nodes of a wave that may begin next: those that were told, and a few more than there are places. What
// comes later in a large rack is not looked at yet.
func (f *Facts) candidates(wave int) (out []*Node) {
	places := f.Spec.Width + 4
	for i := range f.Nodes {
		n := &f.Nodes[i]
		switch {
		case n.Wave != wave:
		case n.Phase == Told:
			out = append(out, n)
		case n.Phase == Pending && n.Unable == "" && n.Frozen == "" && places > 0:
			places--
			out = append(out, n)
		case n.Phase == Pending && n.Unable == "" && n.Frozen == "":
			n.Later = true
		}
	}
	return out
}

func tells(h fleet.RingHealth) bool {
	for _, m := range h.Members {
		if !m.Seen.IsZero() {
			return true
		}
	}
	return false
}

// nodesOf joins the stores of a rollout with how they stand: a node is as far as the store of it that is least so. Pure.
func nodesOf(stores []storeRow, standings []fleet.Standing, canary bool) (out []Node) {
	byName := standingOf(standings)
	for _, x := range stores {
		p, fallen := phaseOf(x, byName[x.node])
		n := Node{Name: x.node, Wave: x.wave, Phase: p, Since: at(x.sinceMs), Detail: x.detail, Broken: x.state == storeBroken, Fallen: fallen, Canary: canary && x.wave == 0}
		if s, ok := byName[x.node]; ok {
			n.Unable = unable(s)
			if p == Moving {
				n.Since, n.Waits = s.Claim.Since, s.Waits
			}
		}
		if k := len(out); k > 0 && out[k-1].Name == n.Name {
			out[k-1] = worse(out[k-1], n)
			continue
		}
		out = append(out, n)
	}
	return out
}

// standingOf finds nodes by name.
func standingOf(nodes []fleet.Standing) map[string]fleet.Standing {
	out := make(map[string]fleet.Standing, len(nodes))
	for _, n := range nodes {
		out[n.Node] = n
	}
	return out
}

// phaseOf reads off the store how far it is.
func phaseOf(x storeRow, n fleet.Standing) (phase string, fallen bool) {
	var s fleet.StoreStanding
	for _, st := range n.Stores {
		if st.Store == x.store {
			s = st
		}
	}
	switch x.state {
	case storePending:
		return Pending, false
	case storeDone:
		return Proved, !s.Proven && !moving(x, n) && !s.Unproved
	case storeFailed, storeBroken:
		return Failed, false
	case storeGone:
		return Gone, false
	}
	switch {
	case moving(x, n):
		return Moving, false
	case s.Unproved || s.Generation == x.generation && s.Installed >= s.Generation:
		return Unproved, false
	}
	return Told, false
}

// worse of two stores of one node.
func worse(a, b Node) Node {
	order := map[string]int{Failed: 0, Unproved: 1, Moving: 2, Told: 3, Pending: 4, Gone: 5, Proved: 6}
	out := a
	if order[b.Phase] < order[a.Phase] {
		out = b
	}
	// One store done and the other not begun: the node is under way.
	if (a.Phase == Proved && b.Phase == Pending) || (a.Phase == Pending && b.Phase == Proved) {
		out.Phase = Told
	}
	out.Broken, out.Fallen = a.Broken || b.Broken, a.Fallen || b.Fallen
	return out
}

// surroundings reads what lies outside of the rollout: the ring, freezes, others that move.
func (f *Facts) surroundings(ctx context.Context, q state.Querier, nodes []fleet.Standing) error {
	z, err := fleet.FrozenAt(ctx, q, f.Spec.Cluster, f.Now)
	if err != nil {
		return err
	}
	if z != nil {
		f.Freeze = &Reason{Code: "frozen", Message: z.Words(), Remedy: z.Remedy(), Since: z.Since, Until: z.Until}
	}
	ring, err := fleet.RingOf(ctx, q, f.Spec.Cluster)
	if err != nil {
		return err
	}
	f.ring(ring, nodes)
	f.others(nodes)
	return nil
}

// ring turns what the members say of each other, and what agents say of their own Cassandra, into reasons. Pure.
func (f *Facts) ring(r fleet.Ring, nodes []fleet.Standing) {
	for _, d := range r.Doubts {
		f.Unknown = append(f.Unknown, Reason{Code: "ring-" + d.Code, Message: d.Message, Remedy: "agents list the ring by nodetool: `csm node list` shows who is connected"})
	}
	byName := standingOf(nodes)
	for _, m := range r.Members {
		name := m.Node
		who := m.Address
		if name != "" {
			who = fleet.Short(name)
		}
		n, known := byName[name]
		if !m.Up || known && !(n.Running && n.Connected) {
			f.away = append(f.away, m.HostID)
		}
		switch {
		case !m.Up && slices.Contains(f.Spec.Aside, m.HostID):
		case m.State != "normal" && m.State != "unknown":
			f.Unsettled = append(f.Unsettled, Reason{Code: "ring-" + m.State, Node: name, Message: fmt.Sprintf("%s is %s", who, m.State), Remedy: "wait until it is done: `nodetool status` on any node"})
		case !m.Up:
			f.Down = append(f.Down, Reason{Code: "member-down", Node: name, Message: fmt.Sprintf("%s is down as its peers see it", who), Remedy: "start it, or take it out of the ring"})
		case known && !n.Running:
			f.Down = append(f.Down, Reason{Code: "member-down", Node: name, Message: fmt.Sprintf("Cassandra on %s does not run, its agent says", who), Remedy: "start it"})
		case known && !n.Connected:
			f.Down = append(f.Down, Reason{Code: "agent-away", Node: name, Message: fmt.Sprintf("the agent of %s is not connected, so nobody tells whether it is up", who), Remedy: "start the agent, or see why it cannot reach a controller"})
		}
	}
}

// others finds nodes that move, or are not proved, without this rollout. Pure.
func (f *Facts) others(nodes []fleet.Standing) {
	mine := map[string]bool{}
	for _, n := range f.Nodes {
		mine[n.Name] = n.flying()
	}
	for _, n := range nodes {
		if mine[n.Node] || n.Agent == fleet.Revoked {
			continue
		}
		unproved := false
		for _, s := range n.Stores {
			unproved = unproved || s.Unproved
		}
		switch {
		case n.Claim != nil && !first(n):
			f.Outside = append(f.Outside, Reason{Code: "other-moves", Node: n.Node, Since: n.Claim.Since, Until: n.Claim.Until,
				Message: fleet.Short(n.Node) + " is on the move, and not by this rollout", Remedy: "wait: one by one"})
		case unproved && !slices.Contains(f.Spec.Aside, n.Node):
			f.Outside = append(f.Outside, Reason{Code: "other-unproved", Node: n.Node, Message: fleet.Short(n.Node) + " has moved, not by this rollout, and is not proved",
				Remedy: fmt.Sprintf("see why with `csm node get %s`", fleet.Short(n.Node))})
		}
	}
}

// first: an install before Cassandra's first start endangers no ring.
func first(n fleet.Standing) bool {
	for _, s := range n.Stores {
		if s.State != agentv1.InstallState_INSTALL_STATE_ABSENT && s.State != agentv1.InstallState_INSTALL_STATE_INSTALLED_UNPROVEN {
			return false
		}
	}
	return !n.Running
}
