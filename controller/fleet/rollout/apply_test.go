package rollout_test

import (
	"encoding/hex"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/cassandra-security-manager/csm/controller/fleet"
	"github.com/cassandra-security-manager/csm/controller/fleet/rollout"
	"github.com/cassandra-security-manager/csm/controller/state"
	agentv1 "github.com/cassandra-security-manager/csm/protocol/agent/v1"
	clusterv1 "github.com/cassandra-security-manager/csm/protocol/cluster/v1"
)

func (w *world) want(name, st string, phases ...string) {
	w.t.Helper()
	r := w.get(name)
	if r.State != st || !slices.Equal(w.phases(name), phases) {
		w.t.Fatalf("it is %s (%s) with %v, awaiting %v; want %s with %v", r.State, r.Note, w.phases(name), r.Awaits, st, phases)
	}
}

const renew = agentv1.MoveKind_MOVE_KIND_RENEW

func TestARolloutGoesWaveByWave(t *testing.T) {
	w := newWorld(t, "r1", "r2", "r3")
	before := w.nodes[1].target().Generation
	name := w.start(w.spec())
	w.want(name, rollout.Running, "told", "pending", "pending")
	if w.nodes[1].target().Generation != before {
		t.Fatal("a node was told before its wave")
	}
	c, err := w.nodes[0].claim(renew)
	w.nodes[0].must(err)
	w.want(name, rollout.Running, "moving", "pending", "pending")
	w.nodes[0].write(c)
	w.nodes[0].prove(c)
	w.nodes[0].must(w.nodes[0].report(c, proven))
	w.want(name, rollout.Running, "proved", "told", "pending") // the report itself went on
	w.nodes[1].move()
	w.nodes[2].move()
	w.want(name, rollout.Done, "proved", "proved", "proved")
	if r := w.get(name); r.Note != "3 of 3 nodes proved" || r.EndTime.IsZero() {
		t.Errorf("its last word: %+v", r)
	}
}

func TestAPlanThatTheStateLeftBehindIsStale(t *testing.T) {
	w := newWorld(t, "r1", "r1")
	p, err := w.rollouts.Plan(ctx, w.spec())
	if err != nil {
		t.Fatal(err)
	}
	again, err := w.rollouts.Plan(ctx, w.spec())
	if err != nil || again.Hash != p.Hash {
		t.Fatalf("the same plan has another hash: %v", err)
	}
	wider := w.spec()
	wider.Width = 2
	if other, err := w.rollouts.Plan(ctx, wider); err != nil || other.Hash == p.Hash {
		t.Fatalf("another plan has the same hash: %v", err)
	}
	if _, err := w.fleet.RequestRenewal(ctx, w.nodes[0].name, "", "a person", ann); err != nil {
		t.Fatal(err)
	}
	_, err = w.begin(w.spec(), p.Hash)
	wantReason(t, err, "plan-stale")
	name := w.start(w.spec())
	_, err = w.begin(w.spec(), p.Hash)
	wantReason(t, err, "rollout-runs")
	_, err = w.rollouts.Plan(ctx, wider)
	if err != nil {
		t.Errorf("a plan may be looked at while %s runs: %v", name, err)
	}
}

