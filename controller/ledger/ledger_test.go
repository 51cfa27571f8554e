package ledger_test

import (
	"context"
	"crypto/rand"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/cassandra-security-manager/csm/controller/ledger"
	"github.com/cassandra-security-manager/csm/controller/ledger/ledgertest"
	"github.com/cassandra-security-manager/csm/controller/state"
	"github.com/cassandra-security-manager/csm/controller/state/statetest"
	clusterv1 "github.com/cassandra-security-manager/csm/protocol/cluster/v1"
	"github.com/cassandra-security-manager/csm/shared/fault"
)

func TestTheReplicatedKindKeepsTheContract(t *testing.T) {
	ledgertest.Run(t, func(t *testing.T) *ledgertest.Fixture {
		l := statetest.New(t, ledger.Module(ledgertest.AnyIssuer{}))
		return &ledgertest.Fixture{Ledger: ledger.NewReplicated(l.Store, l.Clock), Log: l, Reader: l.Store, Now: l.Clock.Now, Advance: l.Clock.Advance}
	})
}

func row(i int, scope string) *clusterv1.RecordCertificate {
	serial, der := make([]byte, 20), make([]byte, 700)
	_, _ = rand.Read(serial)
	_, _ = rand.Read(der)
	serial[0] = 1
	end := statetest.Start.Add(time.Duration(i%2160) * time.Hour).UnixMilli()
	return &clusterv1.RecordCertificate{RequestId: fmt.Sprint(i), Scope: scope, Tenant: "default", Der: der, Serial: serial,
		Issuer: "tenants/default/authorities/a/issuers/eu-1", Node: scope, KeySha256: serial, NotAfterMs: end,
		Names: []*clusterv1.CertificateName{{Kind: "dns", Value: fmt.Sprintf("n%d.example", i%1000)}, {Kind: "ip", Value: fmt.Sprintf("10.0.%d.%d", i/256%4, i%256)}}}
}

func TestAGuardsRefusalLeavesNoTrace(t *testing.T) {
	calls := 0
	guard := func(_ *state.Apply, c *clusterv1.RecordCertificate) error {
		if calls++; c.Claim != "mine" {
			return fault.New(fault.Refused, "no-claim", "no claim")
		}
		return nil
	}
	l := statetest.New(t, ledger.Module(ledgertest.AnyIssuer{}, guard))
	c := row(1, "tenants/default/clusters/prod/nodes/n1")
	c.HourlyCap = 1
	for range 2 {
		if _, err := l.Propose(context.Background(), state.Proposal{Command: c, Actor: "t"}); !fault.HasReason(err, "no-claim") {
			t.Fatalf("error = %v", err)
		}
	}
	c.Claim = "mine" // neither the cap nor the request id nor the serial was spent by the refusals
	if _, err := l.Propose(context.Background(), state.Proposal{Command: c, Actor: "t"}); err != nil {
		t.Fatal(err)
	}
	if _, err := l.Propose(context.Background(), state.Proposal{Command: c, Actor: "t"}); err != nil || calls != 3 {
		t.Fatalf("a repeat asked the guards again: %v, %d calls", err, calls)
	}
}

// BenchmarkRecord is one command to a transaction; raft's batches are faster.
func BenchmarkRecord(b *testing.B) {
	l := statetest.New(b, ledger.Module(ledgertest.AnyIssuer{}))
	fill(b, l, 0, b.N)
}

func fill(b testing.TB, l *statetest.Log, from, to int) {
	b.Helper()
	for i := from; i < to; i++ {
		if _, err := l.Propose(context.Background(), state.Proposal{Command: row(i, fmt.Sprintf("tenants/default/clusters/c%d/nodes/n%d", i%7, i%1000)), Actor: "t"}); err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkPage lists from a ledger of 50,000 certificates: the first page and one from the middle must cost the same.
func BenchmarkPage(b *testing.B) {
	l := statetest.New(b, ledger.Module(ledgertest.AnyIssuer{}))
	fill(b, l, 0, 50_000)
	r := ledger.NewReplicated(l.Store, l.Clock)
	for name, f := range map[string]ledger.Filter{"all": {}, "expiring": {Order: ledger.ByExpiry, State: ledger.Active},
		"cluster": {Cluster: "tenants/default/clusters/c3"}, "cluster-expiring": {Cluster: "tenants/default/clusters/c3", Order: ledger.ByExpiry},
		"name": {NameContains: "n777"}, "issuer": {Issuer: "tenants/default/authorities/a/issuers/eu-1", Order: ledger.ByExpiry}} {
		p := ledger.Page{Size: 100}
		b.Run(name, func(b *testing.B) {
			for range b.N {
				_, next, err := r.List(context.Background(), f, p)
				if err != nil {
					b.Fatal(err)
				}
				p.Token = next
			}
		})
	}
}

// A list of a million rows pages in milliseconds because none of these sorts or reads what it does not return.
func TestListsFollowAnIndexAndSortNothing(t *testing.T) {
	l := statetest.New(t, ledger.Module(ledgertest.AnyIssuer{}))
	r := ledger.NewReplicated(l.Store, l.Clock)
	const cluster, issuer = "tenants/default/clusters/prod", "tenants/default/authorities/a/issuers/eu-1"
	for _, f := range []ledger.Filter{
		{}, {Order: ledger.ByOldest}, {Order: ledger.ByExpiry}, {Order: ledger.ByExpiryLast}, {Tenant: "default"},
		{Order: ledger.ByExpiry, State: ledger.Active}, {Order: ledger.ByExpiry, ExpiresBefore: statetest.Start},
		{Cluster: cluster}, {Cluster: cluster, Order: ledger.ByExpiry}, {Node: cluster + "/nodes/n1"}, {Issuer: issuer, Order: ledger.ByExpiry},
		{Identity: "spiffe://x.csm/agent/u/1"}, {State: ledger.Revoked}, {Serial: "0102"},
	} {
		plan, err := r.Plan(context.Background(), f)
		if err != nil {
			t.Fatal(err)
		}
		narrow := f.Cluster != "" || f.Node != "" || f.Issuer != "" || f.Identity != "" || f.Serial != "" || f.State == ledger.Revoked
		if strings.Contains(plan, "TEMP B-TREE") || narrow && !strings.Contains(plan, "SEARCH c USING") {
			t.Errorf("%+v: %s", f, plan)
		}
	}
}
