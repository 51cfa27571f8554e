package join_test

import (
	"context"
	"crypto"
	"crypto/tls"
	"crypto/x509"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"

	"github.com/cassandra-security-manager/csm/agent/join"
	"github.com/cassandra-security-manager/csm/agent/state"
	agentsync "github.com/cassandra-security-manager/csm/agent/sync"
	agentv1 "github.com/cassandra-security-manager/csm/protocol/agent/v1"
	"github.com/cassandra-security-manager/csm/shared/certificate"
	"github.com/cassandra-security-manager/csm/shared/fault"
	"github.com/cassandra-security-manager/csm/shared/identity"
	"github.com/cassandra-security-manager/csm/shared/identity/identitytest"
)

const (
	domain = "0123456789abcdef.csm"
	uid    = "7b5c"
)

// controller answers Join and RenewIdentity over TLS; change spoils its answers, fail refuses.
type controller struct {
	agentv1.UnimplementedAgentServiceServer
	ca   *identitytest.Authority
	addr string

	mu     sync.Mutex
	change func(*agentv1.JoinResponse, crypto.PublicKey)
	fail   error
	asked  []*agentv1.JoinRequest
}

func start(t *testing.T) *controller { return startOf(t, identitytest.New(t, time.Now())) }

func startOf(t *testing.T, ca *identitytest.Authority) *controller {
	t.Helper()
	c := &controller{ca: ca}
	own := c.ca.Certificate(identity.ControllerID(domain, "csm1"))
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	v := identity.Verifier{Roots: c.roots, TrustDomain: domain, Kinds: []identity.Kind{identity.Agent}, Now: time.Now}
	s := grpc.NewServer(grpc.Creds(credentials.NewTLS(identity.ServerConfig(func() (*tls.Certificate, error) { return own, nil }, tls.RequestClientCert, v))))
	agentv1.RegisterAgentServiceServer(s, c)
	go s.Serve(l)
	t.Cleanup(s.Stop)
	c.addr = l.Addr().String()
	return c
}

func (c *controller) roots() []*x509.Certificate { return []*x509.Certificate{c.ca.Root} }

func (c *controller) answer(csr []byte) (*agentv1.JoinResponse, error) {
	if c.fail != nil {
		return nil, c.fail
	}
	r, err := certificate.ParseRequest(csr)
	if err != nil {
		return nil, err
	}
	out := &agentv1.JoinResponse{Node: "tenants/default/clusters/prod/nodes/n1", Uid: uid, Incarnation: 1, TrustDomain: domain,
		Chain: [][]byte{c.ca.Sign(identity.AgentID(domain, uid, 1), r.PublicKey).Raw}, Bundle: [][]byte{c.ca.Root.Raw}}
	if c.change != nil {
		c.change(out, r.PublicKey)
	}
	return out, nil
}

func (c *controller) Join(_ context.Context, r *agentv1.JoinRequest) (*agentv1.JoinResponse, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.asked = append(c.asked, r)
	return c.answer(r.Csr)
}

func (c *controller) RenewIdentity(_ context.Context, r *agentv1.RenewIdentityRequest) (*agentv1.RenewIdentityResponse, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	a, err := c.answer(r.Csr)
	return &agentv1.RenewIdentityResponse{Chain: a.GetChain(), Bundle: a.GetBundle()}, err
}

// key is that of the n-th request.
func (c *controller) key(t *testing.T, n int) crypto.PublicKey {
	t.Helper()
	r, err := certificate.ParseRequest(c.asked[n].Csr)
	if err != nil {
		t.Fatal(err)
	}
	return r.PublicKey
}

func folder(t *testing.T) *state.Folder {
	t.Helper()
	f, err := state.Open(t.TempDir(), [32]byte{1})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(f.Close)
	return f
}

