package fleet_test

import (
	"strings"
	"testing"

	"github.com/cassandra-security-manager/csm/controller/fleet"
	agentv1 "github.com/cassandra-security-manager/csm/protocol/agent/v1"
)

func (w *world) ringOfThree() map[string]*member {
	w.t.Helper()
	nodes := w.ring("n1", "n2", "n3")
	for i, n := range []string{"n1", "n2", "n3"} {
		nodes[n].sees(i+1, 1, 2, 3)
	}
	return nodes
}

func condition(list []fleet.Condition, kind string) string {
	for _, c := range list {
		if c.Type == kind {
			return c.Message
		}
	}
	return ""
}

func TestAReplacedNodeKeepsItsNameAndLosesItsIdentityAtOnce(t *testing.T) {
	w := newWorld(t)
	nodes := w.ringOfThree()
	old := nodes["n3"]
	claim, err := old.claim(renew)
	old.must(err)
	names := fleet.Names{DNS: []string{"n3.example"}, IPs: []string{"10.0.0.9"}}
	_, _, err = w.Replace(ctx, old.name, names, 0, "", ann)
	wantReason(t, err, "no-reason")
	secret, tok, err := w.Replace(ctx, old.name, names, 0, "disk died", ann)
	old.must(err)
	if !tok.Rejoin || tok.Node != old.name {
		t.Errorf("%+v", tok)
	}
	if v := old.view(); v.State != fleet.Revoked || v.Names.IPs[0] != "10.0.0.9" || v.Claim != nil || !strings.Contains(v.Why, "disk died") {
		t.Errorf("the node is %s, names %v, claim %v, why %q", v.State, v.Names, v.Claim, v.Why)
	}
	wantReason(t, w.propose(old.record(claim, "late")), "claim-closed")
	wantReason(t, old.connect(), "agent-revoked")

	spec := w.spec(secret, "key of the new host")
	_, spec.Instance.HostId = hostID(3)
	_, err = w.Join(ctx, spec)
	wantReason(t, err, "same-host")
	_, spec.Instance.HostId = hostID(9)
	j, err := w.Join(ctx, spec)
	old.must(err)
	if j.Incarnation != 2 || j.Node != old.name {
		t.Errorf("joined as %+v", j)
	}
	wantReason(t, old.connect(), "agent-revoked")
}

func TestWhoRejoinsIsTheSameCassandra(t *testing.T) {
	w := newWorld(t)
	n := w.ringOfThree()["n1"]
	spec := w.spec(w.token("n1", fleet.TokenSpec{Rejoin: true}), "key after the rebuild")
	_, spec.Instance.HostId = hostID(7)
	_, err := w.Join(ctx, spec)
	wantReason(t, err, "other-host")
	_, spec.Instance.HostId = hostID(1)
	if j, err := w.Join(ctx, spec); err != nil || j.Incarnation != 2 {
		t.Errorf("%+v, %v", j, err)
	}
	wantReason(t, n.connect(), "agent-revoked")
}

func TestANodeThatTwoPeersNoLongerSeeIsProposedForRemovalAndNotRemoved(t *testing.T) {
	w := newWorld(t)
	nodes := w.ringOfThree()
	n3 := nodes["n3"]
	n3.instance.Running = false // decommissioned and stopped; its agent is still there
	n3.must(n3.connect())
	nodes["n1"].sees(1, 1, 2)
	if c := condition(n3.view().Conditions, "removal-proposed"); c != "" {
		t.Errorf("one peer is enough: %s", c)
	}
	nodes["n2"].sees(2, 1, 2)
	c, err := w.GetCluster(ctx, cluster)
	n3.must(err)
	for _, got := range []string{condition(n3.view().Conditions, "removal-proposed"), condition(c.Conditions, "removal-proposed"), n3.view().Why} {
		if !strings.Contains(got, "prod/n3") || !strings.Contains(got, "n1 and n2") {
			t.Errorf("it does not say who is gone by whose word: %q", got)
		}
	}
	if v := n3.view(); v.State != fleet.Active {
		t.Errorf("the proposal was carried out: %s", v.State)
	}
	if a, err := w.Alarms(ctx, 1); err != nil || len(a) != 1 || a[0].Kind != "removal-proposed" {
		t.Errorf("%+v, %v", a, err)
	}
	n3.must(w.Revoke(ctx, n3.name, "decommissioned", ann))
	if c := condition(n3.view().Conditions, "removal-proposed"); c != "" {
		t.Errorf("still proposed after it was removed: %s", c)
	}
}

