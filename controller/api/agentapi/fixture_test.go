package agentapi_test

import (
	"context"
	"crypto"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/cassandra-security-manager/csm/controller/api/agentapi"
	"github.com/cassandra-security-manager/csm/controller/authority"
	"github.com/cassandra-security-manager/csm/controller/consensus/members"
	"github.com/cassandra-security-manager/csm/controller/fleet"
	"github.com/cassandra-security-manager/csm/controller/issuance"
	"github.com/cassandra-security-manager/csm/controller/keyring"
	"github.com/cassandra-security-manager/csm/controller/ledger"
	"github.com/cassandra-security-manager/csm/controller/people"
	"github.com/cassandra-security-manager/csm/controller/state/statetest"
	"github.com/cassandra-security-manager/csm/controller/systemca"
	agentv1 "github.com/cassandra-security-manager/csm/protocol/agent/v1"
	"github.com/cassandra-security-manager/csm/protocol/bounds"
	"github.com/cassandra-security-manager/csm/shared/algorithm"
	"github.com/cassandra-security-manager/csm/shared/certificate"
	"github.com/cassandra-security-manager/csm/shared/fault"
	"github.com/cassandra-security-manager/csm/shared/identity"
	"github.com/cassandra-security-manager/csm/shared/resource"
)

const (
	cluster = "tenants/default/clusters/prod"
	ann     = "ann"
	// patience is how long a test waits for what must come at once.
	patience = 20 * time.Second
)

// world is one controller without a network to others: the real state, CA, door, fleet, and this API on a TLS port.
type world struct {
	t       testing.TB
	log     *statetest.Log
	fleet   *fleet.Fleet
	cas     *authority.Authorities
	door    *issuance.Issuance
	server  *agentapi.Server
	roots   []*x509.Certificate
	domain  string
	address string
}

func newWorld(t testing.TB) *world {
	t.Helper()
	ctx := t.Context()
	w := &world{t: t, log: statetest.New(t, keyring.Module(), authority.Module(), ledger.Module(authority.Issuers{}, fleet.Guard), fleet.Module(), members.Module(), people.Module(), systemca.Module())}
	kek, err := keyring.CreateKEK(t.TempDir(), keyring.FileSealer{Path: t.TempDir() + "/master"})
	w.must(err)
	keys := keyring.New(w.log.Store, w.log, kek, "c1")
	public, _, err := keyring.NewRecovery()
	w.must(err)
	w.must(keys.Initialise(ctx, ann, public))
	cas := authority.New(w.log.Store, w.log, keys, w.log.Clock, rand.Reader, authority.Options{BaseURLs: []string{"http://csm1.example:9643"}})
	_, err = cas.Genesis(ctx, "0123456789abcdef", ann)
	w.must(err)
	ca, err := cas.CreateRoot(ctx, "default", "internal", authority.CreateOptions{Actor: ann})
	w.must(err)
	_, err = cas.CreateIssuer(ctx, ca.Name, "eu", ann)
	w.must(err)
	w.roots, err = cas.SystemBundle(ctx)
	w.must(err)
	w.domain, err = cas.TrustDomain(ctx)
	w.must(err)
	w.cas = cas
	w.door = issuance.New(cas, w.log, w.log.Clock, rand.Reader, issuance.Options{})
	w.fleet = fleet.New(w.log.Store, w.log, w.log.Clock, func(ctx context.Context, name string) ([][]byte, error) {
		anchors, err := cas.Anchors(ctx, name)
		return certificate.Raw(anchors), err
	})
	_, err = w.fleet.CreateCluster(ctx, fleet.ClusterSpec{Name: cluster, Authority: ca.Name, Region: "eu"}, ann)
	w.must(err)
	w.server = agentapi.New(agentapi.Deps{Fleet: w.fleet, Store: w.log.Store, Log: w.log, Issuer: w.door, Controller: "c1", TrustDomain: w.domain, Clock: w.log.Clock})
	return w
}

func clock(w *world) *timestamppb.Timestamp { return timestamppb.New(w.log.Clock.Now()) }

// reopen makes another server of the same controller.
func (w *world) reopen() *world {
	w.server = agentapi.New(agentapi.Deps{Fleet: w.fleet, Store: w.log.Store, Log: w.log, Issuer: w.door, Controller: "c1", TrustDomain: w.domain, Clock: w.log.Clock})
	return w.listen()
}

// listen opens the port.
func (w *world) listen() *world {
	w.t.Helper()
	own := w.identity(identity.ControllerID(w.domain, "c1"))
	l, err := net.Listen("tcp", "127.0.0.1:0")
	w.must(err)
	g := w.server.GRPCServer(w.server.TLSConfig(func() (*tls.Certificate, error) { return own, nil }, func() []*x509.Certificate { return w.roots }))
	done := make(chan struct{})
	go func() { defer close(done); _ = g.Serve(l) }()
	w.t.Cleanup(func() { w.server.Close(); g.Stop(); <-done })
	w.address = l.Addr().String()
	return w
}

