package rollout_test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/cassandra-security-manager/csm/controller/fleet"
	"github.com/cassandra-security-manager/csm/controller/fleet/rollout"
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
	old     = "tenants/default/authorities/internal"
)

const (
	proven     = agentv1.MoveOutcome_MOVE_OUTCOME_PROVEN
	unproven   = agentv1.MoveOutcome_MOVE_OUTCOME_UNPROVEN
	rolledBack = agentv1.MoveOutcome_MOVE_OUTCOME_ROLLED_BACK
	refused    = agentv1.MoveOutcome_MOVE_OUTCOME_REFUSED
	failed     = agentv1.MoveOutcome_MOVE_OUTCOME_FAILED
)

var (
	ctx        = context.Background()
	everywhere = func(string, string) bool { return true }
)

// recorder stands where the ledger stands: it asks the fleet's guard.
func recorder() state.Module {
	return state.Module{Name: "recorder", Commands: func(r *state.Registry) {
		state.Handle(r, func(a *state.Apply, c *clusterv1.RecordCertificate) (*clusterv1.RecordedCertificate, error) {
			return &clusterv1.RecordedCertificate{Der: c.Der}, fleet.Guard(a, c)
		})
	}}
}

// world is a ring whose agents do what a test says, over the real state machine.
type world struct {
	t        testing.TB
	log      *statetest.Log
	fleet    *fleet.Fleet
	rollouts *rollout.Rollouts
	nodes    []*member
	serial   int
}

type member struct {
	w           *world
	name, uid   string
	incarnation uint64
	id          []byte
	agent       *agentv1.AgentFacts
	instance    *agentv1.InstanceFacts
	store       *agentv1.StoreFacts
	streams     int
}

// owner begins a rollout inside Apply, and excuses members, as package rotation does.
func owner() state.Module {
	return state.Module{Name: "owner", Commands: func(r *state.Registry) {
		state.Handle(r, func(a *state.Apply, c *clusterv1.StartRotation) (*clusterv1.StartRotationReply, error) {
			s := rollout.Usual(c.Cluster, rollout.Renew)
			s.Owner = c.Cluster + "/rotations/r1"
			name, err := rollout.Begin(a, s)
			return &clusterv1.StartRotationReply{Name: name}, err
		})
		state.Handle(r, func(a *state.Apply, c *clusterv1.SetAsideMember) (*clusterv1.Empty, error) {
			return &clusterv1.Empty{}, rollout.Excuse(a, c.Name, strings.Fields(c.Member))
		})
	}}
}

// newWorld is a ring of proved nodes, named n1, n2 and so on, in the racks that are given.
func newWorld(t testing.TB, racks ...string) *world {
	t.Helper()
	w := &world{t: t, log: statetest.New(t, fleet.Module(rollout.Gate{}), rollout.Module(), recorder(), owner())}
	w.fleet = fleet.New(w.log.Store, w.log, w.log.Clock, func(context.Context, string) ([][]byte, error) { return [][]byte{[]byte("anchor")}, nil })
	w.rollouts = rollout.New(w.log.Store, w.log, w.log.Clock)
	if _, err := w.fleet.CreateCluster(ctx, fleet.ClusterSpec{Name: cluster, Authority: old}, ann); err != nil {
		t.Fatal(err)
	}
	for i, rack := range racks {
		w.nodes = append(w.nodes, w.join(fmt.Sprintf("n%d", i+1), rack, i+1))
	}
	for _, m := range w.nodes {
		c, err := m.claim(agentv1.MoveKind_MOVE_KIND_FIRST)
		m.must(err)
		m.write(c)
		m.store.State = agentv1.InstallState_INSTALL_STATE_INSTALLED_UNPROVEN
		m.must(m.report(c, unproven))
	}
	for _, m := range w.nodes {
		m.instance.Running = true
	}
	w.gossip(func([]byte, *agentv1.RingMember) {})
	for _, m := range w.nodes {
		c, err := m.claim(agentv1.MoveKind_MOVE_KIND_FIRST)
		m.must(err)
		m.prove(c)
		m.store.State = agentv1.InstallState_INSTALL_STATE_PROVEN
		m.must(m.report(c, proven))
	}
	return w
}