func TestUnsafeCommandsAreRefusedHoweverTheyAreAsked(t *testing.T) {
	w := newWorld(t, "r1", "r2")
	raw := func(c *clusterv1.StartRollout) error {
		_, err := w.log.Propose(ctx, state.Proposal{Command: c, Actor: ann})
		return err
	}
	p, err := w.rollouts.Plan(ctx, w.spec())
	if err != nil {
		t.Fatal(err)
	}
	hash, _ := hex.DecodeString(p.Hash)
	good := &clusterv1.RolloutSpec{Cluster: cluster, Kind: "renew", Width: 1, Canary: 1}
	for reason, c := range map[string]*clusterv1.StartRollout{
		"plan-stale":       {Spec: good},
		"owned":            {Spec: &clusterv1.RolloutSpec{Cluster: cluster, Kind: "renew", Width: 1, Owner: "me"}, PlanHash: hash},
		"step-of-rotation": {Spec: &clusterv1.RolloutSpec{Cluster: cluster, Kind: "shrink", Width: 1}, PlanHash: hash},
		"bad-width":        {Spec: &clusterv1.RolloutSpec{Cluster: cluster, Kind: "renew", Width: 1000}, PlanHash: hash},
		"bad-window":       {Spec: &clusterv1.RolloutSpec{Cluster: cluster, Kind: "renew", Width: 1, Windows: []string{"never"}}, PlanHash: hash},
		"no-cluster":       {Spec: &clusterv1.RolloutSpec{Cluster: cluster + "x", Kind: "renew", Width: 1}, PlanHash: hash},
		"no-node":          {Spec: &clusterv1.RolloutSpec{Cluster: cluster, Kind: "renew", Width: 1, Nodes: []string{"n9"}}, PlanHash: hash},
	} {
		wantReason(t, raw(c), reason)
	}
	name := w.start(w.spec())
	// Asked to advance a hundred times, it tells nobody more.
	for range 100 {
		if _, err := w.log.Propose(ctx, state.Proposal{Command: &clusterv1.AdvanceRollout{Rollout: name}, Actor: ann}); err != nil {
			t.Fatal(err)
		}
	}
	w.want(name, rollout.Running, "told", "pending")
	// Nobody moves what a rollout is to move.
	_, err = w.fleet.RequestRenewal(ctx, w.nodes[1].name, "", "now", ann)
	wantReason(t, err, "in-rollout")
	// A node whose wave is not open may not take trust, even by the plan's hash.
	r := &agentv1.ClaimMoveRequest{Node: w.nodes[1].name, Incarnation: 1, Store: "node", Generation: w.nodes[1].target().Generation, Kind: agentv1.MoveKind_MOVE_KIND_TRUST,
		KeystoreSha256: w.nodes[1].store.KeystoreSha256, TruststoreSha256: w.nodes[1].store.TruststoreSha256, RequestId: "early"}
	_, _, err = w.fleet.Claim(ctx, w.nodes[1].uid, r)
	wantReason(t, err, "wave-busy")
	r.PlanHash, r.RequestId = hash, "early too"
	_, _, err = w.fleet.Claim(ctx, w.nodes[1].uid, r)
	wantReason(t, err, "plan-unknown")
	for _, verb := range []string{"resume", "explode"} {
		if err := w.rollouts.Set(ctx, name, verb, "x", ann); err == nil {
			t.Errorf("it could %s", verb)
		}
	}
}

// What peers say of a member that is back is ten minutes old unless somebody asks them.
func TestWhoWaitsForTheRingHasItLookedAtAgain(t *testing.T) {
	w := newWorld(t, "r1", "r2", "r3")
	look := func() uint64 {
		t.Helper()
		h, err := w.fleet.Health(ctx, cluster)
		if err != nil {
			t.Fatal(err)
		}
		return h.Look
	}
	w.gossip(func(id []byte, m *agentv1.RingMember) { m.Up = string(id) != string(w.nodes[2].id) })
	w.start(w.spec())
	w.tick()
	first := look()
	if first == 0 {
		t.Fatal("nobody was asked")
	}
	if w.tick(); look() != first {
		t.Error("asked again at once")
	}
	w.log.Clock.Advance(fleet.LookAgain)
	if w.tick(); look() == first {
		t.Error("not asked again after a minute")
	}
	w.gossip(func([]byte, *agentv1.RingMember) {})
	w.tick()
	last := look()
	w.log.Clock.Advance(fleet.LookAgain)
	if w.tick(); look() != last {
		t.Error("asked although the ring holds nothing")
	}
}

