package fleet_test

import (
	"bytes"
	"strings"
	"testing"
	"time"

	agentv1 "github.com/cassandra-security-manager/csm/protocol/agent/v1"
	clusterv1 "github.com/cassandra-security-manager/csm/protocol/cluster/v1"

	"github.com/cassandra-security-manager/csm/controller/fleet"
	"github.com/cassandra-security-manager/csm/shared/resource"
)

const (
	proven     = agentv1.MoveOutcome_MOVE_OUTCOME_PROVEN
	unproven   = agentv1.MoveOutcome_MOVE_OUTCOME_UNPROVEN
	rolledBack = agentv1.MoveOutcome_MOVE_OUTCOME_ROLLED_BACK
	failed     = agentv1.MoveOutcome_MOVE_OUTCOME_FAILED
	refused    = agentv1.MoveOutcome_MOVE_OUTCOME_REFUSED
)

func TestEachGateRefusesAClaimByItsName(t *testing.T) {
	ask := func(change func(*agentv1.ClaimMoveRequest)) func(*world, map[string]*member) error {
		return func(w *world, r map[string]*member) error {
			q := r["n1"].request(renew)
			change(q)
			_, _, err := w.Claim(ctx, r["n1"].uid, q)
			return err
		}
	}
	for name, c := range map[string]struct {
		reason string
		try    func(*world, map[string]*member) error
	}{
		"another node's name":     {"not-your-node", ask(func(q *agentv1.ClaimMoveRequest) { q.Node = cluster + "/nodes/n2" })},
		"no request id":           {"no-request-id", ask(func(q *agentv1.ClaimMoveRequest) { q.RequestId = "" })},
		"an unknown incarnation":  {"agent-unknown", ask(func(q *agentv1.ClaimMoveRequest) { q.Incarnation = 9 })},
		"an unknown store":        {"no-store", ask(func(q *agentv1.ClaimMoveRequest) { q.Store = "client" })},
		"an old generation":       {"generation-superseded", ask(func(q *agentv1.ClaimMoveRequest) { q.Generation-- })},
		"a generation to come":    {"generation-unknown", ask(func(q *agentv1.ClaimMoveRequest) { q.Generation++ })},
		"other files":             {"store-changed", ask(func(q *agentv1.ClaimMoveRequest) { q.KeystoreSha256 = leafOf("x") })},
		"a plan that nobody made": {"plan-unknown", ask(func(q *agentv1.ClaimMoveRequest) { q.PlanHash = leafOf("x") })},
		"a first install in use":  {"not-first", ask(func(q *agentv1.ClaimMoveRequest) { q.Kind = first })},
		"no kind":                 {"bad-kind", ask(func(q *agentv1.ClaimMoveRequest) { q.Kind = 0 })},
		"mode observe": {"mode", func(w *world, r map[string]*member) error {
			r["n1"].agent.Mode = agentv1.Mode_MODE_OBSERVE
			r["n1"].must(r["n1"].connect())
			return ask(func(*agentv1.ClaimMoveRequest) {})(w, r)
		}},
		"a HOLD file": {"held", func(w *world, r map[string]*member) error {
			r["n1"].agent.Hold = "I am looking into it"
			r["n1"].must(r["n1"].connect())
			return ask(func(*agentv1.ClaimMoveRequest) {})(w, r)
		}},
		"files of somebody else": {"store-foreign", func(w *world, r map[string]*member) error {
			r["n1"].store.State, r["n1"].store.LeafSha256 = agentv1.InstallState_INSTALL_STATE_FOREIGN, leafOf("somebody's")
			r["n1"].must(r["n1"].connect())
			return ask(func(*agentv1.ClaimMoveRequest) {})(w, r)
		}},
		"a contested store": {"store-contested", func(w *world, r map[string]*member) error {
			r["n1"].store.State = agentv1.InstallState_INSTALL_STATE_CONTESTED
			r["n1"].must(r["n1"].connect())
			return ask(func(*agentv1.ClaimMoveRequest) {})(w, r)
		}},
		"a suspended agent": {"agent-suspended", func(w *world, r map[string]*member) error {
			r["n1"].must(w.Suspend(ctx, r["n1"].name, "odd", ann))
			return ask(func(*agentv1.ClaimMoveRequest) {})(w, r)
		}},
		"a claim already open": {"claim-open", func(w *world, r map[string]*member) error {
			if _, err := r["n1"].claim(renew); err != nil {
				return err
			}
			return ask(func(*agentv1.ClaimMoveRequest) {})(w, r)
		}},
		"another node on the move": {"wave-busy", func(w *world, r map[string]*member) error {
			if _, err := r["n2"].claim(renew); err != nil {
				return err
			}
			return ask(func(*agentv1.ClaimMoveRequest) {})(w, r)
		}},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			wantReason(t, c.try(w, w.ring("n1", "n2")), c.reason)
		})
	}
}

