package agentapi_test

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"math/big"
	"net"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	agentv1 "github.com/cassandra-security-manager/csm/protocol/agent/v1"

	"github.com/cassandra-security-manager/csm/controller/fleet"
	"github.com/cassandra-security-manager/csm/shared/identity"
	"github.com/cassandra-security-manager/csm/shared/possession"
)

// oldCA is the CA of a ring that CSM does not know yet.
type oldCA struct {
	cert *x509.Certificate
	key  crypto.Signer
}

func (w *world) oldCA() oldCA {
	w.t.Helper()
	k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	w.must(err)
	now := w.log.Clock.Now()
	tpl := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "old root"}, IsCA: true, BasicConstraintsValid: true, NotBefore: now.Add(-time.Hour), NotAfter: now.Add(9000 * time.Hour)}
	return oldCA{w.signed(tpl, tpl, k.Public(), k), k}
}

func (w *world) signed(tpl, parent *x509.Certificate, pub any, key crypto.Signer) *x509.Certificate {
	w.t.Helper()
	der, err := x509.CreateCertificate(rand.Reader, tpl, parent, pub, key)
	w.must(err)
	c, err := x509.ParseCertificate(der)
	w.must(err)
	return c
}

// leaf is what a node uses today; it carries its name and lives for d.
func (w *world) leaf(ca oldCA, name string, d time.Duration) (crypto.Signer, *x509.Certificate) {
	w.t.Helper()
	k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	w.must(err)
	now := w.log.Clock.Now()
	return k, w.signed(&x509.Certificate{SerialNumber: big.NewInt(2), DNSNames: []string{name}, NotBefore: now.Add(-time.Hour), NotAfter: now.Add(d)}, ca.cert, k.Public(), ca.key)
}

// line is one connection whose exporter is known.
type line struct {
	agentv1.AgentServiceClient
	binding possession.Binding
}

type exporting struct {
	credentials.TransportCredentials
	to *possession.Binding
}

func (e exporting) ClientHandshake(ctx context.Context, authority string, raw net.Conn) (net.Conn, credentials.AuthInfo, error) {
	c, info, err := e.TransportCredentials.ClientHandshake(ctx, authority, raw)
	if err == nil {
		*e.to, err = possession.BindingOf(info.(credentials.TLSInfo).State)
	}
	return c, info, err
}

func (e exporting) Clone() credentials.TransportCredentials { return e }

func (w *world) line() *line {
	w.t.Helper()
	c := identity.ClientConfig(nil, identity.Verifier{Roots: func() []*x509.Certificate { return w.roots }, TrustDomain: w.domain, Kinds: []identity.Kind{identity.Controller}, Now: w.log.Clock.Now})
	l := &line{}
	conn, err := grpc.NewClient(w.address, grpc.WithTransportCredentials(exporting{credentials.NewTLS(c), &l.binding}), grpc.WithChainUnaryInterceptor(faults))
	w.must(err)
	w.t.Cleanup(func() { conn.Close() })
	l.AgentServiceClient = agentv1.NewAgentServiceClient(conn)
	_, err = l.Join(w.t.Context(), &agentv1.JoinRequest{Method: "none"}) // the handshake is done by the first call
	wantReason(w.t, err, "join-method")
	return l
}

// proof is a lawful request over the line.
func (w *world) proof(l *line, key crypto.Signer, leaf *x509.Certificate) *agentv1.JoinRequest {
	w.t.Helper()
	csr := w.csr(w.key(), nil, nil)
	parsed, err := x509.ParseCertificateRequest(csr)
	w.must(err)
	sig, err := possession.Sign(key, possession.Statement(l.binding, parsed.RawSubjectPublicKeyInfo, "prod"))
	w.must(err)
	return &agentv1.JoinRequest{Method: "possession", Csr: csr, Cluster: "prod", Node: "n7", Names: &agentv1.Names{Dns: []string{"n7.example"}, Ips: []string{"127.0.0.1"}},
		Agent: &agentv1.AgentFacts{Clock: timestamppb.New(w.log.Clock.Now())}, Instance: &agentv1.InstanceFacts{ClusterName: "ring"},
		Proof: &agentv1.JoinRequest_Possession{Possession: &agentv1.Possession{Chain: [][]byte{leaf.Raw}, Signature: sig}}}
}

