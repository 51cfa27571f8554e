package readiness_test

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/hex"
	"math/big"
	"strconv"
	"testing"
	"time"

	"github.com/cassandra-security-manager/csm/controller/fleet"
	"github.com/cassandra-security-manager/csm/controller/ledger"
	"github.com/cassandra-security-manager/csm/controller/readiness"
	agentv1 "github.com/cassandra-security-manager/csm/protocol/agent/v1"
	"github.com/cassandra-security-manager/csm/shared/fault"
)

type facts []fleet.NodeFacts

func (f facts) Facts(context.Context, string) ([]fleet.NodeFacts, error) {
	if f == nil {
		return nil, fault.New(fault.NotFound, "no-cluster", "none")
	}
	return f, nil
}

// inventory gives two entries a page, whatever is asked for.
type inventory struct {
	all   []ledger.Found
	fails bool
	pages int
}

func (i *inventory) Found(_ context.Context, f ledger.FoundFilter, p ledger.Page) ([]ledger.Found, string, error) {
	if i.fails && i.pages > 0 {
		return nil, "", fault.New(fault.Unavailable, "no", "no")
	}
	i.pages++
	if f.Cluster != "tenants/t/clusters/c" || f.Tenant != "t" {
		return nil, "", fault.New(fault.Invalid, "bad", "asked for %+v", f)
	}
	at, _ := strconv.Atoi(p.Token)
	if at+2 >= len(i.all) {
		return i.all[at:], "", nil
	}
	return i.all[at : at+2], strconv.Itoa(at + 2), nil
}

func TestAllPagesOfTheInventoryAreJudgedWithTheirNode(t *testing.T) {
	now := time.Now()
	key, _ := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	der, err := x509.CreateCertificate(rand.Reader, &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "all"}, NotAfter: now.Add(time.Hour)},
		&x509.Certificate{Subject: pkix.Name{CommonName: "all"}}, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	sum := sha256.Sum256(der)
	var f facts
	inv := &inventory{}
	for _, n := range []string{"a", "b", "c"} {
		name := "tenants/t/clusters/c/nodes/" + n
		f = append(f, fleet.NodeFacts{Name: name, State: fleet.Active, Connected: true, Instance: &agentv1.InstanceFacts{},
			Stores: []*agentv1.StoreFacts{{Store: "node", KeystorePath: "/k", LeafSha256: sum[:], Anchors: [][]byte{sum[:]}}}})
		inv.all = append(inv.all, ledger.Found{Node: name, Path: "/k", SHA256: hex.EncodeToString(sum[:]), DER: der, HasPrivateKey: true})
	}
	inv.all = append(inv.all, ledger.Found{Node: "tenants/t/clusters/c/nodes/gone", SHA256: hex.EncodeToString(sum[:]), DER: der})
	r, err := readiness.Cluster(context.Background(), f, inv, "tenants/t/clusters/c", now)
	if err != nil {
		t.Fatal(err)
	}
	for _, n := range r.Nodes {
		shared := false
		for _, x := range n.Findings {
			shared = shared || x.Code == "shared-key"
		}
		if !shared || len(n.Expires) == 0 {
			t.Errorf("%s: %+v", n.Node, n)
		}
	}
	if r.Total != 3 || inv.pages != 2 {
		t.Errorf("%d nodes, %d pages", r.Total, inv.pages)
	}
	inv.fails = true
	if _, err := readiness.Cluster(context.Background(), f, inv, "tenants/t/clusters/c", now); !fault.Is(err, fault.Unavailable) {
		t.Errorf("half an inventory is judged as a whole one: %v", err)
	}
	if _, err := readiness.Cluster(context.Background(), facts(nil), inv, "tenants/t/clusters/c", now); !fault.Is(err, fault.NotFound) {
		t.Errorf("a cluster that is not there: %v", err)
	}
}
