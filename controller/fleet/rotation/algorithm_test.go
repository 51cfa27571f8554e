package rotation_test

import (
	"slices"
	"strings"
	"testing"

	"github.com/cassandra-security-manager/csm/controller/fleet/rotation"
	"github.com/cassandra-security-manager/csm/shared/algorithm"
)

func TestARingGoesToACAWithAnotherKindOfKey(t *testing.T) {
	w := newWorldOf(t, 3, "", rotation.Rollouts{}, algorithm.P521)
	p, err := w.rotations.Plan(ctx, w.wanted(young))
	w.must(err)
	if p.Kind != rotation.Algorithm || len(p.Blockers) > 0 || !slices.ContainsFunc(p.Notes, func(n string) bool {
		return strings.HasPrefix(n, "certificates are signed with P-521 instead of P-384")
	}) {
		t.Fatalf("kind %s, blockers %v, notes %v", p.Kind, p.Blockers, p.Notes)
	}
	r := w.start(young)
	w.run(20)
	phaseIs(t, w.get(r.Name), rotation.Reissued)
	w.must(w.retire(r.Name))
	w.run(12)
	phaseIs(t, w.get(r.Name), rotation.Done)
	for _, m := range w.nodes {
		if m.trusted[old] || m.leaf != young {
			t.Errorf("%s trusts the CA before: %v; serves %s", m.name, m.trusted[old], m.leaf)
		}
	}
}

func TestACAWithAnotherKindOfKeyIsRefusedWhereNobodyKnowsWhatANodeTakes(t *testing.T) {
	w := newWorldOf(t, 3, "", rotation.Rollouts{}, algorithm.P521)
	w.nodes[1].instance.Internode.Factory = "org.example.Vault"
	w.must(w.nodes[1].report())
	p, err := w.rotations.Plan(ctx, w.wanted(young))
	w.must(err)
	_, err = w.rotations.Start(ctx, w.wanted(young), p.Hash, 0, "stronger", ann)
	wantReason(t, err, "gate-algorithm")
}
