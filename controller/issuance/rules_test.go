package issuance

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"math/big"
	"net"
	"testing"
	"time"

	"github.com/zmap/zlint/v3/lint"
	"pgregory.net/rapid"

	"github.com/cassandra-security-manager/csm/shared/algorithm"
	"github.com/cassandra-security-manager/csm/shared/certificate"
	"github.com/cassandra-security-manager/csm/shared/fault"
)

func TestRenewalIsDrawnInItsWindowForEveryLife(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		life := time.Duration(rapid.Int64Range(int64(day/time.Second), int64(398*day/time.Second)).Draw(t, "seconds")) * time.Second
		now := time.Unix(1_800_000_000, 0)
		at, err := drawRenewal(rand.Reader, now, now.Add(life))
		if err != nil {
			t.Fatal(err)
		}
		after, left := at.Sub(now), life-at.Sub(now)
		if after > life*7/10 || left <= 0 || after < life/3 {
			t.Fatalf("a life of %s is renewed after %s", life, after)
		}
		if life >= 2*RepairFloor && left < RepairFloor {
			t.Fatalf("a life of %s leaves %s to repair", life, left)
		}
		if life >= 70*day && after < life*6/10-time.Second {
			t.Fatalf("a life of %s is renewed as early as %s", life, after)
		}
	})
}

func TestLifetimesStayWithinTemplateAndIssuer(t *testing.T) {
	now := time.Unix(1_800_000_000, 0)
	for _, c := range []struct {
		asked, issuer, want time.Duration
		reason              string
	}{
		{0, 1000 * day, 90 * day, ""},
		{day, 1000 * day, day, ""},
		{398 * day, 1000 * day, 398 * day, ""},
		{90 * day, 30 * day, 30 * day, ""},
		{day - 1, 1000 * day, 0, "validity-too-short"},
		{398*day + 1, 1000 * day, 0, "validity-too-long"},
		{0, day - time.Second, 0, "issuer-expiring"},
		{0, -day, 0, "issuer-expiring"},
	} {
		end, err := nodeTemplate.lifetime(c.asked, now, now.Add(c.issuer))
		if c.reason != "" {
			if !fault.HasReason(err, c.reason) {
				t.Errorf("%+v: %v", c, err)
			}
		} else if err != nil || end != now.Add(c.want) {
			t.Errorf("%+v: %v, %v", c, end, err)
		}
	}
}

func TestTheChosenLintsAreThoseOfTheRFCs(t *testing.T) {
	l := newLinter()
	names := map[string]bool{}
	for _, x := range l.rules {
		names[x.Name] = true
		if x.Source == lint.CABFBaselineRequirements || x.Source == lint.MozillaRootStorePolicy {
			t.Errorf("%s is a rule of the web", x.Name)
		}
	}
	for _, must := range []string{"e_serial_number_longer_than_20_octets", "e_ext_san_no_entries", "e_ext_duplicate_extension", "e_cert_contains_unique_identifier",
		"e_subject_common_name_max_length", "e_wrong_time_format_pre2050", "e_ecdsa_allowed_ku", "e_ext_key_usage_cert_sign_without_ca"} {
		if !names[must] {
			t.Errorf("%s does not run; %d lints do", must, len(l.rules))
		}
	}
}

