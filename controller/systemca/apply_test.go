package systemca_test

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"slices"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/cassandra-security-manager/csm/controller/authority"
	"github.com/cassandra-security-manager/csm/controller/consensus/members"
	"github.com/cassandra-security-manager/csm/controller/fleet"
	"github.com/cassandra-security-manager/csm/controller/issuance"
	"github.com/cassandra-security-manager/csm/controller/keyring"
	"github.com/cassandra-security-manager/csm/controller/ledger"
	"github.com/cassandra-security-manager/csm/controller/people"
	"github.com/cassandra-security-manager/csm/controller/state"
	"github.com/cassandra-security-manager/csm/controller/state/statetest"
	"github.com/cassandra-security-manager/csm/controller/systemca"
	clusterv1 "github.com/cassandra-security-manager/csm/protocol/cluster/v1"
	"github.com/cassandra-security-manager/csm/shared/algorithm"
	"github.com/cassandra-security-manager/csm/shared/certificate"
	"github.com/cassandra-security-manager/csm/shared/fault"
	"github.com/cassandra-security-manager/csm/shared/identity"
)

var ctx = context.Background()

const td = "0123456789abcdef.csm"

// world is the real state machine with three controllers and an administrator, whose certificates are real.
type world struct {
	*systemca.Rotations
	t           *testing.T
	log         *statetest.Log
	authorities *authority.Authorities
	door        *issuance.Issuance
	people      *people.People
	fleet       *fleet.Fleet
	leaf        map[string]*x509.Certificate
	chain       map[string][]*x509.Certificate
	serial      int
	idle        bool // the administrator does not use a new certificate
}

func (w *world) must(err error) {
	w.t.Helper()
	if err != nil {
		w.t.Fatal(err)
	}
}

func (w *world) refused(err error, reason string) {
	w.t.Helper()
	if !fault.HasReason(err, reason) {
		w.t.Errorf("error = %v, want %s", err, reason)
	}
}

func (w *world) propose(c proto.Message) error {
	_, err := w.log.Propose(ctx, state.Proposal{Actor: "test", Reason: "test", Command: c})
	return err
}

var controllers = []string{"csm1", "csm2", "csm3"}

func newWorld(t *testing.T) *world {
	t.Helper()
	l := statetest.New(t, members.Module(), keyring.Module(), authority.Module(), ledger.Module(authority.Issuers{}, fleet.Guard), fleet.Module(), people.Module(), systemca.Module())
	w := &world{t: t, log: l, leaf: map[string]*x509.Certificate{}, chain: map[string][]*x509.Certificate{}}
	kek, err := keyring.CreateKEK(t.TempDir(), keyring.FileSealer{Path: t.TempDir() + "/master"})
	w.must(err)
	ring := keyring.New(l.Store, l, kek, "csm1")
	public, _, err := keyring.NewRecovery()
	w.must(err)
	w.must(ring.Initialise(ctx, "test", public))
	w.authorities = authority.New(l.Store, l, ring, l.Clock, rand.Reader, authority.Options{CRLShards: 2})
	_, err = w.authorities.Genesis(ctx, "0123456789abcdef", "test")
	w.must(err)
	w.door = issuance.New(w.authorities, l, l.Clock, rand.Reader, issuance.Options{HourlyCap: -1})
	w.people = people.New(l.Store, l)
	w.fleet = fleet.New(l.Store, l, l.Clock, func(context.Context, string) ([][]byte, error) { return [][]byte{[]byte("anchor")}, nil })
	w.Rotations = systemca.New(l.Store, l, l.Clock, w.authorities)
	token := sha256.Sum256([]byte("token"))
	for i, name := range controllers {
		key := sha256.Sum256([]byte(name))
		m := &clusterv1.Member{Name: name, Id: name, Address: name + ":9642", Key: key[:], Voter: true}
		if i == 0 {
			w.must(w.propose(&clusterv1.AdmitFirst{Member: m}))
			w.must(w.propose(&clusterv1.CreateControllerToken{Id: "t", Hash: token[:], TtlMs: time.Hour.Milliseconds(), Uses: 2}))
		} else {
			w.must(w.propose(&clusterv1.RequestAdmission{TokenHash: token[:], Member: m}))
			w.must(w.propose(&clusterv1.ApproveMember{Name: name, Key: key[:]}))
		}
		w.renew(name)
	}
	w.admin()
	return w
}