func TestAProposedRemovalIsTakenBackWhenAPeerSeesTheNodeAgain(t *testing.T) {
	w := newWorld(t)
	nodes := w.ringOfThree()
	nodes["n3"].instance.Running = false
	nodes["n3"].must(nodes["n3"].connect())
	nodes["n1"].sees(1, 1, 2)
	nodes["n2"].sees(2, 1, 2)
	if w.count(`SELECT count(*) FROM removals`) != 1 {
		t.Fatal("nothing was proposed")
	}
	nodes["n1"].sees(1, 1, 2, 3)
	if w.count(`SELECT count(*) FROM removals`) != 0 {
		t.Error("it is still proposed")
	}
}

func TestAViewThatIsNotWholeOrNotFreshIsNoEvidence(t *testing.T) {
	w := newWorld(t)
	nodes := w.ringOfThree()
	nodes["n3"].instance.Running = false
	nodes["n3"].must(nodes["n3"].connect())
	nodes["n1"].sees(1, 1, 2)
	n2 := nodes["n2"]
	for what, look := range map[string]func(){
		"truncated":      func() { n2.look(2, 1, 2); n2.instance.Ring.Truncated = true },
		"without itself": func() { n2.look(2, 1) },
		"down":           func() { n2.look(2, 1, 2); n2.instance.Running = false },
		"an error":       func() { n2.instance.Ring = &agentv1.RingView{Source: "nodetool", Error: "no JMX"} },
	} {
		look()
		n2.must(n2.connect())
		if w.count(`SELECT count(*) FROM removals`) != 0 {
			t.Errorf("a view that is %s was believed", what)
		}
		n2.sees(2, 1, 2, 3)
	}
}

func TestAClonedIdentityIsPutRightByOneCommandThatNamesWhoStays(t *testing.T) {
	w := newWorld(t)
	n := w.joined("n1")
	n.agent.Machine, n.instance.ListenAddress = []byte("machine one"), "10.0.0.1"
	n.must(w.Resume(ctx, n.name, "", ann))
	clone := *n
	n.agent = &agentv1.AgentFacts{Mode: agentv1.Mode_MODE_MANAGE, GenerationCounter: 2, Machine: []byte("n1")}
	n.must(n.connect())
	clone.agent = &agentv1.AgentFacts{Mode: agentv1.Mode_MODE_MANAGE, GenerationCounter: 3, Machine: []byte("the copy")}
	wantReason(t, clone.connect(), "agent-suspended")
	wantReason(t, n.connect(), "agent-suspended")
	said := condition(n.view().Conditions, "copied-state")
	if !strings.Contains(said, "6e31") || !strings.Contains(said, "74686520636f") {
		t.Errorf("it does not name both machines: %q", said)
	}
	wantReason(t, w.ResumeMachine(ctx, n.name, "ff", "n1 was cloned", ann), "which-machine")
	n.must(w.ResumeMachine(ctx, n.name, "6e31", "n1 was cloned", ann))
	n.must(n.connect())
	wantReason(t, clone.connect(), "copied-state")
	if v := n.view(); v.State != fleet.Active || condition(v.Conditions, "copied-state") != "" {
		t.Errorf("after the copy came again: %s %+v", v.State, v.Conditions)
	}
}
