package transport_test

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"io"
	"log/slog"
	"net"
	"sync/atomic"
	"testing"
	"time"

	"github.com/cassandra-security-manager/csm/controller/consensus/transport"
	"github.com/cassandra-security-manager/csm/shared/fault"
	"github.com/cassandra-security-manager/csm/shared/identity"
	"github.com/cassandra-security-manager/csm/shared/identity/identitytest"
)

const domain = "0123456789abcdef.csm"

// guard lets every controller of the trust domain in, until it is closed.
type guard struct {
	identity.Verifier
	closed atomic.Bool
	at     map[string][32]byte
}

func (g *guard) Verify(chain []*x509.Certificate) (transport.Peer, error) {
	id, err := g.Verifier.Verify(chain)
	if err != nil {
		return transport.Peer{}, err
	}
	return transport.Peer{ID: id, Key: transport.KeyOf(chain[0])}, nil
}

func (g *guard) Allowed([32]byte) bool { return !g.closed.Load() }

func (g *guard) KeyAt(address string) ([32]byte, bool) { k, ok := g.at[address]; return k, ok }

// controller is one that listens.
type controller struct {
	*transport.Transport
	guard *guard
	addr  string
	cert  *tls.Certificate
}

func listen(t *testing.T, ca *identitytest.Authority, cert *tls.Certificate) controller {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	g := &guard{at: map[string][32]byte{}, Verifier: identity.Verifier{Roots: func() []*x509.Certificate { return []*x509.Certificate{ca.Root} },
		TrustDomain: domain, Kinds: []identity.Kind{identity.Controller}, Now: time.Now}}
	tr := transport.New(transport.Config{Listener: l, Advertise: l.Addr().String(), Certificate: func() (*tls.Certificate, error) { return cert, nil },
		Guard: g, Logger: slog.New(slog.DiscardHandler)})
	t.Cleanup(func() { tr.Close() })
	return controller{tr, g, l.Addr().String(), cert}
}

func member(t *testing.T, ca *identitytest.Authority, name string) controller {
	return listen(t, ca, ca.Certificate(identity.ControllerID(domain, name)))
}

// reaches says whether a byte gets from a connection to the listener of its protocol and back. TLS 1.3 lets a client
// finish before the server has looked at its certificate, so a finished handshake says nothing.
func reaches(t *testing.T, c net.Conn, to controller, protocol string) bool {
	t.Helper()
	served := make(chan struct{})
	go func() {
		defer close(served)
		if in, err := to.Listener(protocol).Accept(); err == nil {
			io.CopyN(in, in, 1)
			in.Close()
		}
	}()
	c.SetDeadline(time.Now().Add(5 * time.Second))
	b := []byte{42}
	_, err := c.Write(b)
	if err == nil {
		_, err = io.ReadFull(c, b)
	}
	if err != nil {
		to.Close()
	}
	<-served
	return err == nil
}

func dial(t *testing.T, from, to controller, protocol string) bool {
	t.Helper()
	c, err := from.Dial(t.Context(), protocol, to.addr)
	if err != nil {
		to.Close()
		return false
	}
	defer c.Close()
	return reaches(t, c, to, protocol)
}

func TestMembersReachEachOtherOnEachProtocol(t *testing.T) {
	ca := identitytest.New(t, time.Now())
	a, b := member(t, ca, "csm1"), member(t, ca, "csm2")
	for _, protocol := range []string{transport.Raft, transport.Gossip, transport.GRPC} {
		if !dial(t, a, b, protocol) {
			t.Errorf("%s does not come through", protocol)
		}
	}
}

func TestWhoIsNoMemberIsRefused(t *testing.T) {
	now := time.Now()
	ca, other := identitytest.New(t, now), identitytest.New(t, now)
	for what, cert := range map[string]*tls.Certificate{
		"a stranger with a CA of his own": other.Certificate(identity.ControllerID(domain, "csm2")),
		"another trust domain":            ca.Certificate(identity.ControllerID("fedcba9876543210.csm", "csm2")),
		"an agent":                        ca.Certificate(identity.AgentID(domain, "uid", 1)),
		"an administrator":                ca.Certificate(identity.AdminID(domain, "ada")),
	} {
		for _, protocol := range []string{transport.Raft, transport.GRPC} {
			// Towards a member, and a member towards it.
			if dial(t, listen(t, ca, cert), member(t, ca, "csm1"), protocol) {
				t.Errorf("%s got in by %s", what, protocol)
			}
			if dial(t, member(t, ca, "csm1"), listen(t, ca, cert), protocol) {
				t.Errorf("%s was taken for a controller by who dialled it by %s", what, protocol)
			}
		}
	}
}

