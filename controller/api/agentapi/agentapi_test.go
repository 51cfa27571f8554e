package agentapi_test

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"strconv"
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/types/known/timestamppb"

	agentv1 "github.com/cassandra-security-manager/csm/protocol/agent/v1"

	"github.com/cassandra-security-manager/csm/shared/certificate"
	"github.com/cassandra-security-manager/csm/shared/fault"
	"github.com/cassandra-security-manager/csm/shared/identity"
)

func TestTwoAgentsJoinInstallAndProveEachOther(t *testing.T) {
	w := newWorld(t).listen()
	one, two := w.join("n1"), w.join("n2")
	t1, t2 := one.open(), two.open()
	if t1.Node != one.node || len(t1.Stores) != 1 || len(t1.Anchors) != 1 || t1.Stores[0].LeafSha256 != nil {
		t.Fatalf("target = %v", t1)
	}
	one.firstInstall(t1) // side by side, before Cassandra's first start
	two.firstInstall(t2)
	one.hello.Instance.Running = true
	one.facts()
	tgt := one.targetWith("a leaf", func(x *agentv1.Target) bool { return x.Stores[0].LeafSha256 != nil })

	claim, err := one.claim(tgt, agentv1.MoveKind_MOVE_KIND_RENEW)
	w.must(err)
	issued := one.install(claim)
	leaf, err := x509.ParseCertificate(issued.Chain[0])
	w.must(err)
	if got := certificate.OfCertificate(leaf).String(); got != "DNS:n1.example, IP:127.0.0.1, URI:spiffe://"+w.domain+"/node/default/prod/n1" {
		t.Errorf("the leaf carries %s", got)
	}
	if issued.RenewAt.AsTime().IsZero() || !strings.HasPrefix(issued.Certificate, "tenants/default/certificates/") {
		t.Errorf("issued = %v at %v", issued.Certificate, issued.RenewAt)
	}
	wantReason(t, one.report(claim, agentv1.MoveOutcome_MOVE_OUTCOME_PROVEN), "not-proved")
	s := one.hello.Stores[0]
	asked, err := one.call.RequestProofs(t.Context(), &agentv1.RequestProofsRequest{Claim: claim, Store: "node", Ports: s.Ports, LeafSha256: s.LeafSha256})
	w.must(err)
	if asked.Prober != two.node || len(asked.Tasks) != 2 {
		t.Fatalf("asked = %v", asked)
	}
	for range asked.Tasks {
		task := next(t, two.tasks, "proof task")
		if task.TargetNode != one.node || !bytes.Equal(task.LeafSha256, s.LeafSha256) {
			t.Errorf("task = %v", task)
		}
		_, err := two.call.ReportProof(t.Context(), &agentv1.ReportProofRequest{Task: task.Task, Proof: &agentv1.Proof{Port: task.Port, Verdict: agentv1.Verdict_VERDICT_ACCEPTED, ServedSha256: s.LeafSha256}})
		w.must(err)
		if r := next(t, one.results, "proof result"); r.Task != task.Task || r.Proof.Prober != two.node || r.Proof.Verdict != agentv1.Verdict_VERDICT_ACCEPTED {
			t.Errorf("result = %v", r)
		}
	}
	w.must(one.report(claim, agentv1.MoveOutcome_MOVE_OUTCOME_PROVEN))
	got := one.targetWith("the new leaf", func(x *agentv1.Target) bool { return bytes.Equal(x.Stores[0].LeafSha256, s.LeafSha256) })
	if got.Generation <= tgt.Generation || !got.Stores[0].RenewAt.AsTime().Equal(issued.RenewAt.AsTime()) {
		t.Errorf("target = %v", got)
	}
	n, err := w.fleet.GetNode(t.Context(), one.node)
	if err != nil || n.Why != "as it should be" || n.Stores[0].State != "proven" {
		t.Errorf("n1 is %q, %v", n.Why, err)
	}
}

