package rotation_test

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"path/filepath"
	"testing"
	"time"

	"github.com/cassandra-security-manager/csm/controller/authority"
	"github.com/cassandra-security-manager/csm/controller/fleet"
	"github.com/cassandra-security-manager/csm/controller/fleet/rollout"
	"github.com/cassandra-security-manager/csm/controller/fleet/rotation"
	"github.com/cassandra-security-manager/csm/controller/issuance"
	"github.com/cassandra-security-manager/csm/controller/keyring"
	"github.com/cassandra-security-manager/csm/controller/ledger"
	"github.com/cassandra-security-manager/csm/controller/state"
	"github.com/cassandra-security-manager/csm/controller/state/statetest"
	agentv1 "github.com/cassandra-security-manager/csm/protocol/agent/v1"
	"github.com/cassandra-security-manager/csm/shared/algorithm"
	"github.com/cassandra-security-manager/csm/shared/certificate"
	"github.com/cassandra-security-manager/csm/shared/fault"
	"github.com/cassandra-security-manager/csm/shared/resource"
)

const (
	cluster = "tenants/default/clusters/prod"
	trust   = "tenants/default/trustDomains/prod"
	ann     = "ann"
	old     = "tenants/default/authorities/old"
	young   = "tenants/default/authorities/young"
	bob     = "tenants/default/clusters/other"
)

const (
	proven   = agentv1.MoveOutcome_MOVE_OUTCOME_PROVEN
	unproven = agentv1.MoveOutcome_MOVE_OUTCOME_UNPROVEN
	first    = agentv1.MoveKind_MOVE_KIND_FIRST
	renew    = agentv1.MoveKind_MOVE_KIND_RENEW
)

var ctx = context.Background()

// world is a ring whose agents do what a test says, over the real state machine with two real CAs.
type world struct {
	t           testing.TB
	log         *statetest.Log
	fleet       *fleet.Fleet
	rotations   *rotation.Rotations
	authorities *authority.Authorities
	issuance    *issuance.Issuance
	nodes       []*member
	serial      int
	down        map[string]bool
	cql         bool // nodes serve applications over TLS
	emergency   bool // rotations are emergencies, but for what keep names
	keep        []string
}

// member is a node with its agent and what its Cassandra has loaded.
type member struct {
	w           *world
	name, uid   string
	incarnation uint64
	id          []byte
	agent       *agentv1.AgentFacts
	instance    *agentv1.InstanceFacts
	store       *agentv1.StoreFacts
	streams     int
	// truth is what Cassandra serves and trusts, whatever anybody says: authorities.
	leaf    string
	trusted map[string]bool
	served  []byte // fingerprint of that leaf
}

// newWorld is a ring of proved nodes under the CA old, with every gate and the waves of package rollout.
func newWorld(t testing.TB, size int) *world { return newWorldWith(t, size, "", rotation.Rollouts{}) }

// eager are waves that care for nothing: they raise every store at once and say that it is done. What is safe under them is
// safe by the gates of this package alone.
type eager struct{}

func (eager) Excuse(*state.Apply, string, []string) error { return nil }

func (eager) Holds(context.Context, state.Querier, string, string, string) (bool, error) {
	return false, nil
}

func (eager) Begin(a *state.Apply, x rotation.Wave) (string, error) {
	kinds := map[string]agentv1.MoveKind{"trust": agentv1.MoveKind_MOVE_KIND_TRUST, "leaf": renew, "renew": renew, "shrink": agentv1.MoveKind_MOVE_KIND_SHRINK,
		"back": agentv1.MoveKind_MOVE_KIND_GIVE_BACK}
	for _, n := range x.Members {
		if _, err := fleet.RaiseStore(a, fleet.Wish{Node: n, Store: "node", Move: kinds[x.Kind], Authority: x.Authority, Reason: x.Reason, TakeOver: x.Kind == "leaf"}); err != nil {
			return "", err
		}
	}
	return "eager", nil
}
func (eager) Set(*state.Apply, string, string, string) error { return nil }
func (eager) Stand(context.Context, state.Querier, string, time.Time) (rotation.Rollout, error) {
	return rotation.Rollout{Name: "eager", State: "done"}, nil
}

