package rollout_test

import (
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/cassandra-security-manager/csm/controller/fleet/rollout"
	"github.com/cassandra-security-manager/csm/controller/state"
	"github.com/cassandra-security-manager/csm/controller/state/statetest"
	agentv1 "github.com/cassandra-security-manager/csm/protocol/agent/v1"
	clusterv1 "github.com/cassandra-security-manager/csm/protocol/cluster/v1"
	"github.com/cassandra-security-manager/csm/shared/fault"
)

// walk is a random life of a ring under rollouts: whatever agents, people, gossip and time do in whatever order, the gates hold.
type walk struct {
	*world
	claims map[*member]string
	width  int
	name   string // of the newest rollout
	said   string // what all say of one member: well, down or joining
	frozen bool
}

func (k *walk) pick(t *rapid.T) *member { return rapid.SampledFrom(k.nodes).Draw(t, "node") }

// sane ends the walk at what no test provokes.
func (k *walk) sane(t *rapid.T, err error) bool {
	if err != nil && fault.Is(err, fault.Internal) {
		t.Fatal(err)
	}
	return err == nil
}

func (k *walk) start(t *rapid.T) {
	s := k.spec()
	s.Width = rapid.IntRange(1, 3).Draw(t, "width")
	s.Canary = rapid.IntRange(0, 1).Draw(t, "canary")
	s.FailureBudget = rapid.IntRange(0, 2).Draw(t, "budget")
	p, err := k.rollouts.Plan(ctx, s)
	if !k.sane(t, err) {
		return
	}
	name, err := k.begin(s, p.Hash)
	if k.sane(t, err) {
		k.name, k.width = name, s.Width
	}
}

// claim is the one place where something begins: what let it begin is looked at here.
func (k *walk) claim(t *rapid.T) {
	m := k.pick(t)
	raised := m.wants()
	var before rollout.Rollout
	phase := ""
	if k.name != "" {
		before = k.get(k.name)
		for _, w := range before.Waves {
			for _, n := range w.Nodes {
				if n.Node == m.name {
					phase = n.Phase
				}
			}
		}
	}
	c, err := m.claim(renew)
	if !k.sane(t, err) {
		return
	}
	k.claims[m] = c
	if !raised || phase != "told" || !before.Live() {
		return // a renewal by time: fleet's own walk looks at that
	}
	// The way back may be the cure of who is down.
	bad := k.said == "joining" || k.said == "down" && before.State != rollout.RollingBack
	if bad || k.frozen || before.State != rollout.Running && before.State != rollout.RollingBack {
		t.Fatalf("%s was let go: a member is %s, frozen %v, %s", m.name, k.said, k.frozen, before.State)
	}
}

func (k *walk) finish(t *rapid.T) {
	m := k.pick(t)
	c := k.claims[m]
	if c == "" {
		return
	}
	outcome := rapid.SampledFrom([]agentv1.MoveOutcome{proven, proven, proven, unproven, rolledBack, refused, failed}).Draw(t, "outcome")
	if outcome == proven || outcome == unproven {
		o, err := k.fleet.OpenClaim(ctx, c)
		if !k.sane(t, err) {
			return
		}
		k.serial++
		der := m.name + time.Duration(k.serial).String()
		if !k.sane(t, m.record(c, o.Authority, der)) {
			return
		}
		m.store.LeafSha256, m.store.KeystoreSha256 = sum(der), sum("keystore of "+der)
		if outcome == proven {
			m.prove(c)
		}
	}
	if k.sane(t, m.report(c, outcome)) {
		delete(k.claims, m)
	}
}

func (k *walk) people(t *rapid.T) {
	switch what := rapid.SampledFrom([]string{"pause", "resume", "resume", "abort", "rollback", "freeze", "unfreeze", "renew"}).Draw(t, "what"); what {
	case "freeze":
		k.frozen = k.sane(t, k.fleet.Freeze(ctx, cluster, "stop", time.Time{}, ann)) || k.frozen
	case "unfreeze":
		k.sane(t, k.fleet.Unfreeze(ctx, cluster, "go", ann))
		k.frozen = false
	case "renew":
		_, err := k.fleet.RequestRenewal(ctx, k.pick(t).name, "", "asked", ann)
		k.sane(t, err)
	default:
		if k.name != "" {
			k.sane(t, k.rollouts.Set(ctx, k.name, what, "a walk", ann))
		}
	}
}

func (k *walk) neighbours(t *rapid.T) {
	m := k.pick(t)
	what := rapid.SampledFrom([]string{"well", "well", "down", "joining"}).Draw(t, "gossip")
	k.said = what
	k.gossip(func(id []byte, x *agentv1.RingMember) {
		if string(id) != string(m.id) {
			return
		}
		switch what {
		case "down":
			x.Up = false
		case "joining":
			x.State = agentv1.RingState_RING_STATE_JOINING
		}
	})
}

// advance is asked by anybody, for any rollout, at any time.
func (k *walk) advance(t *rapid.T) {
	if rapid.Bool().Draw(t, "by the leader") || k.name == "" {
		k.sane(t, k.rollouts.Watch(ctx))
		return
	}
	_, err := k.log.Propose(ctx, state.Proposal{Command: &clusterv1.AdvanceRollout{Rollout: k.name}, Actor: "anybody"})
	k.sane(t, err)
}

func (k *walk) check(t *rapid.T) {
	if k.name == "" {
		return
	}
	r := k.get(k.name)
	busy := 0
	for _, w := range r.Waves {
		for _, n := range w.Nodes {
			if n.Phase == "told" || n.Phase == "moving" {
				busy++
			}
		}
	}
	if busy > k.width {
		t.Fatalf("%d nodes at once, the plan says %d", busy, k.width)
	}
	for _, m := range k.nodes {
		n, err := k.fleet.GetNode(ctx, m.name)
		if err != nil {
			t.Fatal(err)
		}
		s := n.Stores[0]
		if s.Installed > s.Generation {
			t.Fatalf("%s has installed generation %d of %d", m.name, s.Installed, s.Generation)
		}
		if r.State == rollout.Aborted && s.Installed < s.Generation && s.Reason != "asked" && n.Claim == nil && s.State != "failed" && !s.Unproved {
			t.Fatalf("an aborted rollout left the wish of %s behind: %+v", m.name, s)
		}
	}
}

func TestNoOrderOfEventsOpensAWaveTooEarlyOrTooWide(t *testing.T) {
	// Each walk has a state machine of its own.
	statetest.Walks(t, 15, 0)
	rapid.Check(t, func(r *rapid.T) {
		k := &walk{world: newWorld(t, "r1", "r1", "r2"), claims: map[*member]string{}}
		defer k.log.Close()
		r.Repeat(map[string]func(*rapid.T){
			"start": k.start, "claim": k.claim, "claim more": k.claim, "finish": k.finish, "finish more": k.finish, "people": k.people, "neighbours": k.neighbours, "advance": k.advance,
			"time": func(t *rapid.T) {
				k.log.Clock.Advance(time.Duration(rapid.IntRange(1, 20).Draw(t, "minutes")) * time.Minute)
			},
			"": k.check,
		})
	})
}