func TestTheRingHoldsTheWave(t *testing.T) {
	w := newWorld(t, "r1", "r2", "r3")
	last := w.nodes[2]
	for what, change := range map[string]func(*agentv1.RingMember){
		"member-down":  func(m *agentv1.RingMember) { m.Up = false },
		"ring-joining": func(m *agentv1.RingMember) { m.State = agentv1.RingState_RING_STATE_JOINING },
		"ring-leaving": func(m *agentv1.RingMember) { m.State = agentv1.RingState_RING_STATE_LEAVING },
		"ring-moving":  func(m *agentv1.RingMember) { m.State = agentv1.RingState_RING_STATE_MOVING },
	} {
		w.gossip(func(id []byte, m *agentv1.RingMember) {
			if string(id) == string(last.id) {
				change(m)
			}
		})
		name := w.start(w.spec())
		w.want(name, rollout.Running, "pending", "pending", "pending")
		if r := w.get(name); r.Awaits[0].Code != what || r.Awaits[0].Message == "" {
			t.Errorf("%s: it waits for %v", what, r.Awaits)
		}
		w.gossip(func([]byte, *agentv1.RingMember) {})
		w.tick()
		w.want(name, rollout.Running, "told", "pending", "pending")
		// It happens between telling and claiming: the claim is refused too.
		w.gossip(func(id []byte, m *agentv1.RingMember) {
			if string(id) == string(last.id) {
				change(m)
			}
		})
		_, err := w.nodes[0].claim(renew)
		wantReason(t, err, "wave-busy")
		w.gossip(func([]byte, *agentv1.RingMember) {})
		if err := w.rollouts.Set(ctx, name, "abort", "next", ann); err != nil {
			t.Fatal(err)
		}
		w.want(name, rollout.Aborted, "gone", "gone", "gone")
		if w.nodes[0].wants() {
			t.Fatal("an aborted rollout left its wish behind")
		}
	}
}

func TestAgentsAwayAndCassandraDownHoldTheWaveToo(t *testing.T) {
	w := newWorld(t, "r1", "r2", "r3")
	name := w.start(w.spec())
	w.nodes[0].move()
	w.want(name, rollout.Running, "proved", "told", "pending")
	w.nodes[2].instance.Running = false
	w.nodes[2].must(w.nodes[2].connect())
	_, err := w.nodes[1].claim(renew)
	wantReason(t, err, "wave-busy")
	w.nodes[2].instance.Running = true
	w.nodes[2].must(w.nodes[2].connect())
	w.nodes[1].move()
	first := w.nodes[0]
	first.must(w.fleet.Disconnected(ctx, first.uid, first.incarnation, fmt.Sprint(first.streams)))
	_, err = w.nodes[2].claim(renew)
	wantReason(t, err, "wave-busy")
	if r := w.get(name); r.Awaits[0].Code != "agent-away" {
		t.Errorf("it waits for %v", r.Awaits)
	}
	health := func() fleet.RingHealth {
		h, err := w.fleet.Health(ctx, cluster)
		first.must(err)
		return h
	}
	before := health().Look
	w.log.Clock.Advance(fleet.LookAgain)
	if w.tick(); health().Look == before {
		t.Error("an agent is away, perhaps its host, and nobody is asked whether the member is up")
	}
	first.must(first.connect())
	w.nodes[2].move()
	w.want(name, rollout.Done, "proved", "proved", "proved")
}

func TestAFailureHaltsAndAResumeTriesAgain(t *testing.T) {
	w := newWorld(t, "r1", "r2", "r3")
	name := w.start(w.spec())
	w.nodes[0].move()
	w.nodes[1].back(rolledBack)
	w.want(name, rollout.Halted, "proved", "failed", "pending")
	_, err := w.nodes[1].claim(renew) // it does not try on by itself
	wantReason(t, err, "wave-busy")
	if err := w.rollouts.Set(ctx, name, "resume", "put right", ann); err != nil {
		t.Fatal(err)
	}
	w.want(name, rollout.Running, "proved", "told", "pending")
	w.nodes[1].move()
	w.nodes[2].move()
	w.want(name, rollout.Done, "proved", "proved", "proved")
}