// newWorldWith names a gate that is taken out, and other waves. cql: applications connect to the nodes.
func newWorldWith(t testing.TB, size int, without string, waves rotation.Waves, cql ...bool) *world {
	t.Helper()
	return newWorldOf(t, size, without, waves, algorithm.P384, cql...)
}

// newWorldOf names the algorithm of the CA young too.
func newWorldOf(t testing.TB, size int, without string, waves rotation.Waves, ofYoung algorithm.Key, cql ...bool) *world {
	t.Helper()
	w := &world{t: t, down: map[string]bool{}, cql: len(cql) > 0}
	gates := []fleet.Gates{rotation.GuardWithout(without)}
	if waves == (rotation.Rollouts{}) {
		gates = append(gates, rollout.Gate{})
	}
	w.log = statetest.New(t, keyring.Module(), authority.Module(), ledger.Module(authority.Issuers{}, fleet.Guard),
		fleet.Module(gates...), rollout.Module(), rotation.ModuleWithout(without, waves))
	kek, err := keyring.CreateKEK(t.TempDir(), keyring.FileSealer{Path: filepath.Join(t.TempDir(), "master")})
	w.must(err)
	ring := keyring.New(w.log.Store, w.log, kek, "csm1")
	recovery, _, err := keyring.NewRecovery()
	w.must(err)
	w.must(ring.Initialise(ctx, "test", recovery))
	w.authorities = authority.New(w.log.Store, w.log, ring, w.log.Clock, rand.Reader, authority.Options{})
	_, err = w.authorities.Genesis(ctx, "0123456789abcdef", "test")
	w.must(err)
	for i, id := range []string{"old", "young"} {
		a, err := w.authorities.CreateRoot(ctx, "default", id, authority.CreateOptions{Algorithm: []algorithm.Key{algorithm.P384, ofYoung}[i], Actor: "test"})
		w.must(err)
		_, err = w.authorities.CreateIssuer(ctx, a.Name, "eu", "test")
		w.must(err)
	}
	w.issuance = issuance.New(w.authorities, w.log, w.log.Clock, rand.Reader, issuance.Options{})
	w.fleet = fleet.New(w.log.Store, w.log, w.log.Clock, func(ctx context.Context, name string) ([][]byte, error) {
		cs, err := w.authorities.Anchors(ctx, name)
		return certificate.Raw(cs), err
	})
	w.rotations = rotation.NewWithout(without, w.log.Store, w.log, w.log.Clock, waves)
	_, err = w.fleet.CreateCluster(ctx, fleet.ClusterSpec{Name: cluster, Authority: old, Region: "eu"}, ann)
	w.must(err)
	for i := range size {
		w.nodes = append(w.nodes, w.join(fmt.Sprintf("n%d", i+1), byte(i+1)))
	}
	for _, m := range w.nodes {
		m.firstInstall()
	}
	w.gossip()
	for _, m := range w.nodes {
		c, err := m.claim(first)
		w.must(err)
		w.must(m.finish(c))
	}
	return w
}

func (w *world) must(err error) {
	w.t.Helper()
	if err != nil {
		w.t.Fatal(err)
	}
}