func TestAnIssueIsAnsweredTheSameWhenItsReplyWasLost(t *testing.T) {
	w := newWorld(t).listen()
	a := w.join("n1")
	claim, err := a.claim(a.open(), agentv1.MoveKind_MOVE_KIND_FIRST)
	w.must(err)
	r := &agentv1.IssueCertificateRequest{Claim: claim, RequestId: "once", Store: "node", Csr: w.csr(w.key(), nil, nil)}
	one, err := a.call.IssueCertificate(t.Context(), r)
	w.must(err)
	two, err := a.call.IssueCertificate(t.Context(), r)
	if err != nil || !bytes.Equal(one.Chain[0], two.Chain[0]) || !one.RenewAt.AsTime().Equal(two.RenewAt.AsTime()) {
		t.Errorf("another certificate came: %v", err)
	}
}

func TestAnotherNodesNamesAndClaimsCannotBeUsed(t *testing.T) {
	w := newWorld(t).listen()
	one, two := w.join("n1"), w.join("n2")
	c1, err := one.claim(one.open(), agentv1.MoveKind_MOVE_KIND_FIRST)
	w.must(err)
	two.open()
	ask := func(a *agent, dns, ips []string) error {
		_, err := a.call.IssueCertificate(t.Context(), &agentv1.IssueCertificateRequest{Claim: c1, RequestId: a.id(), Store: "node", Csr: w.csr(w.key(), dns, ips)})
		return err
	}
	wantReason(t, ask(one, []string{"n2.example"}, nil), "name-not-allowed")
	wantReason(t, ask(one, nil, []string{"127.0.0.2"}), "name-not-allowed")
	wantReason(t, ask(two, nil, nil), "not-your-claim")
	_, err = two.call.ClaimMove(t.Context(), &agentv1.ClaimMoveRequest{Node: one.node, Incarnation: 1, Store: "node", Kind: agentv1.MoveKind_MOVE_KIND_FIRST, RequestId: "x"})
	wantReason(t, err, "not-your-node")
	wantReason(t, two.report(c1, agentv1.MoveOutcome_MOVE_OUTCOME_REFUSED), "not-your-claim")
	if err := ask(one, []string{"n1.example"}, nil); err != nil {
		t.Errorf("its own name is refused: %v", err)
	}
}

func TestAnAgentThatIsStoppedLosesItsStreamAtOnce(t *testing.T) {
	w := newWorld(t).listen()
	for node, c := range map[string]struct {
		stop   func(node string) error
		reason string
	}{
		"n1": {func(n string) error { return w.fleet.Revoke(t.Context(), n, "stolen", ann) }, "agent-revoked"},
		"n2": {func(n string) error { return w.fleet.Suspend(t.Context(), n, "odd", ann) }, "agent-suspended"},
		"n3": {func(n string) error {
			_, _, err := w.fleet.CreateToken(t.Context(), cluster, tokenSpec("n3"), ann)
			if err != nil {
				return err
			}
			return rejoin(w, "n3")
		}, "agent-revoked"},
	} {
		a := w.join(node)
		a.open()
		w.must(c.stop(a.node))
		wantReason(t, next(t, a.ended, "end of "+node), c.reason)
		told := false
		for !told {
			told = next(t, a.control, "control").Suspended
		}
		_, err := a.claim(&agentv1.Target{Stores: []*agentv1.StoreTarget{{}}}, agentv1.MoveKind_MOVE_KIND_FIRST)
		wantReason(t, err, c.reason)
		a.dial()
		wantReason(t, next(t, a.ended, "end of the second stream of "+node), c.reason)
	}
}