// An agent that has lost its state folder takes the files for somebody else's; the controllers know that they gave them.
func TestFilesThatWereGivenAreOursWhoeverReportsThem(t *testing.T) {
	w := newWorld(t)
	m := w.ring("n1", "n2")["n1"]
	m.store.State, m.store.Generation = agentv1.InstallState_INSTALL_STATE_FOREIGN, 0
	m.must(m.connect())
	tgt, _, err := w.Target(ctx, m.name)
	m.must(err)
	if s := tgt.Stores[0]; !bytes.Equal(s.LeafSha256, m.store.LeafSha256) || s.TrustOnly {
		t.Errorf("target %v", s)
	}
	_, err = m.claim(renew)
	m.must(err)
}

func TestAFreezeOfEachScopeStopsAClaimUntilItIsLiftedOrEnds(t *testing.T) {
	for _, scope := range []string{fleet.System, "tenants/default", cluster, cluster + "/nodes/n1"} {
		w := newWorld(t)
		m := w.ring("n1", "n2")["n1"]
		m.must(w.Freeze(ctx, scope, "black friday", time.Time{}, ann))
		_, err := m.claim(renew)
		wantReason(t, err, "frozen")
		if n := m.view(); n.Frozen == nil || n.Frozen.Scope != scope || n.Frozen.Actor != ann {
			t.Errorf("%s: node says %+v", scope, n.Frozen)
		}
		tgt, _, err := w.Target(ctx, m.name)
		if err != nil || !tgt.GetFrozen().GetActive() || tgt.Frozen.Reason != "black friday" {
			t.Errorf("%s: target says %v, %v", scope, tgt.GetFrozen(), err)
		}
		m.must(w.Unfreeze(ctx, scope, "over", ann))
		m.must(w.Freeze(ctx, scope, "short", w.log.Clock.Now().Add(time.Minute), ann))
		_, err = m.claim(renew)
		wantReason(t, err, "frozen")
		w.log.Clock.Advance(time.Minute)
		if _, err := m.claim(renew); err != nil {
			t.Errorf("%s: %v", scope, err)
		}
	}
}

func TestAFreezeOfWhatIsNotThereIsRefused(t *testing.T) {
	w := newWorld(t)
	for scope, reason := range map[string]string{cluster + "x": "no-cluster", cluster + "/nodes/x": "no-node", "tenants/": "bad-scope", "x": "bad-scope", "": "bad-scope"} {
		wantReason(t, w.Freeze(ctx, scope, "why", time.Time{}, ann), reason)
	}
	wantReason(t, w.Freeze(ctx, cluster, "", time.Time{}, ann), "no-reason")
}

func TestARepeatedClaimIsAnsweredTheSame(t *testing.T) {
	w := newWorld(t)
	m := w.ring("n1", "n2")["n1"]
	q := m.request(renew)
	a, until, err := w.Claim(ctx, m.uid, q)
	m.must(err)
	b, again, err := w.Claim(ctx, m.uid, q)
	if err != nil || a != b || !until.Equal(again) {
		t.Errorf("%s %s then %s %s, %v", a, until, b, again, err)
	}
	m.must(m.report(a, refused))
	_, _, err = w.Claim(ctx, m.uid, q)
	wantReason(t, err, "claim-closed")
	q.Store = "client"
	_, _, err = w.Claim(ctx, m.uid, q)
	wantReason(t, err, "request-id-reused")
}

func TestInstallsBeforeTheFirstStartGoSideBySide(t *testing.T) {
	w := newWorld(t)
	for _, n := range []string{"n1", "n2", "n3"} {
		if _, err := w.joined(n).claim(first); err != nil {
			t.Fatalf("%s: %v", n, err)
		}
	}
}

