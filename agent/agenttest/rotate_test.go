package agenttest

import (
	"context"
	"crypto/x509"
	"strings"
	"testing"

	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/cassandra-security-manager/csm/agent/install"
	agentv1 "github.com/cassandra-security-manager/csm/protocol/agent/v1"
	clusterv1 "github.com/cassandra-security-manager/csm/protocol/cluster/v1"

	"github.com/cassandra-security-manager/csm/controller/authority"
	"github.com/cassandra-security-manager/csm/controller/fleet"
	"github.com/cassandra-security-manager/csm/controller/state"
	"github.com/cassandra-security-manager/csm/shared/certificate"
)

// rotator stands above the fleet: it lets everything move, names what is to be trusted, and does in Apply what a test says.
type rotator struct {
	trust []string
	next  func(a *state.Apply) error
}

func (r *rotator) MayMove(*state.Apply, fleet.Moving) (bool, error) { return false, nil }
func (r *rotator) Moved(*state.Apply, fleet.Moving) error           { return nil }
func (r *rotator) MayRaise(*state.Apply, string, string) error      { return nil }
func (r *rotator) TrustToProve(*state.Apply, string, string) ([]string, error) {
	return r.trust, nil
}

func (r *rotator) module() state.Module {
	return state.Module{Name: "rotator", Commands: func(reg *state.Registry) {
		state.Handle(reg, func(a *state.Apply, _ *wrapperspb.BoolValue) (*clusterv1.Empty, error) {
			return &clusterv1.Empty{}, r.next(a)
		})
	}}
}

// inApply does something as a command would.
func (w *world) inApply(do func(a *state.Apply) error) {
	w.t.Helper()
	w.above.next = do
	_, err := w.log.Propose(w.t.Context(), state.Proposal{Command: wrapperspb.Bool(true), Actor: ann})
	must(w.t, err)
}

func (w *world) raise(h *host, move agentv1.MoveKind, authority string) {
	w.t.Helper()
	w.inApply(func(a *state.Apply) error {
		_, err := fleet.RaiseStore(a, fleet.Wish{Node: cluster + "/nodes/" + h.name, Store: "node", Move: move, Authority: authority, Reason: "test"})
		return err
	})
}

func (h *host) proven() (p fleet.Proven) {
	h.t.Helper()
	must(h.t, h.w.log.Store.View(h.t.Context(), func(ctx context.Context, q state.Querier) (err error) {
		p, err = fleet.ProvenOf(ctx, q, cluster+"/nodes/"+h.name, "node")
		return err
	}))
	return p
}

func done(s fleet.Store) bool {
	return s.State == "proven" && s.Installed == s.Generation && !s.Unproved
}

// second is another authority, with its anchors and their sums.
func (w *world) second() (ca *authority.Authority, anchors []*x509.Certificate, sums [][]byte) {
	w.t.Helper()
	ctx := w.t.Context()
	ca, err := w.cas.CreateRoot(ctx, "default", "next", authority.CreateOptions{Actor: ann})
	must(w.t, err)
	_, err = w.cas.CreateIssuer(ctx, ca.Name, "eu", ann)
	must(w.t, err)
	anchors, err = w.cas.Anchors(ctx, ca.Name)
	must(w.t, err)
	for _, a := range anchors {
		s := certificate.Fingerprint(a.Raw)
		sums = append(sums, s[:])
	}
	return ca, anchors, sums
}