// issue signs an identity by whatever root signs now.
func (w *world) issue(id identity.ID) []*x509.Certificate {
	w.t.Helper()
	k, err := algorithm.Generate(algorithm.P384, rand.Reader)
	w.must(err)
	csr, err := certificate.NewRequest(k, certificate.Names{})
	w.must(err)
	w.serial++
	chain, _, err := w.door.IssueIdentity(ctx, id, csr, "test", "r"+hex.EncodeToString([]byte{byte(w.serial)}))
	w.must(err)
	parsed, err := certificate.ParseChain(chain)
	w.must(err)
	return parsed
}

func (w *world) renew(controller string) {
	w.t.Helper()
	w.chain[controller] = w.issue(identity.ControllerID(td, controller))
	w.leaf[controller] = w.chain[controller][0]
}

func (w *world) admin() {
	w.t.Helper()
	sum := sha256.Sum256(w.issue(identity.AdminID(td, "ada"))[0].Raw)
	_, err := w.people.AddAdmin(ctx, "ada", sum[:], "test")
	w.must(err)
	if w.idle {
		return
	}
	w.must(w.Saw(ctx, "csm2", false, []systemca.Sighting{{Identity: identity.AdminID(td, "ada").String(), Leaf: sum}}))
}

// trusted are the sums of the roots that the state trusts.
func (w *world) trusted() (out [][]byte) {
	w.t.Helper()
	x, err := w.Wish(ctx)
	w.must(err)
	return x.Sums
}

// see lets every controller be seen by another one with the leaf that it has and these roots.
func (w *world) see(trusts [][]byte, who ...string) {
	w.t.Helper()
	for _, name := range who {
		by := "csm1"
		if name == by {
			by = "csm2"
		}
		w.must(w.Saw(ctx, by, true, []systemca.Sighting{{Identity: identity.ControllerID(td, name).String(), Leaf: sha256.Sum256(w.leaf[name].Raw), Trusts: trusts}}))
	}
}

func (w *world) start() systemca.Rotation {
	w.t.Helper()
	p, err := w.Plan(ctx)
	w.must(err)
	r, err := w.Start(ctx, p.Hash, "yearly", "test")
	w.must(err)
	return r
}

// settle lets the leader look until nothing more follows, and gives the rotation.
func (w *world) settle(r systemca.Rotation) systemca.Rotation {
	w.t.Helper()
	for range 8 {
		w.must(w.Watch(ctx))
	}
	r, err := w.Get(ctx, r.Name)
	w.must(err)
	return r
}

// reissue goes from distribute to reissued, each controller in its turn.
func (w *world) reissue(r systemca.Rotation) systemca.Rotation {
	w.t.Helper()
	w.see(w.trusted(), controllers...)
	for _, name := range controllers {
		if r = w.settle(r); r.Turn != "system/controllers/"+name {
			w.t.Fatalf("it is the turn of %q, not of %s: %+v", r.Turn, name, r.Reasons)
		}
		w.renew(name)
		w.see(w.trusted(), name)
	}
	return w.settle(r)
}

func (w *world) want(r systemca.Rotation, p systemca.Phase) {
	w.t.Helper()
	if r.Phase != p {
		w.t.Fatalf("phase %s, want %s: %+v", r.Phase, p, r.Reasons)
	}
}

func codes(r systemca.Rotation) (out []string) {
	for _, x := range r.Reasons {
		out = append(out, x.Code)
	}
	return out
}

func (w *world) retire(r systemca.Rotation, except ...string) error {
	w.t.Helper()
	p, err := w.PlanRetire(ctx, r.Name)
	w.must(err)
	_, err = w.Retire(ctx, r.Name, p.Hash, except, "test", "test")
	return err
}

func TestTheSystemCAChangesInOrder(t *testing.T) {
	w := newWorld(t)
	before := w.leaf["csm1"]
	r := w.start()
	if len(w.trusted()) != 2 {
		t.Fatal("the new root is not trusted from the start")
	}
	if w.renew("csm3"); w.leaf["csm3"].CheckSignatureFrom(w.root(0)) != nil {
		t.Error("the new root signs before everybody trusts it")
	}
	if r = w.settle(r); !slices.Contains(codes(r), "controller-seen") {
		t.Errorf("it would go on with controllers that nobody has seen: %+v", r)
	}
	w.see(w.trusted()[:1], controllers...)
	if r = w.settle(r); r.Phase != systemca.Distribute || !slices.Contains(codes(r), "controller-trusts") {
		t.Errorf("it would go on with controllers that lack the new root: %+v", r)
	}
	r = w.reissue(r)
	w.want(r, systemca.Reissued)
	w.refused(w.retire(r), "gate-administrator")
	w.admin()
	w.see(w.trusted(), "csm1", "csm3")
	w.log.Clock.Advance(time.Minute)
	w.refused(w.retire(r), "gate-controller-seen")
	w.see(w.trusted(), controllers...)
	w.must(w.retire(r))
	if w.settle(r).Phase != systemca.Retire {
		t.Error("it is over although controllers still trust the root before")
	}
	w.see(w.trusted(), controllers...)
	if r = w.settle(r); r.Phase != systemca.Done || len(w.trusted()) != 1 {
		t.Fatalf("%+v", r)
	}
	roots, err := w.authorities.SystemBundle(ctx)
	w.must(err)
	if len(roots) != 1 || before.CheckSignatureFrom(roots[0]) == nil || w.leaf["csm1"].CheckSignatureFrom(roots[0]) != nil {
		t.Error("the bundle is not that of the new root alone")
	}
	w.want(w.reissue(w.start()), systemca.Reissued) // and once more, from the new root
}

