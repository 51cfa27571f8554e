package fleet_test

import (
	"encoding/hex"
	"testing"

	agentv1 "github.com/cassandra-security-manager/csm/protocol/agent/v1"

	"github.com/cassandra-security-manager/csm/controller/fleet"
)

const trustOnly = agentv1.MoveKind_MOVE_KIND_TRUST

// foreign is a node whose Cassandra runs on the stores of another CA.
func (w *world) foreign(node string) *member {
	w.t.Helper()
	m := w.joined(node)
	m.instance.Running = true
	m.store.State = agentv1.InstallState_INSTALL_STATE_FOREIGN
	m.store.LeafSha256, m.store.KeystoreSha256, m.store.TruststoreSha256 = leafOf("theirs of "+node), leafOf("their keystore"), leafOf("their truststore")
	m.must(m.connect())
	return m
}

func TestFilesOfAnotherCATakeTrustAndNothingElse(t *testing.T) {
	w := newWorld(t)
	one, two := w.foreign("n1"), w.foreign("n2")
	for _, kind := range []agentv1.MoveKind{first, renew, trustOnly} {
		_, err := one.claim(kind)
		wantReason(t, err, "store-foreign")
	}
	one.must(w.Onboard(ctx, cluster, "trust first", ann))
	for _, kind := range []agentv1.MoveKind{first, renew} {
		_, err := one.claim(kind)
		wantReason(t, err, "leaf-theirs")
	}
	tgt, _, err := w.Target(ctx, one.name)
	if err != nil || len(tgt.Stores) != 1 || !tgt.Stores[0].TrustOnly {
		t.Fatalf("target = %v, %v", tgt, err)
	}
	c, err := one.claim(trustOnly)
	one.must(err)
	_, err = two.claim(trustOnly)
	wantReason(t, err, "wave-busy")
	if s := one.view().Stores[0]; !s.Unproved { // it needs no certificate: from now on its truststore may be another one
		t.Errorf("a claim of trust is open, and the store counts as proved: %+v", s)
	}
	wantReason(t, one.report(c, agentv1.MoveOutcome_MOVE_OUTCOME_PROVEN), "not-proved")
	one.prove(map[string]*member{one.name: one, two.name: two}, c)
	one.store.TruststoreSha256 = leafOf("theirs and ours")
	one.must(one.report(c, agentv1.MoveOutcome_MOVE_OUTCOME_PROVEN))
	v := one.view()
	if s := v.Stores[0]; s.State != "foreign" || s.Installed == 0 || s.Unproved || s.Proven != s.Leaf {
		t.Errorf("store = %+v", s)
	}
	_, err = one.claim(renew)
	wantReason(t, err, "leaf-theirs")
	if _, err := two.claim(trustOnly); err != nil {
		t.Errorf("the next node waits: %v", err)
	}
}

func TestALeafThatChangedUnderATrustMoveIsNotTaken(t *testing.T) {
	w := newWorld(t)
	m := w.foreign("n1")
	m.must(w.Onboard(ctx, cluster, "trust first", ann))
	c, err := m.claim(trustOnly)
	m.must(err)
	m.store.LeafSha256 = leafOf("another")
	wantReason(t, m.report(c, agentv1.MoveOutcome_MOVE_OUTCOME_UNPROVEN), "leaf-changed")
	m.store.LeafSha256 = leafOf("theirs of n1")
	m.must(m.report(c, agentv1.MoveOutcome_MOVE_OUTCOME_ROLLED_BACK))
	if s := m.view().Stores[0]; s.State != "foreign" || s.Installed != 0 || s.Unproved {
		t.Errorf("store = %+v", s)
	}
}

