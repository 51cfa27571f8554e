package fleet_test

import (
	"testing"
	"time"

	"google.golang.org/protobuf/types/known/timestamppb"

	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/cassandra-security-manager/csm/controller/fleet"
	"github.com/cassandra-security-manager/csm/controller/state"
	agentv1 "github.com/cassandra-security-manager/csm/protocol/agent/v1"
	clusterv1 "github.com/cassandra-security-manager/csm/protocol/cluster/v1"
	"github.com/cassandra-security-manager/csm/shared/fault"
	"github.com/cassandra-security-manager/csm/shared/resource"
)

// above stands where a rollout stands: a command raises a store by RaiseStore, and the gates answer as they are told.
type above struct {
	wish    fleet.Wish
	refuse  error
	raising error
	owned   bool
	asked   []fleet.Moving
	told    []fleet.Moving
}

func (g *above) MayMove(_ *state.Apply, m fleet.Moving) (bool, error) {
	g.asked = append(g.asked, m)
	return g.owned, g.refuse
}
func (g *above) Moved(_ *state.Apply, m fleet.Moving) error {
	g.told = append(g.told, m)
	return nil
}
func (g *above) MayRaise(*state.Apply, string, string) error { return g.raising }

func (g *above) module() state.Module {
	return state.Module{Name: "above", Commands: func(r *state.Registry) {
		state.Handle(r, func(a *state.Apply, _ *wrapperspb.BoolValue) (*clusterv1.Empty, error) {
			_, err := fleet.RaiseStore(a, g.wish)
			return &clusterv1.Empty{}, err
		})
	}}
}

const trustMove = agentv1.MoveKind_MOVE_KIND_TRUST

func (w *world) raise(g *above, wish fleet.Wish) {
	w.t.Helper()
	g.wish = wish
	if _, err := w.log.Propose(ctx, state.Proposal{Command: wrapperspb.Bool(true), Actor: ann}); err != nil {
		w.t.Fatal(err)
	}
}

func TestAWishIsClaimedAsItIsOrNotAtAll(t *testing.T) {
	g := &above{}
	w := newWorldWith(t, g)
	ring := w.ring("n1", "n2")
	m := ring["n1"]
	plan := []byte("a plan")
	w.raise(g, fleet.Wish{Node: m.name, Store: "node", Move: trustMove, PlanHash: plan, Reason: "a rollout"})

	target, _, err := w.Target(ctx, m.name)
	m.must(err)
	if s := target.Stores[0]; s.Move != trustMove || string(s.PlanHash) != string(plan) || s.Reason != "a rollout" {
		t.Fatalf("the target says %v", s)
	}
	_, err = m.claim(trustMove)
	wantReason(t, err, "plan-missing")
	r := m.request(trustMove)
	r.PlanHash = []byte("another plan")
	_, _, err = w.Claim(ctx, m.uid, r)
	wantReason(t, err, "plan-unknown")
	r = m.request(renew)
	r.PlanHash = plan
	_, _, err = w.Claim(ctx, m.uid, r)
	wantReason(t, err, "other-move")

	g.refuse = fault.New(fault.Refused, "wave-not-open", "not yet").Do("wait")
	r = m.request(trustMove)
	r.PlanHash = plan
	_, _, err = w.Claim(ctx, m.uid, r)
	wantReason(t, err, "wave-not-open")
	g.refuse, r = nil, m.request(trustMove)
	r.PlanHash = plan
	claim, _, err := w.Claim(ctx, m.uid, r)
	m.must(err)
	m.prove(ring, claim)
	m.must(m.report(claim, agentv1.MoveOutcome_MOVE_OUTCOME_PROVEN))
	if n := len(g.told); n == 0 || string(g.told[n-1].PlanHash) != string(plan) || g.told[n-1].Outcome != agentv1.MoveOutcome_MOVE_OUTCOME_PROVEN || g.told[n-1].Node != m.name {
		t.Fatalf("who stands above was told %v", g.told)
	}

	// What is done is no wish any more: a renewal by time needs no plan.
	if _, err := m.claim(renew); err != nil {
		t.Fatal(err)
	}
}

func TestSeveralMoveAtOnceOnlyWhereTheGatesOwnIt(t *testing.T) {
	g := &above{}
	w := newWorldWith(t, g)
	ring := w.ring("n1", "n2", "n3")
	if _, err := ring["n1"].claim(renew); err != nil {
		t.Fatal(err)
	}
	_, err := ring["n2"].claim(renew)
	wantReason(t, err, "wave-busy")
	g.owned = true
	if _, err := ring["n2"].claim(renew); err != nil {
		t.Fatal(err)
	}
	g.owned = false
	_, err = ring["n3"].claim(renew)
	wantReason(t, err, "wave-busy")
}

func TestOnlyTheAuthorityOfTheWishMaySign(t *testing.T) {
	g := &above{}
	w := newWorldWith(t, g)
	m := w.ring("n1", "n2")["n1"]
	const next = "tenants/default/authorities/next"
	m.store.NotAfter = timestamppb.New(w.log.Clock.Now().Add(20 * 24 * time.Hour))
	m.must(m.connect())
	w.raise(g, fleet.Wish{Node: m.name, Store: "node", Authority: next, Reason: "a rotation"})
	claim, err := m.claim(renew)
	m.must(err)
	o, err := w.OpenClaim(ctx, claim)
	m.must(err)
	if o.Authority != next {
		t.Fatalf("the claim is to be signed by %s", o.Authority)
	}
	if o.Due.IsZero() || !o.Due.Equal(m.store.NotAfter.AsTime()) {
		t.Errorf("what is renewed ends at %s, not %s", m.store.NotAfter.AsTime(), o.Due)
	}
	wantReason(t, w.propose(m.record(claim, "leaf of the old one")), "other-authority")
	c := m.record(claim, "leaf of the new one")
	c.Issuer = resource.Issuer(next, "eu")
	m.must(w.propose(c))

	// A person's wish for a renewal does not say who signs, so it stays.
	if _, err := w.RequestRenewal(ctx, m.name, "", "again", ann); err != nil {
		t.Fatal(err)
	}
	if o, err := w.OpenClaim(ctx, claim); err != nil || o.Authority != next {
		t.Fatalf("after a person's wish %s signs (%v)", o.Authority, err)
	}
}

func TestNobodyRaisesWhatTheGatesHold(t *testing.T) {
	g := &above{raising: fault.New(fault.Refused, "in-rollout", "a rollout has it").Do("abort it")}
	w := newWorldWith(t, g)
	m := w.ring("n1", "n2")["n1"]
	_, err := w.RequestRenewal(ctx, m.name, "", "now", ann)
	wantReason(t, err, "in-rollout")
	w.anchors = append(w.anchors, []byte("anchor two"))
	_, err = w.GrowTrust(ctx, cluster, ann)
	wantReason(t, err, "in-rollout")
}
