package cassandratest

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"math/big"
	"net"
	"os"
	"testing"
	"time"

	"github.com/cassandra-security-manager/csm/agent/cassandra"
	"github.com/cassandra-security-manager/csm/shared/keystore"
)

// CA is a root with one intermediate.
type CA struct {
	Root, Inter *x509.Certificate
	interKey    crypto.Signer
	t           testing.TB
}

// Leaf is a key with its chain, leaf first, without the root.
type Leaf struct {
	Key   crypto.Signer
	Chain []*x509.Certificate
}

// TLS is the leaf for a TLS configuration.
func (l Leaf) TLS() *tls.Certificate {
	c := &tls.Certificate{PrivateKey: l.Key}
	for _, x := range l.Chain {
		c.Certificate = append(c.Certificate, x.Raw)
	}
	return c
}

func newKey(t testing.TB, curve elliptic.Curve) *ecdsa.PrivateKey {
	t.Helper()
	k, err := ecdsa.GenerateKey(curve, rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return k
}

func sign(t testing.TB, tpl, parent *x509.Certificate, pub crypto.PublicKey, key crypto.Signer) *x509.Certificate {
	t.Helper()
	tpl.SerialNumber, _ = rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 120))
	tpl.SignatureAlgorithm = x509.ECDSAWithSHA384
	switch k := key.Public().(type) {
	case *rsa.PublicKey:
		tpl.SignatureAlgorithm = x509.SHA384WithRSA
	case *ecdsa.PublicKey:
		if k.Curve == elliptic.P521() {
			tpl.SignatureAlgorithm = x509.ECDSAWithSHA512
		}
	}
	if tpl.NotBefore.IsZero() {
		tpl.NotBefore = time.Now().Add(-time.Hour)
	}
	if tpl.NotAfter.IsZero() {
		tpl.NotAfter = time.Now().Add(90 * 24 * time.Hour)
	}
	der, err := x509.CreateCertificate(rand.Reader, tpl, parent, pub, key)
	if err != nil {
		t.Fatal(err)
	}
	c, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// NewCA makes a CA.
func NewCA(t testing.TB, name string) *CA {
	// Tests verify thousands of chains, which P-256 does ten times faster; leaves are P-384, as the floor demands.
	return NewCAOf(t, name, newKey(t, elliptic.P256()), newKey(t, elliptic.P256()))
}

// NewCAOf is NewCA with the keys of its root and its issuer.
func NewCAOf(t testing.TB, name string, rk, ik crypto.Signer) *CA {
	t.Helper()
	ca := func(cn string) *x509.Certificate {
		return &x509.Certificate{Subject: pkix.Name{CommonName: cn}, IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
			NotBefore: time.Now().Add(-1000 * 24 * time.Hour), NotAfter: time.Now().Add(1000 * 24 * time.Hour)}
	}
	rt := ca(name + " root")
	root := sign(t, rt, rt, rk.Public(), rk)
	return &CA{Root: root, Inter: sign(t, ca(name+" issuer"), root, ik.Public(), rk), interKey: ik, t: t}
}

// Leaf issues for 127.0.0.1 and more addresses; change, if given, alters the template first.
func (ca *CA) Leaf(change ...func(*x509.Certificate)) Leaf {
	return ca.LeafOf(newKey(ca.t, elliptic.P384()), change...)
}

// LeafOf is Leaf for a key.
func (ca *CA) LeafOf(k crypto.Signer, change ...func(*x509.Certificate)) Leaf {
	ca.t.Helper()
	tpl := &x509.Certificate{Subject: pkix.Name{CommonName: "node"}, IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}, KeyUsage: x509.KeyUsageDigitalSignature,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth}}
	for _, c := range change {
		c(tpl)
	}
	return Leaf{k, []*x509.Certificate{sign(ca.t, tpl, ca.Inter, k.Public(), ca.interKey), ca.Inter}}
}

// NewStore is a manageable store in a new folder, without files.
func NewStore(t testing.TB, f keystore.Format) *cassandra.Store {
	t.Helper()
	dir := t.TempDir()
	s := &cassandra.Store{Name: cassandra.StoreNode, Format: f, KeystorePath: dir + "/keystore", TruststorePath: dir + "/truststore",
		ClientAuth: true, EndpointVerification: true, Manageable: true}
	if f != keystore.PEM {
		s.KeystorePassword, s.TruststorePassword = []byte("changeit"), []byte("changeit")
	}
	return s
}

// Write puts a pair into the store's files as another tool would.
func Write(t testing.TB, s *cassandra.Store, l Leaf, anchors ...*x509.Certificate) {
	t.Helper()
	ks, err := keystore.EncodeKeyStore(s.Format, l.Key, l.Chain, s.KeystorePassword)
	if err != nil {
		t.Fatal(err)
	}
	ts, err := keystore.EncodeTrustStore(s.Format, anchors, s.TruststorePassword)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(s.KeystorePath, ks, 0o640); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(s.TruststorePath, ts, 0o644); err != nil {
		t.Fatal(err)
	}
}
