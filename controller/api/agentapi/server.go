// Package agentapi serves the agents' protocol (csm.agent.v1) over mutual TLS: it knows a caller by its certificate,
// asks fleet whether that identity still holds, hands each request to fleet, issuance or the ledger, and keeps one
// stream per agent on which targets, proof tasks and results are pushed the moment they change.
//
// It decides nothing about moves: Apply does. It refuses calls without an identity (Join alone excepted), identities that
// are suspended, revoked, replaced or expired, clocks that are more than ten minutes off, messages out of bounds, and
// more calls than a peer may make. What it keeps is soft: which streams are open here, and when each was last heard.
package agentapi

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"log/slog"
	"slices"
	"sync"
	"time"

	"github.com/jonboulle/clockwork"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/keepalive"

	agentv1 "github.com/cassandra-security-manager/csm/protocol/agent/v1"
	"github.com/cassandra-security-manager/csm/protocol/bounds"

	"github.com/cassandra-security-manager/csm/controller/fleet"
	"github.com/cassandra-security-manager/csm/controller/issuance"
	"github.com/cassandra-security-manager/csm/controller/state"
	"github.com/cassandra-security-manager/csm/shared/identity"
)

// Limits of the port.
const (
	// MaxMessage is the most bytes of a request; MaxInventory of an inventory.
	MaxMessage   = 1 << 20
	MaxInventory = 4 << 20
	// MaxSkew is how far an agent's clock may be off.
	MaxSkew = 10 * time.Minute
	// RenewalGrace is how long after its expiry an identity may still be renewed: expired is not revoked.
	RenewalGrace = 180 * 24 * time.Hour
	// ConnectionAge closes connections after an hour, 10 % more or less, so that agents spread again.
	ConnectionAge = time.Hour
)

// Issuer signs, through the one door; *issuance.Issuance is it.
type Issuer interface {
	Issue(ctx context.Context, r issuance.Request) (*issuance.Issued, error)
	// IssueIdentity signs a system identity for the key of csr. The same request id gets the same answer.
	IssueIdentity(ctx context.Context, id identity.ID, csr []byte, actor, requestID string) (chain, bundle [][]byte, err error)
}

// Deps are what a Server works with.
type Deps struct {
	Fleet  *fleet.Fleet
	Store  *state.Store
	Log    state.Log
	Issuer Issuer
	// Linearize waits until this controller has applied all that was acknowledged before; nil where there is one only.
	Linearize func(ctx context.Context) error
	// Tickets seals session tickets and opens those of every controller; nil where sessions are not resumed.
	Tickets func() *tls.Config
	// Ready says whether this controller can do something for an agent; who comes while it cannot is sent away before any handshake. nil is
	// always.
	Ready func() bool
	// Met is told what became of each handshake: full, resumed, failed, crowded or no-leader. May be nil.
	Met func(result string)
	// Grace says whether identities may be renewed that expired longer ago than RenewalGrace; nil is no.
	Grace func() bool
	// SystemCA says what agents are to do about their identities, and is told what is seen of them; nil in a system whose CA stays.
	SystemCA SystemCA
	// RetiredRoots of the system CA: whoever comes with an identity of one is told what to do, and nothing else. May be nil.
	RetiredRoots func() []*x509.Certificate
	// Emergency says whether the certificates of a cluster are replaced because their CA must not be relied on any more; nil is never.
	Emergency func(ctx context.Context, cluster string) (bool, error)
	// Controller is this controller's name, TrustDomain the system's.
	Controller  string
	TrustDomain string
	Clock       clockwork.Clock
	Logger      *slog.Logger
}

// Server implements agentv1.AgentServiceServer.
type Server struct {
	agentv1.UnimplementedAgentServiceServer
	Deps

	limits limits
	turns  turns

	// roots of the system CA; set with the port's TLS.
	roots func() []*x509.Certificate

	mu       sync.Mutex
	sessions map[string]*session // by node
	closed   bool
	stop     chan struct{}
	farewell sync.WaitGroup
}

