package rotation_test

import (
	"fmt"
	"testing"
	"time"

	"github.com/cassandra-security-manager/csm/controller/fleet/rotation"
)

// until lets the leader and the agents work until a phase is reached.
func (w *world) until(name string, phase rotation.Phase) {
	w.t.Helper()
	for range 30 {
		if w.get(name).Phase == phase {
			return
		}
		if w.get(name).Phase == rotation.Reissued {
			if w.retire(name) == nil {
				continue
			}
		}
		w.log.Clock.Advance(2 * time.Minute)
		w.work()
	}
	phaseIs(w.t, w.get(name), phase)
}

// work is one look of the leader, after which every agent that may do so moves.
func (w *world) work() {
	w.tick()
	for _, m := range w.nodes {
		if !w.down[m.name] && m.pending() {
			_ = m.move()
		}
	}
}

// catchUp lets the agent of a member whose Cassandra is down do what it is told, one move after the other.
func (w *world) catchUp(m *member) {
	w.t.Helper()
	for range 6 {
		if w.tick(); m.pending() {
			w.must(m.move())
		}
	}
}

// ends waits for the end, and for who comes after it: every member serves a leaf of one CA and trusts no other.
func (w *world) ends(name string, phase rotation.Phase, is, gone string) {
	w.t.Helper()
	w.until(name, phase)
	for range 8 {
		w.log.Clock.Advance(2 * time.Minute)
		w.work()
	}
	for _, n := range w.nodes {
		if n.leaf != is || !n.trusted[is] || n.trusted[gone] || n.pending() {
			w.t.Errorf("%s serves %s and trusts %v, something to do %v", n.name, n.leaf, n.trusted, n.pending())
		}
	}
	if got := w.get(name); len(got.Asides) > 0 {
		w.t.Errorf("still set aside: %+v", got.Asides)
	}
}

// setAside names a member as whoever reads the rotation sees it.
func (w *world) setAside(name string, m *member) {
	w.t.Helper()
	for _, x := range w.get(name).Members {
		if x.Node == m.name && x.HostID != "" {
			_, err := w.rotations.SetAside(ctx, name, x.Node, x.Incarnation, "its board is broken", ann)
			w.must(err)
			return
		}
	}
	w.t.Fatalf("%s is no member", m.name)
}

func TestARotationGoesOnWithoutWhoWasSetAsideWhichCatchesUpWhenItComes(t *testing.T) {
	phases := []rotation.Phase{rotation.Distribute, rotation.Reissue, rotation.Reissued, rotation.Retire, rotation.Done}
	for i, leaves := range phases[:4] {
		for _, comes := range phases[i:] {
			for _, first := range []string{"its agent", "its Cassandra"} {
				t.Run(fmt.Sprintf("%s to %s, %s first", leaves, comes, first), func(t *testing.T) {
					w := newWorld(t, 4)
					r := w.start(young)
					w.until(r.Name, leaves)
					w.tick() // the waves of the phase have begun
					m := w.nodes[3]
					w.stop(m)
					w.setAside(r.Name, m)
					w.until(r.Name, comes)
					w.tick()
					if first == "its agent" {
						w.catchUp(m)
						w.startCassandra(m)
						w.unbroken("after its start")
					} else {
						w.startCassandra(m)
					}
					w.ends(r.Name, rotation.Done, young, old)
				})
			}
		}
	}
}

func TestAWayBackGoesOnWithoutWhoWasSetAside(t *testing.T) {
	for _, leaves := range []rotation.Phase{rotation.Reissue, rotation.Reissued} { // with the leaf of before, and with the new one
		for i, comes := range []rotation.Phase{rotation.Undoing, rotation.Withdrawing, rotation.RolledBack, rotation.Undoing, rotation.Withdrawing, rotation.RolledBack} {
			cassandraFirst := i > 2
			t.Run(fmt.Sprintf("%s to %s, its Cassandra first %v", leaves, comes, cassandraFirst), func(t *testing.T) {
				w := newWorld(t, 4)
				r := w.start(young)
				w.until(r.Name, leaves)
				w.tick()
				m := w.nodes[3]
				w.stop(m)
				w.setAside(r.Name, m)
				w.until(r.Name, rotation.Reissued)
				_, err := w.rotations.Control(ctx, r.Name, "rollback", "clients complain", ann)
				w.must(err)
				w.until(r.Name, comes)
				if !cassandraFirst {
					w.catchUp(m)
				}
				if w.startCassandra(m); !cassandraFirst {
					w.unbroken("after its start")
				}
				w.ends(r.Name, rotation.RolledBack, old, young)
			})
		}
	}
}
