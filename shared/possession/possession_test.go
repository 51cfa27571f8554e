package possession_test

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

	"github.com/cassandra-security-manager/csm/shared/fault"
	"github.com/cassandra-security-manager/csm/shared/possession"
)

func leaf(t *testing.T, key crypto.Signer) *x509.Certificate {
	t.Helper()
	tpl := &x509.Certificate{SerialNumber: big.NewInt(1)}
	der, err := x509.CreateCertificate(rand.Reader, tpl, tpl, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	c, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func TestASignatureCountsForOneConnectionOneKeyAndOneCluster(t *testing.T) {
	rk, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	ek, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	_, dk, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	for name, key := range map[string]crypto.Signer{"RSA": rk, "ECDSA": ek, "Ed25519": dk} {
		c, here := leaf(t, key), possession.Binding{1}
		sig, err := possession.Sign(key, possession.Statement(here, []byte("new key"), "prod"))
		if err != nil {
			t.Fatal(err)
		}
		if err := possession.Verify(c, possession.Statement(here, []byte("new key"), "prod"), sig); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		for what, s := range map[string][]byte{"connection": possession.Statement(possession.Binding{2}, []byte("new key"), "prod"),
			"key": possession.Statement(here, []byte("another"), "prod"), "cluster": possession.Statement(here, []byte("new key"), "prod2")} {
			if err := possession.Verify(c, s, sig); !fault.HasReason(err, "not-possessed") {
				t.Errorf("%s: a signature for another %s was taken: %v", name, what, err)
			}
		}
	}
}
