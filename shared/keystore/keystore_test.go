package keystore_test

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"net/netip"
	"slices"
	"testing"
	"time"

	jks "github.com/pavlo-v-chernykh/keystore-go/v4"
	"software.sslmate.com/src/go-pkcs12"

	"bytes"

	"github.com/cassandra-security-manager/csm/shared/algorithm"
	"github.com/cassandra-security-manager/csm/shared/certificate"
	"github.com/cassandra-security-manager/csm/shared/fault"
	"github.com/cassandra-security-manager/csm/shared/keystore"
)

var (
	now      = time.Date(2026, 11, 22, 0, 0, 0, 0, time.UTC)
	password = []byte("changeit")
	formats  = []keystore.Format{keystore.PKCS12, keystore.JKS, keystore.PEM}
)

func passwordOf(f keystore.Format) []byte {
	if f == keystore.PEM {
		return nil
	}
	return password
}

// pki is a root, an issuer under it, and a way to make leaves.
type pki struct {
	root, issuer       *x509.Certificate
	rootKey, issuerKey crypto.Signer
}

func newKey(t testing.TB) crypto.Signer {
	t.Helper()
	k, err := algorithm.Generate(algorithm.P384, rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return k
}

func sign(t testing.TB, tmpl, parent *x509.Certificate, pub crypto.PublicKey, by crypto.Signer) *x509.Certificate {
	t.Helper()
	tmpl.SerialNumber, _ = certificate.Serial(rand.Reader)
	der, err := x509.CreateCertificate(rand.Reader, tmpl, parent, pub, by)
	if err != nil {
		t.Fatal(err)
	}
	c, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func newPKI(t testing.TB) *pki {
	p := &pki{rootKey: newKey(t), issuerKey: newKey(t)}
	ca := func(cn string) *x509.Certificate {
		return &x509.Certificate{Subject: pkix.Name{CommonName: cn}, NotBefore: now.Add(-time.Hour), NotAfter: now.AddDate(5, 0, 0),
			IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign}
	}
	p.root = sign(t, ca("root"), ca("root"), p.rootKey.Public(), p.rootKey)
	p.issuer = sign(t, ca("issuer"), p.root, p.issuerKey.Public(), p.rootKey)
	return p
}

func (p *pki) leaf(t testing.TB, pub crypto.PublicKey, change func(*x509.Certificate)) *x509.Certificate {
	tmpl := &x509.Certificate{Subject: pkix.Name{CommonName: "n1"}, NotBefore: now.Add(-time.Hour), NotAfter: now.AddDate(0, 0, 90),
		DNSNames: []string{"n1.example"}, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth}}
	if change != nil {
		change(tmpl)
	}
	return sign(t, tmpl, p.issuer, pub, p.issuerKey)
}

func TestAStoreComesBackAsItWentIn(t *testing.T) {
	p, key := newPKI(t), newKey(t)
	chain := []*x509.Certificate{p.leaf(t, key.Public(), nil), p.issuer}
	for _, f := range formats {
		data, err := keystore.EncodeKeyStore(f, key, chain, passwordOf(f))
		if err != nil {
			t.Fatalf("%s: %v", f, err)
		}
		if got := keystore.Sniff(data); got != f {
			t.Errorf("%s looks like %q", f, got)
		}
		ks, err := keystore.DecodeKeyStore(f, data, passwordOf(f))
		if err != nil || len(ks.Chain) != 2 || !ks.Leaf().Equal(chain[0]) || !certificate.SameKey(ks.Key.Public(), key.Public()) {
			t.Errorf("%s keystore = %+v, %v", f, ks, err)
		}
		ts, err := keystore.EncodeTrustStore(f, []*x509.Certificate{p.root, p.issuer, p.root}, passwordOf(f))
		if err != nil {
			t.Fatalf("%s: %v", f, err)
		}
		if cs, err := keystore.DecodeTrustStore(f, ts, passwordOf(f)); err != nil || len(cs) != 2 {
			t.Errorf("%s truststore = %d anchors, %v", f, len(cs), err)
		}
	}
}

func TestOnlyWhatAJVMCanUseIsWritten(t *testing.T) {
	p, key := newPKI(t), newKey(t)
	chain := []*x509.Certificate{p.leaf(t, key.Public(), nil), p.issuer}
	encode := func(f keystore.Format, k crypto.Signer, c []*x509.Certificate, pw string) error {
		_, err := keystore.EncodeKeyStore(f, k, c, []byte(pw))
		return err
	}
	for _, c := range []struct {
		what   string
		err    error
		reason string
	}{
		{"a short password", encode(keystore.PKCS12, key, chain, "short"), "short-password"},
		{"a null password", encode(keystore.JKS, key, chain, ""), "short-password"},
		{"a password outside of ASCII", encode(keystore.JKS, key, chain, "pässword"), "bad-password"},
		{"a PEM password", encode(keystore.PEM, key, chain, "changeit"), "pem-password"},
		{"another key", encode(keystore.PKCS12, newKey(t), chain, "changeit"), "key-mismatch"},
		{"no chain", encode(keystore.PKCS12, key, nil, "changeit"), "no-key"},
		{"an unknown format", encode("BKS", key, chain, "changeit"), "unknown-format"},
	} {
		if !fault.HasReason(c.err, c.reason) {
			t.Errorf("%s: %v, want %s", c.what, c.err, c.reason)
		}
	}
	if _, err := keystore.EncodeTrustStore(keystore.JKS, nil, password); !fault.HasReason(err, "empty-truststore") {
		t.Errorf("an empty truststore: %v", err)
	}
}

func TestADamagedStoreIsNamedForWhatItIs(t *testing.T) {
	p, key := newPKI(t), newKey(t)
	chain := []*x509.Certificate{p.leaf(t, key.Public(), nil), p.issuer}
	for _, f := range formats {
		data, err := keystore.EncodeKeyStore(f, key, chain, passwordOf(f))
		if err != nil {
			t.Fatal(err)
		}
		if f != keystore.PEM {
			if _, err := keystore.DecodeKeyStore(f, data, []byte("wrong password")); !fault.HasReason(err, "wrong-password") {
				t.Errorf("%s with a wrong password: %v", f, err)
			}
		}
		for _, n := range []int{0, 1, 10, len(data) / 2, len(data) - 1} {
			if ks, err := keystore.DecodeKeyStore(f, data[:n], passwordOf(f)); err == nil && (f != keystore.PEM || len(ks.Chain) == 2 && n < len(data)-1) {
				t.Errorf("%s cut to %d bytes is read", f, n)
			}
		}
		for _, other := range formats {
			if _, err := keystore.DecodeKeyStore(other, data, passwordOf(other)); other != f && !fault.HasReason(err, "wrong-format") {
				t.Errorf("%s read as %s: %v", f, other, err)
			}
		}
		if _, err := keystore.DecodeKeyStore(f, make([]byte, keystore.MaxSize+1), nil); !fault.HasReason(err, "keystore-too-large") {
			t.Errorf("%s of over 1 MiB: %v", f, err)
		}
	}
}

func TestTwoKeysInOneStoreAreRefused(t *testing.T) {
	p := newPKI(t)
	s := jks.New()
	for _, a := range []string{"one", "two"} {
		k := newKey(t)
		der, _ := x509.MarshalPKCS8PrivateKey(k)
		c := p.leaf(t, k.Public(), nil)
		e := jks.PrivateKeyEntry{CreationTime: now, PrivateKey: der, CertificateChain: []jks.Certificate{{Type: "X509", Content: c.Raw}}}
		if err := s.SetPrivateKeyEntry(a, e, bytes.Clone(password)); err != nil {
			t.Fatal(err)
		}
	}
	var b bytes.Buffer
	if err := s.Store(&b, bytes.Clone(password)); err != nil {
		t.Fatal(err)
	}
	if _, err := keystore.DecodeKeyStore(keystore.JKS, b.Bytes(), password); !fault.HasReason(err, "several-keys") {
		t.Errorf("JKS: %v", err)
	}
	one, _ := certificate.EncodeKeyPEM(newKey(t))
	two, _ := certificate.EncodeKeyPEM(newKey(t))
	if _, err := keystore.DecodeKeyStore(keystore.PEM, append(one, two...), nil); !fault.HasReason(err, "several-keys") {
		t.Errorf("PEM: %v", err)
	}
}

func TestATruststoreThatAJVMCannotSeeIsNotTakenForOne(t *testing.T) {
	p, key := newPKI(t), newKey(t)
	// A keystore in the place of a truststore, and a store with a different key password.
	data, err := pkcs12.Modern2023.Encode(key, p.leaf(t, key.Public(), nil), nil, string(password))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := keystore.DecodeTrustStore(keystore.PKCS12, data, password); err == nil {
		t.Error("a keystore passed for a truststore")
	}
	s := jks.New()
	var b bytes.Buffer
	if err := s.Store(&b, bytes.Clone(password)); err != nil {
		t.Fatal(err)
	}
	cs, err := keystore.DecodeTrustStore(keystore.JKS, b.Bytes(), password)
	if err != nil || len(cs) != 0 {
		t.Fatalf("empty JKS = %v, %v", cs, err)
	}
	if ps := keystore.Check(nil, cs, keystore.Expect{Now: now}); !has(ps, "empty-truststore") {
		t.Errorf("problems = %v", ps)
	}
}

func TestAStoreThatWouldRunForHoursIsRefused(t *testing.T) {
	p, key := newPKI(t), newKey(t)
	// 3 derivations of 3,000,000 rounds each: refused by counting, before one of them runs.
	data, err := pkcs12.Modern2023.WithIterations(1).Encode(key, p.leaf(t, key.Public(), nil), nil, string(password))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := keystore.DecodeKeyStore(keystore.PKCS12, data, password); err != nil {
		t.Fatalf("one round: %v", err)
	}
	costly, err := pkcs12.Modern2023.WithIterations(2_000_000).EncodeTrustStore([]*x509.Certificate{p.root}, string(password))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := keystore.DecodeTrustStore(keystore.PKCS12, costly, password); err != nil {
		t.Fatalf("4,000,000 rounds are within the bound: %v", err)
	}
	i := bytes.Index(costly, []byte{0x02, 0x03, 0x1e, 0x84, 0x80}) // INTEGER 2,000,000
	if i < 0 {
		t.Fatal("no iteration count found")
	}
	copy(costly[i:], []byte{0x02, 0x03, 0x7f, 0xff, 0xff})
	if _, err := keystore.DecodeTrustStore(keystore.PKCS12, costly, password); !fault.HasReason(err, "keystore-too-costly") {
		t.Errorf("8,388,607 rounds more: %v", err)
	}
}

func has(ps []keystore.Problem, code string) bool {
	return slices.ContainsFunc(ps, func(p keystore.Problem) bool { return p.Code == code })
}

func TestCheckSeesWhatCassandraDoesNot(t *testing.T) {
	p, other, key := newPKI(t), newPKI(t), newKey(t)
	names := certificate.Names{DNS: []string{"n1.example"}}
	good := func(change func(*x509.Certificate)) *keystore.KeyStore {
		return &keystore.KeyStore{Key: key, Chain: []*x509.Certificate{p.leaf(t, key.Public(), change), p.issuer}}
	}
	anchors := []*x509.Certificate{p.root}
	expect := keystore.Expect{Now: now, Names: names, MinRemaining: 24 * time.Hour, Floor: true, Exact: true}
	if ps := keystore.Check(good(nil), anchors, expect); len(ps) != 0 {
		t.Fatalf("a good store has problems: %v", ps)
	}
	wrongNames := expect
	wrongNames.Names = certificate.Names{DNS: []string{"n1.example"}, IPs: []netip.Addr{netip.MustParseAddr("10.0.0.1")}}
	fat := func(c *x509.Certificate) {
		c.ExtraExtensions = []pkix.Extension{{Id: []int{1, 3, 6, 1, 4, 1, 99999, 1}, Value: append([]byte{0x04, 0x82, 0x2e, 0xe0}, make([]byte, 12000)...)}}
	}
	weak, _ := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	cases := []struct {
		what    string
		ks      *keystore.KeyStore
		anchors []*x509.Certificate
		e       keystore.Expect
		code    string
		fatal   bool
	}{
		{"no key", nil, anchors, expect, "no-key", true},
		{"another's key", &keystore.KeyStore{Key: newKey(t), Chain: good(nil).Chain}, anchors, expect, "key-mismatch", true},
		{"expired", good(func(c *x509.Certificate) { c.NotAfter = now.Add(-time.Minute) }), anchors, expect, "expired", true},
		{"hours left", good(func(c *x509.Certificate) { c.NotAfter = now.Add(time.Hour) }), anchors, expect, "expires-soon", true},
		{"future", good(func(c *x509.Certificate) { c.NotBefore = now.Add(time.Hour) }), anchors, expect, "not-yet-valid", true},
		{"missing address", good(nil), anchors, wrongNames, "wrong-names", true},
		{"a name too many", good(func(c *x509.Certificate) { c.DNSNames = append(c.DNSNames, "bank.example") }), anchors, expect, "wrong-names", true},
		{"server only", good(func(c *x509.Certificate) { c.ExtKeyUsage = c.ExtKeyUsage[:1] }), anchors, expect, "wrong-usage", true},
		{"CA as leaf", good(func(c *x509.Certificate) { c.IsCA, c.BasicConstraintsValid = true, true }), anchors, expect, "leaf-is-ca", true},
		{"chain of 12 KB", good(fat), anchors, expect, "chain-too-large", true},
		{"untrusted", good(nil), []*x509.Certificate{other.root}, expect, "untrusted", true},
		{"empty truststore", good(nil), nil, expect, "empty-truststore", true},
		{"weak key", &keystore.KeyStore{Key: weak, Chain: []*x509.Certificate{p.leaf(t, weak.Public(), nil), p.issuer}}, anchors, expect, "weak-key", true},
		{"leaf as anchor", good(nil), append([]*x509.Certificate{good(nil).Leaf()}, anchors...), expect, "anchor-not-ca", false},
	}
	for _, c := range cases {
		ps := keystore.Check(c.ks, c.anchors, c.e)
		if !has(ps, c.code) || keystore.Fatal(ps) != c.fatal {
			t.Errorf("%s: %v, want %s (fatal %v)", c.what, ps, c.code, c.fatal)
		}
	}
}

func FuzzDecode(f *testing.F) {
	p, key := newPKI(f), newKey(f)
	chain := []*x509.Certificate{p.leaf(f, key.Public(), nil), p.issuer}
	for _, x := range formats {
		ks, err := keystore.EncodeKeyStore(x, key, chain, passwordOf(x))
		if err != nil {
			f.Fatal(err)
		}
		ts, err := keystore.EncodeTrustStore(x, chain[1:], passwordOf(x))
		if err != nil {
			f.Fatal(err)
		}
		f.Add(ks)
		f.Add(ts)
		f.Add(ks[:len(ks)/2])
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		for _, x := range formats {
			if ks, err := keystore.DecodeKeyStore(x, data, password); err == nil {
				keystore.Check(ks, nil, keystore.Expect{Now: now})
			}
			_, _ = keystore.DecodeTrustStore(x, data, password)
		}
	})
}
