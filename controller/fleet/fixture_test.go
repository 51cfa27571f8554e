package fleet_test

import (
	"context"
	"crypto/sha256"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/cassandra-security-manager/csm/controller/fleet"
	"github.com/cassandra-security-manager/csm/controller/state"
	"github.com/cassandra-security-manager/csm/controller/state/statetest"
	agentv1 "github.com/cassandra-security-manager/csm/protocol/agent/v1"
	clusterv1 "github.com/cassandra-security-manager/csm/protocol/cluster/v1"
	"github.com/cassandra-security-manager/csm/shared/fault"
	"github.com/cassandra-security-manager/csm/shared/resource"
)

const (
	cluster = "tenants/default/clusters/prod"
	ann     = "ann"
)

var (
	ctx        = context.Background()
	everywhere = func(string, string) bool { return true }
)

// recorder stands where the ledger stands: it asks the guard and keeps nothing.
func recorder() state.Module {
	return state.Module{Name: "recorder", Commands: func(r *state.Registry) {
		state.Handle(r, func(a *state.Apply, c *clusterv1.RecordCertificate) (*clusterv1.RecordedCertificate, error) {
			return &clusterv1.RecordedCertificate{Der: c.Der}, fleet.Guard(a, c)
		})
	}}
}

type world struct {
	t   testing.TB
	log *statetest.Log
	*fleet.Fleet
	requests int
	anchors  [][]byte
}

func newWorld(t testing.TB) *world {
	t.Helper()
	return worldOf(t, fleet.Module(), recorder(), bundler())
}

// newWorldWith is a world with somebody above the fleet.
func newWorldWith(t testing.TB, g *above) *world {
	t.Helper()
	return worldOf(t, fleet.Module(g), recorder(), g.module())
}

func worldOf(t testing.TB, modules ...state.Module) *world {
	t.Helper()
	w := &world{t: t, log: statetest.New(t, modules...), anchors: [][]byte{[]byte("anchor one")}}
	w.Fleet = fleet.New(w.log.Store, w.log, w.log.Clock, func(context.Context, string) ([][]byte, error) { return w.anchors, nil })
	if _, err := w.CreateCluster(ctx, fleet.ClusterSpec{Name: cluster, Authority: "tenants/default/authorities/internal"}, ann); err != nil {
		t.Fatal(err)
	}
	return w
}

// member is a node with its agent.
type member struct {
	w           *world
	name, uid   string
	incarnation uint64
	agent       *agentv1.AgentFacts
	instance    *agentv1.InstanceFacts
	store       *agentv1.StoreFacts
	stream      int
}

func (w *world) token(node string, spec fleet.TokenSpec) string {
	w.t.Helper()
	spec.Node = node
	if spec.Names.Empty() && !spec.Rejoin {
		spec.Names = fleet.Names{DNS: []string{node + ".example"}, IPs: []string{"10.0.0.1"}}
	}
	secret, _, err := w.CreateToken(ctx, cluster, spec, ann)
	if err != nil {
		w.t.Fatal(err)
	}
	return secret
}

func keyOf(s string) [32]byte { return sha256.Sum256([]byte(s)) }

func (w *world) spec(token, key string) fleet.JoinSpec {
	return fleet.JoinSpec{Token: token, Key: keyOf(key), Cluster: "prod", Peer: "10.0.0.1",
		Agent: &agentv1.AgentFacts{Mode: agentv1.Mode_MODE_MANAGE, GenerationCounter: 1}, Instance: &agentv1.InstanceFacts{ClusterName: "ring"}}
}

// joined is a node whose agent has joined and is connected in mode manage; nothing is installed.
func (w *world) joined(node string) *member {
	w.t.Helper()
	j, err := w.Join(ctx, w.spec(w.token(node, fleet.TokenSpec{}), "key of "+node))
	if err != nil {
		w.t.Fatal(err)
	}
	m := &member{w: w, name: j.Node, uid: j.UID, incarnation: j.Incarnation,
		agent:    &agentv1.AgentFacts{Mode: agentv1.Mode_MODE_MANAGE, GenerationCounter: 1, Machine: []byte(node)},
		instance: &agentv1.InstanceFacts{ClusterName: "ring"},
		store: &agentv1.StoreFacts{Store: "node", State: agentv1.InstallState_INSTALL_STATE_ABSENT, Ports: []*agentv1.Port{
			{Kind: agentv1.PortKind_PORT_KIND_INTERNODE, Address: "10.0.0.1", Port: 7000}, {Kind: agentv1.PortKind_PORT_KIND_CQL, Address: "10.0.0.1", Port: 9042}}}}
	m.must(m.connect())
	return m
}

func (m *member) must(err error) {
	m.w.t.Helper()
	if err != nil {
		m.w.t.Fatal(err)
	}
}

func (m *member) connect() error {
	r, err := fleet.Report{UID: m.uid, Incarnation: m.incarnation, Agent: m.agent, Instance: m.instance, Stores: []*agentv1.StoreFacts{m.store}}.Encode()
	m.must(err)
	m.stream++
	return m.w.Connected(ctx, r, "c1", fmt.Sprint(m.stream))
}

// say reports on the stream that is open.
func (m *member) say() error {
	r, err := fleet.Report{UID: m.uid, Incarnation: m.incarnation, Agent: m.agent, Instance: m.instance, Stores: []*agentv1.StoreFacts{m.store}}.Encode()
	m.must(err)
	return m.w.Reported(ctx, r)
}

func (m *member) view() fleet.Node {
	m.w.t.Helper()
	n, err := m.w.GetNode(ctx, m.name)
	m.must(err)
	return n
}

