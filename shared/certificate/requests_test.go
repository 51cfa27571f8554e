package certificate_test

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"slices"
	"testing"

	"github.com/cassandra-security-manager/csm/shared/certificate"
	"github.com/cassandra-security-manager/csm/shared/fault"
)

func TestAProvedRequestProvesNoOther(t *testing.T) {
	key, err := ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	good, err := certificate.NewRequest(key, certificate.Names{DNS: []string{"a.example"}})
	if err != nil {
		t.Fatal(err)
	}
	forged := slices.Clone(good)
	forged[len(forged)-1] ^= 1
	var q certificate.Requests
	for range 3 {
		if r, err := q.Parse(good); err != nil || len(r.DNSNames) != 1 || r.DNSNames[0] != "a.example" {
			t.Fatalf("%+v %v", r, err)
		}
		if _, err := q.Parse(forged); !fault.HasReason(err, "bad-csr-signature") && !fault.HasReason(err, "bad-csr") {
			t.Fatalf("a forged request: %v", err)
		}
		if _, err := q.Parse(make([]byte, certificate.MaxRequest+1)); !fault.HasReason(err, "csr-too-large") {
			t.Fatalf("a large request: %v", err)
		}
	}
}
