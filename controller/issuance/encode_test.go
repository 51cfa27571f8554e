package issuance

import (
	"bytes"
	"crypto"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"math/big"
	"net"
	"net/url"
	"reflect"
	"testing"
	"time"

	"github.com/zmap/zlint/v3/lint"

	"github.com/cassandra-security-manager/csm/shared/algorithm"
	"github.com/cassandra-security-manager/csm/shared/certificate"
)

// issuerOf makes an issuer's certificate with one kind of key.
func issuerOf(t testing.TB, alg algorithm.Key) (*x509.Certificate, crypto.Signer) {
	t.Helper()
	algorithm.AllowBenchmark()
	key, err := algorithm.Generate(alg, rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	now := time.Now().Truncate(time.Second)
	tmpl := &x509.Certificate{SerialNumber: big.NewInt(7), Subject: pkix.Name{CommonName: "Issuing CA", Organization: []string{"Müller & Söhne"}},
		NotBefore: now, NotAfter: now.AddDate(40, 0, 0), IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign, SubjectKeyId: bytes.Repeat([]byte{9}, 20)}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	c, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return c, key
}

// TestLeavesAreEncodedAsCryptoX509Does compares what is to be signed byte by byte, for each kind of key and whatever a leaf may hold.
func TestLeavesAreEncodedAsCryptoX509Does(t *testing.T) {
	spiffe, _ := url.Parse("spiffe://0123.csm/agent/default/prod/n1/3")
	long := new(big.Int).Sub(new(big.Int).Lsh(big.NewInt(1), 159), big.NewInt(1))
	high := new(big.Int).Lsh(big.NewInt(0xff), 120) // its first bit is set: DER adds a byte
	now := time.Date(2026, 3, 1, 12, 30, 0, 0, time.FixedZone("here", 3600))
	plain := x509.Certificate{SerialNumber: long, Subject: pkix.Name{CommonName: "n1.example", Organization: []string{"default"}},
		NotBefore: now, NotAfter: now.AddDate(0, 3, 0), KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: both, BasicConstraintsValid: true,
		SubjectKeyId: bytes.Repeat([]byte{3}, 20), DNSNames: []string{"n1.example"}}
	variants := map[string]func(*x509.Certificate){
		"plain":        func(*x509.Certificate) {},
		"high serial":  func(c *x509.Certificate) { c.SerialNumber = high },
		"small serial": func(c *x509.Certificate) { c.SerialNumber = big.NewInt(1) },
		"client only":  func(c *x509.Certificate) { c.ExtKeyUsage = clientOnly },
		"key exchange": func(c *x509.Certificate) { c.KeyUsage |= x509.KeyUsageKeyEncipherment },
		"nine bits":    func(c *x509.Certificate) { c.KeyUsage |= x509.KeyUsageDecipherOnly },
		"after 2049":   func(c *x509.Certificate) { c.NotAfter = now.AddDate(30, 0, 0) },
		"no names":     func(c *x509.Certificate) { c.DNSNames = nil },
		"no subject":   func(c *x509.Certificate) { c.Subject = pkix.Name{} },
		"other subject": func(c *x509.Certificate) {
			c.Subject = pkix.Name{CommonName: "Größe", OrganizationalUnit: []string{"a", "b"}, Country: []string{"DE"}}
		},
		"all names": func(c *x509.Certificate) {
			c.DNSNames = append(c.DNSNames, "*.example", "xn--bcher-kva.example", "under_score.example")
			c.IPAddresses = []net.IP{net.ParseIP("10.0.0.1"), net.ParseIP("2001:db8::1").To16(), net.IPv4(192, 0, 2, 1).To4()}
			c.URIs = []*url.URL{spiffe}
		},
		"points": func(c *x509.Certificate) {
			c.CRLDistributionPoints = []string{"http://csm1.example:9643/crl/x/3.crl", "http://csm2.example:9643/crl/x/3.crl"}
			c.IssuingCertificateURL = []string{"http://csm1.example:9643/ca/x.crt", "http://csm2.example:9643/ca/x.crt"}
		},
		"many names": func(c *x509.Certificate) {
			for range 64 {
				c.DNSNames = append(c.DNSNames, "a.long.name.that.makes.lengths.grow.past.one.byte.example")
			}
		},
	}
	for _, alg := range []algorithm.Key{algorithm.P256, algorithm.P384, algorithm.P521, algorithm.RSA4096} {
		issuer, key := issuerOf(t, alg)
		sig, err := algorithm.Signature(issuer.PublicKey)
		if err != nil {
			t.Fatal(err)
		}
		spki := issuer.RawSubjectPublicKeyInfo // any key will do
		for name, vary := range variants {
			tmpl := plain
			vary(&tmpl)
			tmpl.SignatureAlgorithm = sig
			want, err := x509.CreateCertificate(rand.Reader, &tmpl, issuer, issuer.PublicKey, key)
			if err != nil {
				t.Fatalf("%s, %s: %v", alg, name, err)
			}
			parsed, err := x509.ParseCertificate(want)
			if err != nil {
				t.Fatalf("%s, %s: %v", alg, name, err)
			}
			got, err := toBeSigned(&tmpl, issuer, signings[sig].identifier, spki)
			if err != nil {
				t.Fatalf("%s, %s: %v", alg, name, err)
			}
			if !bytes.Equal(got, parsed.RawTBSCertificate) {
				t.Errorf("%s, %s:\n%x\nwant\n%x", alg, name, got, parsed.RawTBSCertificate)
			}
			if whole, err := assemble(got, signings[sig].identifier, parsed.Signature); err != nil || !bytes.Equal(whole, want) {
				t.Errorf("%s, %s: the whole certificate differs (%v)", alg, name, err)
			}
			if signings[sig].hash == 0 || !signings[sig].hash.Available() {
				t.Errorf("%s: no hash", alg)
			}
		}
	}
}

func TestNamesThatAreNotASCIIAreNotEncoded(t *testing.T) {
	issuer, _ := issuerOf(t, algorithm.P384)
	tmpl := &x509.Certificate{SerialNumber: big.NewInt(1), DNSNames: []string{"bücher.example"}}
	if der, err := toBeSigned(tmpl, issuer, signings[x509.ECDSAWithSHA384].identifier, issuer.RawSubjectPublicKeyInfo); err == nil {
		t.Fatalf("encoded as %x", der)
	}
}

// TestLintsAreFreeOfState: each is made once and then used by many at a time.
func TestLintsAreFreeOfState(t *testing.T) {
	l := newLinter()
	if len(l.rules) < 50 {
		t.Fatalf("%d lints are chosen", len(l.rules))
	}
	for _, r := range l.rules {
		if v := reflect.Indirect(reflect.ValueOf(r.lint)); v.Kind() != reflect.Struct || v.NumField() > 0 {
			t.Errorf("%s keeps something: %T", r.Name, r.lint)
		}
		if _, ok := r.lint.(lint.Configurable); ok {
			t.Errorf("%s wants a configuration", r.Name)
		}
	}
}

// BenchmarkRehearsal encodes and lints one leaf.
func BenchmarkRehearsal(b *testing.B) {
	issuer, _ := issuerOf(b, algorithm.P384)
	now := time.Now().UTC().Truncate(time.Second)
	serial, err := certificate.Serial(rand.Reader)
	if err != nil {
		b.Fatal(err)
	}
	names := certificate.Names{DNS: []string{"n1.bench.example"}}
	tmpl := &x509.Certificate{SerialNumber: serial, Subject: pkix.Name{CommonName: "n1.bench.example", Organization: []string{"default"}},
		NotBefore: now.Add(-10 * time.Minute), NotAfter: now.Add(30 * day), KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: clientOnly,
		BasicConstraintsValid: true, SubjectKeyId: bytes.Repeat([]byte{3}, 20), DNSNames: names.DNS, SignatureAlgorithm: x509.ECDSAWithSHA384}
	e := expected{template: appTemplate, names: names, spki: issuer.RawSubjectPublicKeyInfo, now: now, issuer: issuer, signature: tmpl.SignatureAlgorithm}
	how, l := signings[tmpl.SignatureAlgorithm], newLinter()
	b.ReportAllocs()
	for b.Loop() {
		tbs, err := toBeSigned(tmpl, issuer, how.identifier, e.spki)
		if err != nil {
			b.Fatal(err)
		}
		der, err := assemble(tbs, how.identifier, unfit())
		if err != nil {
			b.Fatal(err)
		}
		if err := l.check(der, e); err != nil {
			b.Fatal(err)
		}
	}
}
