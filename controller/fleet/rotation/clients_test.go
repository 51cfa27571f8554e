package rotation_test

import (
	"crypto/rand"
	"maps"
	"slices"
	"strings"
	"testing"

	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/cassandra-security-manager/csm/controller/fleet/rotation"
	"github.com/cassandra-security-manager/csm/controller/issuance"
	agentv1 "github.com/cassandra-security-manager/csm/protocol/agent/v1"
	"github.com/cassandra-security-manager/csm/shared/algorithm"
	"github.com/cassandra-security-manager/csm/shared/certificate"
)

// application gives an application a certificate of an authority.
func (w *world) application(name, authority string) {
	w.t.Helper()
	key, err := algorithm.Generate(algorithm.P384, rand.Reader)
	w.must(err)
	names, err := certificate.ParseNames([]string{name}, nil, nil)
	w.must(err)
	csr, err := certificate.NewRequest(key, names)
	w.must(err)
	_, err = w.issuance.Issue(ctx, issuance.Request{RequestID: rand.Text(), Actor: ann, Tenant: "default", Authority: authority, Region: "eu", Template: "application", CSR: csr, Names: names})
	w.must(err)
}

func except(t *testing.T, r rotation.Rotation, gate string) (names []string) {
	t.Helper()
	for _, x := range r.Reasons {
		if x.Code == gate {
			names = append(names, x.Node)
		}
	}
	if len(names) == 0 {
		for _, e := range r.Timeline {
			t.Logf("%s  %-10s %s", e.Time.Format("15:04:05"), e.Phase, e.Message)
		}
		t.Fatalf("nobody is waited for by the gate %s: %+v", gate, r.Reasons)
	}
	return names
}

func TestTheWayBackWaitsForApplicationsOfTheNewCA(t *testing.T) {
	w := newWorld(t, 3)
	w.application("shop.example", old)
	r := w.start(young)
	w.run(4)
	w.application("shop.example", young)
	w.application("report.example", young) // never had one of the CA before
	_, err := w.rotations.Control(ctx, r.Name, "rollback", "complaints", ann)
	w.must(err)
	w.run(12)
	r = w.get(r.Name)
	phaseIs(t, r, rotation.Undoing)
	names := except(t, r, "clients")
	if len(names) != 1 || !strings.Contains(r.Reasons[len(r.Reasons)-1].Message, "report.example") {
		t.Fatalf("waits for %v", r.Reasons)
	}
	_, err = w.rotations.Control(ctx, r.Name, "resume", "no report at night", ann, "0123456789abcdef")
	wantReason(t, err, "no-client")
	_, err = w.rotations.Control(ctx, r.Name, "pause", "no report at night", ann, names...)
	wantReason(t, err, "bad-exceptions")
	_, err = w.rotations.Control(ctx, r.Name, "resume", "no report at night", ann, names...)
	w.must(err)
	w.run(12)
	phaseIs(t, w.get(r.Name), rotation.RolledBack)
}

func TestWhatWasNotLookedAtHoldsTheRetire(t *testing.T) {
	w := newWorld(t, 3)
	rotation.NameAtMost(t, 1)
	for _, name := range []string{"a.example", "b.example"} {
		w.application(name, old)
	}
	r := w.start(young)
	w.application("a.example", young)
	w.run(20)
	r = w.get(r.Name)
	phaseIs(t, r, rotation.Reissued)
	if names := except(t, r, "clients"); len(names) != 1 || names[0] != "more" {
		t.Errorf("waits for %v", names)
	}
	wantReason(t, w.retire(r.Name), "gate-clients")
	w.must(w.retire(r.Name, "more"))
}

func TestANodeThatNeverStartedHoldsEachPhase(t *testing.T) {
	w := newWorldWith(t, 3, "", eager{}) // package rollout would wait for it too
	m := w.join("n4", 9)
	m.firstInstall() // with the anchors of now; its Cassandra does not start
	r := w.start(young)
	w.run(6)
	r = w.get(r.Name)
	phaseIs(t, r, rotation.Distribute)
	if names := except(t, r, "started"); len(names) != 1 || names[0] != "n4" {
		t.Fatalf("waits for %v", names)
	}
	_, err := w.rotations.SetAside(ctx, r.Name, m.name, m.incarnation, "it comes next week", ann)
	w.must(err)
	w.run(12)
	phaseIs(t, w.get(r.Name), rotation.Reissued)
}

// sees lets a node report the clients that it sees: each address with how many of its connections are newer than the node's leaf.
func (m *member) sees(fresh map[byte]uint32) {
	m.w.t.Helper()
	f := &agentv1.ClientFacts{Time: timestamppb.New(m.w.log.Clock.Now()), LeafSha256: m.store.LeafSha256}
	for _, last := range slices.Sorted(maps.Keys(fresh)) {
		f.Seen = append(f.Seen, &agentv1.SeenClient{Address: []byte{10, 9, 0, last}, User: "app", Driver: "java-driver", Tls: "TLSv1.3", Protocol: 5, Connections: 2, Fresh: fresh[last]})
	}
	f.Seen = append(f.Seen, &agentv1.SeenClient{Address: []byte{10, 9, 0, 99}, User: "legacy", Protocol: 5, Connections: 1}) // plaintext: no certificate of ours
	m.instance.Clients = f
	m.w.must(m.report())
}

