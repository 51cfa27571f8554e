package rotation_test

import (
	"bytes"
	"crypto/sha256"
	"slices"
	"testing"
	"time"

	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/cassandra-security-manager/csm/controller/fleet/rotation"
	agentv1 "github.com/cassandra-security-manager/csm/protocol/agent/v1"
	"github.com/cassandra-security-manager/csm/shared/resource"
)

// theirs stands for the CA of somebody else.
const theirs = "theirs"

var theirAnchor = sha256.Sum256([]byte("the root of theirs"))

// theirLeaf is the leaf of somebody else's CA that a member came with.
func (m *member) theirLeaf() []byte {
	s := sha256.Sum256([]byte("their leaf of " + m.name))
	return s[:]
}

// putBack lets Cassandra serve the leaf of before again.
func (m *member) putBack() {
	m.leaf, m.served = theirs, m.theirLeaf()
	m.store.LeafSha256, m.store.KeystoreSha256 = m.served, m.served
}

// keep is what an agent tells of the leaf that it keeps.
func (m *member) keep() {
	m.store.KeptSha256, m.store.KeptAnchorSha256 = m.theirLeaf(), theirAnchor[:]
	m.store.KeptUntil = timestamppb.New(m.w.log.Clock.Now().Add(30 * 24 * time.Hour))
}

// theirMember joins with another CA's leaf and takes our anchors beside it.
func (w *world) theirMember(node string, id byte) *member {
	w.t.Helper()
	m := w.join(node, id)
	m.trusted[theirs] = true
	m.putBack()
	m.files()
	m.store.State = agentv1.InstallState_INSTALL_STATE_FOREIGN
	m.store.NotAfter = timestamppb.New(w.log.Clock.Now().Add(60 * 24 * time.Hour))
	w.must(m.report())
	return m
}

// adopted is a ring that lives by another CA and trusts ours beside it.
func adopted(t *testing.T, size int, without string) *world {
	t.Helper()
	w := newWorldWith(t, 0, without, eager{})
	for i := range size {
		w.nodes = append(w.nodes, w.theirMember("n"+string(rune('1'+i)), byte(i+1)))
	}
	w.gossip()
	w.must(w.fleet.Onboard(ctx, cluster, "trust first", ann))
	for _, m := range w.nodes {
		c, err := m.claim(agentv1.MoveKind_MOVE_KIND_TRUST)
		w.must(err)
		m.trusts(false)
		w.must(m.finish(c))
	}
	return w
}

// forget lets the agents remove what the target says is wanted no more.
func (w *world) forget() {
	for _, m := range w.nodes {
		if t := m.target().Stores[0]; t.KeptDone && bytes.Equal(t.KeptSha256, m.store.KeptSha256) {
			m.store.KeptSha256, m.store.KeptUntil, m.store.KeptAnchorSha256 = nil, nil, nil
			w.must(m.report())
		}
	}
}

func (w *world) leaves() (out []string) {
	for _, m := range w.nodes {
		out = append(out, m.leaf)
	}
	return out
}

// takenTo takes over until so many members serve a leaf of ours.
func (w *world) takenTo(members int) rotation.Rotation {
	w.t.Helper()
	r := w.start(old)
	if r.Kind != rotation.Takeover {
		w.t.Fatalf("kind %s", r.Kind)
	}
	for range 20 {
		w.tick()
		for _, m := range w.nodes {
			taken := 0
			for _, l := range w.leaves() {
				if l == old {
					taken++
				}
			}
			if m.pending() && (m.target().Stores[0].Move != agentv1.MoveKind_MOVE_KIND_TAKE_OVER || taken < members) {
				_ = m.move()
			}
			w.unbroken("taking over " + resource.Last(m.name))
		}
	}
	return w.get(r.Name)
}

func (w *world) turn(name string, except ...string) error {
	_, err := w.rotations.Control(ctx, name, "rollback", "clients complain", ann, except...)
	return err
}