func TestARootIsRotatedByTrustThenLeafThenWithdrawal(t *testing.T) {
	t.Parallel()
	w, a, b := ring(t)
	old := a.leaf()
	next, anchors, sums := w.second()
	oldAnchors, err := w.cas.Anchors(t.Context(), "tenants/default/authorities/internal")
	must(t, err)
	w.inApply(func(ap *state.Apply) error {
		_, err := fleet.AddAnchors(ap, cluster, certificate.Raw(anchors))
		return err
	})
	w.above.trust = []string{next.Name}
	for _, h := range []*host{a, b} {
		if len(install.Trusted(h.cass.Store)) != 1 {
			t.Fatalf("%s took the new anchor before its turn", h.name)
		}
		w.raise(h, agentv1.MoveKind_MOVE_KIND_TRUST, "")
		h.await("trusts both", done)
		if gaps := h.proven().Untrusting(next.Name, sums); len(gaps) != 0 {
			t.Errorf("%s: %v", h.name, gaps)
		}
	}
	if !a.leaf().Equal(old) {
		t.Error("the leaf changed with the truststore")
	}
	for _, h := range []*host{a, b} {
		w.raise(h, agentv1.MoveKind_MOVE_KIND_RENEW, next.Name)
		h.await("serves a leaf of the new CA", done)
		if gaps := append(h.proven().Serving(next.Name), h.proven().Untrusting(next.Name, sums)...); len(gaps) != 0 {
			t.Errorf("%s: %v", h.name, gaps)
		}
		if p := h.proven(); string(p.Ports[0].Anchor) != string(sums[0]) {
			t.Errorf("%s: the served chain leads to %x, not to %x", h.name, p.Ports[0].Anchor, sums[0])
		}
	}
	w.inApply(func(ap *state.Apply) error {
		s := certificate.Fingerprint(oldAnchors[0].Raw)
		return fleet.WithdrawAnchors(ap, "tenants/default/trustDomains/prod", [][]byte{s[:]})
	})
	for _, h := range []*host{a, b} {
		w.raise(h, agentv1.MoveKind_MOVE_KIND_SHRINK, "")
		h.await("trusts the new CA alone", done)
		if got := install.Trusted(h.cass.Store); len(got) != 1 || !got[0].Equal(anchors[0]) {
			t.Errorf("%s trusts %d anchors", h.name, len(got))
		}
		if gaps := append(h.proven().Serving(next.Name), h.proven().Untrusting(next.Name, sums)...); len(gaps) != 0 {
			t.Errorf("%s: %v", h.name, gaps)
		}
		if n := h.cass.LoggedErrors(); n != 0 {
			t.Errorf("%s: probes that should pass wrote %d errors into Cassandra's log", h.name, n)
		}
	}
}

func TestTrustThatIsNotThereIsNotProved(t *testing.T) {
	t.Parallel()
	w, a, _ := ring(t)
	next, _, sums := w.second()
	w.above.trust = []string{next.Name}
	w.raise(a, agentv1.MoveKind_MOVE_KIND_TRUST, "")
	a.did("install failed")
	moves, _, err := w.fleet.ListMoves(t.Context(), cluster+"/nodes/n1", fleet.Page{Size: 1})
	must(t, err)
	refused := 0
	for _, p := range moves[0].Proofs {
		if p.Authority == next.Name && p.Verdict == "refused" {
			refused++
		}
		if p.Authority == "" && p.Verdict != "accepted" {
			t.Errorf("the neighbour's own certificate: %+v", p)
		}
	}
	if refused != 2 || moves[0].Outcome == "proven" || !strings.Contains(moves[0].Detail, "neighbour-not-proved") {
		t.Errorf("%d ports refused the new CA; the move is %+v", refused, moves[0])
	}
	if gaps := a.proven().Untrusting(next.Name, sums); len(gaps) != 3 {
		t.Errorf("lacking %v", gaps)
	}
}

func TestALeafOfAnotherCAIsNotWrittenBeforeItsTrustIsThere(t *testing.T) {
	t.Parallel()
	w, a, _ := ring(t)
	old := a.leaf()
	next, _, _ := w.second()
	w.raise(a, agentv1.MoveKind_MOVE_KIND_RENEW, next.Name)
	a.did("install failed")
	moves, _, err := w.fleet.ListMoves(t.Context(), cluster+"/nodes/n1", fleet.Page{Size: 1})
	must(t, err)
	if moves[0].Outcome != "refused" || !a.leaf().Equal(old) {
		t.Errorf("the move is %+v", moves[0])
	}
}
