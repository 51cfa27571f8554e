package consensus

import (
	"context"
	"crypto/tls"
	"net"
	"reflect"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/jonboulle/clockwork"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	"github.com/cassandra-security-manager/csm/controller/consensus/transport"
	clusterv1 "github.com/cassandra-security-manager/csm/protocol/cluster/v1"
	"github.com/cassandra-security-manager/csm/shared/fault"
	"github.com/cassandra-security-manager/csm/shared/identity"
	"github.com/cassandra-security-manager/csm/shared/identity/identitytest"
)

// door is a system of one controller, at which others ask to be let in.
type door struct {
	*world
	a   *box
	ctx context.Context
}

func TestWhoMayJoin(t *testing.T) {
	t.Parallel()
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	defer cancel()
	g := door{world: newWorld(t), ctx: ctx}
	g.a = g.box("a")
	if err := g.a.open(true); err != nil {
		t.Fatal(err)
	}
	t.Run("a wrong token is refused", g.aWrongToken)
	t.Run("an expired token is refused", g.anExpiredToken)
	t.Run("a token of another controller is refused", g.aTokenOfAnother)
	t.Run("a revoked token is refused", g.aRevokedToken)
	t.Run("the same token and key get the same answer, another key is refused", g.aTokenBelongsToTheFirstKey)
	t.Run("the name of a member that lives is refused, and nothing is lost", g.aNameThatLives)
	t.Run("of two that claim one name one gets it", g.oneNameForTwo)
	t.Run("a clock more than ten minutes off is refused", g.aClockThatIsOff)
	t.Run("a request not signed by its key is refused", g.aRequestOfAnotherKey)
	t.Run("a wrong pin is refused by the joiner", g.aWrongPin)
	t.Run("who waits is told so at once, and at its deadline", g.whoWaits)
	t.Run("without a certificate only Join answers", g.onlyJoinIsOpen)
	t.Run("a certificate of another CA, an unknown key and an old TLS are refused", g.strangersAndOldTLS)
}

