package rotation_test

import (
	"testing"

	"github.com/cassandra-security-manager/csm/controller/fleet/rotation"
	agentv1 "github.com/cassandra-security-manager/csm/protocol/agent/v1"
	"github.com/cassandra-security-manager/csm/shared/resource"
)

// stop lets a node's Cassandra end; start lets it come up with the files that are there. An agent that comes first has
// brought them up to date before (csm-agent ensure --before-start); one that comes too late has not.
func (w *world) stop(m *member) { w.down[m.name] = true; w.gossip() }

func (w *world) startCassandra(m *member) { delete(w.down, m.name); w.gossip() }

// stranger is a member of the ring without an agent: it trusts the CA old, and nobody ever changes its files.
func (w *world) stranger(node string) *member {
	m := w.join(node, byte(len(w.nodes)+1))
	m.firstInstall()
	w.nodes = append(w.nodes, m)
	w.gossip()
	c, err := m.claim(first)
	w.must(err)
	m.finish(c)
	w.must(w.fleet.Revoke(ctx, m.name, "its agent is gone", ann))
	return m
}

// outages are lives of a ring that end in an outage unless one gate holds. Each leaves the others open.
var outages = []struct {
	gate, name string
	live       func(w *world)
}{
	{"up", "a node is down while trust is distributed, and its Cassandra starts before its agent", func(w *world) {
		w.start(young)
		w.stop(w.nodes[2])
		w.run(8)
		w.startCassandra(w.nodes[2])
	}},
	{"enrolled", "a member has no agent that could change its trust", func(w *world) {
		m := w.stranger("n4")
		w.start(young)
		for range 8 {
			w.tick()
			for _, x := range w.nodes {
				if x != m && x.pending() {
					_ = x.move()
				}
			}
		}
	}},
	{"trust-proved", "a truststore is put back by hand when it was proved", func(w *world) {
		w.start(young)
		for range 2 {
			w.tick()
			for _, x := range w.nodes {
				if x.pending() {
					_ = x.move()
				}
			}
		}
		delete(w.nodes[0].trusted, young)
		w.nodes[0].files()
		w.must(w.nodes[0].report())
		for range 8 {
			w.tick()
			for _, x := range w.nodes[1:] { // the agent of the first is stopped
				if x.pending() {
					_ = x.move()
				}
			}
		}
	}},
	{"ring-known", "only one node tells of a member that the others have not met", func(w *world) {
		m := w.stranger("n4")
		w.nodes = w.nodes[:3]
		w.gossip() // nobody tells of it any more but the first
		v := w.nodes[0].instance.Ring
		w.nodes[0].instance.Ring = &agentv1.RingView{Source: "nodetool", Members: append(append([]*agentv1.RingMember{}, v.Members...),
			&agentv1.RingMember{HostId: m.id, Address: []byte{10, 0, 0, 4}, Up: true, State: agentv1.RingState_RING_STATE_NORMAL})}
		w.must(w.nodes[0].report())
		w.start(young)
		for range 8 {
			w.tick()
			for _, x := range w.nodes {
				if x.pending() {
					_ = x.move()
				}
			}
		}
		w.nodes = append(w.nodes, m)
	}},
	{"leaf-proved", "a retire is asked for while a node still serves a leaf of the CA before", func(w *world) {
		r := w.start(young)
		for range 3 {
			w.tick()
			for _, x := range w.nodes {
				if x.pending() && w.get(r.Name).Phase == rotation.Distribute {
					_ = x.move()
				}
			}
		}
		for range 10 {
			w.tick()
			for _, x := range w.nodes[:2] {
				if x.pending() {
					_ = x.move()
				}
			}
		}
		_ = w.retire(r.Name)
		for range 6 {
			w.tick()
			for _, x := range w.nodes[:2] {
				if x.pending() {
					_ = x.move()
				}
			}
		}
	}},
}

func TestNoLifeEndsInAnOutage(t *testing.T) {
	for _, o := range outages {
		t.Run(o.gate+": "+o.name, func(t *testing.T) {
			w := newWorld(t, 3, "")
			o.live(w)
			w.unbroken("in the end")
		})
	}
}

// Without its gate the same life must end in an outage: else the gate would not be needed, or this test would see nothing.
func TestWithoutItsGateTheSameLifeEndsInAnOutage(t *testing.T) {
	for _, o := range outages {
		if o.gate == "ring-known" || o.gate == "leaf-proved" {
			continue // other gates hold this one up too; the table of faults shows that its removal is missed
		}
		t.Run(o.gate, func(t *testing.T) {
			w := newWorld(t, 3, o.gate)
			o.live(w)
			if w.broken() == "" {
				t.Errorf("no outage without the gate %s; phases and members: %+v", o.gate, resource.Last(cluster))
			}
		})
	}
}
