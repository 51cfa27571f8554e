package fleet_test

import (
	"context"
	"testing"
	"time"

	"github.com/cassandra-security-manager/csm/controller/fleet"
	"github.com/cassandra-security-manager/csm/controller/state"
	agentv1 "github.com/cassandra-security-manager/csm/protocol/agent/v1"
	"github.com/cassandra-security-manager/csm/shared/fault"
)

// tellsLinks has the agent report what it knows of connections.
func (m *member) tellsLinks(l *agentv1.LinkFacts) {
	m.w.t.Helper()
	m.instance.Links = l
	m.must(m.connect())
}

func (m *member) cycle() (uint64, error) {
	return m.w.CycleLinks(ctx, m.name, "leaf of the old CA", ann)
}

func TestAWishToCycleIsToldUntilItIsFulfilledOrLapses(t *testing.T) {
	w := newWorld(t)
	m := w.joined("n1")
	m.tellsLinks(&agentv1.LinkFacts{Old: 12, Peers: [][]byte{{10, 0, 0, 2}}})
	g, err := m.cycle()
	if err != nil {
		t.Fatal(err)
	}
	target, _, err := w.Target(ctx, m.name)
	if err != nil || target.Cycle != g || target.Generation < g || !target.CycleUntil.AsTime().Equal(w.log.Clock.Now().Add(fleet.CycleFor).Truncate(time.Millisecond)) {
		t.Fatalf("%v %v", target, err)
	}
	if again, err := m.cycle(); err != nil || again != g {
		t.Errorf("asked twice: %d %v", again, err)
	}
	l := m.view().Links
	if l == nil || l.Old != 12 || len(l.Peers) != 1 || l.Peers[0] != "10.0.0.2" || l.Wish == nil || l.Wish.Actor != ann || l.Wish.Generation != g {
		t.Fatalf("%+v", l)
	}
	m.tellsLinks(&agentv1.LinkFacts{Cycled: g, Result: "done"})
	next, err := m.cycle()
	if err != nil || next <= g {
		t.Errorf("a fulfilled wish is given again: %d %v", next, err)
	}
	w.log.Clock.Advance(fleet.CycleFor)
	if target, _, err := w.Target(ctx, m.name); err != nil || target.Cycle != 0 {
		t.Errorf("a wish that lapsed is told: %v %v", target, err)
	}
}

func TestAWishThatCouldComeToNoGoodEndIsRefused(t *testing.T) {
	known := &agentv1.LinkFacts{Old: 6}
	for reason, change := range map[string]func(*world, *member){
		"mode":              func(_ *world, m *member) { m.agent.Mode = agentv1.Mode_MODE_OBSERVE; m.tellsLinks(known) },
		"agent-suspended":   func(w *world, m *member) { m.tellsLinks(known); m.must(w.Suspend(ctx, m.name, "a copy", ann)) },
		"links-unknown":     func(*world, *member) {},
		"kernel-cannot-cut": func(_ *world, m *member) { m.tellsLinks(&agentv1.LinkFacts{Old: 6, Uncuttable: "no"}) },
		"cycle-busy": func(w *world, m *member) {
			m.tellsLinks(known)
			o := w.joined("other")
			o.tellsLinks(known)
			if _, err := o.cycle(); err != nil {
				t.Fatal(err)
			}
		},
	} {
		w := newWorld(t)
		m := w.joined("n1")
		change(w, m)
		_, err := m.cycle()
		if dry := w.MayCycleLinks(ctx, m.name); !fault.HasReason(dry, reason) {
			t.Errorf("%s: asked only: %v", reason, dry)
		}
		if !fault.HasReason(err, reason) || fault.From(err).Remedy == "" {
			t.Errorf("%s: %v", reason, err)
		}
		if reason == "cycle-busy" {
			w.log.Clock.Advance(fleet.CycleFor)
			if _, err := m.cycle(); err != nil {
				t.Error("a wish that lapsed holds up the others: ", err)
			}
		}
	}
}

func TestTheLinksOfAClusterAreThereForGates(t *testing.T) {
	w := newWorld(t)
	a := w.joined("a")
	w.joined("b")
	w.token("c", fleet.TokenSpec{})
	a.tellsLinks(&agentv1.LinkFacts{Unseen: "no netlink"})
	var all []fleet.NodeLinks
	err := w.log.Store.View(ctx, func(ctx context.Context, q state.Querier) (err error) {
		all, err = fleet.Links(ctx, q, cluster)
		return err
	})
	if err != nil || len(all) != 2 || all[0].Unseen != "no netlink" || all[1].Unseen == "" {
		t.Errorf("%+v %v", all, err)
	}
}
