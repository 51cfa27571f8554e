package rotation_test

import (
	"encoding/hex"
	"testing"

	"google.golang.org/protobuf/proto"

	"github.com/cassandra-security-manager/csm/controller/fleet/rotation"
	"github.com/cassandra-security-manager/csm/controller/state"
	clusterv1 "github.com/cassandra-security-manager/csm/protocol/cluster/v1"
	"github.com/cassandra-security-manager/csm/shared/fault"
)

// raw sends a command as nobody's client would.
func (w *world) raw(c proto.Message) error {
	_, err := w.log.Propose(ctx, state.Proposal{Command: c, Actor: ann})
	return err
}

func TestAPlanThatTheRingHasLeftBehindIsStale(t *testing.T) {
	w := newWorld(t, 3)
	p, err := w.rotations.Plan(ctx, w.wanted(young))
	w.must(err)
	w.stranger("n4")
	_, err = w.rotations.Start(ctx, w.wanted(young), p.Hash, 0, "late", ann)
	wantReason(t, err, "plan-stale")
}

func TestOneRotationOfARingAtATime(t *testing.T) {
	w := newWorld(t, 3)
	w.start(young)
	p, err := w.rotations.Plan(ctx, w.wanted(young))
	w.must(err)
	if len(p.Blockers) == 0 {
		t.Error("a second plan has no blocker")
	}
	_, err = w.rotations.Start(ctx, w.wanted(young), p.Hash, 0, "again", ann)
	wantReason(t, err, "gate-one-at-a-time")
}

func TestARetireBeforeItsTimeIsRefusedHoweverItIsAsked(t *testing.T) {
	w := newWorld(t, 3)
	r := w.start(young)
	wantReason(t, w.retire(r.Name), "rotation-phase")
	w.run(3)
	p, err := w.rotations.PlanRetire(ctx, r.Name)
	w.must(err)
	wantReason(t, w.raw(&clusterv1.RetireRotation{Name: r.Name, PlanHash: []byte(p.Hash), Reason: "raw"}), "rotation-phase")
	w.run(12)
	wantReason(t, w.raw(&clusterv1.RetireRotation{Name: r.Name, PlanHash: make([]byte, 32), Reason: "raw"}), "plan-stale")
	w.stop(w.nodes[1])
	wantReason(t, w.retire(r.Name), "gate-up")
}

// What cannot be taken back, and who may break, is written down with a reason or not done.
func TestNothingIsWithdrawnTurnedRoundOrGivenUpWithoutAReason(t *testing.T) {
	w := newWorld(t, 3)
	r := w.start(young)
	w.run(12)
	phaseIs(t, w.get(r.Name), rotation.Reissued)
	p, err := w.rotations.PlanRetire(ctx, r.Name)
	w.must(err)
	hash, err := hex.DecodeString(p.Hash)
	w.must(err)
	before, gone := w.get(r.Name), w.nodes[2]
	w.stop(gone)
	for what, c := range map[string]proto.Message{
		"set aside": &clusterv1.SetAsideMember{Name: r.Name, Member: gone.name, Incarnation: gone.incarnation},
		"retire":    &clusterv1.RetireRotation{Name: r.Name, PlanHash: hash},
		"rollback":  &clusterv1.ControlRotation{Name: r.Name, Verb: "rollback"},
		"resume":    &clusterv1.ControlRotation{Name: r.Name, Verb: "resume", Exceptions: []string{"seen"}},
	} {
		if err := w.raw(c); !fault.HasReason(err, "no-reason") {
			t.Errorf("%s without a reason: %v", what, err)
		}
	}
	w.startCassandra(gone)
	if after := w.get(r.Name); after.Revision != before.Revision || len(after.Asides) > 0 {
		t.Errorf("something was changed: %+v, before %+v", after, before)
	}
	w.must(w.raw(&clusterv1.RetireRotation{Name: r.Name, PlanHash: hash, Reason: "raw", Exceptions: []string{"links"}}))
}

