package rotation_test

import (
	"slices"
	"strings"
	"testing"

	"github.com/cassandra-security-manager/csm/controller/fleet"
	"github.com/cassandra-security-manager/csm/controller/fleet/rotation"
	"github.com/cassandra-security-manager/csm/controller/state"
	clusterv1 "github.com/cassandra-security-manager/csm/protocol/cluster/v1"
)

// urgent is a ring whose CA may be in other hands.
func urgent(t *testing.T, waves rotation.Waves, cql ...bool) *world {
	w := newWorldWith(t, 3, "", waves, cql...)
	w.emergency = true
	return w
}

func TestAnEmergencyEndsWithoutTheOldAnchorAndWithoutAPerson(t *testing.T) {
	w := urgent(t, rotation.Rollouts{}, true)
	w.nodes[0].sees(map[byte]uint32{1: 2}) // a client that never connects anew
	w.nodes[1].sees(nil)
	w.nodes[2].sees(nil)
	_, err := w.fleet.CreateCluster(ctx, fleet.ClusterSpec{Name: bob, Authority: old, Region: "eu"}, ann)
	w.must(err)
	want := w.wanted(young)
	p, err := w.rotations.Plan(ctx, want)
	w.must(err)
	if !p.Emergency || len(p.Relaxed) != 4 || len(p.Withdraw) != 1 {
		t.Fatalf("the plan gives up %+v, withdraws %v", p.Relaxed, p.Withdraw)
	}
	for _, x := range p.Relaxed {
		if (x.Code == "seen" || x.Code == "canary") && (len(x.Who) != 1 || !strings.Contains(x.Who[0], "10.9.0.1 as app")) {
			t.Errorf("%s does not name who may break: %v", x.Code, x.Who)
		}
	}
	if !slices.ContainsFunc(p.Notes, func(n string) bool { return strings.HasPrefix(n, "other has the same CA") }) {
		t.Errorf("nothing says that another ring trusts it too: %v", p.Notes)
	}
	if !slices.ContainsFunc(p.Phases, func(x string) bool { return strings.Contains(x, "retire: by itself") }) {
		t.Errorf("phases: %v", p.Phases)
	}
	r, err := w.rotations.Start(ctx, want, p.Hash, 0, "INC-4711", ann, "links")
	w.must(err)
	w.run(40)
	r = w.get(r.Name)
	phaseIs(t, r, rotation.Done)
	for _, m := range w.nodes {
		if m.trusted[old] || m.leaf != young {
			t.Errorf("%s trusts the old CA: %v; serves %s", m.name, m.trusted[old], m.leaf)
		}
	}
	if !r.Emergency || !strings.Contains(r.Timeline[0].Message+r.Timeline[1].Message, "an emergency that gives up width, canary, seen, by-hand") {
		t.Errorf("the timeline does not say what was given up: %+v", r.Timeline[:2])
	}
}

func TestAnEmergencyStillWaitsForRegisteredApplicationsAndForLinks(t *testing.T) {
	w := urgent(t, rotation.Rollouts{})
	w.application("shop.example", old)
	r := w.start(young)
	w.run(30)
	r = w.get(r.Name)
	phaseIs(t, r, rotation.Reissued)
	names := except(t, r, "clients")
	_, err := w.rotations.Control(ctx, r.Name, "resume", "the shop is closed tonight", ann, names...)
	w.must(err)
	w.run(5)
	phaseIs(t, w.get(r.Name), rotation.Reissued) // nobody can tell of links here
	_, err = w.rotations.Control(ctx, r.Name, "resume", "restarted one by one", ann, "links")
	w.must(err)
	w.run(12)
	phaseIs(t, w.get(r.Name), rotation.Done)
}

func TestAnEmergencyThatKeepsThePersonWaitsForThem(t *testing.T) {
	w := urgent(t, rotation.Rollouts{})
	w.keep = []string{"by-hand"}
	r := w.start(young)
	w.run(30)
	phaseIs(t, w.get(r.Name), rotation.Reissued)
	w.must(w.retire(r.Name))
	w.run(12)
	phaseIs(t, w.get(r.Name), rotation.Done)
}

func TestAnEmergencyOfAMemberThatIsDownWaitsForIt(t *testing.T) {
	w := urgent(t, eager{})
	w.start(young)
	w.stop(w.nodes[2])
	w.act(8, w.nodes[:2]...)
	w.startCassandra(w.nodes[2])
	w.unbroken("after it started with its old truststore")
}

func TestAnEmergencyThatTakesNoTrustAwayIsRefused(t *testing.T) {
	w := urgent(t, rotation.Rollouts{})
	_, err := w.authorities.CreateIssuer(ctx, old, "eu", "test")
	w.must(err)
	p, err := w.rotations.Plan(ctx, w.wanted(old)) // a new issuer under the root that stays
	w.must(err)
	if !slices.ContainsFunc(p.Blockers, func(r rotation.Reason) bool { return r.Code == "nothing-withdrawn" }) {
		t.Fatalf("blockers %v", p.Blockers)
	}
	_, err = w.rotations.Start(ctx, w.wanted(old), p.Hash, 0, "INC-4711", ann)
	wantReason(t, err, "gate-nothing-withdrawn")
}

// Whatever a raw command asks for, only what is on the list is given up, and only after a plan that said so.
func TestARawEmergencyGivesUpNoMoreThanTheListSays(t *testing.T) {
	w := newWorld(t, 3)
	p, err := w.rotations.Plan(ctx, w.wanted(young)) // of peace
	w.must(err)
	start := &clusterv1.StartRotation{Cluster: cluster, Authority: young, Reason: "raw", Emergency: true}
	propose := func() error {
		_, err := w.log.Propose(ctx, state.Proposal{Command: start, Actor: ann})
		return err
	}
	_, err = w.rotations.Start(ctx, rotation.Wanted{Cluster: cluster, Authority: young, Emergency: true}, p.Hash, 0, "another plan", ann)
	wantReason(t, err, "plan-stale")
	start.Keep = []string{"trust-proved"}
	wantReason(t, propose(), "bad-keep")
	start.Keep, start.Emergency = []string{"seen"}, false
	wantReason(t, propose(), "not-an-emergency")
}
