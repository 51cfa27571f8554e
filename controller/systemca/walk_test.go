package systemca_test

import (
	"crypto/sha256"
	"slices"
	"testing"
	"time"

	"pgregory.net/rapid"

	clusterv1 "github.com/cassandra-security-manager/csm/protocol/cluster/v1"

	"github.com/cassandra-security-manager/csm/controller/state/statetest"
	"github.com/cassandra-security-manager/csm/controller/systemca"
	"github.com/cassandra-security-manager/csm/shared/identity"
	"github.com/cassandra-security-manager/csm/shared/resource"
)

// walk is a random life of a system whose CA changes: whatever controllers, agents, machines and people do in whatever order, nobody who is
// alive is cut off; and when everybody is well again, what was begun comes to its end.
type walk struct {
	*beings
	joined int
	ends   map[systemca.Phase]int
}

func (k *walk) pick(t *rapid.T) *being { return rapid.SampledFrom(k.all).Draw(t, "who") }

// does is one thing that somebody does by itself.
func (k *walk) does(t *rapid.T) {
	b := k.pick(t)
	if !b.live() {
		return
	}
	switch rapid.SampledFrom([]string{"follow", "sign", "take", "lose", "seen", "seen"}).Draw(t, "what") {
	case "follow":
		k.follow(b)
	case "sign":
		if b.coming == nil && (k.due(b) || rapid.IntRange(0, 4).Draw(t, "by time") == 0) && k.reachable(b) {
			k.must(k.sign(b))
		}
	case "take":
		b.take()
	case "lose":
		b.coming = nil
	case "seen":
		k.seen(b)
	}
}

// round lets most of them do what they have to, so that walks come to the later phases.
func (k *walk) round(t *rapid.T) {
	k.log.Clock.Advance(6 * time.Second)
	for _, b := range rapid.Permutation(k.all).Draw(t, "order") {
		if b.live() && rapid.IntRange(0, 5).Draw(t, "asleep") > 0 {
			b.take()
			k.follow(b)
			if k.due(b) {
				k.must(k.sign(b))
			}
			b.take()
		}
		k.check(t)
	}
	for _, b := range k.all {
		k.seen(b)
	}
	k.must(k.Watch(ctx))
}

// power kills, starts, and sets a controller that was away for long back to an old disk while both roots are trusted.
func (k *walk) power(t *rapid.T) {
	b := k.pick(t)
	switch {
	case b.up:
		k.stop(b)
		return
	case b.leaf == nil:
		k.first(b)
		return
	}
	if b.controller() && b.image != nil && len(k.bundle()) == 2 && rapid.IntRange(0, 3).Draw(t, "old disk") == 0 {
		k.log.Clock.Advance(21 * time.Second)
		b.image()
	}
	k.wake(b)
}

// first lets somebody who was let in begin.
func (k *walk) first(b *being) {
	if b.coming == nil {
		k.must(k.sign(b))
	}
	k.launch(b)
}

// comes lets somebody join, or a controller that is down be removed.
func (k *walk) comes(t *rapid.T) {
	switch rapid.SampledFrom([]string{"controller", "agent", "remove"}).Draw(t, "what") {
	case "controller":
		if k.joined++; k.joined <= 2 {
			name := "csm" + string(rune('5'+k.joined))
			k.approve(name)
			k.must(k.propose(&clusterv1.ReportUnsealed{Name: name, Id: name}))
			b := k.being(identity.ControllerID(td, name), resource.Controller(name))
			k.must(k.sign(b))
		}
	case "agent":
		if k.joined++; k.joined <= 3 {
			k.join("n" + string(rune('5'+k.joined)))
		}
	case "remove":
		b := k.pick(t)
		alive := slices.ContainsFunc(k.all, func(x *being) bool { return x != b && x.controller() && x.live() })
		if b.controller() && !b.up && alive {
			k.remove(b.id.Path)
		}
	}
}