func TestALiveMemberCannotBeSetAside(t *testing.T) {
	w := newWorld(t, 3)
	r := w.start(young)
	m := w.nodes[2]
	_, err := w.rotations.SetAside(ctx, r.Name, m.name, m.incarnation, "in the way", ann)
	wantReason(t, err, "member-up")
	w.stop(m)
	_, err = w.rotations.SetAside(ctx, r.Name, m.name, m.incarnation+1, "in the way", ann)
	wantReason(t, err, "other-incarnation")
	_, err = w.rotations.SetAside(ctx, r.Name, m.name, m.incarnation, "its board is broken", ann)
	w.must(err)
}

func TestWhoWasSetAsideAndCameBackIsWaitedForWhenItGoesAgain(t *testing.T) {
	w := newWorld(t, 3)
	r := w.start(young)
	m := w.nodes[2]
	w.stop(m)
	_, err := w.rotations.SetAside(ctx, r.Name, m.name, m.incarnation, "its board is broken", ann)
	w.must(err)
	w.run(12)
	phaseIs(t, w.get(r.Name), rotation.Reissued)
	w.must(m.move())
	w.startCassandra(m)
	w.tick()
	if got := w.get(r.Name); len(got.Asides) > 0 {
		t.Errorf("it is up, and still set aside: %+v", got.Asides)
	}
	w.stop(m)
	wantReason(t, w.retire(r.Name), "gate-up")
	w.startCassandra(m)
	w.run(3)
	w.must(w.retire(r.Name))
}

func TestRollbackTurnsRoundUntilTheRetire(t *testing.T) {
	w := newWorld(t, 3)
	r := w.start(young)
	w.run(5)
	if _, err := w.rotations.Control(ctx, r.Name, "rollback", "clients complain", ann); err != nil {
		t.Fatal(err)
	}
	_, err := w.rotations.Control(ctx, r.Name, "rollback", "they complain still", ann)
	wantReason(t, err, "undoing")
	w.run(14)
	phaseIs(t, w.get(r.Name), rotation.RolledBack)
	for _, m := range w.nodes {
		if m.leaf != old || !m.trusted[old] || m.trusted[young] {
			t.Errorf("%s serves a leaf of %s and trusts %v", m.name, m.leaf, m.trusted)
		}
	}
	r = w.start(young) // and the same again
	w.run(14)
	w.must(w.retire(r.Name))
	_, err = w.rotations.Control(ctx, r.Name, "rollback", "too late", ann)
	wantReason(t, err, "retired")
}

// What is taken back may be what took a member out: a member that is down does not hold it. The new anchors stay until it is back.
func TestLeavesGoBackWhileAMemberIsDown(t *testing.T) {
	w := newWorld(t, 3)
	r := w.start(young)
	w.run(12)
	phaseIs(t, w.get(r.Name), rotation.Reissued)
	cut := w.nodes[2]
	w.stop(cut)
	_, err := w.rotations.Control(ctx, r.Name, "rollback", "a member is cut off", ann)
	w.must(err)
	w.run(10)
	for _, m := range w.nodes[:2] {
		if m.leaf != old || !m.trusted[young] {
			t.Errorf("%s serves a leaf of %s and trusts %v", m.name, m.leaf, m.trusted)
		}
	}
	phaseIs(t, w.get(r.Name), rotation.Undoing)
	w.startCassandra(cut)
	w.run(14)
	phaseIs(t, w.get(r.Name), rotation.RolledBack)
}

func TestAPausedRotationOpensNothing(t *testing.T) {
	w := newWorld(t, 3)
	r := w.start(young)
	w.tick()
	if _, err := w.rotations.Control(ctx, r.Name, "pause", "pager", ann); err != nil {
		t.Fatal(err)
	}
	w.run(4)
	phaseIs(t, w.get(r.Name), rotation.Distribute)
	if _, err := w.rotations.Control(ctx, r.Name, "resume", "quiet", ann); err != nil {
		t.Fatal(err)
	}
	w.run(14)
	phaseIs(t, w.get(r.Name), rotation.Reissued)
}
