package join

import (
	"context"
	"crypto"
	"crypto/tls"
	"crypto/x509"
	"net"
	"sync"

	"google.golang.org/grpc"
	"google.golang.org/grpc/connectivity"
	"google.golang.org/grpc/credentials"

	agentv1 "github.com/cassandra-security-manager/csm/protocol/agent/v1"
	"github.com/cassandra-security-manager/csm/shared/certificate"
	"github.com/cassandra-security-manager/csm/shared/fault"
	"github.com/cassandra-security-manager/csm/shared/possession"
)

// Wish is what an agent asks to be called where its evidence does not say it.
type Wish struct {
	Node  string
	Names certificate.Names
}

// bound remembers the exporter of the newest connection: evidence is made for one connection.
type bound struct {
	credentials.TransportCredentials

	mu    sync.Mutex
	value possession.Binding
	err   error
}

func (b *bound) ClientHandshake(ctx context.Context, authority string, raw net.Conn) (net.Conn, credentials.AuthInfo, error) {
	conn, info, err := b.TransportCredentials.ClientHandshake(ctx, authority, raw)
	if err != nil {
		return conn, info, err
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	t, ok := info.(credentials.TLSInfo)
	if !ok {
		b.err = fault.New(fault.Internal, "no-binding", "the connection is not TLS")
		return conn, info, nil
	}
	b.value, b.err = possession.BindingOf(t.State)
	return conn, info, nil
}

// Clone shares what is remembered: grpc clones what it is given.
func (b *bound) Clone() credentials.TransportCredentials { return b }

func (b *bound) binding() (possession.Binding, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.value, b.err
}

// ready waits until the connection stands.
func ready(ctx context.Context, conn *grpc.ClientConn) error {
	conn.Connect()
	for s := conn.GetState(); s != connectivity.Ready; s = conn.GetState() {
		if s == connectivity.TransientFailure || s == connectivity.Shutdown || !conn.WaitForStateChange(ctx, s) {
			return fault.New(fault.Unavailable, "no-answer", "no connection to the controller").Do("check that it runs and that its port 9641 is open from here")
		}
	}
	return nil
}

// prove fills in the proof for this connection: Cassandra's chain, and a signature of its key over the binding and the new key.
func prove(ctx context.Context, b *bound, conn *grpc.ClientConn, r *agentv1.JoinRequest, cassandra *tls.Certificate) error {
	if err := ready(ctx, conn); err != nil {
		return err
	}
	binding, err := b.binding()
	if err != nil {
		return err
	}
	key, ok := cassandra.PrivateKey.(crypto.Signer)
	if !ok {
		return fault.New(fault.Refused, "key-unusable", "Cassandra's key does not sign").Do("join this node by a token")
	}
	csr, err := x509.ParseCertificateRequest(r.Csr)
	if err != nil {
		return err
	}
	sig, err := possession.Sign(key, possession.Statement(binding, csr.RawSubjectPublicKeyInfo, r.Cluster))
	if err != nil {
		return err
	}
	r.Proof = &agentv1.JoinRequest_Possession{Possession: &agentv1.Possession{Chain: cassandra.Certificate, Signature: sig}}
	return nil
}