func TestWithoutACertificateOnlyTheOpenServiceIsReached(t *testing.T) {
	ca := identitytest.New(t, time.Now())
	shake := func(to controller, protocol string) (*tls.Conn, error) {
		conf := identity.Base()
		conf.NextProtos, conf.InsecureSkipVerify = []string{protocol}, true
		return tls.Dial("tcp", to.addr, conf)
	}
	for protocol, want := range map[string]bool{transport.Raft: false, transport.Gossip: false, transport.GRPC: true} {
		to := member(t, ca, "csm1")
		c, err := shake(to, protocol)
		if got := err == nil && reaches(t, c, to, protocol); got != want {
			t.Errorf("%s: reached %v, want %v (%v)", protocol, got, want, err)
		}
	}
	for _, protocol := range []string{"csm-other/1", "http/1.1"} {
		c, err := shake(member(t, ca, "csm1"), protocol)
		if err != nil {
			continue
		}
		c.SetDeadline(time.Now().Add(5 * time.Second))
		if n, err := io.Copy(io.Discard, c); n > 0 || err != nil && !isClosed(err) {
			t.Errorf("%s is listened to (%v)", protocol, err)
		}
	}
}

func TestOnlyTheKeyThatIsKnownForAnAddressIsTakenThere(t *testing.T) {
	ca := identitytest.New(t, time.Now())
	a, b := member(t, ca, "csm1"), member(t, ca, "csm2")
	a.guard.at[b.addr] = transport.KeyOf(b.cert.Leaf)
	if c, err := a.Dial(t.Context(), transport.Raft, b.addr); err != nil {
		t.Errorf("the right key: %v", err)
	} else {
		c.Close()
	}
	a.guard.at[b.addr] = transport.KeyOf(a.cert.Leaf)
	if _, err := a.Dial(t.Context(), transport.Raft, b.addr); !fault.HasReason(err, "wrong-controller") {
		t.Errorf("another member's key: %v", err)
	}
}

func TestARemovedMemberIsCutOffAtOnce(t *testing.T) {
	ca := identitytest.New(t, time.Now())
	a, b := member(t, ca, "csm1"), member(t, ca, "csm2")
	c, err := a.Dial(t.Context(), transport.Raft, b.addr)
	if err != nil {
		t.Fatal(err)
	}
	in, err := b.Listener(transport.Raft).Accept()
	if err != nil {
		t.Fatal(err)
	}
	b.Recheck()
	if _, err := in.Write([]byte{1}); err != nil {
		t.Errorf("a member was cut off: %v", err)
	}
	b.guard.closed.Store(true)
	b.Recheck()
	c.SetDeadline(time.Now().Add(5 * time.Second))
	if _, err := io.Copy(io.Discard, c); err != nil && !isClosed(err) {
		t.Errorf("the connection stayed open: %v", err)
	}
	if dial(t, a, b, transport.Raft) {
		t.Error("it came back")
	}
}

// isClosed tells a connection that was cut from one that was waited for in vain.
func isClosed(err error) bool {
	n, ok := err.(net.Error)
	return !ok || !n.Timeout()
}

func TestCloseEndsWhatIsOpen(t *testing.T) {
	ca := identitytest.New(t, time.Now())
	a, b := member(t, ca, "csm1"), member(t, ca, "csm2")
	if _, err := a.Dial(t.Context(), transport.Gossip, b.addr); err != nil {
		t.Fatal(err)
	}
	if err := b.Close(); err != nil {
		t.Error(err)
	}
	if _, err := b.Listener(transport.Gossip).Accept(); err == nil {
		t.Error("it still accepts")
	}
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
	defer cancel()
	if _, err := a.Dial(ctx, transport.Gossip, b.addr); err == nil {
		t.Error("it is still reached")
	}
}