func (g door) token(t *testing.T, spec TokenSpec) string {
	t.Helper()
	s, _, err := g.a.node.CreateJoinToken(g.ctx, spec, "tester")
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// ask sends one request and does not wait for approval.
func (g door) ask(t *testing.T, o JoinOptions) (*clusterv1.JoinResponse, error) {
	t.Helper()
	pin, err := identity.ParsePin(o.Pin)
	if err != nil {
		t.Fatal(err)
	}
	return o.ask(g.ctx, g.a.addr, pin)
}

func (g door) aWrongToken(t *testing.T) {
	_, err := g.ask(t, g.box("b").joinOptions("csmc_wrong", g.a))
	wantReason(t, err, fault.Unauthenticated, "wrong-token")
}

func (g door) anExpiredToken(t *testing.T) {
	s, info, err := g.a.node.CreateJoinToken(g.ctx, TokenSpec{TTL: time.Millisecond}, "tester")
	if err != nil {
		t.Fatal(err)
	}
	<-time.After(time.Until(info.Expires) + time.Millisecond) // to its end, which the token tells
	_, err = g.ask(t, g.box("b").joinOptions(s, g.a))
	wantReason(t, err, fault.Refused, "token-expired")
}

func (g door) aTokenOfAnother(t *testing.T) {
	_, err := g.ask(t, g.box("b").joinOptions(g.token(t, TokenSpec{Name: "c"}), g.a))
	wantReason(t, err, fault.Refused, "token-of-another")
}

func (g door) aRevokedToken(t *testing.T) {
	s, info, err := g.a.node.CreateJoinToken(g.ctx, TokenSpec{}, "tester")
	if err != nil {
		t.Fatal(err)
	}
	if err := g.a.node.RevokeJoinToken(g.ctx, info.ID, "tester"); err != nil {
		t.Fatal(err)
	}
	_, err = g.ask(t, g.box("b").joinOptions(s, g.a))
	wantReason(t, err, fault.Unauthenticated, "wrong-token")
}

func (g door) aTokenBelongsToTheFirstKey(t *testing.T) {
	s, d, e := g.token(t, TokenSpec{}), g.box("d"), g.box("e")
	for range 2 {
		r, err := g.ask(t, d.joinOptions(s, g.a))
		if err != nil || r.GetState() != clusterv1.MemberState_MEMBER_STATE_PENDING || len(r.GetChain()) > 0 {
			t.Fatalf("%v %v", r, err)
		}
	}
	_, err := g.ask(t, e.joinOptions(s, g.a))
	wantReason(t, err, fault.Refused, "token-used")
	_, err = g.a.node.Approve(g.ctx, "d", "00"+string(make([]byte, 62)), "tester")
	wantReason(t, err, fault.Invalid, "bad-fingerprint")
	other := e.fingerprint()
	_, err = g.a.node.Approve(g.ctx, "d", Member{Key: other}.Fingerprint(), "tester")
	wantReason(t, err, fault.Refused, "fingerprint-differs")
	if _, err := g.a.node.Approve(g.ctx, "d", Member{Key: d.fingerprint()}.Fingerprint(), "tester"); err != nil {
		t.Fatal(err)
	}
	r, err := g.ask(t, d.joinOptions(s, g.a))
	if err != nil || len(r.GetChain()) == 0 {
		t.Fatalf("after the approval: %v %v", r, err)
	}
	if err := g.a.node.Remove(g.ctx, "d", "tester", "test"); err != nil {
		t.Fatal(err)
	}
}

func (g door) aNameThatLives(t *testing.T) {
	s, b := g.token(t, TokenSpec{}), g.box("b")
	before, err := g.a.node.Members(g.ctx)
	if err != nil {
		t.Fatal(err)
	}
	o := b.joinOptions(s, g.a)
	o.Name = g.a.name
	_, err = Join(g.ctx, o)
	wantReason(t, err, fault.Conflict, "name-in-use")
	if after, err := g.a.node.Members(g.ctx); err != nil || !reflect.DeepEqual(before, after) {
		t.Errorf("the members were %+v and are %+v: %v", before, after, err)
	}
	g.a.mustWrite("after-the-name")
	// The token was not used up by the refusal.
	if r, err := g.ask(t, b.joinOptions(s, g.a)); err != nil || r.GetState() != clusterv1.MemberState_MEMBER_STATE_PENDING {
		t.Fatalf("under a name of its own: %v %v", r, err)
	}
	if err := g.a.node.Remove(g.ctx, b.name, "tester", "test"); err != nil {
		t.Fatal(err)
	}
}

func (g door) oneNameForTwo(t *testing.T) {
	boxes := []*box{g.box("h"), g.box("i")}
	var options []JoinOptions
	for _, b := range boxes {
		o := b.joinOptions(g.token(t, TokenSpec{}), g.a)
		o.Name = "twice"
		options = append(options, o)
	}
	errs := make([]error, 2)
	var wg sync.WaitGroup
	for i, o := range options {
		wg.Go(func() { _, errs[i] = g.ask(t, o) })
	}
	wg.Wait()
	first := 0
	if errs[0] != nil {
		first = 1
	}
	second := 1 - first
	if errs[first] != nil {
		t.Fatalf("neither got the name: %v", errs)
	}
	wantReason(t, errs[second], fault.Conflict, "name-in-use")
	// The key that was compared by a person is the one that is let in; the other stays outside, and may come under its own name.
	_, err := g.a.node.Approve(g.ctx, "twice", Member{Key: boxes[second].fingerprint()}.Fingerprint(), "tester")
	wantReason(t, err, fault.Refused, "fingerprint-differs")
	if _, err := g.a.node.Approve(g.ctx, "twice", Member{Key: boxes[first].fingerprint()}.Fingerprint(), "tester"); err != nil {
		t.Fatal(err)
	}
	if r, err := g.ask(t, options[first]); err != nil || len(r.GetChain()) == 0 {
		t.Fatalf("approved: %v %v", r, err)
	}
	_, err = g.ask(t, options[second])
	wantReason(t, err, fault.Conflict, "name-in-use")
	options[second].Name = boxes[second].name
	if r, err := g.ask(t, options[second]); err != nil || r.GetState() != clusterv1.MemberState_MEMBER_STATE_PENDING {
		t.Fatalf("under a name of its own: %v %v", r, err)
	}
	for _, name := range []string{"twice", boxes[second].name} {
		if err := g.a.node.Remove(g.ctx, name, "tester", "test"); err != nil {
			t.Fatal(err)
		}
	}
}

func (g door) aClockThatIsOff(t *testing.T) {
	b := g.box("b")
	b.clock = clockwork.NewFakeClockAt(time.Now().Add(-11 * time.Minute))
	_, err := g.ask(t, b.joinOptions(g.token(t, TokenSpec{}), g.a))
	wantReason(t, err, fault.Refused, "clock-skew")
}

func (g door) aRequestOfAnotherKey(t *testing.T) {
	o := g.box("b").joinOptions(g.token(t, TokenSpec{}), g.a)
	o.CSR[len(o.CSR)-1] ^= 1
	if _, err := g.ask(t, o); err == nil {
		t.Fatal("accepted")
	}
	o.CSR = make([]byte, 1<<20)
	if _, err := g.ask(t, o); err == nil {
		t.Fatal("a megabyte of rubbish was accepted")
	}
}

func (g door) aWrongPin(t *testing.T) {
	o := g.box("b").joinOptions("csmc_x", g.a)
	o.Pin = identity.Pin(identitytest.New(t, time.Now()).Root)
	short, cancel := context.WithTimeout(g.ctx, 500*time.Millisecond)
	defer cancel()
	_, err := Join(short, o)
	wantReason(t, err, fault.Unauthenticated, "pin-mismatch")
	if strings.Contains(err.Error(), "desc =") {
		t.Errorf("gRPC's words: %v", err)
	}
}

func (g door) whoWaits(t *testing.T) {
	o := g.box("f").joinOptions(g.token(t, TokenSpec{}), g.a)
	told := make(chan struct{}, 100)
	o.Waiting = func(string) { told <- struct{}{} }
	short, cancel := context.WithTimeout(g.ctx, 500*time.Millisecond)
	defer cancel()
	_, err := Join(short, o)
	wantReason(t, err, fault.Running, "not-approved")
	short, cancel = context.WithTimeout(g.ctx, 500*time.Millisecond)
	defer cancel()
	_, err = Join(short, o) // given again, it goes on
	wantReason(t, err, fault.Running, "not-approved")
	if len(told) == 0 {
		t.Error("nobody said that it waits")
	}
	if err := g.a.node.Remove(g.ctx, "f", "tester", "test"); err != nil {
		t.Fatal(err)
	}
}

func (g door) onlyJoinIsOpen(t *testing.T) {
	o := g.box("b").joinOptions("", g.a)
	pin, _ := identity.ParsePin(o.Pin)
	cc, err := grpc.NewClient("passthrough:///"+g.a.addr, grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithContextDialer(func(ctx context.Context, addr string) (net.Conn, error) { return dialPinned(ctx, addr, pin, time.Now) }))
	if err != nil {
		t.Fatal(err)
	}
	defer cc.Close()
	c := clusterv1.NewClusterServiceClient(cc)
	_, err = c.Ping(g.ctx, &clusterv1.PingRequest{})
	wantReason(t, fault.FromGRPC(err), fault.Unauthenticated, "no-certificate")
	forward, err := c.Forward(g.ctx)
	if err == nil {
		_, err = forward.Recv()
	}
	wantReason(t, fault.FromGRPC(err), fault.Unauthenticated, "no-certificate")
	stream, err := c.Ticks(g.ctx, &clusterv1.TicksRequest{})
	if err == nil {
		_, err = stream.Recv()
	}
	wantReason(t, fault.FromGRPC(err), fault.Unauthenticated, "no-certificate")
}

func (g door) strangersAndOldTLS(t *testing.T) {
	foreign := g.box("b")
	foreign.ca = identitytest.New(t, time.Now())
	for _, p := range []string{transport.Raft, transport.Gossip, transport.GRPC} {
		if speaks(g.a.addr, p, foreign, 15*time.Second) {
			t.Errorf("a foreign certificate speaks %s", p)
		}
	}
	if speaks(g.a.addr, transport.Raft, g.box("never-admitted"), 15*time.Second) {
		t.Error("a key outside the members table speaks raft")
	}
	if speaks(g.a.addr, transport.Raft, nil, 15*time.Second) {
		t.Error("no certificate speaks raft")
	}
	if !speaks(g.a.addr, transport.Raft, g.a, time.Second) {
		t.Error("a member's own key does not speak raft: this test proves nothing")
	}
	if c, err := tls.Dial("tcp", g.a.addr, &tls.Config{InsecureSkipVerify: true, MaxVersion: tls.VersionTLS12, NextProtos: []string{transport.GRPC}}); err == nil {
		c.Close()
		t.Error("TLS 1.2 was accepted")
	}
	if c, err := tls.Dial("tcp", g.a.addr, &tls.Config{InsecureSkipVerify: true, CurvePreferences: []tls.CurveID{tls.X25519}, NextProtos: []string{transport.GRPC}}); err == nil {
		c.Close()
		t.Error("a key exchange that is not hybrid was accepted")
	}
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