func TestEachBadJoinIsRefusedByItsName(t *testing.T) {
	w := newWorld(t).listen()
	weak, err := ecdsa.GenerateKey(elliptic.P224(), rand.Reader)
	w.must(err)
	weakCSR, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{}, weak)
	w.must(err)
	broken := w.csr(w.key(), nil, nil)
	broken[len(broken)-1] ^= 1
	for name, c := range map[string]struct {
		reason string
		change func(*agentv1.JoinRequest)
	}{
		"method":     {"join-method", func(r *agentv1.JoinRequest) { r.Method = "kubernetes" }},
		"no clock":   {"no-clock", func(r *agentv1.JoinRequest) { r.Agent = nil }},
		"clock":      {"clock-skew", func(r *agentv1.JoinRequest) { r.Agent.Clock = timestamppb.New(w.log.Clock.Now().Add(11 * time.Minute)) }},
		"no token":   {"token-malformed", func(r *agentv1.JoinRequest) { r.Evidence = []byte("csmt_") }},
		"unknown":    {"token-unknown", func(r *agentv1.JoinRequest) { r.Evidence = []byte("csmt_" + strings.Repeat("A", 43)) }},
		"cluster":    {"token-cluster", func(r *agentv1.JoinRequest) { r.Cluster = "test" }},
		"weak key":   {"", func(r *agentv1.JoinRequest) { r.Csr = weakCSR }},
		"signature":  {"bad-csr-signature", func(r *agentv1.JoinRequest) { r.Csr = broken }},
		"no request": {"bad-csr", func(r *agentv1.JoinRequest) { r.Csr = []byte("rubbish") }},
		"too large":  {"out-of-bounds", func(r *agentv1.JoinRequest) { r.Csr = make([]byte, 20000) }},
		"a megabyte": {"too-large", func(r *agentv1.JoinRequest) { r.Csr = make([]byte, 1<<20) }},
		"5 megabyte": {"too-large", func(r *agentv1.JoinRequest) { r.Csr = make([]byte, 5<<20) }},
	} {
		r := w.joinRequest("n1", w.key())
		c.change(r)
		_, err := w.client(nil).Join(t.Context(), r)
		if err == nil || (c.reason != "" && !fault.HasReason(err, c.reason)) {
			t.Errorf("%s: got %v, want %s", name, err, c.reason)
		}
	}
}

func TestAJoinWhoseReplyWasLostGetsTheSameIdentity(t *testing.T) {
	w := newWorld(t).listen()
	r := w.joinRequest("n1", w.key())
	c := w.client(nil)
	one, err := c.Join(t.Context(), r)
	w.must(err)
	two, err := c.Join(t.Context(), r)
	if err != nil || !bytes.Equal(one.Chain[0], two.Chain[0]) || one.Uid != two.Uid || two.Incarnation != 1 {
		t.Errorf("the second answer differs: %v", err)
	}
	r.Csr = w.csr(w.key(), nil, nil)
	_, err = c.Join(t.Context(), r)
	wantReason(t, err, "token-used")
}

func TestOnlyAgentsOfThisSystemGetIn(t *testing.T) {
	w := newWorld(t).listen()
	_, err := w.client(nil).ReportProof(t.Context(), &agentv1.ReportProofRequest{})
	wantReason(t, err, "no-certificate")
	for _, id := range []identity.ID{identity.AdminID(w.domain, "ann"), identity.ControllerID(w.domain, "c2")} {
		if _, err := w.client(w.identity(id)).ReportProof(t.Context(), &agentv1.ReportProofRequest{}); err == nil {
			t.Errorf("%s got in", id)
		}
	}
	other := newWorld(t).listen().join("n1")
	if _, err := w.client(other.own).ReportProof(t.Context(), &agentv1.ReportProofRequest{}); err == nil {
		t.Error("an agent of another system got in")
	}
}

func TestAnIdentityIsRenewedEvenAfterItExpiredButDoesNothingElse(t *testing.T) {
	w := newWorld(t).listen()
	a := w.join("n1")
	k := w.key()
	r, err := a.call.RenewIdentity(t.Context(), &agentv1.RenewIdentityRequest{Csr: w.csr(k, nil, nil)})
	w.must(err)
	leaf, err := x509.ParseCertificate(r.Chain[0])
	w.must(err)
	if id, err := identity.FromCertificate(leaf); err != nil || id.Kind != identity.Agent || len(r.Bundle) == 0 {
		t.Errorf("renewed as %v, %v", id, err)
	}
	_, err = a.call.RenewIdentity(t.Context(), &agentv1.RenewIdentityRequest{Csr: w.csr(a.own.PrivateKey.(*ecdsa.PrivateKey), nil, nil)})
	wantReason(t, err, "key-reused")

	w.log.Clock.Advance(60 * 24 * time.Hour)
	fresh := newPort(w)
	late := fresh.client(a.own)
	_, err = late.ReportProof(t.Context(), &agentv1.ReportProofRequest{})
	wantReason(t, err, "identity-expired")
	if _, err := late.RenewIdentity(t.Context(), &agentv1.RenewIdentityRequest{Csr: w.csr(w.key(), nil, nil)}); err != nil {
		t.Errorf("an expired identity cannot renew: %v", err)
	}
	w.log.Clock.Advance(180 * 24 * time.Hour)
	if _, err := newPort(w).client(a.own).RenewIdentity(t.Context(), &agentv1.RenewIdentityRequest{Csr: w.csr(w.key(), nil, nil)}); err == nil {
		t.Error("an identity renewed after its grace period")
	}
	open := newPort(w)
	open.server.Grace = func() bool { return true }
	given := open.client(a.own)
	if _, err := given.RenewIdentity(t.Context(), &agentv1.RenewIdentityRequest{Csr: w.csr(w.key(), nil, nil)}); err != nil {
		t.Errorf("a grace was given and the identity cannot renew: %v", err)
	}
	_, err = given.ReportProof(t.Context(), &agentv1.ReportProofRequest{})
	wantReason(t, err, "identity-expired")
	w.must(w.fleet.Revoke(t.Context(), a.node, "stolen", "test"))
	_, err = given.RenewIdentity(t.Context(), &agentv1.RenewIdentityRequest{Csr: w.csr(w.key(), nil, nil)})
	if err == nil {
		t.Error("a revoked identity renewed by a grace")
	}
}

