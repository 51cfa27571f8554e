package fleet_test

import (
	"fmt"
	"testing"
	"time"

	"pgregory.net/rapid"

	agentv1 "github.com/cassandra-security-manager/csm/protocol/agent/v1"

	"github.com/cassandra-security-manager/csm/controller/fleet"
	"github.com/cassandra-security-manager/csm/controller/state/statetest"
	"github.com/cassandra-security-manager/csm/shared/fault"
)

// walk is a random life of a ring: whatever agents and people do in whatever order, the gates hold.
type walk struct {
	*world
	nodes       []*member
	claims      map[*member]string
	generations map[string]uint64
	serial      int
}

func (k *walk) pick(t *rapid.T) *member { return rapid.SampledFrom(k.nodes).Draw(t, "node") }

// holders are the nodes that are on the move, or have moved and are not proved, and are not revoked.
func (k *walk) holders() map[string]bool {
	out := map[string]bool{}
	for _, m := range k.nodes {
		n := m.view()
		if n.Claim != nil {
			out[m.name] = true
		}
		for _, s := range n.Stores {
			if s.Unproved && n.State != fleet.Revoked {
				out[m.name] = true
			}
		}
	}
	return out
}

func (k *walk) claim(t *rapid.T) {
	m := k.pick(t)
	before := k.holders()
	delete(before, m.name)
	kind := rapid.SampledFrom([]agentv1.MoveKind{renew, agentv1.MoveKind_MOVE_KIND_TRUST}).Draw(t, "kind")
	c, err := m.claim(kind)
	if err != nil {
		if fault.Is(err, fault.Internal) {
			t.Fatal(err)
		}
		return
	}
	if len(before) > 0 {
		t.Fatalf("%s was let go while %v held the wave", m.name, before)
	}
	k.claims[m] = c
}

// issue asks for a certificate and, when it is given, puts it into the files.
func (k *walk) issue(t *rapid.T) {
	m := k.pick(t)
	k.serial++
	der := fmt.Sprint("leaf ", k.serial)
	open := m.view().Claim
	err := k.propose(m.record(k.claims[m], der))
	if err == nil && (open == nil || open.Claim != k.claims[m]) {
		t.Fatalf("%s was given a certificate without an open claim", m.name)
	}
	if err == nil {
		m.store.LeafSha256, m.store.KeystoreSha256 = leafOf(der), leafOf("keystore of "+der)
	}
}

func (k *walk) report(t *rapid.T) {
	m := k.pick(t)
	outcome := rapid.SampledFrom([]agentv1.MoveOutcome{proven, unproven, rolledBack, refused, failed}).Draw(t, "outcome")
	if err := m.report(k.claims[m], outcome); err == nil {
		if outcome == proven && m.view().Stores[0].Unproved {
			t.Fatalf("%s is proven and unproved", m.name)
		}
	} else if fault.Is(err, fault.Internal) {
		t.Fatal(err)
	}
}

func (k *walk) proveAll(t *rapid.T) {
	m := k.pick(t)
	tasks, prober, err := k.RequestProofs(ctx, fleet.Caller{UID: m.uid, Incarnation: m.incarnation, Node: m.name, Cluster: cluster},
		&agentv1.RequestProofsRequest{Claim: k.claims[m], Store: "node", Ports: m.store.Ports, LeafSha256: m.store.LeafSha256}, everywhere)
	if err != nil {
		return
	}
	for _, by := range k.nodes {
		for i, task := range tasks {
			if by.name == prober {
				m.must(k.RecordProof(ctx, by.uid, by.incarnation, task, accepted(m.store.Ports[i], m.store.LeafSha256)))
			}
		}
	}
}

func (k *walk) people(t *rapid.T) {
	m := k.pick(t)
	var err error
	switch rapid.SampledFrom([]string{"renew", "suspend", "resume", "freeze", "unfreeze", "names"}).Draw(t, "what") {
	case "renew":
		_, err = k.RequestRenewal(ctx, m.name, "", "asked", ann)
	case "suspend":
		err = k.Suspend(ctx, m.name, "odd", ann)
	case "resume":
		if err = k.Resume(ctx, m.name, "", ann); err == nil {
			err = m.connect()
		}
	case "freeze":
		err = k.Freeze(ctx, cluster, "stop", k.log.Clock.Now().Add(time.Hour), ann)
	case "unfreeze":
		err = k.Unfreeze(ctx, cluster, "go", ann)
	case "names":
		err = k.SetNames(ctx, m.name, m.view().Names, ann)
	}
	if err != nil && fault.Is(err, fault.Internal) {
		t.Fatal(err)
	}
}

// again starts the agent again, or lets it report what is in its files.
func (k *walk) again(t *rapid.T) {
	m := k.pick(t)
	if rapid.Bool().Draw(t, "restart") {
		m.agent.GenerationCounter++
	}
	if err := m.connect(); err != nil && fault.Is(err, fault.Internal) {
		t.Fatal(err)
	}
}

func (k *walk) check(t *rapid.T) {
	open := map[string]bool{}
	moves, _, err := k.ListMoves(ctx, cluster, fleet.Page{Size: 1000})
	if err != nil {
		t.Fatal(err)
	}
	for _, m := range moves {
		if m.State == "open" {
			open[m.Node] = true
		}
	}
	if len(open) > 1 {
		t.Fatalf("several nodes are on the move: %v", open)
	}
	for _, m := range k.nodes {
		target, _, err := k.Target(ctx, m.name)
		if err != nil {
			t.Fatal(err)
		}
		if target.Generation < k.generations[m.name] {
			t.Fatalf("the generation of %s went back from %d to %d", m.name, k.generations[m.name], target.Generation)
		}
		k.generations[m.name] = target.Generation
		for _, s := range target.Stores {
			name := m.name + s.Store
			if s.Generation < k.generations[name] || s.Generation > target.Generation {
				t.Fatalf("store generation %d after %d, target %d", s.Generation, k.generations[name], target.Generation)
			}
			k.generations[name] = s.Generation
		}
		if s := m.view().Stores[0]; s.Installed > s.Generation {
			t.Fatalf("%s has installed generation %d of %d", m.name, s.Installed, s.Generation)
		}
	}
}

func TestNoOrderOfEventsMovesTwoNodesOrTurnsAGenerationBack(t *testing.T) {
	// Each walk has a state machine of its own.
	statetest.Walks(t, 20, 0)
	rapid.Check(t, func(r *rapid.T) {
		k := &walk{world: newWorld(t), claims: map[*member]string{}, generations: map[string]uint64{}}
		defer k.log.Close()
		ring := k.ring("n1", "n2", "n3")
		for _, n := range []string{"n1", "n2", "n3"} {
			k.nodes = append(k.nodes, ring[n])
		}
		r.Repeat(map[string]func(*rapid.T){
			"claim": k.claim, "claim more": k.claim, "issue": k.issue, "report": k.report, "prove": k.proveAll, "people": k.people, "again": k.again,
			"time": func(t *rapid.T) {
				k.log.Clock.Advance(time.Duration(rapid.IntRange(1, 20).Draw(t, "minutes")) * time.Minute)
			},
			"": k.check,
		})
	})
}