func TestWhyTellsWhatAnAgentHoldsAgainstItsMove(t *testing.T) {
	w := newWorld(t)
	m := w.ring("n1", "n2")["n1"]
	wish := func() {
		_, err := w.RequestRenewal(ctx, m.name, "", "because", ann)
		m.must(err)
	}
	wish()
	c, err := m.claim(renew)
	m.must(err)
	m.must(w.Complete(ctx, m.uid, m.incarnation, &agentv1.ReportMoveRequest{Claim: c, Outcome: agentv1.MoveOutcome_MOVE_OUTCOME_REFUSED, Store: m.store, AfterSha256: m.store.LeafSha256,
		Detail: "trust-not-distributed: the truststore does not hold the CA"}))
	if why := m.view().Why; !strings.Contains(why, "refused the move of store node") || !strings.Contains(why, "trust-not-distributed: the truststore") {
		t.Errorf("why: %q", why)
	}
	wish()
	if why := m.view().Why; !strings.Contains(why, "about to claim") {
		t.Errorf("what was refused is no longer asked for, and why: %q", why)
	}
}

func TestANodeMovesOnlyWhenTheOneBeforeItIsProved(t *testing.T) {
	w := newWorld(t)
	r := w.ring("n1", "n2", "n3")
	c, err := r["n1"].claim(renew)
	r["n1"].must(err)
	r["n1"].write(c, "second")
	r["n1"].must(r["n1"].report(c, unproven))
	_, err = r["n2"].claim(renew)
	wantReason(t, err, "wave-busy")
	if why := r["n2"].view(); !strings.Contains(why.Why, "as it should be") {
		t.Errorf("n2 needs nothing, but says %q", why.Why)
	}
	if _, err := w.RequestRenewal(ctx, r["n2"].name, "", "because", ann); err != nil {
		t.Fatal(err)
	}
	if why := r["n2"].view().Why; !strings.Contains(why, "prod/n1") {
		t.Errorf("n2 does not say that it waits for n1: %q", why)
	}
	c, err = r["n1"].claim(renew)
	r["n1"].must(err)
	r["n1"].prove(r, c)
	r["n1"].must(r["n1"].report(c, proven))
	if _, err := r["n2"].claim(renew); err != nil {
		t.Errorf("after the proof: %v", err)
	}
}

func TestALapsedClaimThatWasGivenACertificateStillHoldsTheWave(t *testing.T) {
	w := newWorld(t)
	r := w.ring("n1", "n2")
	_, err := r["n1"].claim(renew)
	r["n1"].must(err)
	w.log.Clock.Advance(fleet.ClaimTTL)
	if _, err := r["n2"].claim(renew); err != nil {
		t.Fatalf("a lapsed claim without a certificate blocks: %v", err)
	}
	w.log.Clock.Advance(fleet.ClaimTTL)
	c, err := r["n1"].claim(renew)
	r["n1"].must(err)
	r["n1"].write(c, "second")
	w.log.Clock.Advance(fleet.ClaimTTL)
	_, err = r["n2"].claim(renew)
	wantReason(t, err, "wave-busy")
	r["n1"].must(w.Revoke(ctx, r["n1"].name, "burnt down", ann))
	if _, err := r["n2"].claim(renew); err != nil {
		t.Errorf("a revoked node still blocks: %v", err)
	}
}

func TestAnAgentThatStartsAgainMayClaimAgain(t *testing.T) {
	w := newWorld(t)
	m := w.ring("n1", "n2")["n1"]
	lost, err := m.claim(renew)
	m.must(err)
	m.agent.GenerationCounter++
	m.must(m.connect())
	if _, err := m.claim(renew); err != nil {
		t.Fatal(err)
	}
	wantReason(t, m.report(lost, refused), "claim-superseded")
}

func TestAStoreThatFailsAgainAndAgainIsGivenUpUntilAPersonAsks(t *testing.T) {
	w := newWorld(t)
	m := w.ring("n1", "n2")["n1"]
	for range 5 {
		c, err := m.claim(renew)
		m.must(err)
		m.must(m.report(c, rolledBack))
	}
	_, err := m.claim(renew)
	wantReason(t, err, "gave-up")
	if _, err := w.RequestRenewal(ctx, m.name, "node", "repaired", ann); err != nil {
		t.Fatal(err)
	}
	if _, err := m.claim(renew); err != nil {
		t.Error(err)
	}
}