func TestWhoWasRefusedBecauseTheWaveWasBusyIsToldWhenItIsFree(t *testing.T) {
	w := newWorld(t).listen()
	one, two := w.join("n1"), w.join("n2")
	one.hello.Instance.Running, two.hello.Instance.Running = true, true
	t1, t2 := one.open(), two.open()
	claim, err := one.claim(t1, agentv1.MoveKind_MOVE_KIND_FIRST)
	w.must(err)
	_, err = two.claim(t2, agentv1.MoveKind_MOVE_KIND_FIRST)
	wantReason(t, err, "wave-busy")
	w.must(one.report(claim, agentv1.MoveOutcome_MOVE_OUTCOME_REFUSED))
	w.log.Clock.Advance(time.Second) // it looked once when it was refused, and the next turn is a little later
	two.claimsOpen()
	_, err = two.claim(t2, agentv1.MoveKind_MOVE_KIND_FIRST)
	w.must(err)
}

func TestOfManyWhoWaitOneIsToldAtATime(t *testing.T) {
	w := newWorld(t).listen()
	first := w.join("n0")
	first.hello.Instance.Running = true
	claim, err := first.claim(first.open(), agentv1.MoveKind_MOVE_KIND_FIRST)
	w.must(err)
	const waiting = 5
	words := make(chan *agent, 2*waiting)
	for k := range waiting {
		a := w.join("n" + strconv.Itoa(k+1))
		a.hello.Instance.Running = true
		target := a.open()
		_, err := a.claim(target, agentv1.MoveKind_MOVE_KIND_FIRST)
		wantReason(t, err, "wave-busy")
		go func() {
			for {
				select {
				case c := <-a.control:
					if c.ClaimsOpen {
						words <- a
					}
				case <-t.Context().Done():
					return
				}
			}
		}()
	}
	w.must(first.report(claim, agentv1.MoveOutcome_MOVE_OUTCOME_REFUSED))
	told := map[*agent]bool{}
	for turns := 1; len(told) < waiting && turns < 100; turns++ {
		for heard := true; heard; {
			select {
			case a := <-words:
				if told[a] = true; len(told) > turns {
					t.Errorf("%d were told in %d turns", len(told), turns)
				}
			case <-time.After(50 * time.Millisecond):
				heard = false
			}
		}
		w.log.Clock.Advance(125 * time.Millisecond)
	}
	if len(told) != waiting {
		t.Errorf("%d of %d were told", len(told), waiting)
	}
}

func (a *agent) claimsOpen() {
	a.w.t.Helper()
	for !next(a.w.t, a.control, "word that claims are open").ClaimsOpen {
	}
}