func (k *walk) people(t *rapid.T) {
	if k.rotation == "" || k.now().Phase.Ended() {
		k.again()
		return
	}
	switch rapid.SampledFrom([]string{"retire", "retire", "admin", "admin", "rollback", "pause", "resume", "resume", "name", "advance", "lie"}).Draw(t, "what") {
	case "retire":
		_ = k.raw()
	case "admin":
		k.admin()
	case "rollback":
		if rapid.IntRange(0, 3).Draw(t, "seldom") == 0 {
			_, _ = k.Control(ctx, k.rotation, "rollback", "walk", "test")
		}
	case "pause":
		_, _ = k.Control(ctx, k.rotation, "pause", "walk", "test")
	case "resume":
		_, _ = k.Control(ctx, k.rotation, "resume", "walk", "test")
	case "name":
		b := k.pick(t)
		if _, err := k.Control(ctx, k.rotation, "resume", "gone", "test", b.name); err == nil {
			b.named = true
		}
	case "advance": // anybody may ask
		_, _ = k.log.Propose(ctx, proposal(&clusterv1.AdvanceSystemRotation{Name: k.rotation}))
	case "lie": // a leaf of somebody else
		a, b := k.pick(t), k.pick(t)
		if c := k.witness(a); c != nil && b.leaf != nil {
			_ = k.Saw(ctx, c.id.Path, false, []systemca.Sighting{{Identity: a.id.String(), Leaf: sha256.Sum256(append([]byte(a.name), b.leaf.Raw...)), Trusts: sums(a.roots)}})
		}
	}
}

// again begins another rotation. Who was named in the one before and has lost its identity by that is named again.
func (k *walk) again() {
	k.begin()
	for _, b := range k.all {
		if b.named = b.named && (b.leaf == nil || k.witness(b) == nil); b.named {
			_, err := k.Control(ctx, k.rotation, "resume", "gone before", "test", b.name)
			k.must(err)
		}
	}
}

func (k *walk) check(t *rapid.T) {
	if b := k.broken(); b != "" {
		t.Fatalf("%s: %+v", b, k.now())
	}
}

// heal brings everybody back; then the rotation that runs comes to an end, with nothing that a person could not do.
func (k *walk) heal(t *rapid.T) {
	if k.rotation == "" {
		return
	}
	for _, b := range k.all {
		switch {
		case b.leaf == nil:
			k.first(b)
		case !b.up:
			k.wake(b)
		}
	}
	if r := k.now(); r.State == "paused" {
		_, err := k.Control(ctx, k.rotation, "resume", "all are well", "test")
		k.must(err)
	}
	for range 60 {
		if k.now().Phase.Ended() {
			k.ends[k.now().Phase]++
			return
		}
		k.everybody()
		k.check(t)
		if r := k.now(); r.Phase == systemca.Reissued || r.Phase == systemca.Undoing {
			k.admin()
			_ = k.raw()
		}
		k.must(k.Watch(ctx))
	}
	t.Fatalf("everybody is well, and it does not come to an end: %+v", k.now())
}

func TestNoOrderOfEventsCutsAnybodyOff(t *testing.T) {
	// Each walk has a state machine and a CA of its own.
	statetest.Walks(t, 8, 50)
	reached, ends := map[systemca.Phase]int{}, map[systemca.Phase]int{}
	rapid.Check(t, func(r *rapid.T) {
		k := &walk{beings: newBeings(t), ends: ends}
		k.begin()
		r.Repeat(map[string]func(*rapid.T){
			"does": k.does, "does more": k.does, "round": k.round, "round more": k.round, "round again": k.round, "tick": func(*rapid.T) { k.must(k.Watch(ctx)) },
			"power": k.power, "comes": k.comes, "people": k.people,
			"": func(t *rapid.T) {
				k.check(t)
				reached[k.now().Phase]++
			},
		})
		k.heal(r)
	})
	t.Logf("steps by phase: %v; ends: %v", reached, ends)
}
