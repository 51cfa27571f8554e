package algorithm_test

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"math/big"
	"testing"

	"github.com/cassandra-security-manager/csm/shared/algorithm"
	"github.com/cassandra-security-manager/csm/shared/fault"
)

func TestNothingBelowTheFloorPasses(t *testing.T) {
	p256, _ := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	_, ed, _ := ed25519.GenerateKey(rand.Reader)
	big4096 := new(big.Int).SetBit(big.NewInt(1), 4095, 1)
	for what, pub := range map[string]crypto.PublicKey{
		"P-256": p256.Public(), "Ed25519": ed.Public(), "nothing": nil,
		"RSA-2048":            &rsa.PublicKey{N: new(big.Int).SetBit(big.NewInt(1), 2047, 1), E: 65537},
		"RSA-4096 with e = 3": &rsa.PublicKey{N: big4096, E: 3},
	} {
		if err := algorithm.CheckFloor(pub); !fault.HasReason(err, "weak-key") {
			t.Errorf("%s: %v", what, err)
		}
		if _, err := algorithm.Signature(pub); err == nil {
			t.Errorf("%s may sign", what)
		}
	}
	for _, s := range []string{"P-256", "RSA-2048", "p-384", "DSA"} {
		if _, err := algorithm.Generate(algorithm.Key(s), rand.Reader); !fault.HasReason(err, "unknown-algorithm") {
			t.Errorf("%s is generated: %v", s, err)
		}
	}
	for _, a := range []x509.SignatureAlgorithm{x509.SHA1WithRSA, x509.SHA256WithRSA, x509.ECDSAWithSHA256, x509.PureEd25519} {
		if algorithm.CheckSignature(a) == nil {
			t.Errorf("%s passes", a)
		}
	}
}

func TestWhatIsGeneratedIsOfTheCatalogueAndSigns(t *testing.T) {
	for _, k := range []algorithm.Key{"", algorithm.P384, algorithm.P521} {
		s, err := algorithm.Generate(k, rand.Reader)
		if err != nil {
			t.Fatal(err)
		}
		want, _ := algorithm.Parse(string(k))
		if got, err := algorithm.OfPublic(s.Public()); got != want || err != nil {
			t.Errorf("%q made a key of %q, %v", k, got, err)
		}
		if a, err := algorithm.Signature(s.Public()); err != nil || algorithm.CheckSignature(a) != nil {
			t.Errorf("%q signs with %s, %v", k, a, err)
		}
	}
	if pub := (&rsa.PublicKey{N: new(big.Int).SetBit(big.NewInt(1), 4095, 1), E: 65537}); algorithm.CheckFloor(pub) != nil {
		t.Error("RSA-4096 is refused")
	}
}