func (c *controller) options(t *testing.T) join.Options {
	t.Helper()
	token := filepath.Join(t.TempDir(), "join.token")
	if err := os.WriteFile(token, []byte("csmt_secret\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	return join.Options{Controllers: []string{c.addr}, Pin: identity.Pin(c.ca.Root), Cluster: "prod", Method: "token", EvidenceFile: token,
		Agent: &agentv1.AgentFacts{}, Instance: &agentv1.InstanceFacts{}, Now: time.Now, Jitter: func() float64 { return 0.5 }}
}

func TestWhatTheTokenBuysIsKept(t *testing.T) {
	c, f := start(t), folder(t)
	id, err := join.Join(t.Context(), f, c.options(t))
	if err != nil {
		t.Fatal(err)
	}
	if id.UID != uid || id.Incarnation != 1 || id.TrustDomain != domain || !certificate.SameKey(id.Chain[0].PublicKey, id.Key.Public()) {
		t.Errorf("%+v", id)
	}
	if kept := f.Identity(); kept == nil || kept.UID != uid || !kept.RenewAt.Equal(id.RenewAt) {
		t.Errorf("kept: %+v", kept)
	}
	if r := c.asked[0]; string(r.Evidence) != "csmt_secret" || r.Cluster != "prod" || r.Method != "token" {
		t.Errorf("asked with %q for %q by %q", r.Evidence, r.Cluster, r.Method)
	}
}

func TestAnAnswerThatIsNotForThisAgentIsNotKept(t *testing.T) {
	other := identitytest.New(t, time.Now())
	stranger := identitytest.Key(t).Public()
	for what, s := range map[string]struct {
		change func(*controller, *agentv1.JoinResponse, crypto.PublicKey)
		reason string
	}{
		"for another key": {func(c *controller, r *agentv1.JoinResponse, _ crypto.PublicKey) {
			r.Chain[0] = c.ca.Sign(identity.AgentID(domain, uid, 1), stranger).Raw
		}, "bad-identity"},
		"for another node": {func(c *controller, r *agentv1.JoinResponse, k crypto.PublicKey) {
			r.Chain[0] = c.ca.Sign(identity.AgentID(domain, "other", 1), k).Raw
		}, "bad-identity"},
		"for another incarnation": {func(c *controller, r *agentv1.JoinResponse, k crypto.PublicKey) {
			r.Chain[0] = c.ca.Sign(identity.AgentID(domain, uid, 2), k).Raw
		}, "bad-identity"},
		"for a controller": {func(c *controller, r *agentv1.JoinResponse, k crypto.PublicKey) {
			r.Chain[0] = c.ca.Sign(identity.ControllerID(domain, "csm9"), k).Raw
		}, "bad-identity"},
		"of another trust domain": {func(_ *controller, r *agentv1.JoinResponse, _ crypto.PublicKey) { r.TrustDomain = "ffff.csm" }, "bad-identity"},
		"of another CA": {func(_ *controller, r *agentv1.JoinResponse, k crypto.PublicKey) {
			r.Chain[0] = other.Sign(identity.AgentID(domain, uid, 1), k).Raw
		}, "bad-identity"},
		"with a bundle of its own": {func(_ *controller, r *agentv1.JoinResponse, k crypto.PublicKey) {
			r.Chain[0], r.Bundle = other.Sign(identity.AgentID(domain, uid, 1), k).Raw, [][]byte{other.Root.Raw}
		}, "pin-mismatch"},
		"without a bundle": {func(_ *controller, r *agentv1.JoinResponse, _ crypto.PublicKey) { r.Bundle = nil }, "bad-identity"},
		"without a chain":  {func(_ *controller, r *agentv1.JoinResponse, _ crypto.PublicKey) { r.Chain = nil }, "bad-identity"},
		"that is noise":    {func(_ *controller, r *agentv1.JoinResponse, _ crypto.PublicKey) { r.Chain[0] = []byte("noise") }, "bad-identity"},
	} {
		c, f := start(t), folder(t)
		c.change = func(r *agentv1.JoinResponse, k crypto.PublicKey) { s.change(c, r, k) }
		if _, err := join.Join(t.Context(), f, c.options(t)); !fault.HasReason(err, s.reason) {
			t.Errorf("%s: %v, want %s", what, err, s.reason)
		}
		if f.Identity() != nil {
			t.Errorf("%s: an identity was kept", what)
		}
	}
}

func TestWhenAnAnswerWasLostTheSameKeyAsksAgain(t *testing.T) {
	c, f := start(t), folder(t)
	c.fail = fault.New(fault.Unavailable, "no-quorum", "1 of 3 controllers answers").Do("start csm2")
	if _, err := join.Join(t.Context(), f, c.options(t)); !fault.HasReason(err, "no-quorum") {
		t.Fatalf("%v", err)
	}
	c.fail = nil
	if _, err := join.Join(t.Context(), f, c.options(t)); err != nil {
		t.Fatal(err)
	}
	if !certificate.SameKey(c.key(t, 0), c.key(t, 1)) {
		t.Error("a second key was made: the token would be burnt for the first")
	}
}

func TestTheNextControllerIsAskedUnlessTheAnswerIsFinal(t *testing.T) {
	for _, c := range []struct {
		err    error
		joined bool
	}{
		{fault.New(fault.Unavailable, "no-quorum", "no leader"), true},
		{fault.New(fault.Unknown, "outcome-unknown", "the leader went away"), true},
		{fault.New(fault.Refused, "token-used", "the token is used up"), false},
		{fault.New(fault.Unauthenticated, "wrong-token", "the token is not known"), false},
	} {
		first := start(t)
		second := startOf(t, first.ca)
		first.fail = c.err
		o := first.options(t)
		o.Controllers = []string{"127.0.0.1:1", first.addr, second.addr}
		_, err := join.Join(t.Context(), folder(t), o)
		if c.joined && err != nil || !c.joined && !fault.HasReason(err, fault.From(c.err).Reason) {
			t.Errorf("%v: %v", c.err, err)
		}
		if len(first.asked) != 1 || len(second.asked) > 0 != c.joined {
			t.Errorf("%v: asked %d and %d times", c.err, len(first.asked), len(second.asked))
		}
	}
}

func TestWithoutThePinnedRootNobodyIsTold(t *testing.T) {
	c, f := start(t), folder(t)
	o := c.options(t)
	o.Pin = identity.Pin(identitytest.New(t, time.Now()).Root)
	if _, err := join.Join(t.Context(), f, o); !fault.HasReason(err, "pin-mismatch") {
		t.Errorf("%v", err)
	}
	if len(c.asked) != 0 {
		t.Error("the token was shown to who lacks the pinned root")
	}
}

func TestATokenThatCannotBeOneIsNotSent(t *testing.T) {
	c := start(t)
	for what, s := range map[string]struct {
		change func(*join.Options)
		reason string
	}{
		"no file":        {func(o *join.Options) { o.EvidenceFile += ".absent" }, "no-token"},
		"empty":          {func(o *join.Options) { write(t, o.EvidenceFile, " \n") }, "no-token"},
		"too large":      {func(o *join.Options) { write(t, o.EvidenceFile, strings.Repeat("x", 17<<10)) }, "no-token"},
		"another method": {func(o *join.Options) { o.Method = "guess" }, "unknown-method"},
		"a broken pin":   {func(o *join.Options) { o.Pin = "sha256:zz" }, "bad-pin"},
		"nobody to ask":  {func(o *join.Options) { o.Controllers = nil }, "no-controllers"},
	} {
		o := c.options(t)
		s.change(&o)
		if _, err := join.Join(t.Context(), folder(t), o); !fault.HasReason(err, s.reason) {
			t.Errorf("%s: %v, want %s", what, err, s.reason)
		}
	}
	if len(c.asked) != 0 {
		t.Errorf("asked %d times", len(c.asked))
	}
}

func write(t *testing.T, path, s string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(s), 0o600); err != nil {
		t.Fatal(err)
	}
}