// root is the n-th root of the system authority.
func (w *world) root(n int) *x509.Certificate {
	w.t.Helper()
	a, err := w.authorities.Get(ctx, authority.SystemName)
	w.must(err)
	return a.Issuers[n].Certificate
}

func TestAChainOfEitherRootIsVerifiedByWhoKnowsTheOtherOnly(t *testing.T) {
	w := newWorld(t)
	old := w.chain["csm2"]
	r := w.reissue(w.start())
	wish, err := w.Wish(ctx)
	w.must(err)
	cross, err := certificate.ParseAll(wish.Cross)
	w.must(err)
	for what, c := range map[string]struct {
		chain []*x509.Certificate
		root  *x509.Certificate
	}{"a new identity by the old root": {w.chain["csm1"], w.root(0)}, "an old identity by the new root": {old, w.root(1)},
		"a new one by the new": {w.chain["csm1"], w.root(1)}, "an old one by the old": {old, w.root(0)}} {
		v := identity.Verifier{Roots: func() []*x509.Certificate { return []*x509.Certificate{c.root} }, TrustDomain: td, Kinds: []identity.Kind{identity.Controller}, Now: w.log.Clock.Now}
		if _, err := v.Verify(slices.Concat(c.chain, cross, []*x509.Certificate{w.root(0), w.root(1)})); err != nil {
			t.Errorf("%s: %v", what, err)
		}
	}
	_, err = w.Control(ctx, r.Name, "rollback", "test", "test")
	w.must(err)
}

func TestARollbackGoesBackInOrderFromEachPhase(t *testing.T) {
	for _, from := range []systemca.Phase{systemca.Distribute, systemca.Reissue, systemca.Reissued} {
		t.Run(string(from), func(t *testing.T) {
			w := newWorld(t)
			r := w.start()
			moved := []string{}
			switch from {
			case systemca.Reissue:
				w.see(w.trusted(), controllers...)
				r = w.settle(r)
				w.renew("csm1")
				w.see(w.trusted(), "csm1")
				moved = []string{"csm1"}
			case systemca.Reissued:
				r = w.reissue(r)
				moved = controllers
			}
			w.want(r, from)
			r, err := w.Control(ctx, r.Name, "rollback", "test", "test")
			w.must(err)
			_, err = w.Control(ctx, r.Name, "rollback", "test", "test")
			w.refused(err, "undoing")
			w.see(w.trusted(), controllers...)
			for _, name := range moved {
				if r = w.settle(r); r.Phase != systemca.Undoing || r.Turn != "system/controllers/"+name {
					t.Fatalf("%+v", r)
				}
				w.renew(name)
				w.see(w.trusted(), name)
			}
			if r = w.settle(r); r.Phase != systemca.Withdrawing || len(w.trusted()) != 1 {
				t.Fatalf("%+v", r)
			}
			w.see(w.trusted(), controllers...)
			w.want(w.settle(r), systemca.RolledBack)
			if w.leaf["csm1"].CheckSignatureFrom(w.root(0)) != nil {
				t.Error("an identity is not of the root before")
			}
		})
	}
}