// The report of a move may be late: what the agent has called contested since is so until the agent says otherwise.
func TestALateReportDoesNotHideThatAStoreIsContested(t *testing.T) {
	for _, outcome := range []agentv1.MoveOutcome{agentv1.MoveOutcome_MOVE_OUTCOME_UNPROVEN, agentv1.MoveOutcome_MOVE_OUTCOME_ROLLED_BACK, agentv1.MoveOutcome_MOVE_OUTCOME_REFUSED} {
		w := newWorld(t)
		m := w.foreign("n1")
		m.must(w.Onboard(ctx, cluster, "trust first", ann))
		c, err := m.claim(trustOnly)
		m.must(err)
		m.store.State = agentv1.InstallState_INSTALL_STATE_CONTESTED
		m.must(m.connect())
		m.store.State = agentv1.InstallState_INSTALL_STATE_FOREIGN
		m.must(m.report(c, outcome))
		if s := m.view().Stores[0]; s.State != "contested" {
			t.Errorf("%s: store = %+v", outcome, s)
		}
		m.must(m.connect()) // an operator has released it
		if s := m.view().Stores[0]; s.State != "foreign" {
			t.Errorf("%s: store = %+v", outcome, s)
		}
	}
}

// What a stream had still to tell when a move was reported does not undo what came with that report.
func TestFactsOlderThanAReportArePassedOver(t *testing.T) {
	w := newWorld(t)
	m := w.foreign("n1")
	m.must(w.Onboard(ctx, cluster, "trust first", ann))
	c, err := m.claim(trustOnly)
	m.must(err)
	before := m.store.TruststoreSha256
	m.store.TruststoreSha256, m.store.Age = leafOf("theirs and ours"), 1<<32+1
	m.must(m.report(c, agentv1.MoveOutcome_MOVE_OUTCOME_UNPROVEN))
	for _, say := range []struct {
		age    uint64
		trusts []byte
		now    []byte
	}{{1 << 32, before, m.store.TruststoreSha256}, {1<<32 + 1, leafOf("newer"), leafOf("newer")}} {
		m.store.Age, m.store.TruststoreSha256 = say.age, say.trusts
		m.must(m.say())
		if got := m.view().Stores[0].TruststoreHash; got != hex.EncodeToString(say.now) {
			t.Errorf("after facts of age %d the truststore is %s", say.age, got)
		}
	}
	m.store.Age, m.store.TruststoreSha256 = 0, before // a stream begins with what is true
	m.must(m.connect())
	if got := m.view().Stores[0].TruststoreHash; got != hex.EncodeToString(before) {
		t.Errorf("a new stream says %s", got)
	}
}

func TestAClusterThatWasLetGoIsLeftAlone(t *testing.T) {
	w := newWorld(t)
	nodes := w.ring("n1", "n2")
	n1 := nodes["n1"]
	token := w.token("n3", fleet.TokenSpec{})
	claim, err := n1.claim(renew)
	n1.must(err)
	wantReason(t, w.Release(ctx, cluster, "", ann), "no-reason")
	n1.must(w.Release(ctx, cluster, "goes to team B", ann))
	n1.must(w.Release(ctx, cluster, "again", ann))
	wantReason(t, w.propose(n1.record(claim, "late")), "cluster-released")
	_, err = nodes["n2"].claim(renew)
	wantReason(t, err, "cluster-released")
	_, err = w.Join(ctx, w.spec(token, "key of n3"))
	wantReason(t, err, "token-revoked")
	_, err = w.Join(ctx, w.spec(w.token("n4", fleet.TokenSpec{}), "key of n4"))
	wantReason(t, err, "cluster-released")
	_, err = w.JoinByPossession(ctx, w.holder(w.anchor(wide), "n5"))
	if err == nil {
		t.Error("a node joined a cluster that was let go")
	}
	wantReason(t, w.Onboard(ctx, cluster, "x", ann), "cluster-released")
	tgt, _, err := w.Target(ctx, n1.name)
	if err != nil || tgt.Released == "" {
		t.Errorf("target = %v, %v", tgt, err)
	}
	if c, err := w.GetCluster(ctx, cluster); err != nil || c.Released == nil || c.Released.Actor != ann || c.Released.Reason != "goes to team B" {
		t.Errorf("cluster = %+v, %v", c, err)
	}
}