func TestWhoHasNoTurnYetHasNotFailed(t *testing.T) {
	for _, why := range []string{
		"signer-busy: the signer makes 2 signatures a second, and 4000 requests that end sooner are before this one",
		"reload-budget: this node was reloaded 6 times within 1h0m0s; the next one is free at 2026-11-23T13:21:22Z",
	} {
		w := newWorld(t, "r1", "r2")
		name := w.start(w.spec())
		for range 5 {
			c, err := w.nodes[0].claim(renew)
			w.nodes[0].must(err)
			w.nodes[0].must(w.nodes[0].reportBecause(c, refused, why))
			w.want(name, rollout.Running, "told", "pending")
		}
		r, err := w.rollouts.Get(ctx, name)
		w.nodes[0].must(err)
		if !slices.ContainsFunc(r.Awaits, func(x rollout.Reason) bool { return x.Code == "told" && strings.Contains(x.Message, why) }) {
			t.Errorf("people are not told why: %+v", r.Awaits)
		}
		w.nodes[0].move()
		w.nodes[1].move()
		w.want(name, rollout.Done, "proved", "proved")
	}
}

func TestFailuresWithinTheBudgetGoOnAndStayBehind(t *testing.T) {
	w := newWorld(t, "r1", "r2", "r3")
	s := w.spec()
	s.FailureBudget = 1
	name := w.start(s)
	w.nodes[0].move()
	for range 2 { // a node that refuses is asked again
		w.nodes[1].back(refused)
		w.want(name, rollout.Running, "proved", "told", "pending")
	}
	w.nodes[1].back(refused)
	w.want(name, rollout.Running, "proved", "failed", "told")
	w.nodes[2].move()
	w.want(name, rollout.Done, "proved", "failed", "proved")
	if w.nodes[1].wants() {
		t.Error("the node that failed goes on trying")
	}
	name = w.start(s)
	w.nodes[0].back(failed)
	w.want(name, rollout.Halted, "failed", "pending", "pending")
}

func TestPauseLetsWhatMovesEnd(t *testing.T) {
	w := newWorld(t, "r1", "r1", "r1")
	s := w.spec()
	s.Width, s.Canary = 2, 0
	name := w.start(s)
	w.want(name, rollout.Running, "told", "told", "pending")
	c, err := w.nodes[0].claim(renew)
	w.nodes[0].must(err)
	if err := w.rollouts.Set(ctx, name, "pause", "pager", ann); err != nil {
		t.Fatal(err)
	}
	_, err = w.nodes[1].claim(renew)
	wantReason(t, err, "wave-busy")
	w.nodes[0].write(c)
	w.nodes[0].prove(c)
	w.nodes[0].must(w.nodes[0].report(c, proven))
	w.want(name, rollout.Paused, "proved", "told", "pending")
	if err := w.rollouts.Set(ctx, name, "resume", "over", ann); err != nil {
		t.Fatal(err)
	}
	w.want(name, rollout.Running, "proved", "told", "told")
	w.nodes[1].move()
	w.nodes[2].move()
	w.want(name, rollout.Done, "proved", "proved", "proved")
}

func TestARollbackTakesTheNodesThatMovedInReverseOrder(t *testing.T) {
	w := newWorld(t, "r1", "r2", "r3")
	name := w.start(w.spec())
	w.nodes[0].move()
	w.nodes[1].move()
	if err := w.rollouts.Set(ctx, name, "rollback", "clients complain", ann); err != nil {
		t.Fatal(err)
	}
	w.want(name, rollout.RollingBack, "pending", "told", "gone")
	if w.nodes[2].wants() {
		t.Error("the node that had not begun is still told")
	}
	w.nodes[1].move()
	w.nodes[0].move()
	w.want(name, rollout.RolledBack, "proved", "proved", "gone")
	if err := w.rollouts.Set(ctx, name, "rollback", "again", ann); err == nil {
		t.Error("it went back twice")
	}
}