func TestWhatIsAskedForAndFrozenIsPushedAtOnce(t *testing.T) {
	w := newWorld(t).listen()
	a := w.join("n1")
	before := a.open()
	g, err := w.fleet.RequestRenewal(t.Context(), a.node, "node", "key seen on a mailing list", ann)
	w.must(err)
	if x := a.target(); x.Stores[0].Generation != g || x.Generation != g || g <= before.Generation || x.Stores[0].Reason != "key seen on a mailing list" {
		t.Errorf("target = %v", x)
	}
	w.must(w.fleet.Freeze(t.Context(), cluster, "stop", time.Time{}, ann))
	if x := a.target(); !x.Frozen.GetActive() || x.Frozen.Scope != cluster || x.Generation <= g {
		t.Errorf("target = %v", x)
	}
	w.must(w.fleet.Unfreeze(t.Context(), cluster, "go on", ann))
	if x := a.target(); x.Frozen.GetActive() {
		t.Errorf("target = %v", x)
	}
}

func TestAHelloThatCannotBeServedIsRefusedClearly(t *testing.T) {
	w := newWorld(t).listen()
	for name, c := range map[string]struct {
		reason string
		change func(*agentv1.Hello)
	}{
		"clock":    {"clock-skew", func(h *agentv1.Hello) { h.Agent.Clock = timestamppb.New(w.log.Clock.Now().Add(-11 * time.Minute)) }},
		"protocol": {"protocol-newer", func(h *agentv1.Hello) { h.Agent.Protocol = 2 }},
		"bounds":   {"out-of-bounds", func(h *agentv1.Hello) { h.Instance.Rack = strings.Repeat("r", 200) }},
	} {
		a := w.join(map[string]string{"clock": "n1", "protocol": "n2", "bounds": "n3"}[name])
		c.change(a.hello)
		a.dial()
		wantReason(t, next(t, a.ended, "end"), c.reason)
	}
}

func TestASecondStreamTakesThePlaceOfTheFirst(t *testing.T) {
	w := newWorld(t).listen()
	a := w.join("n1")
	a.open()
	old := a.ended
	a.open()
	wantReason(t, next(t, old, "end of the first"), "replaced")
	if _, ok := w.server.LastSeen(a.node); !ok || w.server.Streams() != 1 {
		t.Errorf("%d streams", w.server.Streams())
	}
}

func TestAgentsAreSentAwayAndMayComeBack(t *testing.T) {
	w := newWorld(t).listen()
	a := w.join("n1")
	a.open()
	if n := w.server.SendAway(); n != 1 {
		t.Errorf("%d streams were open", n)
	}
	wantReason(t, next(t, a.ended, "end of the stream"), "no-quorum")
	a.open()
	if w.server.Streams() != 1 {
		t.Errorf("%d streams", w.server.Streams())
	}
}

func TestALostStreamIsRecordedWhenNoneFollows(t *testing.T) {
	w := newWorld(t).listen()
	a := w.join("n1")
	a.open()
	w.must(a.stream.CloseSend())
	w.comesToBeDisconnected(a.node, 6*time.Second)
}

func TestStreamsOfAControllersFormerLifeAreForgotten(t *testing.T) {
	w := newWorld(t).listen()
	a := w.join("n1")
	a.open()
	w.server.Close() // the controller ends without a word: nothing is recorded
	if n, err := w.fleet.GetNode(t.Context(), a.node); err != nil || !n.Agent.Connected {
		t.Fatalf("connected = %v, %v", n.Agent.Connected, err)
	}
	w.reopen().comesToBeDisconnected(a.node, 61*time.Second)
}

// comesToBeDisconnected lets time pass in steps until the state knows that the node has no stream.
func (w *world) comesToBeDisconnected(node string, step time.Duration) {
	w.t.Helper()
	watch := w.log.Store.Watch(node)
	defer watch.Close()
	deadline := time.After(patience)
	for {
		n, err := w.fleet.GetNode(w.t.Context(), node)
		w.must(err)
		if !n.Agent.Connected {
			break
		}
		w.log.Clock.Advance(step)
		select {
		case <-watch.C():
		case <-time.After(5 * time.Millisecond):
		case <-deadline:
			w.t.Fatal("still connected")
		}
	}
}

func TestAnInventoryIsKept(t *testing.T) {
	w := newWorld(t).listen()
	a := w.join("n1")
	_, err := a.call.ReportInventory(t.Context(), &agentv1.ReportInventoryRequest{Found: []*agentv1.FoundCertificate{
		{Der: a.own.Certificate[0], Path: "/etc/ssl/x.pem", Entry: "0", Format: "pem"}, {Der: []byte("rubbish"), Path: "/etc/ssl/y.pem"}}})
	w.must(err)
}