func (w *world) join(node string, id byte) *member {
	w.t.Helper()
	address := fmt.Sprintf("10.0.0.%d", id)
	names := fleet.Names{DNS: []string{node + ".example"}, IPs: []string{address}}
	token, _, err := w.fleet.CreateToken(ctx, cluster, fleet.TokenSpec{Node: node, Names: names}, ann)
	w.must(err)
	m := &member{w: w, id: bytes.Repeat([]byte{id}, 16), trusted: map[string]bool{}, agent: &agentv1.AgentFacts{Mode: agentv1.Mode_MODE_MANAGE, GenerationCounter: 1, Machine: []byte(node)}}
	h := hex.EncodeToString(m.id)
	required := &agentv1.TLSSection{Enabled: true, Mode: "all", ClientAuth: "true"}
	m.instance = &agentv1.InstanceFacts{ClusterName: "ring", Datacenter: "dc1", Rack: node, CassandraVersion: "5.0.8", Internode: required, Client: required, ListenAddress: address,
		HostId: h[:8] + "-" + h[8:12] + "-" + h[12:16] + "-" + h[16:20] + "-" + h[20:]}
	m.store = &agentv1.StoreFacts{Store: "node", State: agentv1.InstallState_INSTALL_STATE_ABSENT, Ports: []*agentv1.Port{{Kind: agentv1.PortKind_PORT_KIND_INTERNODE, Address: address, Port: 7000}}}
	if w.cql {
		m.store.Ports = append(m.store.Ports, &agentv1.Port{Kind: agentv1.PortKind_PORT_KIND_CQL, Address: address, Port: 9042})
	}
	j, err := w.fleet.Join(ctx, fleet.JoinSpec{Token: token, Key: sha256.Sum256([]byte(node)), Cluster: "prod", Peer: address, Agent: m.agent, Instance: m.instance})
	w.must(err)
	m.name, m.uid, m.incarnation = j.Node, j.UID, j.Incarnation
	w.must(m.report())
	return m
}

// gossip lets every running node report the ring as it is.
func (w *world) gossip() {
	w.t.Helper()
	v := &agentv1.RingView{Source: "nodetool"}
	for i, m := range w.nodes {
		v.Members = append(v.Members, &agentv1.RingMember{HostId: m.id, Address: []byte{10, 0, 0, byte(i + 1)}, Up: !w.down[m.name], State: agentv1.RingState_RING_STATE_NORMAL})
	}
	for _, m := range w.nodes {
		if m.instance.Running = !w.down[m.name]; m.instance.Running {
			m.instance.Ring = v
		}
		w.must(m.report())
	}
}

func (m *member) report() error {
	r, err := fleet.Report{UID: m.uid, Incarnation: m.incarnation, Agent: m.agent, Instance: m.instance, Stores: []*agentv1.StoreFacts{m.store}}.Encode()
	m.w.must(err)
	m.streams++
	return m.w.fleet.Connected(ctx, r, "c1", fmt.Sprint(m.streams))
}

func (m *member) target() *agentv1.Target {
	m.w.t.Helper()
	t, _, err := m.w.fleet.Target(ctx, m.name)
	m.w.must(err)
	return t
}

// behind says whether its newest generation is not installed; pending: or not proved.
func (m *member) behind() bool {
	n, err := m.w.fleet.GetNode(ctx, m.name)
	m.w.must(err)
	return n.Stores[0].Installed < n.Stores[0].Generation
}

func (m *member) pending() bool {
	n, err := m.w.fleet.GetNode(ctx, m.name)
	m.w.must(err)
	return n.Stores[0].Installed < n.Stores[0].Generation || n.Stores[0].Unproved
}

func (m *member) claim(kind agentv1.MoveKind) (string, error) {
	m.w.serial++
	t := m.target().Stores[0]
	c, _, err := m.w.fleet.Claim(ctx, m.uid, &agentv1.ClaimMoveRequest{Node: m.name, Incarnation: m.incarnation, Store: "node", Generation: t.Generation, Kind: kind, PlanHash: t.PlanHash,
		KeystoreSha256: m.store.KeystoreSha256, TruststoreSha256: m.store.TruststoreSha256, RequestId: fmt.Sprint("r", m.w.serial)})
	return c, err
}

// issue takes a certificate of whoever is to sign and gives who that was.
func (m *member) issue(claim string) string {
	m.w.t.Helper()
	o, err := m.w.fleet.OpenClaim(ctx, claim)
	m.w.must(err)
	m.w.must(m.tryIssue(claim))
	return o.Authority
}

