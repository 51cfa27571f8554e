package certificate_test

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"math/big"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/cassandra-security-manager/csm/shared/algorithm"
	"github.com/cassandra-security-manager/csm/shared/certificate"
	"github.com/cassandra-security-manager/csm/shared/fault"
)

func TestNamesAreComparedInOneForm(t *testing.T) {
	a, err := certificate.ParseNames([]string{"N1.Example.", "n1.example"}, []string{"10.0.0.1", "::ffff:10.0.0.1"}, []string{"spiffe://x.csm/node/a/b/c"})
	if err != nil || len(a.DNS) != 1 || len(a.IPs) != 1 {
		t.Fatalf("%v, %v", a, err)
	}
	b := certificate.Names{DNS: []string{"n1.example"}, IPs: []netip.Addr{netip.MustParseAddr("10.0.0.1")}, URIs: a.URIs}
	if !a.Equal(b) || !a.Contains(certificate.Names{}) || (certificate.Names{}).Contains(a) {
		t.Error("the same names differ")
	}
	b.IPs = append(b.IPs, netip.MustParseAddr("10.0.0.2"))
	if a.Contains(b) || !b.Contains(a) || a.Missing(b).String() != "IP:10.0.0.2" {
		t.Errorf("missing = %s", a.Missing(b))
	}
}

func TestWhatCannotBeANameIsRefused(t *testing.T) {
	for _, c := range []struct{ dns, ip, uri string }{
		{dns: "*.example"}, {dns: ""}, {dns: "a..b"}, {dns: "-a.example"}, {dns: "10.0.0.1"}, {dns: "a b"}, {dns: strings.Repeat("a", 64) + ".example"},
		{dns: "n1.example\x00.evil"}, {ip: "0.0.0.0"}, {ip: "fe80::1%eth0"}, {ip: "224.0.0.1"}, {ip: "n1"}, {uri: "/relative"}, {uri: "spiffe:x"}, {uri: "spiffe://a b/"},
	} {
		var d, i, u []string
		switch {
		case c.ip != "":
			i = []string{c.ip}
		case c.uri != "":
			u = []string{c.uri}
		default:
			d = []string{c.dns}
		}
		if n, err := certificate.ParseNames(d, i, u); !fault.Is(err, fault.Invalid) {
			t.Errorf("%+v became %v, %v", c, n, err)
		}
	}
	if _, err := certificate.ParseNames(make([]string, 65), nil, nil); !fault.HasReason(err, "too-many-names") {
		t.Errorf("65 names: %v", err)
	}
}

func TestARequestProvesPossessionOfAGoodKey(t *testing.T) {
	key, _ := algorithm.Generate(algorithm.P384, rand.Reader)
	names, _ := certificate.ParseNames([]string{"n1.example"}, []string{"10.0.0.1"}, []string{"spiffe://x.csm/node/a/b/c"})
	der, err := certificate.NewRequest(key, names)
	if err != nil {
		t.Fatal(err)
	}
	r, err := certificate.ParseRequest(der)
	if err != nil || !certificate.OfRequest(r).Equal(names) || !certificate.SameKey(r.PublicKey, key.Public()) {
		t.Fatalf("%v, %v", r, err)
	}
	broken := bytes.Clone(der)
	broken[len(broken)-5] ^= 1
	weak, _ := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	weakDER, _ := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{}, weak)
	for what, c := range map[string]struct {
		der    []byte
		reason string
	}{
		"a changed signature": {broken, "bad-csr-signature"},
		"a weak key":          {weakDER, "weak-key"},
		"1 MB of rubbish":     {bytes.Repeat([]byte{0x30}, 1<<20), "csr-too-large"},
		"rubbish":             {bytes.Repeat([]byte{0x30}, 1000), "bad-csr"},
		"nothing":             {nil, "bad-csr"},
	} {
		if _, err := certificate.ParseRequest(c.der); !fault.HasReason(err, c.reason) {
			t.Errorf("%s: %v, want %s", what, err, c.reason)
		}
	}
}