func (w *world) must(err error) {
	w.t.Helper()
	if err != nil {
		w.t.Fatal(err)
	}
}

func (w *world) key() crypto.Signer {
	k, err := algorithm.Generate(algorithm.P384, rand.Reader)
	w.must(err)
	return k
}

func (w *world) csr(k crypto.Signer, dns, ips []string) []byte {
	n, err := certificate.ParseNames(dns, ips, nil)
	w.must(err)
	der, err := certificate.NewRequest(k, n)
	w.must(err)
	return der
}

func (w *world) identity(id identity.ID) *tls.Certificate {
	w.t.Helper()
	k := w.key()
	chain, _, err := w.door.IssueIdentity(w.t.Context(), id, w.csr(k, nil, nil), ann, fmt.Sprint("id-", w.log.Store.Applied()))
	w.must(err)
	return &tls.Certificate{Certificate: chain, PrivateKey: k}
}

// client speaks to the port with a certificate, or without one.
func (w *world) client(own *tls.Certificate) agentv1.AgentServiceClient {
	w.t.Helper()
	var mine func() (*tls.Certificate, error)
	if own != nil {
		mine = func() (*tls.Certificate, error) { return own, nil }
	}
	c := identity.ClientConfig(mine, identity.Verifier{Roots: func() []*x509.Certificate { return w.roots }, TrustDomain: w.domain,
		Kinds: []identity.Kind{identity.Controller}, Now: w.log.Clock.Now})
	conn, err := grpc.NewClient(w.address, grpc.WithTransportCredentials(credentials.NewTLS(c)),
		grpc.WithChainUnaryInterceptor(faults, bounds.UnaryClient), grpc.WithStreamInterceptor(bounds.StreamClient))
	w.must(err)
	w.t.Cleanup(func() { conn.Close() })
	return agentv1.NewAgentServiceClient(conn)
}

func faults(ctx context.Context, method string, req, reply any, cc *grpc.ClientConn, invoke grpc.UnaryInvoker, opts ...grpc.CallOption) error {
	return fault.FromGRPC(invoke(ctx, method, req, reply, cc, opts...))
}

func (w *world) token(node string) string {
	w.t.Helper()
	i := node[len(node)-1:]
	secret, _, err := w.fleet.CreateToken(w.t.Context(), cluster, fleet.TokenSpec{Node: node, Names: fleet.Names{DNS: []string{node + ".example"}, IPs: []string{"127.0.0." + i}}}, ann)
	w.must(err)
	return secret
}

// joinRequest is a lawful one.
func (w *world) joinRequest(node string, k crypto.Signer) *agentv1.JoinRequest {
	return &agentv1.JoinRequest{Method: "token", Evidence: []byte(w.token(node)), Csr: w.csr(k, nil, nil), Cluster: "prod",
		Agent: &agentv1.AgentFacts{Clock: timestamppb.New(w.log.Clock.Now())}, Instance: &agentv1.InstanceFacts{ClusterName: "ring"}}
}

// agent speaks the protocol as csm-agent does, without a Cassandra: what it says that it serves is what it was issued.
type agent struct {
	w       *world
	node    string
	inc     uint64
	own     *tls.Certificate
	call    agentv1.AgentServiceClient
	hello   *agentv1.Hello
	stream  agentv1.AgentService_SyncClient
	targets chan *agentv1.Target
	tasks   chan *agentv1.ProofTask
	results chan *agentv1.ProofResult
	control chan *agentv1.Control
	ended   chan error
	n       int
}

func (w *world) join(node string) *agent {
	w.t.Helper()
	k := w.key()
	j, err := w.client(nil).Join(w.t.Context(), w.joinRequest(node, k))
	w.must(err)
	a := &agent{w: w, node: j.Node, inc: j.Incarnation, own: &tls.Certificate{Certificate: j.Chain, PrivateKey: k}}
	i := node[len(node)-1:]
	a.hello = &agentv1.Hello{Agent: &agentv1.AgentFacts{Version: "test", Protocol: 1, Mode: agentv1.Mode_MODE_MANAGE, GenerationCounter: 1, Machine: []byte(node), Clock: timestamppb.New(w.log.Clock.Now())},
		Instance: &agentv1.InstanceFacts{ClusterName: "ring"},
		Stores: []*agentv1.StoreFacts{{Store: "node", State: agentv1.InstallState_INSTALL_STATE_ABSENT, Ports: []*agentv1.Port{
			{Kind: agentv1.PortKind_PORT_KIND_INTERNODE, Address: "127.0.0." + i, Port: 7000}, {Kind: agentv1.PortKind_PORT_KIND_CQL, Address: "127.0.0." + i, Port: 9042}}}}}
	a.call = w.client(a.own)
	return a
}