func (m *member) tryIssue(claim string) error {
	m.w.t.Helper()
	o, err := m.w.fleet.OpenClaim(ctx, claim)
	m.w.must(err)
	key, err := algorithm.Generate(algorithm.P384, rand.Reader)
	m.w.must(err)
	names, err := certificate.ParseNames(o.Names.DNS, o.Names.IPs, nil)
	m.w.must(err)
	csr, err := certificate.NewRequest(key, names)
	m.w.must(err)
	got, err := m.w.issuance.Issue(ctx, issuance.Request{RequestID: rand.Text(), Actor: "agent", Tenant: "default", Authority: o.Authority, Region: "eu", Template: "node", CSR: csr, Names: names,
		Node: m.name, Incarnation: m.incarnation, Store: "node", Claim: claim})
	if err != nil {
		return err
	}
	leaf := certificate.Fingerprint(got.Leaf())
	m.store.LeafSha256, m.store.KeystoreSha256, m.served = leaf[:], leaf[:], leaf[:]
	return nil
}

// trusts lets Cassandra load the anchors of the target: all that are in the bundle, and with shrink only those.
func (m *member) trusts(shrink bool) {
	m.w.t.Helper()
	t := m.target()
	if shrink {
		clear(m.trusted)
	}
	for _, name := range []string{old, young} {
		a, err := m.w.authorities.Get(ctx, name)
		m.w.must(err)
		for _, der := range a.Roots(m.w.log.Clock.Now()) {
			for _, x := range t.Anchors {
				if bytes.Equal(x, der) {
					m.trusted[name] = true
				}
			}
		}
	}
	m.files()
}

// files reports the truststore as it is.
func (m *member) files() {
	m.store.Anchors = nil
	for _, name := range []string{old, young} {
		if m.trusted[name] {
			a, err := m.w.authorities.Get(ctx, name)
			m.w.must(err)
			s := sha256.Sum256(a.Roots(m.w.log.Clock.Now())[0])
			m.store.Anchors = append(m.store.Anchors, s[:])
		}
	}
	if m.trusted[theirs] {
		m.store.Anchors = append(m.store.Anchors, theirAnchor[:])
	}
	sum := sha256.Sum256([]byte(fmt.Sprint(m.trusted)))
	m.store.TruststoreSha256 = sum[:]
}

func (m *member) firstInstall() {
	m.w.t.Helper()
	c, err := m.claim(first)
	m.w.must(err)
	m.leaf = m.issue(c)
	m.trusts(false)
	m.store.State = agentv1.InstallState_INSTALL_STATE_INSTALLED_UNPROVEN
	m.w.must(m.done(c, unproven))
}

func (m *member) done(claim string, outcome agentv1.MoveOutcome) error {
	r := &agentv1.ReportMoveRequest{Claim: claim, Outcome: outcome, Store: m.store, AfterSha256: m.store.LeafSha256, Detail: outcome.String()}
	for _, p := range m.store.Ports { // its own look
		r.Proofs = append(r.Proofs, &agentv1.Proof{Port: p, Verdict: agentv1.Verdict_VERDICT_ACCEPTED, ServedSha256: m.served, Asked: true})
	}
	return m.w.fleet.Complete(ctx, m.uid, m.incarnation, r)
}

// finish has the neighbours look, and reports what came of it. It gives why it is not proved.
func (m *member) finish(claim string) error {
	m.w.t.Helper()
	m.prove(claim)
	m.store.State = agentv1.InstallState_INSTALL_STATE_PROVEN
	if m.leaf == theirs {
		m.store.State = agentv1.InstallState_INSTALL_STATE_FOREIGN
	}
	err := m.done(claim, proven)
	if err != nil {
		m.store.State = agentv1.InstallState_INSTALL_STATE_INSTALLED_UNPROVEN
		m.w.must(m.done(claim, unproven))
	}
	return err
}