func (w *world) join(node, rack string, id int) *member {
	w.t.Helper()
	names := fleet.Names{DNS: []string{node + ".example"}, IPs: []string{"10.0.0.1"}}
	token, _, err := w.fleet.CreateToken(ctx, cluster, fleet.TokenSpec{Node: node, Names: names}, ann)
	if err != nil {
		w.t.Fatal(err)
	}
	m := &member{w: w, id: bytes.Repeat([]byte{byte(id >> 8), byte(id)}, 8), agent: &agentv1.AgentFacts{Mode: agentv1.Mode_MODE_MANAGE, GenerationCounter: 1, Machine: []byte(node)}}
	h := hex.EncodeToString(m.id)
	m.instance = &agentv1.InstanceFacts{ClusterName: "ring", Datacenter: "dc1", Rack: rack, HostId: h[:8] + "-" + h[8:12] + "-" + h[12:16] + "-" + h[16:20] + "-" + h[20:]}
	m.store = &agentv1.StoreFacts{Store: "node", State: agentv1.InstallState_INSTALL_STATE_ABSENT, Ports: []*agentv1.Port{{Kind: agentv1.PortKind_PORT_KIND_INTERNODE, Address: "10.0.0.1", Port: 7000}}}
	j, err := w.fleet.Join(ctx, fleet.JoinSpec{Token: token, Key: sha256.Sum256([]byte(node)), Cluster: "prod", Peer: "10.0.0.1", Agent: m.agent, Instance: m.instance})
	if err != nil {
		w.t.Fatal(err)
	}
	m.name, m.uid, m.incarnation = j.Node, j.UID, j.Incarnation
	m.must(m.connect())
	return m
}

// gossip lets every running node report the ring, each member as change makes it in the eyes of all.
func (w *world) gossip(change func(id []byte, m *agentv1.RingMember)) {
	w.t.Helper()
	var v agentv1.RingView
	v.Source = "nodetool"
	for i, m := range w.nodes {
		x := &agentv1.RingMember{HostId: m.id, Address: []byte{10, 0, byte((i + 1) >> 8), byte(i + 1)}, Up: true, State: agentv1.RingState_RING_STATE_NORMAL}
		change(m.id, x)
		v.Members = append(v.Members, x)
	}
	for _, m := range w.nodes {
		m.instance.Ring = &v
		m.must(m.connect())
	}
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
	m.streams++
	return m.w.fleet.Connected(ctx, r, "c1", fmt.Sprint(m.streams))
}

func (m *member) target() *agentv1.StoreTarget {
	m.w.t.Helper()
	t, _, err := m.w.fleet.Target(ctx, m.name)
	m.must(err)
	return t.Stores[0]
}

// wants says whether its agent would move by a raised generation.
func (m *member) wants() bool {
	n, err := m.w.fleet.GetNode(ctx, m.name)
	m.must(err)
	return n.Stores[0].Installed < n.Stores[0].Generation
}

func (m *member) claim(kind agentv1.MoveKind) (string, error) {
	m.w.serial++
	t := m.target()
	if t.Move != 0 && m.wants() {
		kind = t.Move
	}
	c, _, err := m.w.fleet.Claim(ctx, m.uid, &agentv1.ClaimMoveRequest{Node: m.name, Incarnation: m.incarnation, Store: "node", Generation: t.Generation, Kind: kind, PlanHash: t.PlanHash,
		KeystoreSha256: m.store.KeystoreSha256, TruststoreSha256: m.store.TruststoreSha256, RequestId: fmt.Sprint("r", m.w.serial)})
	return c, err
}

func sum(s string) []byte { b := sha256.Sum256([]byte(s)); return b[:] }

func (m *member) record(claim, authority, der string) error {
	_, err := m.w.log.Propose(ctx, state.Proposal{Actor: "issuance", Command: &clusterv1.RecordCertificate{Node: m.name, Incarnation: m.incarnation, Store: "node", Claim: claim, Der: []byte(der),
		Issuer: resource.Issuer(authority, "eu"), RenewAtMs: m.w.log.Clock.Now().Add(60 * 24 * time.Hour).UnixMilli(),
		Names: []*clusterv1.CertificateName{{Kind: "dns", Value: resource.Last(m.name) + ".example"}}}})
	return err
}