func TestANodeThatJoinsAnewIsLeftOut(t *testing.T) {
	w := newWorld(t, "r1", "r2")
	name := w.start(w.spec())
	w.nodes[0].move()
	if err := w.fleet.Revoke(ctx, w.nodes[1].name, "stolen", ann); err != nil {
		t.Fatal(err)
	}
	w.tick()
	w.want(name, rollout.Done, "proved", "gone")
}

func TestTimeAloneOpensTheNextWave(t *testing.T) {
	w := newWorld(t, "r1", "r2")
	s := w.spec()
	s.Bake = time.Hour
	name := w.start(s)
	w.nodes[0].move()
	w.want(name, rollout.Running, "proved", "pending")
	w.tick()
	applied := w.log.Store.Applied()
	w.tick()
	if w.log.Store.Applied() != applied {
		t.Error("waiting costs a command each time")
	}
	w.log.Clock.Advance(time.Hour)
	w.tick()
	w.want(name, rollout.Running, "proved", "told")
}

func TestAStepOfARotationIsEndedByTheRotationOnly(t *testing.T) {
	w := newWorld(t, "r1", "r2")
	r, err := w.log.Propose(ctx, state.Proposal{Command: &clusterv1.StartRotation{Cluster: cluster}, Actor: ann}) // owner stands for package rotation
	if err != nil {
		t.Fatal(err)
	}
	name := r.Reply.(*clusterv1.StartRotationReply).Name
	for _, verb := range []string{rollout.AbortIt, rollout.Rollback} {
		wantReason(t, w.rollouts.Set(ctx, name, verb, "by hand", ann), "owned")
	}
	if got := w.get(name); got.State != rollout.Running {
		t.Fatalf("it is %s", got.State)
	}
	if err := w.rollouts.Set(ctx, name, rollout.Pause, "a person may stop it at any time", ann); err != nil {
		t.Fatal(err)
	}
	if err := w.rollouts.Set(ctx, name, rollout.Resume, "it may go on", ann); err != nil {
		t.Fatal(err)
	}
}

func TestNothingWaitsForWhoIsSetAsideWhileItIsDown(t *testing.T) {
	w := newWorld(t, "r1", "r2", "r3")
	away := w.nodes[2]
	c, err := away.claim(renew) // its last move was never proved
	away.must(err)
	away.write(c)
	away.must(away.report(c, unproven))
	w.gossip(func(id []byte, x *agentv1.RingMember) { x.Up = string(id) != string(away.id) })
	r, err := w.log.Propose(ctx, state.Proposal{Command: &clusterv1.StartRotation{Cluster: cluster}, Actor: ann}) // owner stands for package rotation
	away.must(err)
	name := r.Reply.(*clusterv1.StartRotationReply).Name
	w.tick()
	w.want(name, rollout.Running, "pending", "pending", "pending")
	h, err := w.fleet.Health(ctx, cluster)
	away.must(err)
	_, err = w.log.Propose(ctx, state.Proposal{Command: &clusterv1.SetAsideMember{Name: name, Member: h.Members[2].HostID + " " + away.name}, Actor: ann})
	away.must(err)
	w.tick()
	w.want(name, rollout.Running, "told", "pending", "gone")
	if away.wants() {
		t.Error("who was set aside is told to move by the waves")
	}
	w.nodes[0].move()
	w.log.Clock.Advance(2 * time.Minute)
	w.tick()
	w.want(name, rollout.Running, "proved", "told", "gone")

	w.gossip(func([]byte, *agentv1.RingMember) {})
	away.must(w.fleet.Disconnected(ctx, away.uid, away.incarnation, fmt.Sprint(away.streams)))
	_, err = w.nodes[1].claim(renew)
	wantReason(t, err, "wave-busy") // it is up, and nobody tells how it is
	w.gossip(func(id []byte, x *agentv1.RingMember) { x.Up = string(id) != string(away.id) })
	w.nodes[1].move()
	w.want(name, rollout.Done, "proved", "proved", "gone")
}

