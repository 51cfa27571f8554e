package rollout

import (
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"slices"
	"time"

	"github.com/cassandra-security-manager/csm/controller/fleet"
	"github.com/cassandra-security-manager/csm/controller/state"
	"github.com/cassandra-security-manager/csm/shared/fault"
	"github.com/cassandra-security-manager/csm/shared/resource"
)

// usualMove is what a move is taken to last while none was seen: claim, key, certificate, reload, proof by a neighbour.
const usualMove = 20 * time.Second

// usualLook is what a look at the ring is taken to last while none was seen: agents pause, list the ring by nodetool, and read by CQL.
const usualLook = 10 * time.Second

// Plan says which node goes in which wave, why, and how long it will take.
type Plan struct {
	Spec
	BakeSeconds float64 `json:"bakeSeconds"`
	Waves       []Wave  `json:"waves"`
	// Left are the nodes that do not take part, with the reason.
	Left []Left `json:"left,omitempty"`
	// Now would hold it if it began at once; it begins all the same, and waits.
	Now []Reason `json:"now,omitempty"`
	// Seconds from its begin to its end if nothing holds it, and when that would be.
	Seconds float64   `json:"seconds"`
	End     time.Time `json:"endTime"`
	// Hash is what start takes.
	Hash string `json:"planHash"`
}

// Wave is a group of nodes that go before the next group does.
type Wave struct {
	Title string   `json:"title"`
	Why   string   `json:"why"`
	Nodes []Member `json:"nodes"`
}

// Member is a node that takes part.
type Member struct {
	Node        string   `json:"node"`
	Incarnation uint64   `json:"incarnation"`
	Stores      []string `json:"stores"`
	Datacenter  string   `json:"datacenter,omitempty"`
	Rack        string   `json:"rack,omitempty"`
	// generations of its stores, in their order: a plan made before somebody else moved them is stale.
	generations []uint64
}

// Left is a node that does not take part.
type Left struct {
	Node string `json:"node"`
	Why  string `json:"why"`
}

// planned makes the plan of the state.
func planned(ctx context.Context, q state.Querier, s Spec, now time.Time) (Plan, error) {
	nodes, err := fleet.Standings(ctx, q, s.Cluster, now)
	if err != nil {
		return Plan{}, err
	}
	pace, err := paceOf(ctx, q, s)
	if err != nil {
		return Plan{}, err
	}
	p, err := Make(s, nodes, now, pace)
	if err != nil {
		return p, err
	}
	f := Facts{Now: now, Spec: s, State: Running}
	if err := f.surroundings(ctx, q, nodes); err != nil {
		return p, err
	}
	p.Now = f.gated()
	return p, nil
}

// Pace is how long things lasted lately: the move of one node from being told until it is proved, since it takes a place for so long, and one look of all agents at their ring. Zero: not known.
// Slowest is the longest of those moves: a wave ends with it. Settles are the nodes that wait for Cassandra's own look at their files, at most so long.
type Pace struct {
	Move, Slowest, Look time.Duration
	Settles             map[string]time.Duration
}

// paceOf reads how long things lasted lately.
func paceOf(ctx context.Context, q state.Querier, s Spec) (p Pace, err error) {
	if p.Move, p.Slowest, err = moveTook(ctx, q, s); err != nil {
		return p, err
	}
	if p.Look, err = fleet.LookTook(ctx, q, s.Cluster); err != nil {
		return p, err
	}
	p.Settles, err = fleet.Settling(ctx, q, s.Cluster)
	return p, err
}

// Make makes a plan of how the nodes stand. Pure.
func Make(s Spec, nodes []fleet.Standing, now time.Time, pace Pace) (Plan, error) {
	if err := s.check(); err != nil {
		return Plan{}, err
	}
	p := Plan{Spec: s, BakeSeconds: s.Bake.Seconds()}
	wanted := map[string]bool{}
	for _, n := range s.Nodes {
		wanted[n] = true
	}
	var in []Member
	for _, n := range nodes {
		if len(s.Nodes) > 0 && !wanted[resource.Last(n.Node)] {
			continue
		}
		delete(wanted, resource.Last(n.Node))
		if why := leftOut(s, n); why != "" {
			p.Left = append(p.Left, Left{n.Node, why})
			continue
		}
		m := Member{Node: n.Node, Incarnation: n.Incarnation, Datacenter: n.Datacenter, Rack: n.Rack}
		for _, st := range n.Stores {
			if s.Kind == Back && !st.Kept {
				continue // it has its own leaf, or the one of before already
			}
			m.Stores = append(m.Stores, st.Store)
			m.generations = append(m.generations, st.Generation)
		}
		in = append(in, m)
	}
	for n := range wanted {
		return Plan{}, fault.New(fault.NotFound, "no-node", "%s has no node %.63q", fleet.Short(s.Cluster), n).Do("see `csm node list -c %s`", resource.Last(s.Cluster))
	}
	if len(in) == 0 {
		return p, fault.New(fault.Refused, "nothing-to-do", "no node of %s can take part%s", fleet.Short(s.Cluster), firstLeft(p.Left)).Do("see `csm node list -c %s`", resource.Last(s.Cluster))
	}
	p.Waves = waves(s, in)
	p.times(now, pace)
	p.Hash = p.hash()
	return p, nil
}

