package issuance_test

import (
	"context"
	"fmt"
	"testing"

	"github.com/cassandra-security-manager/csm/controller/issuance"
	"github.com/cassandra-security-manager/csm/shared/algorithm"
	"github.com/cassandra-security-manager/csm/shared/certificate"
)

// BenchmarkIssue signs and records without raft: CSR check, lint, signature, verification, SQLite.
func BenchmarkIssue(b *testing.B) {
	for _, alg := range []algorithm.Key{algorithm.P384, algorithm.P256} {
		b.Run(string(alg), func(b *testing.B) {
			w := newWorld(b, alg, issuance.Options{AllowBenchmark: true, HourlyCap: -1})
			r := w.nodeRequest(b, "x")
			r.CSR = csr(b, key(b, alg), r.Names)
			b.ResetTimer()
			for i := range b.N {
				r.RequestID = fmt.Sprint(i)
				if _, err := w.door.Issue(context.Background(), r); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

// BenchmarkBare is what no issuer can go below: check a request, sign, verify once.
func BenchmarkBare(b *testing.B) {
	for _, alg := range []algorithm.Key{algorithm.P384, algorithm.P256} {
		b.Run(string(alg), func(b *testing.B) {
			algorithm.AllowBenchmark()
			k := key(b, alg)
			der := csr(b, k, certificate.Names{DNS: []string{"n1.example"}})
			b.ResetTimer()
			for range b.N {
				if _, err := certificate.ParseRequest(der); err != nil {
					b.Fatal(err)
				}
				if _, err := certificate.NewRequest(k, certificate.Names{}); err != nil { // one signature, verified by x509
					b.Fatal(err)
				}
			}
		})
	}
}