func TestTheGuardLetsOnlyTheClaimantsOwnNamesIn(t *testing.T) {
	for name, c := range map[string]struct {
		reason string
		change func(*world, *member, *clusterv1.RecordCertificate)
	}{
		"no claim":           {"no-claim", func(_ *world, _ *member, r *clusterv1.RecordCertificate) { r.Claim = "" }},
		"another node":       {"not-your-claim", func(_ *world, _ *member, r *clusterv1.RecordCertificate) { r.Node = cluster + "/nodes/n2" }},
		"another store":      {"not-your-claim", func(_ *world, _ *member, r *clusterv1.RecordCertificate) { r.Store = "client" }},
		"an old incarnation": {"old-incarnation", func(_ *world, _ *member, r *clusterv1.RecordCertificate) { r.Incarnation = 7 }},
		"another's name": {"name-not-allowed", func(_ *world, _ *member, r *clusterv1.RecordCertificate) {
			r.Names = append(r.Names, &clusterv1.CertificateName{Kind: "dns", Value: "n2.example"})
		}},
		"another's address": {"name-not-allowed", func(_ *world, _ *member, r *clusterv1.RecordCertificate) { r.Names[1].Value = "10.0.0.2" }},
		"another's SPIFFE ID": {"name-not-allowed", func(_ *world, _ *member, r *clusterv1.RecordCertificate) {
			r.Names[3].Value = "spiffe://x.csm/node/default/prod/n2"
		}},
		"a claim that ended": {"claim-closed", func(w *world, _ *member, _ *clusterv1.RecordCertificate) { w.log.Clock.Advance(fleet.ClaimTTL) }},
		"a freeze since": {"frozen", func(w *world, m *member, _ *clusterv1.RecordCertificate) {
			m.must(w.Freeze(ctx, cluster, "stop", time.Time{}, ann))
		}},
		"a suspension since": {"agent-suspended", func(w *world, m *member, _ *clusterv1.RecordCertificate) { m.must(w.Suspend(ctx, m.name, "odd", ann)) }},
		"a revocation since": {"agent-revoked", func(w *world, m *member, _ *clusterv1.RecordCertificate) { m.must(w.Revoke(ctx, m.name, "odd", ann)) }},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			m := w.ring("n1", "n2")["n1"]
			claim, err := m.claim(renew)
			m.must(err)
			r := m.record(claim, "leaf")
			c.change(w, m, r)
			if name == "a revocation since" {
				// The claim lapsed with the agent; either answer is a refusal.
				if err := w.propose(r); err == nil {
					t.Error("recorded")
				}
				return
			}
			wantReason(t, w.propose(r), c.reason)
		})
	}
}

func TestAnAgentsIdentityIsNotRecordedOnceItIsSuspended(t *testing.T) {
	w := newWorld(t)
	m := w.joined("n1")
	c := &clusterv1.RecordCertificate{Identity: "spiffe://x.csm/agent/" + m.uid + "/1", Der: []byte("x")}
	m.must(w.propose(c))
	m.must(w.Suspend(ctx, m.name, "odd", ann))
	wantReason(t, w.propose(c), "agent-suspended")
	m.must(w.propose(&clusterv1.RecordCertificate{Identity: "spiffe://x.csm/admin/ann"}))
}

func TestAStreamHeldByAControllerThatDiedIsNotConnected(t *testing.T) {
	w := newWorld(t)
	m := w.joined("n1")
	up := true
	w.Holders(func(controller string) bool { return controller == "c1" && up })
	look := func() (fleet.Node, int) {
		c, err := w.GetCluster(ctx, resource.Parent(m.name))
		m.must(err)
		return m.view(), c.Connected
	}
	if n, connected := look(); !n.Agent.Connected || connected != 1 {
		t.Errorf("while c1 answers: %v, %d in the cluster", n.Agent.Connected, connected)
	}
	up = false
	if n, connected := look(); n.Agent.Connected || connected != 0 || !strings.Contains(n.Why, "c1, which held the agent's stream, does not answer") {
		t.Errorf("when c1 is gone: %v, %d in the cluster: %s", n.Agent.Connected, connected, n.Why)
	}
}
