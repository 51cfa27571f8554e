package agentapi_test

import (
	"crypto/sha256"
	"crypto/x509"
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/cassandra-security-manager/csm/controller/state"
	"github.com/cassandra-security-manager/csm/controller/systemca"
	agentv1 "github.com/cassandra-security-manager/csm/protocol/agent/v1"
	clusterv1 "github.com/cassandra-security-manager/csm/protocol/cluster/v1"
	"github.com/cassandra-security-manager/csm/shared/certificate"
	"github.com/cassandra-security-manager/csm/shared/fault"
	"github.com/cassandra-security-manager/csm/shared/identity"
)

// successor is a change of the system CA with one controller.
type successor struct {
	*world
	*systemca.Rotations
	name string
	leaf [32]byte
}

func (w *world) propose(c proto.Message) {
	w.t.Helper()
	_, err := w.log.Propose(w.t.Context(), state.Proposal{Actor: ann, Reason: "test", Command: c})
	w.must(err)
}

func (w *world) succeed() *successor {
	w.t.Helper()
	key := sha256.Sum256([]byte("c1"))
	w.propose(&clusterv1.AdmitFirst{Member: &clusterv1.Member{Name: "c1", Id: "c1", Address: "c1:9642", Key: key[:], Voter: true}})
	s := &successor{world: w, Rotations: systemca.New(w.log.Store, w.log, w.log.Clock, w.cas)}
	p, err := s.Plan(w.t.Context())
	w.must(err)
	r, err := s.Start(w.t.Context(), p.Hash, "yearly", ann)
	w.must(err)
	s.name = r.Name
	s.renewed()
	return s
}

// renewed gives the controller an identity of the root that signs.
func (s *successor) renewed() {
	s.leaf = sha256.Sum256(s.identity(identity.ControllerID(s.domain, "c1")).Certificate[0])
}

// follow takes the roots of the state; the controller is seen with them, and the leader looks.
func (s *successor) follow() systemca.Phase {
	s.t.Helper()
	ctx := s.t.Context()
	roots, err := s.cas.SystemBundle(ctx)
	s.must(err)
	s.roots = roots
	var trusts [][]byte
	for _, r := range roots {
		sum := certificate.Fingerprint(r.Raw)
		trusts = append(trusts, sum[:])
	}
	s.must(s.Saw(ctx, "c1", true, []systemca.Sighting{{Identity: identity.ControllerID(s.domain, "c1").String(), Leaf: s.leaf, Trusts: trusts}}))
	s.must(s.Watch(ctx))
	r, err := s.Get(ctx, s.name)
	s.must(err)
	return r.Phase
}

// An agent that was away for longer than its identity may be renewed comes back under a grace in any phase before the retire, by the root that
// signs then; after it, a grace does not bring it back, and it is told what does.
func TestAnIdentityThatExpiredLongAgoComesBackInTheMiddleOfARotation(t *testing.T) {
	w := newWorld(t).listen()
	a := w.join("n1")
	before := w.roots[0]
	w.log.Clock.Advance(240 * 24 * time.Hour)
	s := w.succeed()
	var retired []*x509.Certificate
	renew := func(grace bool) (*agentv1.RenewIdentityResponse, error) {
		p := newPort(w)
		p.server.Grace = func() bool { return grace }
		p.server.RetiredRoots = func() []*x509.Certificate { return retired }
		return p.client(a.own).RenewIdentity(t.Context(), &agentv1.RenewIdentityRequest{Csr: w.csr(w.key(), nil, nil)})
	}
	comesBack := func(what string, by *x509.Certificate) {
		t.Helper()
		if _, err := renew(false); err == nil {
			t.Errorf("%s: without a grace it is renewed", what)
		}
		r, err := renew(true)
		w.must(err)
		leaf, err := x509.ParseCertificate(r.Chain[0])
		w.must(err)
		if err := leaf.CheckSignatureFrom(by); err != nil || len(r.Bundle) != 2 {
			t.Errorf("%s: %d roots, %v", what, len(r.Bundle), err)
		}
	}
	if p := s.follow(); p != systemca.Reissue { // it is away: it does not hold distribute
		t.Fatalf("phase %s", p)
	}
	comesBack("reissue", w.roots[1])
	s.renewed()
	for range 3 {
		s.follow()
	}
	if p := s.follow(); p != systemca.Reissue {
		t.Fatalf("it goes on to %s without the agent that nobody has seen", p)
	}
	_, err := s.Control(t.Context(), s.name, "rollback", "test", ann)
	w.must(err)
	comesBack("on the way back", before)
	_, err = s.Control(t.Context(), s.name, "resume", "gone", ann, a.node)
	w.must(err)
	s.renewed()
	for range 4 {
		s.follow()
	}
	if p := s.follow(); p != systemca.RolledBack {
		t.Fatalf("phase %s", p)
	}

	s = &successor{world: w, Rotations: s.Rotations}
	p, err := s.Plan(t.Context())
	w.must(err)
	r, err := s.Start(t.Context(), p.Hash, "again", ann)
	w.must(err)
	s.name = r.Name
	_, err = s.Control(t.Context(), s.name, "resume", "gone", ann, a.node)
	w.must(err)
	s.renewed()
	s.follow()
	s.renewed()
	for range 3 {
		s.follow()
	}
	if p := s.follow(); p != systemca.Reissued {
		t.Fatalf("phase %s", p)
	}
	rp, err := s.PlanRetire(t.Context(), s.name)
	w.must(err)
	_, err = s.Retire(t.Context(), s.name, rp.Hash, nil, "test", ann)
	w.must(err)
	s.follow()
	retired = []*x509.Certificate{before}
	_, err = renew(true)
	if !fault.HasReason(err, "identity-retired") || !strings.Contains(fault.From(err).Remedy, "--rejoin") {
		t.Errorf("after the retire: %v", err)
	}
}