// States of the stores of a world, as the fleet sees them.
func (w *world) foreign() (out []bool) {
	for _, m := range w.nodes {
		n, err := w.fleet.GetNode(ctx, m.name)
		w.must(err)
		out = append(out, n.Stores[0].State == "foreign" && n.Stores[0].Proven == n.Stores[0].Leaf && m.target().Stores[0].TrustOnly)
	}
	return out
}

func TestATakeOverGoesBackToTheLeavesThatWereKeptAndForthAgain(t *testing.T) {
	for _, taken := range []int{1, 3} {
		w := adopted(t, 3, "")
		r := w.takenTo(taken)
		if len(r.WayBack) > 0 {
			t.Fatalf("way back: %v", r.WayBack)
		}
		w.must(w.turn(r.Name))
		if end := w.finishRotation(r.Name); end.Phase != rotation.RolledBack {
			t.Fatalf("phase %s", end.Phase)
		}
		if got := w.leaves(); !slices.Equal(got, []string{theirs, theirs, theirs}) {
			t.Errorf("%d taken: after the way back they serve %v", taken, got)
		}
		if got := w.foreign(); !slices.Equal(got, []bool{true, true, true}) {
			t.Errorf("%d taken: foreign and proved: %v", taken, got)
		}
		w.forget()
		for _, m := range w.nodes {
			if len(m.store.KeptSha256) > 0 {
				t.Errorf("%s keeps what is in service again", m.name)
			}
		}

		r = w.takenTo(3)
		w.forget()
		if got := w.nodes[0].store.KeptSha256; len(got) == 0 {
			t.Error("nothing is kept while there is a way back")
		}
		w.must(w.retire(r.Name))
		if end := w.finishRotation(r.Name); end.Phase != rotation.Done {
			t.Fatalf("phase %s", end.Phase)
		}
		w.forget()
		for _, m := range w.nodes {
			if m.leaf != old || len(m.store.KeptSha256) > 0 || !m.trusted[theirs] {
				t.Errorf("%s serves %s, keeps %x, trusts %v", m.name, m.leaf, m.store.KeptSha256, m.trusted)
			}
		}
		wantReason(t, w.turn(r.Name), "rotation-ended")
	}
}

func TestATakeOverThatGaveOutNothingTurnsRoundAtOnce(t *testing.T) {
	w := adopted(t, 3, "")
	r := w.start(old)
	w.must(w.turn(r.Name))
	if end := w.finishRotation(r.Name); end.Phase != rotation.RolledBack {
		t.Fatalf("phase %s", end.Phase)
	}
}

func TestAWayBackThatIsNotThereIsSaidBeforeAndRefused(t *testing.T) {
	for _, x := range []struct {
		name string
		lose func(w *world, s *agentv1.StoreFacts)
	}{
		{"it is gone", func(_ *world, s *agentv1.StoreFacts) { s.KeptSha256, s.KeptUntil, s.KeptAnchorSha256 = nil, nil, nil }},
		{"another is kept", func(_ *world, s *agentv1.StoreFacts) { s.KeptSha256 = theirAnchor[:] }},
		{"it leads to no anchor", func(_ *world, s *agentv1.StoreFacts) { s.KeptAnchorSha256 = nil }},
		{"it ends soon", func(w *world, s *agentv1.StoreFacts) { s.KeptUntil = timestamppb.New(w.log.Clock.Now()) }},
	} {
		t.Run(x.name, func(t *testing.T) {
			w := adopted(t, 3, "")
			r := w.takenTo(2)
			m := w.nodes[1]
			x.lose(w, m.store)
			w.must(m.report())
			if got := w.get(r.Name).WayBack; len(got) != 1 || got[0].Code != "kept" || got[0].Node != "n2" {
				t.Errorf("explain says %v", got)
			}
			wantReason(t, w.turn(r.Name), "gate-kept")
			if now := w.get(r.Name); now.Phase.Undo() {
				t.Fatalf("phase %s", now.Phase)
			}
			// A person lets that node keep our leaf, which all trust.
			wantReason(t, w.turn(r.Name, "leaf-n9"), "no-client")
			w.must(w.turn(r.Name, "leaf-n2"))
			if end := w.finishRotation(r.Name); end.Phase != rotation.RolledBack {
				t.Fatalf("phase %s", end.Phase)
			}
			if got := w.leaves(); !slices.Equal(got, []string{theirs, old, theirs}) {
				t.Errorf("they serve %v", got)
			}
		})
	}
}

