package transport

import (
	"context"
	"net"
	"sync"
	"time"

	"github.com/hashicorp/raft"
	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/keepalive"
	"google.golang.org/grpc/peer"
)

type address string

func (address) Network() string  { return "tcp" }
func (a address) String() string { return string(a) }

// listener gives the connections of one protocol.
type listener struct {
	addr  net.Addr
	conns chan net.Conn
	done  chan struct{}
	once  sync.Once
}

func (l *listener) Accept() (net.Conn, error) {
	select {
	case c := <-l.conns:
		return c, nil
	case <-l.done:
		return nil, net.ErrClosed
	}
}

func (l *listener) Close() error {
	l.once.Do(func() { close(l.done) })
	return nil
}

func (l *listener) Addr() net.Addr { return l.addr }

// Listener gives the connections of one protocol.
func (t *Transport) Listener(protocol string) net.Listener { return t.lists[protocol] }

type streamLayer struct {
	*listener
	t *Transport
}

// StreamLayer is raft's way out and in.
func (t *Transport) StreamLayer() raft.StreamLayer { return streamLayer{t.lists[Raft], t} }

func (s streamLayer) Dial(addr raft.ServerAddress, timeout time.Duration) (net.Conn, error) {
	ctx, cancel := context.WithTimeout(context.Background(), timeout)
	defer cancel()
	c, err := s.t.Dial(ctx, Raft, string(addr))
	if err != nil {
		return nil, err
	}
	return c, nil
}

// AuthInfo is what a gRPC handler learns of its caller.
type AuthInfo struct {
	credentials.CommonAuthInfo
	Peer *Peer
}

// AuthType implements credentials.AuthInfo.
func (AuthInfo) AuthType() string { return "tls" }

// PeerFrom is the caller of a gRPC handler; nil when it has no certificate.
func PeerFrom(ctx context.Context) *Peer {
	if p, ok := peer.FromContext(ctx); ok {
		if a, ok := p.AuthInfo.(AuthInfo); ok {
			return a.Peer
		}
	}
	return nil
}

// Credentials tell gRPC that its connections come with TLS done.
type Credentials struct{}

func (Credentials) handshake(c net.Conn) (net.Conn, credentials.AuthInfo, error) {
	a := AuthInfo{CommonAuthInfo: credentials.CommonAuthInfo{SecurityLevel: credentials.PrivacyAndIntegrity}}
	if tc, ok := c.(*Conn); ok {
		a.Peer = tc.Peer
		return c, a, nil
	}
	return nil, nil, net.ErrClosed
}

// ClientHandshake implements credentials.TransportCredentials.
func (k Credentials) ClientHandshake(_ context.Context, _ string, c net.Conn) (net.Conn, credentials.AuthInfo, error) {
	return k.handshake(c)
}

// ServerHandshake implements credentials.TransportCredentials.
func (k Credentials) ServerHandshake(c net.Conn) (net.Conn, credentials.AuthInfo, error) {
	return k.handshake(c)
}

// Info, Clone and OverrideServerName implement credentials.TransportCredentials.
func (Credentials) Info() credentials.ProtocolInfo {
	return credentials.ProtocolInfo{SecurityProtocol: "tls"}
}
func (k Credentials) Clone() credentials.TransportCredentials { return k }
func (Credentials) OverrideServerName(string) error           { return nil }

// Client makes the gRPC connection to an address; it connects when first used and again after each loss, within a
// second: a failover waits for nobody's back-off.
func (t *Transport) Client(addr string) (*grpc.ClientConn, error) {
	return grpc.NewClient("passthrough:///"+addr,
		grpc.WithTransportCredentials(Credentials{}),
		grpc.WithContextDialer(func(ctx context.Context, addr string) (net.Conn, error) {
			c, err := t.Dial(ctx, GRPC, addr)
			if err != nil {
				return nil, err
			}
			return c, nil
		}),
		grpc.WithConnectParams(grpc.ConnectParams{MinConnectTimeout: handshakeTimeout,
			Backoff: backoff.Config{BaseDelay: 50 * time.Millisecond, Multiplier: 1.6, Jitter: 0.2, MaxDelay: time.Second}}),
		grpc.WithKeepaliveParams(keepalive.ClientParameters{Time: 10 * time.Second, Timeout: 3 * time.Second, PermitWithoutStream: true}),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(16<<20)),
		grpc.WithInitialWindowSize(1<<20), grpc.WithInitialConnWindowSize(4<<20),
	)
}

// ServerOptions of the gRPC server on this port.
func ServerOptions() []grpc.ServerOption {
	return []grpc.ServerOption{
		grpc.Creds(Credentials{}),
		grpc.KeepaliveEnforcementPolicy(keepalive.EnforcementPolicy{MinTime: 5 * time.Second, PermitWithoutStream: true}),
		grpc.KeepaliveParams(keepalive.ServerParameters{Time: 10 * time.Second, Timeout: 3 * time.Second}),
		grpc.MaxRecvMsgSize(1 << 20), grpc.MaxHeaderListSize(16 << 10),
		grpc.InitialWindowSize(1 << 20), grpc.InitialConnWindowSize(4 << 20),
		grpc.ConnectionTimeout(handshakeTimeout),
	}
}
