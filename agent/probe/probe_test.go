package probe_test

import (
	"context"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/cassandra-security-manager/csm/agent/cassandra/cassandratest"
	"github.com/cassandra-security-manager/csm/agent/probe"
	agentv1 "github.com/cassandra-security-manager/csm/protocol/agent/v1"
	"github.com/cassandra-security-manager/csm/shared/keystore"
)

const (
	internode = agentv1.PortKind_PORT_KIND_INTERNODE
	cql       = agentv1.PortKind_PORT_KIND_CQL
)

type bench struct {
	ca   *cassandratest.CA
	leaf cassandratest.Leaf
	node *cassandratest.Node
}

func start(t *testing.T) bench {
	t.Helper()
	ca := cassandratest.NewCA(t, "a")
	leaf := ca.Leaf()
	s := cassandratest.NewStore(t, keystore.PEM)
	cassandratest.Write(t, s, leaf, ca.Root)
	return bench{ca, leaf, cassandratest.Start(t, s)}
}

func (b bench) request(k agentv1.PortKind) probe.Request {
	p := b.node.Instance().InternodePort()
	if k == cql {
		p = b.node.Instance().CQLPort()
	}
	return probe.Request{Kind: k, Address: p.Address.String(), Port: p.Port, Local: netip.MustParseAddr("127.0.0.1"), Certificate: b.leaf.TLS(),
		Roots: []*x509.Certificate{b.ca.Root}, ExpectLeaf: sha256.Sum256(b.leaf.Chain[0].Raw), Timeout: 400 * time.Millisecond}
}

func TestAnApplicationAnswerIsAcceptance(t *testing.T) {
	b := start(t)
	for _, k := range []agentv1.PortKind{internode, cql} {
		r := probe.Probe(context.Background(), b.request(k))
		if !r.Proven() || !r.Accepted || len(r.Chain) != 2 || r.TLS != tls.VersionTLS13 {
			t.Errorf("%v: %+v", k, r)
		}
	}
	if n := b.node.LoggedErrors(); n != 0 {
		t.Errorf("passing probes wrote %d ERRORs", n)
	}
}

func TestEachRudenessHasItsVerdict(t *testing.T) {
	b := start(t)
	other := cassandratest.NewCA(t, "other").Leaf()
	b.node.ServeOther(other.TLS())
	for _, c := range []struct {
		mode   cassandratest.Mode
		want   agentv1.Verdict
		served bool
		detail string
	}{
		{cassandratest.Silent, agentv1.Verdict_VERDICT_UNKNOWN, true, "silence"},
		{cassandratest.Stalled, agentv1.Verdict_VERDICT_UNKNOWN, false, "silence"},
		{cassandratest.Reset, agentv1.Verdict_VERDICT_UNKNOWN, true, ""},
		{cassandratest.Closing, agentv1.Verdict_VERDICT_UNKNOWN, true, ""},
		{cassandratest.Garbage, agentv1.Verdict_VERDICT_UNKNOWN, true, ""},
		{cassandratest.Plain, agentv1.Verdict_VERDICT_UNKNOWN, false, "not-tls"},
		{cassandratest.Other, agentv1.Verdict_VERDICT_WRONG_LEAF, true, "expected"},
	} {
		for _, k := range []agentv1.PortKind{internode, cql} {
			b.node.Set(k, c.mode)
			r := probe.Probe(context.Background(), b.request(k))
			if r.Verdict != c.want || (r.Served != [32]byte{}) != c.served || !strings.Contains(r.Detail, c.detail) || r.Proven() {
				t.Errorf("mode %d on %v: %v served=%x %q", c.mode, k, r.Verdict, r.Served[:4], r.Detail)
			}
		}
	}
}

func TestARefusedCertificateIsAnAlertAndTheServedLeafIsKnown(t *testing.T) {
	b := start(t)
	for _, k := range []agentv1.PortKind{internode, cql} {
		for name, cert := range map[string]*tls.Certificate{"none": nil, "of another CA": cassandratest.NewCA(t, "other").Leaf().TLS()} {
			q := b.request(k)
			q.Certificate = cert
			r := probe.Probe(context.Background(), q)
			if r.Verdict != agentv1.Verdict_VERDICT_REFUSED || r.Served != q.ExpectLeaf || !strings.Contains(r.Detail, "alert") {
				t.Errorf("%v, certificate %s: %v %q", k, name, r.Verdict, r.Detail)
			}
		}
	}
}

func TestNothingThereIsDown(t *testing.T) {
	b := start(t)
	q := b.request(cql)
	b.node.Stop()
	if r := probe.Probe(context.Background(), q); r.Verdict != agentv1.Verdict_VERDICT_DOWN {
		t.Errorf("%v %q", r.Verdict, r.Detail)
	}
}

func TestAnUntrustedChainIsNoProof(t *testing.T) {
	b := start(t)
	q := b.request(internode)
	q.Roots = []*x509.Certificate{cassandratest.NewCA(t, "other").Root}
	r := probe.Probe(context.Background(), q)
	if r.Verdict != agentv1.Verdict_VERDICT_ACCEPTED || r.Untrusted == "" || r.Proven() {
		t.Errorf("%+v", r)
	}
}

func TestACancelledProbeEndsAtOnceAsUnknown(t *testing.T) {
	b := start(t)
	b.node.Set(cql, cassandratest.Silent)
	q := b.request(cql)
	q.Timeout = time.Minute
	ctx, cancel := context.WithTimeout(context.Background(), 50*time.Millisecond)
	defer cancel()
	if r := probe.Probe(ctx, q); r.Verdict != agentv1.Verdict_VERDICT_UNKNOWN || r.Took > 2*time.Second {
		t.Errorf("%v after %v", r.Verdict, r.Took)
	}
}
