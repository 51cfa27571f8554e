package rotation_test

import (
	"slices"
	"testing"

	"github.com/cassandra-security-manager/csm/controller/fleet/rotation"
	clusterv1 "github.com/cassandra-security-manager/csm/protocol/cluster/v1"
	"github.com/cassandra-security-manager/csm/shared/certificate"
)

func phaseIs(t testing.TB, r rotation.Rotation, want rotation.Phase) {
	t.Helper()
	if r.Phase != want {
		t.Fatalf("phase %s, want %s: %+v", r.Phase, want, r.Reasons)
	}
}

func waitsFor(r rotation.Rotation, gate string) bool {
	return slices.ContainsFunc(r.Reasons, func(x rotation.Reason) bool { return x.Code == gate })
}

func TestAWholeRotation(t *testing.T) {
	w := newWorld(t, 3)
	r := w.start(young)
	phaseIs(t, r, rotation.Distribute)
	w.run(12)
	r = w.get(r.Name)
	phaseIs(t, r, rotation.Reissued)
	if !waitsFor(r, "by-hand") {
		t.Errorf("it waits for %v, want a person", r.Reasons)
	}
	w.must(w.retire(r.Name))
	w.run(12)
	r = w.get(r.Name)
	phaseIs(t, r, rotation.Done)
	for _, m := range w.nodes {
		if m.leaf != young || m.trusted[old] || !m.trusted[young] {
			t.Errorf("%s serves a leaf of %s and trusts %v", m.name, m.leaf, m.trusted)
		}
	}
	if c, err := w.fleet.GetCluster(ctx, cluster); err != nil || c.Authority != young || len(c.Anchors) != 1 {
		t.Errorf("the cluster is signed by %s and has %d anchors: %v", c.Authority, len(c.Anchors), err)
	}
	for _, e := range r.Timeline {
		t.Logf("%s  %-10s %s", e.Time.Format("15:04:05"), e.Phase, e.Message)
	}
}

// A new issuer under the same root takes no anchor away: nobody has anything to do in the retire, and it ends.
func TestARetireThatTakesNothingAwayEndsWithoutAMove(t *testing.T) {
	w := newWorld(t, 3)
	w.tick() // of two issuers of one moment neither is the newer
	_, err := w.authorities.CreateIssuer(ctx, old, "eu", "test")
	w.must(err)
	r := w.start(old)
	if r.Kind != rotation.Rekey {
		t.Fatalf("kind %s", r.Kind)
	}
	w.run(12)
	phaseIs(t, w.get(r.Name), rotation.Reissued)
	w.must(w.retire(r.Name))
	for range 3 {
		w.tick() // and no agent does anything
	}
	phaseIs(t, w.get(r.Name), rotation.Done)
	for _, m := range w.nodes {
		if m.behind() || !m.trusted[old] {
			t.Errorf("%s is asked for a move, or lost its anchor: %v", m.name, m.trusted)
		}
	}
}

// Anchors that the ring trusts besides are not part of a change that leaves the root, or that replaces leaves of another CA: who
// put them there takes them away.
func TestWhereTheRootStaysNoOtherAnchorGoes(t *testing.T) {
	for kind, w := range map[rotation.Kind]*world{rotation.Rekey: newWorld(t, 3), rotation.Takeover: adopted(t, 3, "")} {
		var all [][]byte
		for _, name := range []string{old, young} {
			anchors, err := w.authorities.Anchors(ctx, name)
			w.must(err)
			all = append(all, certificate.Raw(anchors)...)
		}
		w.must(w.raw(&clusterv1.GrowTrust{Cluster: cluster, Anchors: all}))
		if kind == rotation.Rekey {
			w.tick()
			_, err := w.authorities.CreateIssuer(ctx, old, "eu", "test")
			w.must(err)
		}
		p, err := w.rotations.Plan(ctx, w.wanted(old))
		w.must(err)
		if p.Kind != kind || len(p.Withdraw) > 0 {
			t.Errorf("%s: the plan is of kind %s and withdraws %v", kind, p.Kind, p.Withdraw)
		}
	}
}
