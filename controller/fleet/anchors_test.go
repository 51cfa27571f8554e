package fleet_test

import (
	"bytes"
	"crypto/sha256"
	"testing"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/wrapperspb"

	agentv1 "github.com/cassandra-security-manager/csm/protocol/agent/v1"
	clusterv1 "github.com/cassandra-security-manager/csm/protocol/cluster/v1"

	"github.com/cassandra-security-manager/csm/controller/fleet"
	"github.com/cassandra-security-manager/csm/controller/state"
	"github.com/cassandra-security-manager/csm/shared/resource"
)

const shrink = agentv1.MoveKind_MOVE_KIND_SHRINK

// bundler stands where a rotation stands: a text adds it as an anchor, bytes withdraw them as one.
func bundler() state.Module {
	return state.Module{Name: "bundler", Commands: func(r *state.Registry) {
		state.Handle(r, func(a *state.Apply, c *wrapperspb.StringValue) (*clusterv1.Empty, error) {
			_, err := fleet.AddAnchors(a, cluster, [][]byte{[]byte(c.Value)})
			return &clusterv1.Empty{}, err
		})
		state.Handle(r, func(a *state.Apply, c *wrapperspb.BytesValue) (*clusterv1.Empty, error) {
			sum := sha256.Sum256(c.Value)
			return &clusterv1.Empty{}, fleet.WithdrawAnchors(a, resource.TrustDomain("default", "prod"), [][]byte{sum[:]})
		})
	}}
}

func (w *world) bundle(c proto.Message) error {
	_, err := w.log.Propose(ctx, state.Proposal{Command: c, Actor: ann})
	return err
}

func (w *world) add(anchor string) error      { return w.bundle(wrapperspb.String(anchor)) }
func (w *world) withdraw(anchor string) error { return w.bundle(wrapperspb.Bytes([]byte(anchor))) }

func (m *member) target() *agentv1.Target {
	m.w.t.Helper()
	t, _, err := m.w.Target(ctx, m.name)
	m.must(err)
	return t
}

func TestTheBundleGrowsAndShrinksWithoutMovingAnyStore(t *testing.T) {
	w := newWorld(t)
	r := w.ring("n1", "n2")
	m := r["n1"]
	before := m.target()
	wantReason(t, w.withdraw("anchor one"), "last-anchor")
	m.must(w.add("anchor two"))
	grown := m.target()
	if len(grown.Anchors) != 2 || grown.Generation <= before.Generation || grown.BundleVersion <= before.BundleVersion || grown.Stores[0].Generation != before.Stores[0].Generation {
		t.Errorf("grown = %v", grown)
	}
	m.must(w.add("anchor two"))
	if again := m.target(); again.Generation != grown.Generation {
		t.Errorf("adding what is there told the nodes anew: %d, then %d", grown.Generation, again.Generation)
	}
	m.must(w.withdraw("anchor one"))
	m.must(w.withdraw("anchor one"))
	sum := sha256.Sum256([]byte("anchor one"))
	shrunk := m.target()
	if len(shrunk.Anchors) != 1 || len(shrunk.Withdrawn) != 1 || !bytes.Equal(shrunk.Withdrawn[0], sum[:]) || shrunk.Generation <= grown.Generation {
		t.Errorf("shrunk = %v", shrunk)
	}
	wantReason(t, w.withdraw("anchor of nobody"), "no-anchor")
	m.must(w.add("anchor one"))
	if back := m.target(); len(back.Anchors) != 2 || len(back.Withdrawn) != 0 {
		t.Errorf("the way back = %v", back)
	}
}

func TestTheBundleHasAMostSize(t *testing.T) {
	w := newWorld(t)
	var err error
	for i := 0; err == nil && i < 100; i++ {
		err = w.add(string(rune('a' + i)))
	}
	wantReason(t, err, "bundle-full")
	if n := w.count(`SELECT count(*) FROM trust_anchors`); n != fleet.MaxBundle {
		t.Errorf("%d anchors", n)
	}
}

func TestTrustShrinksOnlyWhereAnAnchorWasWithdrawn(t *testing.T) {
	w := newWorld(t)
	r := w.ring("n1", "n2")
	m := r["n1"]
	_, err := m.claim(shrink)
	wantReason(t, err, "nothing-withdrawn")
	m.must(w.add("anchor two"))
	m.must(w.withdraw("anchor one"))
	c, err := m.claim(shrink)
	m.must(err)
	_, err = r["n2"].claim(renew)
	wantReason(t, err, "wave-busy")
	m.store.TruststoreSha256 = leafOf("smaller truststore")
	wantReason(t, m.report(c, proven), "not-proved")
	m.prove(r, c)
	m.must(m.report(c, proven))
	if s := m.view().Stores[0]; s.Unproved || s.State != "proven" {
		t.Errorf("store = %+v", s)
	}
	_, err = r["n2"].claim(renew)
	m.must(err)
}