// served are the nodes that serve a leaf of an authority.
func (w *world) served(authority string) (out []*member) {
	for _, m := range w.nodes {
		if m.leaf == authority {
			out = append(out, m)
		}
	}
	return out
}

func TestTheOthersWaitUntilTheClientsOfTheFirstHaveComeBack(t *testing.T) {
	w := newWorldWith(t, 3, "", rotation.Rollouts{}, true)
	w.nodes[0].sees(map[byte]uint32{1: 2})
	w.nodes[1].sees(map[byte]uint32{1: 2, 2: 2})
	w.nodes[2].sees(nil)
	p, err := w.rotations.Plan(ctx, w.wanted(young))
	w.must(err)
	if len(p.Clients) != 2 || !p.Clients[0].Seen || !strings.Contains(p.Clients[0].Detail, "10.9.0.") || strings.Contains(p.Clients[0].Detail, "legacy") {
		t.Fatalf("the plan names %+v", p.Clients)
	}
	r := w.start(young)
	w.run(20)
	r = w.get(r.Name)
	phaseIs(t, r, rotation.Reissue)
	names := except(t, r, "canary")
	new := w.served(young)
	if len(names) != 2 || len(new) != 1 || new[0] != w.nodes[1] {
		t.Fatalf("%d nodes serve a leaf of the new CA, waits %+v", len(new), r.Reasons)
	}
	new[0].sees(map[byte]uint32{1: 1, 2: 0})
	w.run(6)
	if got := len(w.served(young)); got != 1 {
		t.Fatalf("%d nodes serve a leaf of the new CA while a client is missing", got)
	}
	new[0].sees(map[byte]uint32{1: 0, 2: 1}) // the first was seen before, and is not forgotten
	w.run(20)
	r = w.get(r.Name)
	phaseIs(t, r, rotation.Reissued)
	if waitsFor(r, "seen") {
		t.Errorf("who has come back is waited for: %+v", r.Reasons)
	}
	w.must(w.retire(r.Name))
}

func TestClientsThatNobodyCanSeeAreWaitedForUntilAPersonSaysNotTo(t *testing.T) {
	w := newWorldWith(t, 3, "", rotation.Rollouts{}, true) // no node has told of clients
	r := w.start(young)
	w.run(20)
	r = w.get(r.Name)
	phaseIs(t, r, rotation.Reissue)
	except(t, r, "canary")
	if got := len(w.served(young)); got != 1 {
		t.Fatalf("%d nodes serve a leaf of the new CA", got)
	}
	_, err := w.rotations.Control(ctx, r.Name, "resume", "", ann, "unseen")
	wantReason(t, err, "no-reason")
	_, err = w.rotations.Control(ctx, r.Name, "resume", "the owners were asked", ann, "unseen")
	w.must(err)
	w.run(20)
	phaseIs(t, w.get(r.Name), rotation.Reissued)
}

func TestRetireWaitsForClientsThatWereOnlySeen(t *testing.T) {
	w := newWorldWith(t, 3, "", rotation.Rollouts{}, true)
	w.nodes[0].sees(map[byte]uint32{1: 2})
	w.nodes[1].sees(nil)
	w.nodes[2].sees(map[byte]uint32{2: 2})
	r := w.start(young)
	w.run(20)
	w.nodes[0].sees(map[byte]uint32{1: 1}) // the client of the canary has come back, that of n3 has not
	w.run(20)
	r = w.get(r.Name)
	phaseIs(t, r, rotation.Reissued)
	names := except(t, r, "seen")
	if len(names) != 1 {
		t.Fatalf("waits for %+v", r.Reasons)
	}
	wantReason(t, w.retire(r.Name), "gate-seen")
	w.must(w.retire(r.Name, names...))
}

func TestAPlanSaysWhereNothingCanBeProved(t *testing.T) {
	w := newWorld(t, 3)
	for i, mode := range []string{"none", "dc", "all"} {
		m := w.nodes[i]
		m.instance.Internode = &agentv1.TLSSection{Mode: mode, Enabled: mode != "none"}
		m.instance.Health = &agentv1.HealthFacts{SingleReplica: []string{"scratch"}}
		w.must(m.report())
	}
	p, err := w.rotations.Plan(ctx, w.wanted(young))
	w.must(err)
	text := func(i int) string { return strings.Join(p.Members[i].Unprovable, "; ") }
	if !strings.Contains(text(0), "is none") || !strings.Contains(text(1), "within a data centre") || strings.Contains(text(2), "internode_encryption") {
		t.Errorf("%q, %q, %q", text(0), text(1), text(2))
	}
	if !strings.Contains(strings.Join(p.Notes, ";"), "one replica: scratch") {
		t.Errorf("notes %v", p.Notes)
	}
}