func TestAnAbortAfterAResumeLeavesNothingToDoBehind(t *testing.T) {
	w := newWorld(t, "r1", "r2")
	name := w.start(w.spec())
	w.nodes[0].back(rolledBack)
	w.want(name, rollout.Halted, "failed", "pending")
	if err := w.fleet.Freeze(ctx, cluster, "nothing begins now", time.Time{}, ann); err != nil {
		t.Fatal(err)
	}
	for _, verb := range []string{rollout.Resume, rollout.AbortIt} {
		if err := w.rollouts.Set(ctx, name, verb, "a person", ann); err != nil {
			t.Fatal(err)
		}
	}
	if got := w.get(name); got.State != rollout.Aborted {
		t.Fatalf("it is %s", got.State)
	}
	for _, n := range w.nodes {
		if n.wants() {
			t.Errorf("%s is still told to move by a rollout that was aborted", n.name)
		}
	}
}

func TestWhatBeganBeforeAnAbortAndDidNotMoveIsNotToldToMoveAgain(t *testing.T) {
	ended := map[string]func(w *world, m *member, claim string){
		"refused":     func(_ *world, m *member, c string) { m.must(m.report(c, refused)) },
		"rolled back": func(_ *world, m *member, c string) { m.must(m.report(c, rolledBack)) },
		"never told":  func(w *world, _ *member, _ string) { w.log.Clock.Advance(time.Hour); w.tick() },
	}
	for how, end := range ended {
		for _, verbs := range [][]string{{rollout.AbortIt}, {rollout.Rollback, rollout.AbortIt}} {
			w := newWorld(t, "r1", "r2")
			name := w.start(w.spec())
			m := w.nodes[0]
			claim, err := m.claim(renew)
			m.must(err)
			for _, v := range verbs {
				m.must(w.rollouts.Set(ctx, name, v, "a person", ann))
			}
			if got := w.get(name); got.State != rollout.Aborting {
				t.Errorf("%v, a node on the move: it is %s", verbs, got.State)
			}
			end(w, m, claim)
			if got := w.get(name); got.State != rollout.Aborted {
				t.Errorf("%v, then %s: it is %s", verbs, how, got.State)
			}
			for _, n := range w.nodes {
				if n.wants() {
					t.Errorf("%v, then %s: %s is told to move by a rollout that was aborted", verbs, how, n.name)
				}
			}
		}
	}
}

func TestARollbackAsksNothingOfWhoDidNotMove(t *testing.T) {
	w := newWorld(t, "r1", "r2")
	name := w.start(w.spec())
	w.nodes[0].move()
	claim, err := w.nodes[1].claim(renew)
	w.nodes[1].must(err)
	w.nodes[1].must(w.rollouts.Set(ctx, name, rollout.Rollback, "a person", ann))
	w.want(name, rollout.RollingBack, "pending", "pending")
	w.nodes[1].must(w.nodes[1].report(claim, refused))
	w.want(name, rollout.RollingBack, "told", "gone")
	if w.nodes[1].wants() {
		t.Error("who had not moved is told to move by a rollback")
	}
	w.nodes[0].move()
	w.want(name, rollout.RolledBack, "proved", "gone")
}

func TestAPlanCountsANodeFromBeingToldUntilItIsProved(t *testing.T) {
	w := newWorld(t, "r1", "r2", "r3")
	name := w.start(w.spec())
	for _, n := range w.nodes {
		w.log.Clock.Advance(40 * time.Second) // its agent is slow to hear
		c, err := n.claim(renew)
		n.must(err)
		w.log.Clock.Advance(5 * time.Second)
		n.write(c)
		n.prove(c)
		n.must(n.report(c, proven))
	}
	w.want(name, rollout.Done, "proved", "proved", "proved")
	p, err := w.rollouts.Plan(ctx, w.spec())
	if err != nil || p.Seconds < 3*45 || p.Seconds > 3*(45+10) {
		t.Errorf("three nodes, one after the other, 45 s each: %v s, %v", p.Seconds, err)
	}
}
