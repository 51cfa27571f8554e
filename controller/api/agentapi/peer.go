package agentapi

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"runtime/debug"
	"sync"
	"time"

	"golang.org/x/time/rate"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/peer"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	agentv1 "github.com/cassandra-security-manager/csm/protocol/agent/v1"

	"github.com/cassandra-security-manager/csm/controller/fleet"
	"github.com/cassandra-security-manager/csm/shared/fault"
	"github.com/cassandra-security-manager/csm/shared/identity"
)

type callerKey struct{}

// caller is the agent that calls; set by admit for every call but Join.
type caller struct {
	fleet.Caller
	id   identity.ID
	leaf []byte // SubjectPublicKeyInfo of its certificate
	cert *x509.Certificate
}

func callerOf(ctx context.Context) caller { c, _ := ctx.Value(callerKey{}).(caller); return c }

// admit knows the caller and decides whether the call may be made at all.
func (s *Server) admit(ctx context.Context, method string) (context.Context, error) {
	host, info := s.transport(ctx)
	now := s.Clock.Now()
	if method == agentv1.AgentService_Join_FullMethodName {
		return ctx, s.limits.allow("join "+host, now, 2, 20)
	}
	if len(info.State.PeerCertificates) == 0 {
		return ctx, fault.New(fault.Unauthenticated, "no-certificate", "this call needs the identity of an agent").Do("join first")
	}
	leaf := info.State.PeerCertificates[0]
	id, err := identity.FromCertificate(leaf)
	if err != nil {
		return ctx, err
	}
	if err := id.Require(s.TrustDomain, identity.Agent); err != nil {
		return ctx, err
	}
	uid, incarnation, err := id.AgentParts()
	if err != nil {
		return ctx, err
	}
	if err := s.limits.allow(id.Path, now, 20, 100); err != nil {
		return ctx, err
	}
	if err := s.current(leaf); err != nil {
		return ctx, s.withNode(ctx, err, uid, incarnation)
	}
	if now.After(leaf.NotAfter) && method != agentv1.AgentService_RenewIdentity_FullMethodName {
		return ctx, fault.New(fault.Unauthenticated, "identity-expired", "the agent's identity expired at %s", leaf.NotAfter.UTC().Format(time.RFC3339)).
			Do("renew it: that is possible until %s", leaf.NotAfter.Add(RenewalGrace).UTC().Format(time.RFC3339))
	}
	c, err := s.Fleet.Caller(ctx, uid, incarnation)
	if fault.Is(err, fault.Unauthenticated) {
		c, err = fresh(ctx, s, func() (fleet.Caller, error) { return s.Fleet.Caller(ctx, uid, incarnation) })
	}
	if err != nil {
		return ctx, err
	}
	// A suspended agent may open a stream to hear why, and may say what became of a move.
	if err := c.Allowed(); err != nil && (c.State != fleet.Suspended || !forSuspended[method]) {
		return ctx, err
	}
	return context.WithValue(ctx, callerKey{}, caller{Caller: c, id: id, leaf: leaf.RawSubjectPublicKeyInfo, cert: leaf}), nil
}

var forSuspended = map[string]bool{agentv1.AgentService_Sync_FullMethodName: true, agentv1.AgentService_ReportMove_FullMethodName: true}

func (s *Server) transport(ctx context.Context) (host string, info credentials.TLSInfo) {
	p, ok := peer.FromContext(ctx)
	if !ok {
		return "unknown", info
	}
	info, _ = p.AuthInfo.(credentials.TLSInfo)
	host, _, err := net.SplitHostPort(p.Addr.String())
	if err != nil {
		host = p.Addr.String()
	}
	return host, info
}

func (s *Server) admitUnary(ctx context.Context, req any, info *grpc.UnaryServerInfo, next grpc.UnaryHandler) (any, error) {
	if m, ok := req.(proto.Message); ok && info.FullMethod != agentv1.AgentService_ReportInventory_FullMethodName && proto.Size(m) > MaxMessage {
		return nil, fault.New(fault.Invalid, "too-large", "the request has more than %d bytes", MaxMessage)
	}
	ctx, err := s.admit(ctx, info.FullMethod)
	if err != nil {
		return nil, err
	}
	return next(ctx, req)
}

func (s *Server) admitStream(srv any, ss grpc.ServerStream, info *grpc.StreamServerInfo, next grpc.StreamHandler) error {
	ctx, err := s.admit(ss.Context(), info.FullMethod)
	if err != nil {
		return err
	}
	return next(srv, known{ss, ctx})
}

type known struct {
	grpc.ServerStream
	ctx context.Context
}

func (k known) Context() context.Context { return k.ctx }

// guardUnary turns what leaves a handler into a fault, and a panic into one: no request of a peer ends a controller.
func (s *Server) guardUnary(ctx context.Context, req any, info *grpc.UnaryServerInfo, next grpc.UnaryHandler) (out any, err error) {
	defer func() { err = s.outcome(ctx, info.FullMethod, recover(), err) }()
	return next(ctx, req)
}

func (s *Server) guardStream(srv any, ss grpc.ServerStream, info *grpc.StreamServerInfo, next grpc.StreamHandler) (err error) {
	defer func() { err = s.outcome(ss.Context(), info.FullMethod, recover(), err) }()
	return next(srv, ss)
}

func (s *Server) outcome(ctx context.Context, method string, panicked any, err error) error {
	if panicked != nil {
		s.Logger.ErrorContext(ctx, "a handler panicked", "method", method, "panic", fmt.Sprint(panicked), "stack", string(debug.Stack()))
		return fault.New(fault.Internal, "panic", "the controller met a defect of its own").Do("send its log to who maintains it")
	}
	if err == nil || errors.Is(err, io.EOF) {
		return nil
	}
	if _, ok := status.FromError(err); ok {
		return err
	}
	f := fault.From(err)
	if f.Code == fault.Internal {
		s.Logger.ErrorContext(ctx, "a call failed", "method", method, "error", err)
	}
	return f
}

// limits are token buckets per peer.
type limits struct {
	mu   sync.Mutex
	held map[string]*rate.Limiter
}

// maxLimiters bounds the memory that strangers can make us use.
const maxLimiters = 20000

func (l *limits) allow(key string, now time.Time, perSecond float64, burst int) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	b, ok := l.held[key]
	if !ok {
		l.makeRoom(now)
		b = rate.NewLimiter(rate.Limit(perSecond), burst)
		l.held[key] = b
	}
	if !b.AllowN(now, 1) {
		return fault.New(fault.Exhausted, "too-many-calls", "too many calls from this peer").Do("wait a few seconds, with jitter")
	}
	return nil
}

// makeRoom forgets the buckets that are full again, which say nothing; all of them when that is not enough.
func (l *limits) makeRoom(now time.Time) {
	if l.held == nil {
		l.held = map[string]*rate.Limiter{}
	}
	if len(l.held) < maxLimiters {
		return
	}
	for k, b := range l.held {
		if b.TokensAt(now) >= float64(b.Burst()) {
			delete(l.held, k)
		}
	}
	if len(l.held) >= maxLimiters {
		clear(l.held)
	}
}