func firstLeft(l []Left) string {
	if len(l) == 0 {
		return ": there are none"
	}
	return fmt.Sprintf(": %s: %s", fleet.Short(l[0].Node), l[0].Why)
}

// leftOut says why a node takes no part. A renewal goes without who cannot move now; a step of a rotation counts every
// member, so who cannot move holds it instead of being forgotten.
func leftOut(s Spec, n fleet.Standing) string {
	switch {
	case n.Agent == fleet.Pending || n.Incarnation == 0:
		return "no agent has joined"
	case n.Agent == fleet.Revoked:
		return "its agent was revoked"
	case len(n.Stores) == 0:
		return "its agent has reported no TLS store"
	case s.Kind == Back && !slices.ContainsFunc(n.Stores, func(st fleet.StoreStanding) bool { return st.Kept }):
		return "no certificate of another CA is to come back to it"
	case s.Owner != "":
		return ""
	}
	for _, st := range n.Stores {
		if st.Theirs && s.Kind != Trust {
			return "the certificate of store " + st.Store + " is another CA's: taking it over is a rotation"
		}
	}
	return unable(n)
}

// unable says why the agent of a node cannot move now; empty when it can.
func unable(n fleet.Standing) string {
	switch {
	case n.Agent != fleet.Active:
		return "its agent is " + n.Agent
	case n.Mode != "manage":
		return "its agent is in mode " + n.Mode
	case n.Hold != "":
		return "a HOLD file on the node: " + n.Hold
	case !n.Connected:
		return "its agent is not connected"
	}
	return ""
}

// waves puts the canary first, then one rack after the other; trust goes by data centre, because it endangers no quorum.
func waves(s Spec, in []Member) []Wave {
	slices.SortFunc(in, func(a, b Member) int {
		return cmp.Or(cmp.Compare(a.Datacenter, b.Datacenter), cmp.Compare(a.Rack, b.Rack), cmp.Compare(a.Node, b.Node))
	})
	var out []Wave
	if c := min(s.Canary, len(in)-1); c > 0 {
		out = append(out, Wave{Title: "canary", Why: fmt.Sprintf("%d of %d first: a failure here halts before it is many", c, len(in)), Nodes: in[:c:c]})
		in = in[c:]
	}
	for _, m := range in {
		title, why := m.Datacenter+"/"+m.Rack, "one rack: with a replica in each rack, the other replicas are not touched meanwhile"
		if s.Kind == Trust {
			title, why = m.Datacenter, "one data centre: more trust takes nothing from anybody"
		}
		if title == "" || title == "/" {
			title, why = "all", "its data centre and rack are not known"
		}
		if n := len(out); n == 0 || out[n-1].Title != title {
			out = append(out, Wave{Title: title, Why: why})
		}
		w := &out[len(out)-1]
		w.Nodes = append(w.Nodes, m)
	}
	return out
}

// times says how long it takes: before each wave a look at the ring, then rounds of its width, then the rest, within windows only.
func (p *Plan) times(now time.Time, pace Pace) {
	move := cmp.Or(pace.Move, usualMove)
	slowest, look := cmp.Or(pace.Slowest, move), cmp.Or(pace.Look, usualLook)
	c, _ := calendarOf(p.Spec)
	t := now
	for i, w := range p.Waves {
		t = t.Add(look)
		waits := pace.waits(w)
		rounds := (len(w.Nodes) + p.Width - 1) / p.Width
		for k := range rounds {
			if open, ok := c.opens(t); ok {
				t = open
			}
			if k+1 < rounds {
				t = t.Add(max(move, waits))
			} else {
				t = t.Add(max(slowest, waits))
			}
		}
		if i+1 < len(p.Waves) {
			t = t.Add(p.Bake)
		}
	}
	p.End, p.Seconds = t, t.Sub(now).Seconds()
}

// waits is how long a wave's nodes wait for Cassandra's own look at their files: as a rule one of the two looks that may be needed.
func (p Pace) waits(w Wave) (longest time.Duration) {
	for _, m := range w.Nodes {
		longest = max(longest, p.Settles[m.Node]/2)
	}
	return longest
}

// hash covers all that a plan will do, not when or how long: who looks at the same plan a minute later sees the same hash.
func (p Plan) hash() string {
	type member struct {
		Node        string
		Incarnation uint64
		Stores      []string
		Generations []uint64
	}
	var c struct {
		Spec  Spec
		Bake  time.Duration
		Waves [][]member
	}
	c.Spec, c.Bake = p.Spec, p.Bake
	for _, w := range p.Waves {
		var ms []member
		for _, m := range w.Nodes {
			ms = append(ms, member{m.Node, m.Incarnation, m.Stores, m.generations})
		}
		c.Waves = append(c.Waves, ms)
	}
	b, _ := json.Marshal(c) // of strings, numbers and times in UTC: it cannot fail
	sum := sha256.Sum256(b)
	return hex.EncodeToString(sum[:])
}
