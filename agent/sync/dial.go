package sync

import (
	"context"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"net"
	"slices"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/keepalive"

	"github.com/cassandra-security-manager/csm/agent/state"
	"github.com/cassandra-security-manager/csm/protocol/bounds"
	"github.com/cassandra-security-manager/csm/shared/fault"
	"github.com/cassandra-security-manager/csm/shared/identity"
	"github.com/cassandra-security-manager/csm/shared/resource"
)

// PinnedTLS is TLS towards a controller for who holds only the pin of the system CA: the chain that the controller sends
// must contain the pinned root, and verify against it.
func PinnedTLS(pin string, now func() time.Time) (*tls.Config, error) {
	p, err := identity.ParsePin(pin)
	if err != nil {
		return nil, err
	}
	c := identity.ClientConfig(nil, identity.Verifier{Now: now})
	c.VerifyConnection = func(cs tls.ConnectionState) error {
		root, err := identity.PinnedRoot(cs.PeerCertificates, p)
		if err != nil {
			return err
		}
		v := identity.Verifier{Roots: func() []*x509.Certificate { return []*x509.Certificate{root} }, Kinds: []identity.Kind{identity.Controller}, Now: now}
		return v.VerifyConnection(cs)
	}
	return c, nil
}

// IdentityTLS is TLS towards a controller with the agent's identity and the system bundle. current is asked at each
// handshake, so a renewed identity and a grown bundle count from the next connection on. Sessions with controllers are resumed.
func IdentityTLS(current func() *state.Identity, now func() time.Time) *tls.Config {
	own := func() (*tls.Certificate, error) {
		id := current()
		if id == nil {
			return nil, fault.New(fault.Unauthenticated, "not-joined", "this agent has no identity yet").Do("join first")
		}
		c := &tls.Certificate{PrivateKey: id.Key, Leaf: id.Chain[0]}
		for _, x := range id.Chain {
			c.Certificate = append(c.Certificate, x.Raw)
		}
		return c, nil
	}
	v := identity.Verifier{Kinds: []identity.Kind{identity.Controller}, Now: now,
		Roots: func() []*x509.Certificate {
			if id := current(); id != nil {
				return id.Bundle
			}
			return nil
		}}
	c := identity.ClientConfig(own, v)
	c.ClientSessionCache = &identity.Sessions{Owner: func() (none [sha256.Size]byte) {
		if id := current(); id != nil {
			return identity.Mark(id.Chain, id.Bundle)
		}
		return none
	}}
	c.VerifyConnection = func(cs tls.ConnectionState) error {
		v := v
		if id := current(); id != nil {
			v.TrustDomain = id.TrustDomain
		}
		if cs.DidResume { // under this identity and this bundle, or there would be no session
			return v.Recheck(cs.PeerCertificates)
		}
		err := v.VerifyConnection(cs)
		if err != nil && missed(current(), cs.PeerCertificates) {
			return fault.Wrap(err, fault.Unauthenticated, "system-ca-changed", "the controller shows another root of the system CA than this agent knows, and nothing that leads to it from there: "+
				"either the root was replaced while this agent was away, and `csm cluster join-command %s --rejoin` on an administrator's machine brings it back, or somebody poses as a controller", nodeOf(current()))
		}
		return err
	}
	return c
}

// missed says whether a chain claims to end at a root of this system that the agent does not know. That is no trust: anybody can write so.
func missed(id *state.Identity, chain []*x509.Certificate) bool {
	if id == nil || len(chain) < 2 {
		return false
	}
	for _, root := range chain[1:] {
		if chain[0].CheckSignatureFrom(root) == nil && len(root.URIs) == 1 && root.URIs[0].Host == id.TrustDomain && !slices.ContainsFunc(id.Bundle, root.Equal) {
			return true
		}
	}
	return false
}

// nodeOf is the node as commands take it: cluster/node.
func nodeOf(id *state.Identity) string {
	return resource.Last(resource.Parent(id.Node)) + "/" + resource.Last(id.Node)
}

// Dialer opens what a connection to a controller runs over; nil is TCP as the system routes it.
type Dialer func(ctx context.Context, address string) (net.Conn, error)

// Dial opens a lazy connection to one controller.
func Dial(address string, c credentials.TransportCredentials, through Dialer) (*grpc.ClientConn, error) {
	options := []grpc.DialOption{grpc.WithTransportCredentials(c),
		// A dead path is seen within minutes. Servers of grpc-go close a connection that pings more often than each 5 minutes.
		grpc.WithKeepaliveParams(keepalive.ClientParameters{Time: 6 * time.Minute, Timeout: 20 * time.Second}),
		// What a controller sends is bounded like what is sent to it.
		grpc.WithUnaryInterceptor(bounds.UnaryClient), grpc.WithStreamInterceptor(bounds.StreamClient),
		// One attempt each: whoever dials knows when to give up.
		grpc.WithConnectParams(grpc.ConnectParams{Backoff: backoff.DefaultConfig, MinConnectTimeout: openFor + answerFor}),
		grpc.WithDisableServiceConfig(), grpc.WithIdleTimeout(0), grpc.WithUserAgent("csm-agent"),
		// Small buffers: an agent sends little, and 30 MB is all it may have.
		grpc.WithReadBufferSize(8 << 10), grpc.WithWriteBufferSize(8 << 10)}
	if through != nil {
		options = append(options, grpc.WithContextDialer(through))
	}
	conn, err := grpc.NewClient("passthrough:///"+address, options...)
	if err != nil {
		return nil, fault.Wrap(err, fault.Invalid, "bad-address", "the controller %q cannot be used", address).Do("write it as host:port")
	}
	return conn, nil
}