// open opens the stream and waits for the first target.
func (a *agent) open() *agentv1.Target {
	a.w.t.Helper()
	a.dial()
	return a.target()
}

func (a *agent) dial() {
	a.w.t.Helper()
	s, err := a.call.Sync(a.w.t.Context())
	a.w.must(err)
	a.stream = s
	a.targets, a.tasks, a.results, a.control, a.ended = make(chan *agentv1.Target, 64), make(chan *agentv1.ProofTask, 64), make(chan *agentv1.ProofResult, 64),
		make(chan *agentv1.Control, 64), make(chan error, 1)
	targets, tasks, results, control, ended := a.targets, a.tasks, a.results, a.control, a.ended
	// A stream that was refused before Hello says io.EOF here and why at Recv.
	if err := s.Send(&agentv1.SyncRequest{Message: &agentv1.SyncRequest_Hello{Hello: a.hello}}); !errors.Is(err, io.EOF) {
		a.w.must(err)
	}
	go func() {
		for {
			m, err := s.Recv()
			if err != nil {
				ended <- fault.FromGRPC(err)
				return
			}
			switch x := m.Message.(type) {
			case *agentv1.SyncResponse_Target:
				targets <- x.Target
			case *agentv1.SyncResponse_ProofTask:
				tasks <- x.ProofTask
			case *agentv1.SyncResponse_ProofResult:
				results <- x.ProofResult
			case *agentv1.SyncResponse_Control:
				control <- x.Control
			}
		}
	}()
}

func next[T any](t testing.TB, c <-chan T, what string) T {
	t.Helper()
	select {
	case v := <-c:
		return v
	case <-time.After(patience):
		t.Fatalf("no %s came", what)
	}
	panic("unreachable")
}

func (a *agent) target() *agentv1.Target { a.w.t.Helper(); return next(a.w.t, a.targets, "target") }

// targetWith waits for a target that is as it should be.
func (a *agent) targetWith(what string, ok func(*agentv1.Target) bool) *agentv1.Target {
	a.w.t.Helper()
	for {
		if t := next(a.w.t, a.targets, "target with "+what); ok(t) {
			return t
		}
	}
}

func (a *agent) id() string { a.n++; return fmt.Sprintf("%s-%d", resource.Last(a.node), a.n) }

func (a *agent) claim(t *agentv1.Target, kind agentv1.MoveKind) (string, error) {
	s := a.hello.Stores[0]
	r, err := a.call.ClaimMove(a.w.t.Context(), &agentv1.ClaimMoveRequest{Node: a.node, Incarnation: a.inc, Store: "node", Generation: t.Stores[0].Generation, Kind: kind,
		KeystoreSha256: s.KeystoreSha256, TruststoreSha256: s.TruststoreSha256, RequestId: a.id()})
	return r.GetClaim(), err
}

// install asks for a certificate under the claim and makes it the one in the files.
func (a *agent) install(claim string) *agentv1.IssueCertificateResponse {
	a.w.t.Helper()
	r, err := a.call.IssueCertificate(a.w.t.Context(), &agentv1.IssueCertificateRequest{Claim: claim, RequestId: a.id(), Store: "node", Csr: a.w.csr(a.w.key(), nil, nil)})
	a.w.must(err)
	leaf := sha256.Sum256(r.Chain[0])
	file := sha256.Sum256(leaf[:])
	s := a.hello.Stores[0]
	s.LeafSha256, s.KeystoreSha256, s.TruststoreSha256 = leaf[:], file[:], file[:]
	return r
}

func (a *agent) report(claim string, o agentv1.MoveOutcome) error {
	s := a.hello.Stores[0]
	_, err := a.call.ReportMove(a.w.t.Context(), &agentv1.ReportMoveRequest{Claim: claim, Outcome: o, Store: s, AfterSha256: s.LeafSha256})
	return err
}

func (a *agent) facts() {
	a.w.t.Helper()
	a.w.must(a.stream.Send(&agentv1.SyncRequest{Message: &agentv1.SyncRequest_Report{Report: &agentv1.Report{Agent: a.hello.Agent, Instance: a.hello.Instance, Stores: a.hello.Stores}}}))
}

// firstInstall writes the store before Cassandra's first start.
func (a *agent) firstInstall(t *agentv1.Target) {
	a.w.t.Helper()
	c, err := a.claim(t, agentv1.MoveKind_MOVE_KIND_FIRST)
	a.w.must(err)
	a.install(c)
	a.hello.Stores[0].State = agentv1.InstallState_INSTALL_STATE_INSTALLED_UNPROVEN
	a.w.must(a.report(c, agentv1.MoveOutcome_MOVE_OUTCOME_UNPROVEN))
}

func wantReason(t testing.TB, err error, reason string) {
	t.Helper()
	if !fault.HasReason(err, reason) || errors.Is(err, io.EOF) {
		t.Errorf("got %v, want a fault with reason %s", err, reason)
	}
}