func TestASerialHas159RandomBits(t *testing.T) {
	s, err := certificate.Serial(bytes.NewReader(append(make([]byte, 20), bytes.Repeat([]byte{0xff}, 20)...)))
	want := new(big.Int).Sub(new(big.Int).Lsh(big.NewInt(1), 159), big.NewInt(1))
	if err != nil || s.Cmp(want) != 0 {
		t.Errorf("serial = %x, %v; zero must be drawn again", s, err)
	}
	if _, err := certificate.Serial(bytes.NewReader(nil)); err == nil {
		t.Error("a serial without randomness")
	}
}

func TestAChainMustBeGoodForEachUsage(t *testing.T) {
	key, _ := algorithm.Generate(algorithm.P384, rand.Reader)
	now := time.Date(2026, 11, 22, 0, 0, 0, 0, time.UTC)
	make := func(tmpl *x509.Certificate, parent *x509.Certificate) *x509.Certificate {
		tmpl.SerialNumber, tmpl.NotBefore, tmpl.NotAfter = big.NewInt(1), now.Add(-time.Hour), now.Add(time.Hour)
		if parent == nil {
			parent = tmpl
		}
		der, err := x509.CreateCertificate(rand.Reader, tmpl, parent, key.Public(), key)
		if err != nil {
			t.Fatal(err)
		}
		c, _ := certificate.Parse(der)
		return c
	}
	root := make(&x509.Certificate{Subject: pkix.Name{CommonName: "root"}, IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign}, nil)
	leaf := make(&x509.Certificate{Subject: pkix.Name{CommonName: "leaf"}, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}}, root)
	roots := []*x509.Certificate{root}
	if err := certificate.VerifyChain(leaf, nil, roots, now, x509.ExtKeyUsageServerAuth); err != nil {
		t.Error(err)
	}
	for what, err := range map[string]error{
		"client too": certificate.VerifyChain(leaf, nil, roots, now, x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth),
		"later":      certificate.VerifyChain(leaf, nil, roots, now.Add(2*time.Hour)),
		"no roots":   certificate.VerifyChain(leaf, nil, nil, now),
	} {
		if !fault.HasReason(err, "untrusted-chain") {
			t.Errorf("%s: %v", what, err)
		}
	}
	back, err := certificate.DecodePEM(certificate.EncodePEM(leaf, root))
	if err != nil || len(back) != 2 || !back[0].Equal(leaf) {
		t.Errorf("PEM: %v, %v", back, err)
	}
	for serial, want := range map[int64]string{0x0a1b2c: "0a1b2c", 0x7f: "7f", 0x1000: "1000"} {
		if d := certificate.Describe(&x509.Certificate{SerialNumber: big.NewInt(serial)}); d.Serial != want {
			t.Errorf("serial %q, want %q", d.Serial, want)
		}
	}
	if d := certificate.Describe(leaf); d.KeyAlgorithm != "P-384" || d.ExtKeyUsage[0] != "serverAuth" || len(d.SHA256) != 64 {
		t.Errorf("%+v", d)
	}
}

func TestOnlyOnePKCS8KeyIsRead(t *testing.T) {
	key, _ := algorithm.Generate(algorithm.P384, rand.Reader)
	data, err := certificate.EncodeKeyPEM(key)
	if err != nil {
		t.Fatal(err)
	}
	if k, err := certificate.DecodeKeyPEM(data); err != nil || !certificate.SameKey(k.Public(), key.Public()) {
		t.Error(err)
	}
	for text, reason := range map[string]string{
		string(data) + string(data): "several-keys",
		"":                          "no-key",
		"-----BEGIN EC PRIVATE KEY-----\nAA==\n-----END EC PRIVATE KEY-----\n": "bad-key",
		"-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n":       "bad-key",
		strings.Repeat("x", certificate.MaxPEM+1):                              "pem-too-large",
	} {
		if _, err := certificate.DecodeKeyPEM([]byte(text)); !fault.HasReason(err, reason) {
			t.Errorf("%.40q: %v, want %s", text, err, reason)
		}
	}
}
