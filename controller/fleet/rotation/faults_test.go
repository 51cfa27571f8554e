package rotation_test

import (
	"testing"
	"time"

	"github.com/cassandra-security-manager/csm/controller/fleet/rotation"
	"github.com/cassandra-security-manager/csm/shared/resource"
)

// stages are the moments of a rotation in which something may go wrong, and what leads from one to the next.
var stages = []rotation.Phase{rotation.Distribute, rotation.Reissue, rotation.Reissued, rotation.Retire, rotation.Undoing, rotation.Withdrawing}

// at brings a new rotation of three nodes to a phase, with everything in it still to do.
func at(t *testing.T, phase rotation.Phase) (*world, string) {
	t.Helper()
	w := newWorldWith(t, 3, "", eager{})
	r := w.start(young)
	for range 40 {
		switch now := w.get(r.Name).Phase; {
		case now == phase:
			return w, r.Name
		case now == rotation.Reissued && phase == rotation.Retire:
			w.must(w.retire(r.Name))
			continue
		case now == rotation.Reissue && (phase == rotation.Undoing || phase == rotation.Withdrawing):
			w.act(1, w.nodes[0]) // one leaf of the new CA is there to be taken back
			_, err := w.rotations.Control(ctx, r.Name, "rollback", "a test", ann)
			w.must(err)
			continue
		}
		w.act(1, w.nodes...)
		w.unbroken("on the way to " + string(phase))
	}
	t.Fatalf("phase %s is not reached: %+v", phase, w.get(r.Name))
	return nil, ""
}

// finishRotation brings it to its end, by hand where that is needed.
func (w *world) finishRotation(name string) rotation.Rotation {
	w.t.Helper()
	for range 6 {
		w.run(8)
		r := w.get(name)
		switch r.Phase {
		case rotation.Done, rotation.RolledBack:
			return r
		case rotation.Reissued:
			w.must(w.retire(name))
		}
	}
	w.t.Fatalf("it does not end: %+v", w.get(name))
	return rotation.Rotation{}
}

func TestAFreezeInAnyPhaseStopsItThereAndNothingElse(t *testing.T) {
	for _, phase := range stages {
		t.Run(string(phase), func(t *testing.T) {
			w, name := at(t, phase)
			w.must(w.fleet.Freeze(ctx, cluster, "incident", time.Time{}, ann))
			before := make([]loaded, len(w.nodes))
			for i, m := range w.nodes {
				before[i] = m.inForce()
			}
			w.run(6)
			r := w.get(name)
			phaseIs(t, r, phase)
			if !waitsFor(r, "frozen") {
				t.Errorf("it waits for %v, want the freeze", codes(r))
			}
			if phase == rotation.Reissued {
				wantReason(t, w.retire(name), "gate-frozen")
			}
			for i, m := range w.nodes {
				if m.leaf != before[i].leaf || len(m.trusted) != len(before[i].trusted) {
					t.Errorf("%s moved in spite of the freeze", resource.Last(m.name))
				}
			}
			w.must(w.fleet.Unfreeze(ctx, cluster, "over", ann))
			w.finishRotation(name)
		})
	}
}

func TestANodeThatJoinsInAnyPhaseIsCarriedToItsEnd(t *testing.T) {
	for _, phase := range stages {
		t.Run(string(phase), func(t *testing.T) {
			w, name := at(t, phase)
			m := w.join("n4", 4)
			m.firstInstall()
			w.nodes = append(w.nodes, m)
			w.gossip()
			w.unbroken("when it comes up")
			if c, err := m.claim(first); err == nil {
				w.must(m.finish(c))
			}
			r := w.finishRotation(name)
			leaf, trusted := young, young
			if r.Phase == rotation.RolledBack {
				leaf, trusted = old, old
			}
			for _, m := range w.nodes {
				if m.leaf != leaf || !m.trusted[trusted] || len(m.trusted) != 1 {
					t.Errorf("%s serves a leaf of %s and trusts %v", resource.Last(m.name), m.leaf, m.trusted)
				}
			}
		})
	}
}