func TestALeafThatIsLostOnTheWayBackHoldsItUntilAPersonSaysSo(t *testing.T) {
	w := adopted(t, 3, "")
	r := w.takenTo(3)
	w.must(w.turn(r.Name))
	w.act(4, w.nodes[0])
	m := w.nodes[2]
	m.store.KeptSha256 = nil
	w.must(m.report())
	_, err := m.claim(agentv1.MoveKind_MOVE_KIND_GIVE_BACK)
	wantReason(t, err, "gate-kept")
	w.run(10)
	now := w.get(r.Name)
	if now.Phase != rotation.Undoing || !slices.ContainsFunc(now.Reasons, func(x rotation.Reason) bool { return x.Code == "kept" && x.Node == "n3" }) {
		t.Fatalf("phase %s: %v", now.Phase, now.Reasons)
	}
	_, err = w.rotations.Control(ctx, r.Name, "resume", "n3 keeps ours", ann, "leaf-n3")
	w.must(err)
	if end := w.finishRotation(r.Name); end.Phase != rotation.RolledBack {
		t.Fatalf("phase %s", end.Phase)
	}
	if got := w.leaves(); !slices.Equal(got, []string{theirs, theirs, old}) {
		t.Errorf("they serve %v", got)
	}
}

// A node that joined when all had leaves of ours never knew the CA before: leaves of it would cut it off.
func TestANodeThatNeverKnewTheCABeforeHoldsTheWayBack(t *testing.T) {
	w := adopted(t, 3, "")
	r := w.takenTo(3)
	w.stranger("n4")
	wantReason(t, w.turn(r.Name), "gate-trusted-before")
	if len(w.get(r.Name).WayBack) == 0 {
		t.Error("explain says nothing of it")
	}

	// Without the gate it is cut off.
	w = adopted(t, 3, "trusted-before")
	r = w.takenTo(3)
	w.stranger("n4")
	w.must(w.turn(r.Name))
	w.act(8, w.nodes[:3]...)
	if w.broken() == "" {
		t.Error("nothing breaks without the gate: it is not needed, or not tested")
	}
}

func TestNobodyGoesBackButByARollback(t *testing.T) {
	w := adopted(t, 3, "")
	w.takenTo(2)
	m := w.nodes[0]
	_, err := m.claim(agentv1.MoveKind_MOVE_KIND_GIVE_BACK)
	wantReason(t, err, "nothing-kept")
	_, err = m.claim(agentv1.MoveKind_MOVE_KIND_TAKE_OVER)
	wantReason(t, err, "no-takeover")
}

func TestNoCertificateOfOursIsGivenForTheWayBack(t *testing.T) {
	w := adopted(t, 3, "")
	r := w.takenTo(3)
	w.must(w.turn(r.Name))
	w.tick()
	m := w.nodes[0]
	c, err := m.claim(agentv1.MoveKind_MOVE_KIND_GIVE_BACK)
	w.must(err)
	wantReason(t, m.tryIssue(c), "no-leaf-wanted")
	// And what is put back must be what was there.
	other := sha256.Sum256([]byte("some other leaf"))
	m.store.LeafSha256, m.store.KeystoreSha256 = other[:], other[:]
	wantReason(t, m.done(c, unproven), "leaf-not-kept")
}