// live calls over one connection with the agent's identity.
type live struct{ conn *grpc.ClientConn }

func (l live) Call(ctx context.Context, call func(context.Context, agentv1.AgentServiceClient) error) error {
	return fault.FromGRPC(call(ctx, agentv1.NewAgentServiceClient(l.conn)))
}

func TestARenewalIsForANewKeyAndABadOneChangesNothing(t *testing.T) {
	c, f := start(t), folder(t)
	old, err := join.Join(t.Context(), f, c.options(t))
	if err != nil {
		t.Fatal(err)
	}
	conn, err := agentsync.Dial(c.addr, credentials.NewTLS(identity.ForDial(agentsync.IdentityTLS(f.Identity, time.Now))), nil)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	c.change = func(r *agentv1.JoinResponse, _ crypto.PublicKey) {
		r.Chain[0] = c.ca.Sign(identity.AgentID(domain, uid, 1), old.Key.Public()).Raw
	}
	if _, err := join.Renew(t.Context(), f, live{conn}, time.Now(), 0.5); !fault.HasReason(err, "bad-identity") {
		t.Errorf("for the old key: %v", err)
	}
	if !f.Identity().Chain[0].Equal(old.Chain[0]) {
		t.Error("the identity changed")
	}
	c.change = nil
	id, err := join.Renew(t.Context(), f, live{conn}, time.Now(), 0.5)
	if err != nil {
		t.Fatal(err)
	}
	if certificate.SameKey(id.Key.Public(), old.Key.Public()) || id.UID != old.UID || !f.Identity().Chain[0].Equal(id.Chain[0]) {
		t.Errorf("%+v", id)
	}
}

func TestRenewalIsDrawnOnceBetween60And70PercentOfTheLife(t *testing.T) {
	from := time.Date(2026, 3, 1, 0, 0, 0, 0, time.UTC)
	for jitter, want := range map[float64]time.Duration{0: 60 * time.Hour, 0.5: 65 * time.Hour, 1: 70 * time.Hour} {
		if got := join.RenewAt(from, from.Add(100*time.Hour), jitter).Sub(from).Round(time.Second); got != want {
			t.Errorf("jitter %v: after %s, want %s", jitter, got, want)
		}
	}
}