func (m *member) request(kind agentv1.MoveKind) *agentv1.ClaimMoveRequest {
	m.w.requests++
	var generation uint64
	if stores := m.view().Stores; len(stores) > 0 {
		generation = stores[0].Generation
	}
	return &agentv1.ClaimMoveRequest{Node: m.name, Incarnation: m.incarnation, Store: "node", Generation: generation, Kind: kind,
		KeystoreSha256: m.store.KeystoreSha256, TruststoreSha256: m.store.TruststoreSha256, RequestId: fmt.Sprint("r", m.w.requests)}
}

const (
	first = agentv1.MoveKind_MOVE_KIND_FIRST
	renew = agentv1.MoveKind_MOVE_KIND_RENEW
)

func (m *member) claim(kind agentv1.MoveKind) (string, error) {
	c, _, err := m.w.Claim(ctx, m.uid, m.request(kind))
	return c, err
}

func (m *member) record(claim, der string) *clusterv1.RecordCertificate {
	return &clusterv1.RecordCertificate{Node: m.name, Incarnation: m.incarnation, Store: "node", Claim: claim, Der: []byte(der), Issuer: resource.Issuer("tenants/default/authorities/internal", "eu"), RenewAtMs: statetest.Start.Add(time.Hour).UnixMilli(),
		Names: []*clusterv1.CertificateName{{Kind: "dns", Value: resource.Last(m.name) + ".example"}, {Kind: "ip", Value: "10.0.0.1"},
			{Kind: "cn", Value: resource.Last(m.name)}, {Kind: "uri", Value: "spiffe://x.csm/node/default/prod/" + resource.Last(m.name)}}}
}

func (w *world) propose(c *clusterv1.RecordCertificate) error {
	_, err := w.log.Propose(ctx, state.Proposal{Command: c, Actor: "issuance"})
	return err
}

func leafOf(der string) []byte { s := sha256.Sum256([]byte(der)); return s[:] }

// write takes a certificate under the claim and makes it the one in the files.
func (m *member) write(claim, der string) {
	m.w.t.Helper()
	m.must(m.w.propose(m.record(claim, der)))
	m.store.LeafSha256 = leafOf(der)
	m.store.KeystoreSha256, m.store.TruststoreSha256 = leafOf("keystore of "+der), leafOf("truststore")
}

func (m *member) report(claim string, outcome agentv1.MoveOutcome, proofs ...*agentv1.Proof) error {
	return m.w.Complete(ctx, m.uid, m.incarnation, &agentv1.ReportMoveRequest{Claim: claim, Outcome: outcome, Store: m.store, AfterSha256: m.store.LeafSha256, Proofs: proofs})
}

// ask requests proofs and gives the tasks.
func (m *member) ask(claim string) ([]string, string) {
	m.w.t.Helper()
	tasks, prober, err := m.w.RequestProofs(ctx, fleet.Caller{UID: m.uid, Incarnation: m.incarnation, Node: m.name, Cluster: cluster},
		&agentv1.RequestProofsRequest{Claim: claim, Store: "node", Ports: m.store.Ports, LeafSha256: m.store.LeafSha256}, everywhere)
	m.must(err)
	return tasks, prober
}

func accepted(p *agentv1.Port, leaf []byte) *agentv1.Proof {
	return &agentv1.Proof{Port: p, Verdict: agentv1.Verdict_VERDICT_ACCEPTED, ServedSha256: leaf}
}

// installed is a joined node whose store was written before Cassandra's first start.
func (w *world) installed(node string) *member {
	w.t.Helper()
	m := w.joined(node)
	c, err := m.claim(first)
	m.must(err)
	m.write(c, "first of "+node)
	m.store.State = agentv1.InstallState_INSTALL_STATE_INSTALLED_UNPROVEN
	m.must(m.report(c, agentv1.MoveOutcome_MOVE_OUTCOME_UNPROVEN))
	return m
}

// ring is some nodes whose Cassandra runs and that proved each other.
func (w *world) ring(nodes ...string) map[string]*member {
	w.t.Helper()
	out := map[string]*member{}
	for _, n := range nodes {
		out[resource.Node("default", "prod", n)] = w.installed(n)
	}
	for _, n := range nodes {
		m := out[resource.Node("default", "prod", n)]
		m.instance.Running = true
		m.must(m.connect())
		c, err := m.claim(first)
		m.must(err)
		m.prove(out, c)
		m.store.State = agentv1.InstallState_INSTALL_STATE_PROVEN
		m.must(m.report(c, agentv1.MoveOutcome_MOVE_OUTCOME_PROVEN))
	}
	short := map[string]*member{}
	for n, m := range out {
		short[resource.Last(n)] = m
	}
	return short
}

func (m *member) prove(all map[string]*member, claim string) {
	m.w.t.Helper()
	tasks, prober := m.ask(claim)
	by, ok := all[prober]
	if !ok {
		by = all[resource.Last(prober)]
	}
	for i, t := range tasks {
		m.must(m.w.RecordProof(ctx, by.uid, by.incarnation, t, accepted(m.store.Ports[i], m.store.LeafSha256)))
	}
}

func wantReason(t testing.TB, err error, reason string) {
	t.Helper()
	if !fault.HasReason(err, reason) {
		t.Errorf("got %v, want a fault with reason %s", err, reason)
	} else if f := fault.From(err); f.Message == "" || strings.Contains(f.Message, "%!") || strings.Contains(f.Remedy, "%!") {
		t.Errorf("the fault %q is not for people: %v", reason, err)
	}
}

// count reads one number out of the state.
func (w *world) count(query string, args ...any) (n int) {
	w.t.Helper()
	if err := w.log.Store.View(ctx, func(ctx context.Context, q state.Querier) error {
		return q.QueryRowContext(ctx, query, args...).Scan(&n)
	}); err != nil {
		w.t.Fatal(err)
	}
	return n
}
