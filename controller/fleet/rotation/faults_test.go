package rotation_test

import (
	"maps"
	"testing"
	"time"

	"github.com/cassandra-security-manager/csm/controller/fleet"
	"github.com/cassandra-security-manager/csm/controller/fleet/rotation"
	agentv1 "github.com/cassandra-security-manager/csm/protocol/agent/v1"
	"github.com/cassandra-security-manager/csm/shared/fault"
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

func TestAQuorumLostInAnyPhaseStopsItThereAndNothingElse(t *testing.T) {
	for _, phase := range stages {
		t.Run(string(phase), func(t *testing.T) {
			w, name := at(t, phase)
			before := make([]loaded, len(w.nodes))
			for i, m := range w.nodes {
				before[i] = m.inForce()
			}
			none := fault.New(fault.Unavailable, "no-quorum", "there is no quorum")
			w.log.Lose(none)
			for range 3 {
				w.log.Clock.Advance(time.Second)
				_ = w.rotations.Watch(ctx)
				for _, m := range w.nodes {
					if m.pending() {
						wantReason(t, m.move(), "no-quorum")
					}
				}
			}
			if phase == rotation.Reissued {
				wantReason(t, w.retire(name), "no-quorum")
			}
			phaseIs(t, w.get(name), phase)
			for i, m := range w.nodes {
				if m.leaf != before[i].leaf || !maps.Equal(m.trusted, before[i].trusted) {
					t.Errorf("%s moved without a quorum", resource.Last(m.name))
				}
			}
			w.log.Lose(nil)
			w.finishRotation(name)
		})
	}
}

// Two rings of one cluster_name and one CA: what one is rotated to is no business of the other.
func TestARingThatSharesTheCAKeepsIt(t *testing.T) {
	w := newWorld(t, 3)
	_, err := w.fleet.CreateCluster(ctx, fleet.ClusterSpec{Name: bob, CassandraName: "ring", Authority: old, Region: "eu"}, ann)
	w.must(err)
	other := resource.TrustDomain("default", "other")
	before, err := w.fleet.GetTrustDomain(ctx, other)
	w.must(err)
	r := w.start(young)
	w.run(12)
	w.must(w.retire(r.Name))
	w.run(8)
	phaseIs(t, w.get(r.Name), rotation.Done)
	after, err := w.fleet.GetTrustDomain(ctx, other)
	w.must(err)
	c, err := w.fleet.GetCluster(ctx, bob)
	w.must(err)
	if c.Authority != old || after.Version != before.Version || len(after.Anchors) != 1 || after.Anchors[0].SHA256 != before.Anchors[0].SHA256 {
		t.Errorf("the other ring: %+v, trusts %+v, before %+v", c, after, before)
	}
	if mine, err := w.fleet.GetTrustDomain(ctx, trust); err != nil || len(mine.Anchors) != 1 || mine.Anchors[0].SHA256 == before.Anchors[0].SHA256 {
		t.Errorf("this ring: %+v %v", mine, err)
	}
}

// Nobody can look at the only node of a ring but itself. What it says must still be of the CA that comes.
func TestARingOfOneProvesItself(t *testing.T) {
	w := newWorld(t, 1)
	m := w.nodes[0]
	r := w.start(young)
	w.tick()
	c, err := m.claim(agentv1.MoveKind_MOVE_KIND_TRUST)
	w.must(err)
	wantReason(t, m.finish(c), "not-proved") // its Cassandra has not loaded the new anchor
	m.trusts(false)
	w.must(m.report())
	w.run(12)
	phaseIs(t, w.get(r.Name), rotation.Reissued)
	w.must(w.retire(r.Name))
	w.run(8)
	phaseIs(t, w.get(r.Name), rotation.Done)
	if m.leaf != young || m.trusted[old] {
		t.Errorf("it serves a leaf of %s and trusts %v", m.leaf, m.trusted)
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