// TestEachOwnRuleFires breaks one property at a time: a rule that never fires is no rule.
func TestEachOwnRuleFires(t *testing.T) {
	now := time.Now().Truncate(time.Second)
	ca, err := ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	parent := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "ca"}, NotBefore: now.Add(-day), NotAfter: now.Add(500 * day),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign, SubjectKeyId: []byte{1, 2, 3}}
	der, err := x509.CreateCertificate(rand.Reader, parent, parent, ca.Public(), ca)
	if err != nil {
		t.Fatal(err)
	}
	if parent, err = x509.ParseCertificate(der); err != nil {
		t.Fatal(err)
	}
	leafKey, err := algorithm.Generate(algorithm.P384, rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	spki, err := x509.MarshalPKIXPublicKey(leafKey.Public())
	if err != nil {
		t.Fatal(err)
	}
	serial, err := certificate.Serial(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	allowed := certificate.Names{DNS: []string{"n1.example"}}
	l := newLinter()
	check := func(change func(*x509.Certificate)) error {
		tmpl := &x509.Certificate{SerialNumber: serial, Subject: pkix.Name{CommonName: "n1"}, DNSNames: []string{"n1.example"}, NotBefore: now.Add(-10 * time.Minute),
			NotAfter: now.Add(90 * day), KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: both, BasicConstraintsValid: true, SubjectKeyId: []byte{9},
			SignatureAlgorithm: x509.ECDSAWithSHA384, CRLDistributionPoints: []string{"http://x/crl"}, IssuingCertificateURL: []string{"http://x/ca"}}
		change(tmpl)
		der, err := x509.CreateCertificate(rand.Reader, tmpl, parent, leafKey.Public(), ca)
		if err != nil {
			t.Fatal(err)
		}
		return l.check(der, expected{template: nodeTemplate, names: allowed, spki: spki, now: now, issuer: parent, signature: x509.ECDSAWithSHA384, pointed: true})
	}
	if err := check(func(*x509.Certificate) {}); err != nil {
		t.Fatalf("a good leaf is refused: %v", err)
	}
	for name, change := range map[string]func(*x509.Certificate){
		"a CA":                   func(c *x509.Certificate) { c.IsCA = true; c.KeyUsage |= x509.KeyUsageCertSign },
		"no basic constraints":   func(c *x509.Certificate) { c.BasicConstraintsValid = false },
		"a short serial":         func(c *x509.Certificate) { c.SerialNumber = big.NewInt(7) },
		"SHA-256":                func(c *x509.Certificate) { c.SignatureAlgorithm = x509.ECDSAWithSHA256 },
		"one usage missing":      func(c *x509.Certificate) { c.ExtKeyUsage = both[:1] },
		"a usage more":           func(c *x509.Certificate) { c.ExtKeyUsage = append(both[:2:2], x509.ExtKeyUsageCodeSigning) },
		"no key usage":           func(c *x509.Certificate) { c.KeyUsage = 0 },
		"a name more":            func(c *x509.Certificate) { c.DNSNames = append(c.DNSNames, "n2.example") },
		"an address more":        func(c *x509.Certificate) { c.IPAddresses = []net.IP{net.IPv4(10, 0, 0, 1)} },
		"no names":               func(c *x509.Certificate) { c.DNSNames = nil },
		"an e-mail address":      func(c *x509.Certificate) { c.EmailAddresses = []string{"a@b.c"} },
		"a begin too early":      func(c *x509.Certificate) { c.NotBefore = now.Add(-2 * time.Hour) },
		"a begin in the future":  func(c *x509.Certificate) { c.NotBefore = now.Add(time.Hour) },
		"an end past its issuer": func(c *x509.Certificate) { c.NotAfter = now.Add(501 * day) },
		"an end past its limit":  func(c *x509.Certificate) { c.NotAfter = now.Add(399 * day) },
		"an end too soon":        func(c *x509.Certificate) { c.NotAfter = now.Add(time.Hour) },
		"no list":                func(c *x509.Certificate) { c.CRLDistributionPoints = nil },
		"too large": func(c *x509.Certificate) {
			c.ExtraExtensions = []pkix.Extension{{Id: []int{1, 2, 3}, Value: make([]byte, 7<<10)}}
		},
	} {
		if err := check(change); !fault.HasReason(err, "lint") {
			t.Errorf("%s: %v", name, err)
		}
	}
	other, err := algorithm.Generate(algorithm.P384, rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	leafKey = other
	if err := check(func(*x509.Certificate) {}); !fault.HasReason(err, "lint") {
		t.Errorf("another key: %v", err)
	}
}

// FuzzExamine feeds the first thing that reads what came over the network.
func FuzzExamine(f *testing.F) {
	k, err := algorithm.Generate(algorithm.P384, rand.Reader)
	if err != nil {
		f.Fatal(err)
	}
	good, err := certificate.NewRequest(k, certificate.Names{DNS: []string{"n1.example"}})
	if err != nil {
		f.Fatal(err)
	}
	f.Add(good)
	f.Add([]byte{})
	f.Add([]byte{0x30, 0x84, 0xff, 0xff, 0xff, 0xff})
	s := &Issuance{}
	f.Fuzz(func(t *testing.T, der []byte) {
		w, err := s.examine(der)
		if err != nil {
			if e := fault.From(err); e.Code == fault.Internal {
				t.Fatalf("outside bytes made an internal error: %v", err)
			}
			return
		}
		if algorithm.CheckFloor(w.public) != nil {
			t.Fatal("a key below the floor passed")
		}
		if _, err := w.names.Normalise(); err != nil {
			t.Fatalf("names are not in normal form: %v", err)
		}
	})
}
