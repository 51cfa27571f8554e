package rotation_test

import (
	"testing"

	"pgregory.net/rapid"

	"github.com/cassandra-security-manager/csm/controller/fleet/rotation"
	"github.com/cassandra-security-manager/csm/controller/state"
	"github.com/cassandra-security-manager/csm/controller/state/statetest"
	clusterv1 "github.com/cassandra-security-manager/csm/protocol/cluster/v1"
)

// walk is a random life of a ring whose CA changes: whatever the leader, agents, machines and people do in whatever order, no
// two live members lack a path of trust both ways.
type walk struct {
	*world
	rotation string
	behind   map[*member]bool // was set aside, in this rotation or one before, and was not up since
}

func (k *walk) pick(t *rapid.T) *member { return rapid.SampledFrom(k.nodes).Draw(t, "node") }

// act lets one agent do what it is asked for.
func (k *walk) act(t *rapid.T) {
	if m := k.pick(t); !k.down[m.name] && m.pending() {
		_ = m.move()
	}
}

// round lets the leader look and then every agent that is up, in a drawn order, so that walks come to the later phases.
func (k *walk) round(t *rapid.T) {
	k.tick()
	for _, m := range rapid.Permutation(k.nodes).Draw(t, "order") {
		if !k.down[m.name] && m.pending() {
			_ = m.move()
		}
		if b := k.broken(); b != "" {
			t.Fatal(b)
		}
	}
}

// power stops a Cassandra, or starts it: with the files that are there, or, where its agent comes first, with those of now.
func (k *walk) power(t *rapid.T) {
	m := k.pick(t)
	if !k.down[m.name] {
		k.stop(m)
		return
	}
	// A member that was set aside is not let up before its agent has brought its files up to date, in the next rotation neither.
	aside := k.behind[m]
	if k.rotation != "" {
		for _, a := range k.get(k.rotation).Asides {
			aside = aside || a.Node == m.name
		}
	}
	if aside || rapid.Bool().Draw(t, "ensure") {
		for range 4 { // trust, then the leaf: the leader tells one after the other
			if k.tick(); !m.pending() {
				break
			}
			if err := m.move(); err != nil && aside {
				return
			}
		}
	}
	k.startCassandra(m)
	delete(k.behind, m)
}

func (k *walk) people(t *rapid.T) {
	if k.rotation == "" || k.get(k.rotation).EndTime.Unix() > 0 {
		to := rapid.SampledFrom([]string{old, young}).Draw(t, "to")
		k.emergency, k.keep = rapid.Bool().Draw(t, "emergency"), nil
		if k.emergency && rapid.Bool().Draw(t, "keep") {
			k.keep = []string{"by-hand"}
		}
		if p, err := k.rotations.Plan(ctx, k.wanted(to)); err == nil {
			if r, err := k.rotations.Start(ctx, k.wanted(to), p.Hash, 0, "walk", ann, "links"); err == nil {
				k.rotation = r.Name
			}
		}
		return
	}
	switch rapid.SampledFrom([]string{"retire", "retire", "rollback", "pause", "resume", "resume", "aside", "advance"}).Draw(t, "what") {
	case "retire":
		_ = k.retire(k.rotation)
	case "rollback":
		if rapid.IntRange(0, 3).Draw(t, "seldom") == 0 {
			_, _ = k.rotations.Control(ctx, k.rotation, "rollback", "walk", ann)
		}
	case "pause":
		_, _ = k.rotations.Control(ctx, k.rotation, "pause", "walk", ann)
	case "resume":
		_, _ = k.rotations.Control(ctx, k.rotation, "resume", "walk", ann)
	case "aside":
		m := k.pick(t)
		if _, err := k.rotations.SetAside(ctx, k.rotation, m.name, m.incarnation, "walk", ann); err == nil {
			k.behind[m] = true
		}
	case "advance": // anybody may ask
		_, _ = k.log.Propose(ctx, state.Proposal{Command: &clusterv1.AdvanceRotation{Name: k.rotation}, Actor: "mallory"})
	}
}

func TestNoOrderOfEventsCutsTwoLiveMembers(t *testing.T) {
	// Each walk has a state machine and two CAs of its own. Short ones do not come to the retire.
	statetest.Walks(t, 12, 60)
	phases, urgent := map[rotation.Phase]int{}, map[rotation.Phase]int{}
	rapid.Check(t, func(r *rapid.T) {
		var waves rotation.Waves = rotation.Rollouts{}
		if rapid.Bool().Draw(r, "eager waves") {
			waves = eager{}
		}
		k := &walk{world: newWorldWith(t, 3, "", waves), behind: map[*member]bool{}}
		defer k.log.Close()
		r.Repeat(map[string]func(*rapid.T){
			"act": k.act, "act more": k.act, "act again": k.act, "tick": func(*rapid.T) { k.tick() }, "tick more": func(*rapid.T) { k.tick() }, "power": k.power, "people": k.people,
			"round": k.round, "round more": k.round,
			"": func(t *rapid.T) {
				if b := k.broken(); b != "" {
					t.Fatal(b)
				}
				if k.rotation != "" {
					x := k.get(k.rotation)
					phases[x.Phase]++
					if x.Emergency {
						urgent[x.Phase]++
					}
				}
			},
		})
	})
	t.Logf("steps by phase: %v, of them in emergencies: %v", phases, urgent)
}
