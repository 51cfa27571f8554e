package identity_test

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"math/big"
	"net"
	"net/url"
	"testing"
	"time"

	"github.com/cassandra-security-manager/csm/shared/identity"
)

var now = time.Date(2026, 11, 22, 12, 0, 0, 0, time.UTC)

type ca struct {
	cert *x509.Certificate
	key  crypto.Signer
}

func makeCA(t *testing.T) ca {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	tmpl := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "system"}, IsCA: true, BasicConstraintsValid: true,
		KeyUsage: x509.KeyUsageCertSign, NotBefore: now.Add(-time.Hour), NotAfter: now.AddDate(10, 0, 0)}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	c, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return ca{c, key}
}

func (c ca) issue(t *testing.T, until time.Time, ids ...identity.ID) *tls.Certificate {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	var uris []*url.URL
	for _, id := range ids {
		uris = append(uris, id.URL())
	}
	tmpl := &x509.Certificate{SerialNumber: big.NewInt(2), Subject: pkix.Name{CommonName: "x"}, URIs: uris, NotBefore: now.Add(-time.Hour), NotAfter: until}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, c.cert, key.Public(), c.key)
	if err != nil {
		t.Fatal(err)
	}
	leaf, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return &tls.Certificate{Certificate: [][]byte{der, c.cert.Raw}, PrivateKey: key, Leaf: leaf}
}

// shake returns the errors of client and server.
func shake(t *testing.T, client, server *tls.Config) (error, error) {
	t.Helper()
	a, b := net.Pipe()
	defer a.Close()
	defer b.Close()
	ended := make(chan error, 1)
	go func() {
		s := tls.Server(b, server)
		err := s.Handshake()
		if err == nil {
			_, err = s.Write([]byte{1})
		}
		b.Close()
		ended <- err
	}()
	c := tls.Client(a, client)
	err := c.Handshake()
	if err == nil {
		_, err = c.Read(make([]byte, 1))
	}
	a.Close()
	return err, <-ended
}

func own(c *tls.Certificate) func() (*tls.Certificate, error) {
	return func() (*tls.Certificate, error) { return c, nil }
}

func TestOnlyThePeerThatWasAskedForGetsThrough(t *testing.T) {
	system, other := makeCA(t), makeCA(t)
	verifier := func(kinds ...identity.Kind) identity.Verifier {
		return identity.Verifier{Roots: func() []*x509.Certificate { return []*x509.Certificate{system.cert} }, TrustDomain: td, Kinds: kinds, Now: func() time.Time { return now }}
	}
	tomorrow := now.AddDate(0, 0, 1)
	server := system.issue(t, tomorrow, identity.ControllerID(td, "csm1"))
	good := system.issue(t, tomorrow, identity.AgentID(td, "u", 1))
	for name, c := range map[string]struct {
		client *tls.Certificate
		works  bool
	}{
		"an agent":                {good, true},
		"another CA":              {other.issue(t, tomorrow, identity.AgentID(td, "u", 1)), false},
		"an administrator":        {system.issue(t, tomorrow, identity.AdminID(td, "alice")), false},
		"another trust domain":    {system.issue(t, tomorrow, identity.AgentID("else.csm", "u", 1)), false},
		"an expired agent":        {system.issue(t, now.Add(-time.Minute), identity.AgentID(td, "u", 1)), false},
		"a certificate with two":  {system.issue(t, tomorrow, identity.AgentID(td, "u", 1), identity.AgentID(td, "v", 1)), false},
		"a certificate with none": {system.issue(t, tomorrow), false},
		"no certificate":          {&tls.Certificate{}, false},
	} {
		s := identity.ServerConfig(own(server), tls.RequireAnyClientCert, verifier(identity.Agent))
		_, err := shake(t, identity.ClientConfig(own(c.client), verifier(identity.Controller)), s)
		if (err == nil) != c.works {
			t.Errorf("%s: %v", name, err)
		}
	}
	impostor := system.issue(t, tomorrow, identity.AgentID(td, "u", 2))
	if err, _ := shake(t, identity.ClientConfig(own(good), verifier(identity.Controller)), identity.ServerConfig(own(impostor), tls.RequireAnyClientCert, verifier(identity.Agent))); err == nil {
		t.Error("an agent was taken for a controller")
	}
}

func TestExpiredIsNotRevokedForWhomTheCallerSays(t *testing.T) {
	system := makeCA(t)
	expired := system.issue(t, now.Add(-time.Minute), identity.ControllerID(td, "csm1"))
	v := identity.Verifier{Roots: func() []*x509.Certificate { return []*x509.Certificate{system.cert} }, TrustDomain: td,
		Kinds: []identity.Kind{identity.Controller}, Now: func() time.Time { return now }}
	if _, err := v.Verify([]*x509.Certificate{expired.Leaf}); err == nil {
		t.Error("an expired certificate passed")
	}
	v.IgnoreExpiry = func(leaf *x509.Certificate) bool { return leaf.Equal(expired.Leaf) }
	if _, err := v.Verify([]*x509.Certificate{expired.Leaf}); err != nil {
		t.Error(err)
	}
}

func TestClassicalKeyExchangeAndOldTLSAreRefused(t *testing.T) {
	system := makeCA(t)
	server := system.issue(t, now.AddDate(0, 0, 1), identity.ControllerID(td, "csm1"))
	v := identity.Verifier{Roots: func() []*x509.Certificate { return []*x509.Certificate{system.cert} }, TrustDomain: td,
		Kinds: []identity.Kind{identity.Controller}, Now: func() time.Time { return now }}
	conf := identity.ServerConfig(own(server), tls.RequestClientCert, v)
	for name, change := range map[string]func(*tls.Config){
		"P-384 alone": func(c *tls.Config) { c.CurvePreferences = []tls.CurveID{tls.CurveP384} },
		"TLS 1.2":     func(c *tls.Config) { c.MinVersion, c.MaxVersion = tls.VersionTLS12, tls.VersionTLS12 },
	} {
		client := identity.ClientConfig(nil, v)
		change(client)
		if err, _ := shake(t, client, conf); err == nil {
			t.Errorf("%s was let in", name)
		}
	}
	if err, serr := shake(t, identity.ClientConfig(nil, v), conf); err != nil || serr != nil {
		t.Error(err, serr)
	}
}

func TestOnlyThePinnedRootCounts(t *testing.T) {
	system, other := makeCA(t), makeCA(t)
	pin, err := identity.ParsePin(identity.Pin(system.cert))
	if err != nil {
		t.Fatal(err)
	}
	if got, err := identity.PinnedRoot([]*x509.Certificate{other.cert, system.cert}, pin); err != nil || !got.Equal(system.cert) {
		t.Error(err)
	}
	if _, err := identity.PinnedRoot([]*x509.Certificate{other.cert}, pin); err == nil {
		t.Error("another root matched the pin")
	}
}