func (w *world) register(ca oldCA) {
	w.t.Helper()
	_, err := w.fleet.AddAnchor(w.t.Context(), "tenants/default/trustDomains/prod", fleet.AnchorSpec{Certificate: ca.cert, Owner: "pki", Reason: "today", Expires: w.log.Clock.Now().Add(time.Hour),
		Rule: fleet.Rule{DNS: []string{"*.example"}, Networks: []string{"127.0.0.0/8"}, FirstNodes: 2}}, ann)
	w.must(err)
}

func TestANodeJoinsByTheKeyItUsesToday(t *testing.T) {
	w := newWorld(t).listen()
	ca := w.oldCA()
	w.register(ca)
	key, leaf := w.leaf(ca, "n7.example", time.Hour)
	l := w.line()
	r := w.proof(l, key, leaf)
	one, err := l.Join(t.Context(), r)
	w.must(err)
	if one.Node != cluster+"/nodes/n7" || one.Incarnation != 1 {
		t.Fatalf("joined as %s/%d", one.Node, one.Incarnation)
	}
	two, err := l.Join(t.Context(), r)
	if err != nil || two.Uid != one.Uid || two.Incarnation != 1 {
		t.Errorf("the repeat got %v, %v", two, err)
	}
	if n, err := w.fleet.GetNode(t.Context(), one.Node); err != nil || n.Names.DNS[0] != "n7.example" || n.Names.IPs[0] != "127.0.0.1" {
		t.Errorf("node = %+v, %v", n.Names, err)
	}
}

func TestEachFalseProofOfPossessionIsRefused(t *testing.T) {
	for name, c := range map[string]struct {
		reason string
		change func(w *world, ca oldCA, l *line, r *agentv1.JoinRequest) *agentv1.JoinRequest
	}{
		"another chain than the registered CA's": {"anchor-unknown", func(w *world, _ oldCA, l *line, _ *agentv1.JoinRequest) *agentv1.JoinRequest {
			key, leaf := w.leaf(w.oldCA(), "n7.example", time.Hour)
			return w.proof(l, key, leaf)
		}},
		"a key that is not the certificate's": {"not-possessed", func(w *world, ca oldCA, l *line, _ *agentv1.JoinRequest) *agentv1.JoinRequest {
			_, leaf := w.leaf(ca, "n7.example", time.Hour)
			return w.proof(l, w.key(), leaf)
		}},
		"an expired leaf": {"leaf-expired", func(w *world, ca oldCA, l *line, _ *agentv1.JoinRequest) *agentv1.JoinRequest {
			key, leaf := w.leaf(ca, "n7.example", -time.Minute)
			return w.proof(l, key, leaf)
		}},
		"replayed over another connection": {"not-possessed", func(w *world, _ oldCA, l *line, r *agentv1.JoinRequest) *agentv1.JoinRequest {
			*l = *w.line()
			return r
		}},
		"replayed with another key": {"not-possessed", func(w *world, _ oldCA, _ *line, r *agentv1.JoinRequest) *agentv1.JoinRequest {
			r.Csr = w.csr(w.key(), nil, nil)
			return r
		}},
		"twice on one connection, for two keys": {"evidence-replayed", func(w *world, ca oldCA, l *line, r *agentv1.JoinRequest) *agentv1.JoinRequest {
			_, err := l.Join(w.t.Context(), r)
			w.must(err)
			key, leaf := w.leaf(ca, "n7.example", time.Hour)
			return w.proof(l, key, leaf)
		}},
		"for another cluster": {"not-possessed", func(_ *world, _ oldCA, _ *line, r *agentv1.JoinRequest) *agentv1.JoinRequest {
			r.Cluster = "prod2"
			return r
		}},
		"a ring of another name": {"wrong-ring", func(w *world, ca oldCA, l *line, r *agentv1.JoinRequest) *agentv1.JoinRequest {
			first := proto.CloneOf(r)
			_, err := l.Join(w.t.Context(), first)
			w.must(err)
			key, leaf := w.leaf(ca, "n8.example", time.Hour)
			*l = *w.line()
			next := w.proof(l, key, leaf)
			next.Instance.ClusterName = "another"
			return next
		}},
		"nothing": {"no-evidence", func(_ *world, _ oldCA, _ *line, r *agentv1.JoinRequest) *agentv1.JoinRequest { r.Proof = nil; return r }},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t).listen()
			ca := w.oldCA()
			w.register(ca)
			key, leaf := w.leaf(ca, "n7.example", time.Hour)
			l := w.line()
			r := c.change(w, ca, l, w.proof(l, key, leaf))
			_, err := l.Join(t.Context(), r)
			wantReason(t, err, c.reason)
		})
	}
}