// move does what the target asks for, as an agent would. It gives the refusal of the claim, nil when it moved.
func (m *member) move() error {
	m.w.t.Helper()
	kind := m.target().Stores[0].Move
	if !m.behind() { // written, and to be proved
		c, err := m.claim(agentv1.MoveKind_MOVE_KIND_TRUST)
		if err != nil {
			return err
		}
		return m.finish(c)
	}
	if kind == agentv1.MoveKind_MOVE_KIND_UNSPECIFIED {
		kind = renew
	}
	c, err := m.claim(kind)
	if err != nil {
		return err
	}
	switch kind {
	case agentv1.MoveKind_MOVE_KIND_TRUST:
		m.trusts(false)
	case agentv1.MoveKind_MOVE_KIND_SHRINK:
		m.trusts(true)
	case agentv1.MoveKind_MOVE_KIND_TAKE_OVER:
		m.keep()
		m.trusts(false)
		m.leaf = m.issue(c)
	case agentv1.MoveKind_MOVE_KIND_GIVE_BACK:
		m.putBack()
	default:
		if o, err := m.w.fleet.OpenClaim(ctx, c); err != nil || !m.trusted[o.Authority] { // trust comes first, as an agent has it
			m.w.must(err)
			m.w.must(m.done(c, agentv1.MoveOutcome_MOVE_OUTCOME_REFUSED))
			return errors.New("trust-not-distributed")
		}
		m.trusts(false)
		m.leaf = m.issue(c)
	}
	return m.finish(c)
}

// run lets the leader and every agent that is up do what is due, until nothing changes or so many rounds are over.
func (w *world) run(rounds int) {
	w.t.Helper()
	for range rounds {
		w.tick()
		for _, m := range w.nodes {
			if !w.down[m.name] && m.pending() {
				_ = m.move()
			}
			w.unbroken("after " + resource.Last(m.name))
		}
	}
}

// tick is one look of the leader.
func (w *world) tick() {
	w.t.Helper()
	w.log.Clock.Advance(time.Second)
	w.must(rollout.New(w.log.Store, w.log, w.log.Clock).Watch(ctx))
	w.must(w.rotations.Watch(ctx))
}

// broken finds a pair of live members without a path of trust both ways.
func (w *world) broken() string {
	for _, a := range w.nodes {
		for _, b := range w.nodes {
			if !w.down[a.name] && !w.down[b.name] && a.leaf != "" && b.leaf != "" && !b.trusted[a.leaf] {
				return fmt.Sprintf("%s does not trust %s, which serves a leaf of %s", resource.Last(b.name), resource.Last(a.name), resource.Last(a.leaf))
			}
		}
	}
	return ""
}

func (w *world) unbroken(when string) {
	w.t.Helper()
	if b := w.broken(); b != "" {
		w.t.Fatalf("%s: %s", when, b)
	}
}

func (w *world) wanted(to string) rotation.Wanted {
	return rotation.Wanted{Cluster: cluster, Authority: to, Emergency: w.emergency, Keep: w.keep}
}

func (w *world) start(to string) rotation.Rotation {
	w.t.Helper()
	want := w.wanted(to)
	p, err := w.rotations.Plan(ctx, want)
	w.must(err)
	r, err := w.rotations.Start(ctx, want, p.Hash, 0, "a test", ann)
	w.must(err)
	return r
}

func (w *world) get(name string) rotation.Rotation {
	w.t.Helper()
	r, err := w.rotations.Get(ctx, name)
	w.must(err)
	return r
}

func (w *world) retire(name string, except ...string) error {
	w.t.Helper()
	p, err := w.rotations.PlanRetire(ctx, name)
	w.must(err)
	_, err = w.rotations.Retire(ctx, name, p.Hash, append(except, "links"), "a test", ann) // nobody tells of links here
	return err
}

func wantReason(t testing.TB, err error, reason string) {
	t.Helper()
	if !fault.HasReason(err, reason) {
		t.Errorf("got %v, want a fault with reason %s", err, reason)
	}
}