func TestWhatIsNotSafeIsRefusedHoweverItIsAsked(t *testing.T) {
	w := newWorld(t)
	first := w.root(0)
	name := authority.SystemName + "/issuers/root"
	w.refused(w.propose(&clusterv1.SetIssuerState{Issuer: name, State: "retired"}), "system-root")
	s, err := w.authorities.Succeed(ctx, "test")
	w.must(err)
	w.refused(w.propose(&clusterv1.CreateIssuer{Authority: authority.SystemName, Issuer: s.Root}), "system-root")
	p, err := w.Plan(ctx)
	w.must(err)
	hash, err := hex.DecodeString(p.Hash)
	w.must(err)
	other, err := w.authorities.Succeed(ctx, "test")
	w.must(err)
	for reason, c := range map[string]*clusterv1.StartSystemRotation{
		"no-reason":             {Root: s.Root, NewWithOld: s.NewWithOld, OldWithNew: s.OldWithNew, PlanHash: hash},
		"plan-hash":             {Root: s.Root, NewWithOld: s.NewWithOld, OldWithNew: s.OldWithNew, PlanHash: make([]byte, 32), Reason: "x"},
		"bad-cross-certificate": {Root: s.Root, NewWithOld: other.NewWithOld, OldWithNew: s.OldWithNew, PlanHash: hash, Reason: "x"},
		"bad-root":              {Root: &clusterv1.IssuerRecord{Name: name + "-9", Kind: "root", Parent: name + "-9", Certificate: first.Raw}, NewWithOld: s.NewWithOld, OldWithNew: s.OldWithNew, PlanHash: hash, Reason: "x"},
	} {
		w.refused(w.propose(c), reason)
	}
	r := w.start()
	if _, err := w.Start(ctx, p.Hash, "again", "test"); !fault.HasReason(err, "gate-one-at-a-time") {
		t.Errorf("two at once: %v", err)
	}
	w.must(w.propose(&clusterv1.AdvanceSystemRotation{Name: r.Name})) // by anybody, at any time: nothing is due
	w.want(w.settle(r), systemca.Distribute)
	w.refused(w.retire(r), "rotation-phase")
	self := &clusterv1.SawIdentities{By: "csm1", Seen: []*clusterv1.IdentitySighting{{Identity: identity.ControllerID(td, "csm1").String(), LeafSha256: make([]byte, 32)}}}
	w.refused(w.propose(self), "own-witness")
	_, err = w.Control(ctx, r.Name, "resume", "gone", "test", "system/controllers/csm3")
	w.refused(err, "controller-named")
	_, err = w.Control(ctx, r.Name, "resume", "gone", "test", "system/admins/nobody")
	w.refused(err, "no-identity")
	_, err = w.Control(ctx, r.Name, "pause", "gone", "test", "system/admins/ada")
	w.refused(err, "bad-exceptions")

	r = w.reissue(r)
	w.want(r, systemca.Reissued)
	// A machine that is put back shows an old identity, or somebody shows the leaf of another one: the gate closes again.
	w.must(w.Saw(ctx, "csm1", true, []systemca.Sighting{{Identity: identity.ControllerID(td, "csm2").String(), Leaf: sha256.Sum256(w.leaf["csm3"].Raw), Trusts: w.trusted()}}))
	w.refused(w.retire(r, "system/admins/ada"), "gate-controller-leaf")
	w.see(w.trusted(), controllers...)
	if _, err := w.Retire(ctx, r.Name, p.Hash, nil, "test", "test"); !fault.Is(err, fault.Stale) {
		t.Errorf("a plan that nobody has read was taken: %v", err)
	}
	w.must(w.retire(r, "system/admins/ada"))
	_, err = w.Control(ctx, r.Name, "rollback", "test", "test")
	w.refused(err, "retired")
	if got := w.issue(identity.AdminID(td, "bob"))[0]; got.CheckSignatureFrom(w.root(1)) != nil {
		t.Error("the root before still signs")
	}
	w.see(w.trusted(), controllers...)
	r = w.settle(r)
	w.want(r, systemca.Done)
	_, err = w.Control(ctx, r.Name, "pause", "test", "test")
	w.refused(err, "ended")
	if _, err := w.Get(ctx, authority.SystemName+"/rotations/r0"); !fault.HasReason(err, "no-rotation") {
		t.Error(err)
	}
}

func TestAPausedOrFrozenRotationStandsStill(t *testing.T) {
	w := newWorld(t)
	r := w.start()
	r, err := w.Control(ctx, r.Name, "pause", "pager", "test")
	w.must(err)
	w.see(w.trusted(), controllers...)
	if r = w.settle(r); r.Phase != systemca.Distribute || r.State != "paused" {
		t.Fatalf("%+v", r)
	}
	_, err = w.Control(ctx, r.Name, "resume", "on", "test")
	w.must(err)
	w.want(w.settle(r), systemca.Reissue)
	list, err := w.List(ctx)
	w.must(err)
	if len(list) != 1 || list[0].Name != r.Name {
		t.Errorf("%+v", list)
	}
}