// New makes a Server.
func New(d Deps) *Server {
	if d.Clock == nil {
		d.Clock = clockwork.NewRealClock()
	}
	if d.Logger == nil {
		d.Logger = slog.New(slog.DiscardHandler)
	}
	if d.Grace == nil {
		d.Grace = func() bool { return false }
	}
	if d.Ready == nil {
		d.Ready = func() bool { return true }
	}
	if d.Met == nil {
		d.Met = func(string) {}
	}
	if d.RetiredRoots == nil {
		d.RetiredRoots = func() []*x509.Certificate { return nil }
	}
	if d.Emergency == nil {
		d.Emergency = func(context.Context, string) (bool, error) { return false, nil }
	}
	if d.Linearize == nil {
		d.Linearize = func(context.Context) error { return nil }
	}
	return &Server{Deps: d, sessions: map[string]*session{}, stop: make(chan struct{})}
}

// TLSConfig is the port's TLS: a joiner comes without a certificate, everyone else's must be an agent's of this system.
// own should send the system CA as the last certificate of its chain, so that a joiner can check its pin.
func (s *Server) TLSConfig(own func() (*tls.Certificate, error), roots func() []*x509.Certificate) *tls.Config {
	s.roots = roots
	v := identity.Verifier{
		Roots: func() []*x509.Certificate { return slices.Concat(roots(), s.RetiredRoots()) }, TrustDomain: s.TrustDomain, Kinds: []identity.Kind{identity.Agent}, Now: s.Clock.Now,
		IgnoreExpiry: func(leaf *x509.Certificate) bool {
			return !s.Clock.Now().After(leaf.NotAfter.Add(RenewalGrace)) || s.Grace()
		},
	}
	c := identity.ServerConfig(own, tls.RequestClientCert, v)
	if s.Tickets != nil {
		identity.Resume(c, v, s.Tickets)
	}
	return c
}

// GRPCServer is the port's server with this service registered. Call Close before its GracefulStop: streams are long.
func (s *Server) GRPCServer(tlsConfig *tls.Config, more ...grpc.ServerOption) *grpc.Server {
	opts := []grpc.ServerOption{
		grpc.Creds(newDoor(credentials.NewTLS(tlsConfig), s.Ready, s.stop, s.Met)),
		grpc.MaxRecvMsgSize(MaxInventory),
		grpc.MaxConcurrentStreams(32),
		grpc.ConnectionTimeout(startWait + helloWait + handshakeWait + shakeWait),
		// gRPC's own 32 kB each way would be most of what an agent at rest costs.
		grpc.ReadBufferSize(4 << 10), grpc.WriteBufferSize(8 << 10),
		grpc.KeepaliveParams(keepalive.ServerParameters{MaxConnectionAge: ConnectionAge, MaxConnectionAgeGrace: 30 * time.Second, Time: 30 * time.Second, Timeout: 30 * time.Second}),
		grpc.KeepaliveEnforcementPolicy(keepalive.EnforcementPolicy{MinTime: 10 * time.Second, PermitWithoutStream: true}),
		grpc.ChainUnaryInterceptor(s.guardUnary, s.admitUnary, bounds.UnaryServer),
		grpc.ChainStreamInterceptor(s.guardStream, s.admitStream, bounds.StreamServer),
	}
	g := grpc.NewServer(append(opts, more...)...)
	agentv1.RegisterAgentServiceServer(g, s)
	s.farewell.Go(s.forgetFormerLife)
	return g
}

// Close ends all streams; agents connect to another controller.
func (s *Server) Close() {
	s.mu.Lock()
	if !s.closed {
		s.closed = true
		close(s.stop)
	}
	s.mu.Unlock()
	s.farewell.Wait()
}

// LastSeen is when an agent was last heard on a stream of this controller; false when it has none here.
func (s *Server) LastSeen(node string) (time.Time, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if c, ok := s.sessions[node]; ok {
		return time.UnixMilli(c.lastSeen.Load()), true
	}
	return time.Time{}, false
}

// Streams is the number of open streams.
func (s *Server) Streams() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.sessions)
}

// present is fleet.Present: our own streams are known better than the state knows them.
func (s *Server) present(node, controller string) bool {
	if controller == s.Controller || controller == "" {
		_, here := s.LastSeen(node)
		return here
	}
	return true
}

// fresh reads, and reads once more after everything acknowledged has been applied here: what another controller has just
// granted must not be refused because this one is behind.
func fresh[T any](ctx context.Context, s *Server, read func() (T, error)) (T, error) {
	v, err := read()
	if err == nil {
		return v, nil
	}
	if lerr := s.Linearize(ctx); lerr != nil {
		return v, lerr
	}
	return read()
}
