package issuance_test

import (
	"context"
	"crypto"
	"crypto/rand"
	"testing"

	"github.com/cassandra-security-manager/csm/controller/authority"
	"github.com/cassandra-security-manager/csm/controller/issuance"
	"github.com/cassandra-security-manager/csm/controller/keyring"
	"github.com/cassandra-security-manager/csm/controller/ledger"
	"github.com/cassandra-security-manager/csm/controller/state/statetest"
	"github.com/cassandra-security-manager/csm/shared/algorithm"
	"github.com/cassandra-security-manager/csm/shared/certificate"
	"github.com/cassandra-security-manager/csm/shared/fault"
)

const (
	actor = "test"
	node  = "tenants/default/clusters/prod/nodes/n1"
)

// world is a controller's signing half on a log of one voter.
type world struct {
	log         *statetest.Log
	keyring     *keyring.Keyring
	authorities *authority.Authorities
	ledger      *ledger.Replicated
	door        *issuance.Issuance
	authority   string
}

func newWorld(t testing.TB, alg algorithm.Key, o issuance.Options, guards ...ledger.Guard) *world {
	t.Helper()
	w := &world{log: statetest.New(t, keyring.Module(), authority.Module(), ledger.Module(authority.Issuers{}, guards...))}
	ctx := context.Background()
	kek, err := keyring.CreateKEK(t.TempDir(), keyring.FileSealer{Path: t.TempDir() + "/master"})
	must(t, err)
	w.keyring = keyring.New(w.log.Store, w.log, kek, "c1")
	public, _, err := keyring.NewRecovery()
	must(t, err)
	must(t, w.keyring.Initialise(ctx, actor, public))
	w.authorities = authority.New(w.log.Store, w.log, w.keyring, w.log.Clock, rand.Reader,
		authority.Options{BaseURLs: []string{"http://csm1.example:9643"}, AllowBenchmark: o.AllowBenchmark})
	_, err = w.authorities.Genesis(ctx, "0123456789abcdef", actor)
	must(t, err)
	a, err := w.authorities.CreateRoot(ctx, "default", "internal", authority.CreateOptions{Actor: actor, Algorithm: alg})
	must(t, err)
	w.authority = a.Name
	_, err = w.authorities.CreateIssuer(ctx, a.Name, "eu", actor)
	must(t, err)
	w.ledger = ledger.NewReplicated(w.log.Store, w.log.Clock)
	w.door = issuance.New(w.authorities, w.log, w.log.Clock, rand.Reader, o)
	return w
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func names(t testing.TB, dns, ips []string) certificate.Names {
	t.Helper()
	n, err := certificate.ParseNames(dns, ips, nil)
	must(t, err)
	return n
}

func key(t testing.TB, alg algorithm.Key) crypto.Signer {
	t.Helper()
	k, err := algorithm.Generate(alg, rand.Reader)
	must(t, err)
	return k
}

func csr(t testing.TB, k crypto.Signer, n certificate.Names) []byte {
	t.Helper()
	der, err := certificate.NewRequest(k, n)
	must(t, err)
	return der
}

// nodeRequest is a lawful request of n1.
func (w *world) nodeRequest(t testing.TB, id string) issuance.Request {
	n := names(t, []string{"n1.example"}, []string{"10.0.0.1"})
	return issuance.Request{RequestID: id, Actor: actor, Tenant: "default", Authority: w.authority, Region: "eu", Template: "node",
		CSR: csr(t, key(t, algorithm.P384), n), Names: n, Node: node, Incarnation: 1, Store: "node"}
}

func wantReason(t testing.TB, err error, reason string) {
	t.Helper()
	if !fault.HasReason(err, reason) {
		t.Fatalf("error = %v, want reason %s", err, reason)
	}
}
