package consensus

import (
	"context"
	"crypto/tls"
	"net"
	"strings"
	"testing"
	"time"

	"github.com/jonboulle/clockwork"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	"github.com/cassandra-security-manager/csm/controller/consensus/transport"
	clusterv1 "github.com/cassandra-security-manager/csm/protocol/cluster/v1"
	"github.com/cassandra-security-manager/csm/shared/fault"
	"github.com/cassandra-security-manager/csm/shared/identity"
)

func TestWhoMayJoin(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	defer cancel()
	a := w.box("a")
	if err := a.open(true); err != nil {
		t.Fatal(err)
	}
	token := func(spec TokenSpec) string {
		t.Helper()
		s, _, err := a.node.CreateJoinToken(ctx, spec, "tester")
		if err != nil {
			t.Fatal(err)
		}
		return s
	}
	// ask sends one request and does not wait for approval.
	ask := func(o JoinOptions) (*clusterv1.JoinResponse, error) {
		pin, err := identity.ParsePin(o.Pin)
		if err != nil {
			t.Fatal(err)
		}
		return o.ask(ctx, a.addr, pin)
	}

	t.Run("a wrong token is refused", func(t *testing.T) {
		_, err := ask(w.box("b").joinOptions("csmc_wrong", a))
		wantReason(t, err, fault.Unauthenticated, "wrong-token")
	})
	t.Run("an expired token is refused", func(t *testing.T) {
		s := token(TokenSpec{TTL: time.Millisecond})
		time.Sleep(5 * time.Millisecond)
		_, err := ask(w.box("b").joinOptions(s, a))
		wantReason(t, err, fault.Refused, "token-expired")
	})
	t.Run("a token of another controller is refused", func(t *testing.T) {
		_, err := ask(w.box("b").joinOptions(token(TokenSpec{Name: "c"}), a))
		wantReason(t, err, fault.Refused, "token-of-another")
	})
	t.Run("a revoked token is refused", func(t *testing.T) {
		s, info, err := a.node.CreateJoinToken(ctx, TokenSpec{}, "tester")
		if err != nil {
			t.Fatal(err)
		}
		if err := a.node.RevokeJoinToken(ctx, info.ID, "tester"); err != nil {
			t.Fatal(err)
		}
		_, err = ask(w.box("b").joinOptions(s, a))
		wantReason(t, err, fault.Unauthenticated, "wrong-token")
	})
	t.Run("the same token and key get the same answer, another key is refused", func(t *testing.T) {
		s, d, e := token(TokenSpec{}), w.box("d"), w.box("e")
		for range 2 {
			r, err := ask(d.joinOptions(s, a))
			if err != nil || r.GetState() != clusterv1.MemberState_MEMBER_STATE_PENDING || len(r.GetChain()) > 0 {
				t.Fatalf("%v %v", r, err)
			}
		}
		_, err := ask(e.joinOptions(s, a))
		wantReason(t, err, fault.Refused, "token-used")
		_, err = a.node.Approve(ctx, "d", "00"+string(make([]byte, 62)), "tester")
		wantReason(t, err, fault.Invalid, "bad-fingerprint")
		other := e.fingerprint()
		_, err = a.node.Approve(ctx, "d", Member{Key: other}.Fingerprint(), "tester")
		wantReason(t, err, fault.Refused, "fingerprint-differs")
		if _, err := a.node.Approve(ctx, "d", Member{Key: d.fingerprint()}.Fingerprint(), "tester"); err != nil {
			t.Fatal(err)
		}
		r, err := ask(d.joinOptions(s, a))
		if err != nil || len(r.GetChain()) == 0 {
			t.Fatalf("after the approval: %v %v", r, err)
		}
		if err := a.node.Remove(ctx, "d", "tester", "test"); err != nil {
			t.Fatal(err)
		}
	})
	t.Run("a clock more than ten minutes off is refused", func(t *testing.T) {
		b := w.box("b")
		b.clock = clockwork.NewFakeClockAt(time.Now().Add(-11 * time.Minute))
		_, err := ask(b.joinOptions(token(TokenSpec{}), a))
		wantReason(t, err, fault.Refused, "clock-skew")
	})
	t.Run("a request not signed by its key is refused", func(t *testing.T) {
		o := w.box("b").joinOptions(token(TokenSpec{}), a)
		o.CSR[len(o.CSR)-1] ^= 1
		if _, err := ask(o); err == nil {
			t.Fatal("accepted")
		}
		o.CSR = make([]byte, 1<<20)
		if _, err := ask(o); err == nil {
			t.Fatal("a megabyte of rubbish was accepted")
		}
	})
	t.Run("a wrong pin is refused by the joiner", func(t *testing.T) {
		o := w.box("b").joinOptions("csmc_x", a)
		o.Pin = identity.Pin(newAuthority(t).cert)
		short, cancel := context.WithTimeout(ctx, 500*time.Millisecond)
		defer cancel()
		_, err := Join(short, o)
		wantReason(t, err, fault.Unauthenticated, "pin-mismatch")
		if strings.Contains(err.Error(), "desc =") {
			t.Errorf("gRPC's words: %v", err)
		}
	})
	t.Run("who waits is told so at once, and at its deadline", func(t *testing.T) {
		o := w.box("f").joinOptions(token(TokenSpec{}), a)
		told := make(chan struct{}, 100)
		o.Waiting = func(string) { told <- struct{}{} }
		short, cancel := context.WithTimeout(ctx, 500*time.Millisecond)
		defer cancel()
		_, err := Join(short, o)
		wantReason(t, err, fault.Running, "not-approved")
		short, cancel = context.WithTimeout(ctx, 500*time.Millisecond)
		defer cancel()
		_, err = Join(short, o) // given again, it goes on
		wantReason(t, err, fault.Running, "not-approved")
		if len(told) == 0 {
			t.Error("nobody said that it waits")
		}
		if err := a.node.Remove(ctx, "f", "tester", "test"); err != nil {
			t.Fatal(err)
		}
	})
	t.Run("without a certificate only Join answers", func(t *testing.T) {
		o := w.box("b").joinOptions("", a)
		pin, _ := identity.ParsePin(o.Pin)
		cc, err := grpc.NewClient("passthrough:///"+a.addr, grpc.WithTransportCredentials(insecure.NewCredentials()),
			grpc.WithContextDialer(func(ctx context.Context, addr string) (net.Conn, error) { return dialPinned(ctx, addr, pin, time.Now) }))
		if err != nil {
			t.Fatal(err)
		}
		defer cc.Close()
		c := clusterv1.NewClusterServiceClient(cc)
		_, err = c.Ping(ctx, &clusterv1.PingRequest{})
		wantReason(t, fault.FromGRPC(err), fault.Unauthenticated, "no-certificate")
		_, err = c.Forward(ctx, &clusterv1.ForwardRequest{})
		wantReason(t, fault.FromGRPC(err), fault.Unauthenticated, "no-certificate")
		stream, err := c.Ticks(ctx, &clusterv1.TicksRequest{})
		if err == nil {
			_, err = stream.Recv()
		}
		wantReason(t, fault.FromGRPC(err), fault.Unauthenticated, "no-certificate")
	})
	t.Run("a certificate of another CA, an unknown key and an old TLS are refused", func(t *testing.T) {
		foreign := w.box("b")
		foreign.ca = newAuthority(t)
		for _, p := range []string{transport.Raft, transport.Gossip, transport.GRPC} {
			if speaks(a.addr, p, foreign, 15*time.Second) {
				t.Errorf("a foreign certificate speaks %s", p)
			}
		}
		if speaks(a.addr, transport.Raft, w.box("never-admitted"), 15*time.Second) {
			t.Error("a key outside the members table speaks raft")
		}
		if speaks(a.addr, transport.Raft, nil, 15*time.Second) {
			t.Error("no certificate speaks raft")
		}
		if !speaks(a.addr, transport.Raft, a, time.Second) {
			t.Error("a member's own key does not speak raft: this test proves nothing")
		}
		if c, err := tls.Dial("tcp", a.addr, &tls.Config{InsecureSkipVerify: true, MaxVersion: tls.VersionTLS12, NextProtos: []string{transport.GRPC}}); err == nil {
			c.Close()
			t.Error("TLS 1.2 was accepted")
		}
		if c, err := tls.Dial("tcp", a.addr, &tls.Config{InsecureSkipVerify: true, CurvePreferences: []tls.CurveID{tls.X25519}, NextProtos: []string{transport.GRPC}}); err == nil {
			c.Close()
			t.Error("a key exchange that is not hybrid was accepted")
		}
	})
}

// speaks says whether the port keeps a connection of a protocol with this certificate open: with TLS 1.3 a refusal comes
// after the client's handshake.
//
// A refusal may take its time on a busy machine; silence for as long as patience means that it is open.
func speaks(addr, protocol string, as *box, patience time.Duration) bool {
	cfg := identity.Base()
	cfg.InsecureSkipVerify = true
	cfg.NextProtos = []string{protocol}
	if as != nil {
		cfg.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return as.certificate() }
	}
	c, err := tls.Dial("tcp", addr, cfg)
	if err != nil {
		return false
	}
	defer c.Close()
	c.SetReadDeadline(time.Now().Add(patience))
	_, err = c.Read(make([]byte, 1))
	ne, ok := err.(net.Error)
	return err == nil || ok && ne.Timeout()
}

func TestAMembersExpiredCertificateStillConnects(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.cluster("a", "b")
	for _, b := range w.boxes {
		b.kill()
	}
	for _, b := range w.boxes {
		b.from, b.to, b.cert = time.Now().Add(-2*time.Hour), time.Now().Add(-time.Minute), nil
	}
	for _, b := range w.boxes {
		b.start()
	}
	w.boxes[0].mustWrite("all-expired")
	w.identical(w.boxes[1], 2)
}
