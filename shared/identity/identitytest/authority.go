// Package identitytest is a system CA for tests: it signs whatever identity it is asked for.
package identitytest

import (
	"crypto"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"math/big"
	"net/url"
	"testing"
	"time"

	"github.com/cassandra-security-manager/csm/shared/algorithm"
	"github.com/cassandra-security-manager/csm/shared/identity"
)

// Authority is a self-signed CA that is good from a day before it was made until a day after.
type Authority struct {
	Root *x509.Certificate
	key  crypto.Signer
	t    testing.TB
	now  time.Time
}

// New makes an authority with a key of its own.
func New(t testing.TB, now time.Time) *Authority {
	t.Helper()
	a := &Authority{key: Key(t), t: t, now: now}
	c := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "system CA"}, IsCA: true, BasicConstraintsValid: true,
		KeyUsage: x509.KeyUsageCertSign, NotBefore: now.AddDate(0, 0, -1), NotAfter: now.AddDate(0, 0, 1)}
	a.Root = a.create(c, c, a.key.Public())
	return a
}

// Key makes a key of the system's kind.
func Key(t testing.TB) crypto.Signer {
	t.Helper()
	k, err := algorithm.Generate(algorithm.Default, rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return k
}

func (a *Authority) create(c, parent *x509.Certificate, public any) *x509.Certificate {
	der, err := x509.CreateCertificate(rand.Reader, c, parent, public, a.key)
	if err != nil {
		panic(err) // a template of this file is wrong; no goroutine of a test may end the test itself
	}
	out, err := x509.ParseCertificate(der)
	if err != nil {
		panic(err)
	}
	return out
}

// Sign gives a leaf for a key, good for an hour before and after.
func (a *Authority) Sign(id identity.ID, public crypto.PublicKey) *x509.Certificate {
	return a.SignFor(id, public, a.now.Add(-time.Hour), a.now.Add(time.Hour))
}

// SignFor gives a leaf that is good from one time to another.
func (a *Authority) SignFor(id identity.ID, public crypto.PublicKey, from, to time.Time) *x509.Certificate {
	var serial [15]byte
	_, _ = rand.Read(serial[:]) // never fails (crypto/rand)
	return a.create(&x509.Certificate{SerialNumber: new(big.Int).SetBytes(serial[:]), URIs: []*url.URL{id.URL()}, KeyUsage: x509.KeyUsageDigitalSignature,
		NotBefore: from, NotAfter: to}, a.Root, public)
}

// Certificate is a leaf with a key of its own, and the root behind it.
func (a *Authority) Certificate(id identity.ID) *tls.Certificate {
	a.t.Helper()
	key := Key(a.t)
	leaf := a.Sign(id, key.Public())
	return &tls.Certificate{Certificate: [][]byte{leaf.Raw, a.Root.Raw}, PrivateKey: key, Leaf: leaf}
}