// write takes a certificate of whoever is to sign, and puts it into the files.
func (m *member) write(claim string) {
	m.w.t.Helper()
	m.w.serial++
	der := fmt.Sprint("leaf ", m.w.serial)
	o, err := m.w.fleet.OpenClaim(ctx, claim)
	m.must(err)
	m.must(m.record(claim, o.Authority, der))
	m.store.LeafSha256, m.store.KeystoreSha256, m.store.TruststoreSha256 = sum(der), sum("keystore of "+der), sum("truststore")
}

func (m *member) report(claim string, outcome agentv1.MoveOutcome) error {
	return m.reportBecause(claim, outcome, outcome.String())
}

func (m *member) reportBecause(claim string, outcome agentv1.MoveOutcome, detail string) error {
	return m.w.fleet.Complete(ctx, m.uid, m.incarnation, &agentv1.ReportMoveRequest{Claim: claim, Outcome: outcome, Store: m.store, AfterSha256: m.store.LeafSha256, Detail: detail})
}

func (m *member) prove(claim string) {
	m.w.t.Helper()
	tasks, prober, err := m.w.fleet.RequestProofs(ctx, fleet.Caller{UID: m.uid, Incarnation: m.incarnation, Node: m.name, Cluster: cluster},
		&agentv1.RequestProofsRequest{Claim: claim, Store: "node", Ports: m.store.Ports, LeafSha256: m.store.LeafSha256}, everywhere)
	m.must(err)
	for _, by := range m.w.nodes {
		for i, t := range tasks {
			if by.name == prober {
				m.must(m.w.fleet.RecordProof(ctx, by.uid, by.incarnation, t, &agentv1.Proof{Port: m.store.Ports[i], Verdict: agentv1.Verdict_VERDICT_ACCEPTED, ServedSha256: m.store.LeafSha256}))
			}
		}
	}
}

// move is a whole move that ends well.
func (m *member) move() {
	m.w.t.Helper()
	c, err := m.claim(agentv1.MoveKind_MOVE_KIND_RENEW)
	m.must(err)
	m.write(c)
	m.prove(c)
	m.must(m.report(c, proven))
}

// back is a move that its node undoes.
func (m *member) back(outcome agentv1.MoveOutcome) {
	m.w.t.Helper()
	c, err := m.claim(agentv1.MoveKind_MOVE_KIND_RENEW)
	m.must(err)
	m.must(m.report(c, outcome))
}

func (w *world) spec() rollout.Spec {
	s := rollout.Usual(cluster, rollout.Renew)
	s.Bake = 0
	return s
}

func (w *world) start(s rollout.Spec) string {
	w.t.Helper()
	p, err := w.rollouts.Plan(ctx, s)
	if err != nil {
		w.t.Fatal(err)
	}
	name, err := w.begin(s, p.Hash)
	if err != nil {
		w.t.Fatal(err)
	}
	return name
}

func (w *world) begin(s rollout.Spec, hash string) (string, error) {
	b, err := hex.DecodeString(hash)
	if err != nil {
		w.t.Fatal(err)
	}
	return w.rollouts.Start(ctx, s, b, "a test", ann)
}

func (w *world) get(name string) rollout.Rollout {
	w.t.Helper()
	r, err := w.rollouts.Get(ctx, name)
	if err != nil {
		w.t.Fatal(err)
	}
	return r
}

func (w *world) tick() {
	w.t.Helper()
	if err := w.rollouts.Watch(ctx); err != nil {
		w.t.Fatal(err)
	}
}

// phases of the nodes, in their order.
func (w *world) phases(name string) (out []string) {
	w.t.Helper()
	by := map[string]string{}
	for _, wave := range w.get(name).Waves {
		for _, n := range wave.Nodes {
			by[n.Node] = n.Phase
		}
	}
	for _, m := range w.nodes {
		out = append(out, by[m.name])
	}
	return out
}

func wantReason(t testing.TB, err error, reason string) {
	t.Helper()
	if !fault.HasReason(err, reason) {
		t.Errorf("got %v, want a fault with reason %s", err, reason)
	}
}
