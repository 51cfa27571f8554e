package fleet_test

import (
	"strings"
	"testing"
	"time"

	"github.com/cassandra-security-manager/csm/controller/fleet"
	agentv1 "github.com/cassandra-security-manager/csm/protocol/agent/v1"
)

// third is a token of n3 at 10.0.0.3, and who comes with it.
func (w *world) third(i *agentv1.InstanceFacts) fleet.JoinSpec {
	w.t.Helper()
	s := w.spec(w.token("n3", fleet.TokenSpec{Names: fleet.Names{DNS: []string{"n3.example"}, IPs: []string{"10.0.0.3"}}}), "key of n3")
	i.ClusterName = "ring"
	s.Instance = i
	return s
}

func running(host int) *agentv1.InstanceFacts {
	_, id := hostID(host)
	return &agentv1.InstanceFacts{Running: true, HostId: id}
}

// peers are two nodes whose Cassandra sees these members.
func (w *world) peers(members ...int) map[string]*member {
	w.t.Helper()
	nodes := w.ring("n1", "n2")
	nodes["n1"].sees(1, members...)
	nodes["n2"].sees(2, members...)
	return nodes
}

func (w *world) confirmation(node string) string {
	w.t.Helper()
	ts, err := w.ListTokens(ctx, cluster)
	if err != nil {
		w.t.Fatal(err)
	}
	for _, t := range ts {
		if strings.HasSuffix(t.Node, "/"+node) {
			return t.Confirmed
		}
	}
	w.t.Fatalf("no token of %s", node)
	return ""
}

func TestWhoComesWithATokenIsConfirmedByThePeersThatCanBeAsked(t *testing.T) {
	for name, c := range map[string]struct {
		world  func(w *world)
		who    *agentv1.InstanceFacts
		how    string
		doubts string
	}{
		"two peers see it":           {func(w *world) { w.peers(1, 2, 3) }, running(3), "by the gossip of n1, n2", ""},
		"it does not know itself":    {func(w *world) { w.peers(1, 2, 3) }, &agentv1.InstanceFacts{Running: true}, "by the gossip of n1, n2", ""},
		"no peer sees it":            {func(w *world) { w.peers(1, 2) }, running(3), "", "10.0.0.3 is known to the gossip of 0 enrolled peers, 2 are needed"},
		"they see another host":      {func(w *world) { w.peers(1, 2, 3) }, running(9), "", "belongs to another member of the ring (host id 00000000-0000-0000-0000-000000000003)"},
		"it is new":                  {func(w *world) { w.peers(1, 2) }, &agentv1.InstanceFacts{}, "by the token alone: its Cassandra has not run yet", ""},
		"it is stopped where one is": {func(w *world) { w.peers(1, 2, 3) }, &agentv1.InstanceFacts{}, "", "10.0.0.3 belongs to a member of the ring (host id 00000000-0000-0000-0000-000000000003, up), and no Cassandra runs here"},
		"one peer sees it": {func(w *world) {
			nodes := w.peers(1, 2)
			nodes["n1"].sees(1, 1, 2, 3)
		}, running(3), "", "known to the gossip of 1 enrolled peers"},
		"one peer can be asked": {func(w *world) { w.ring("n1", "n2")["n1"].sees(1, 1, 2) }, running(3), "by the token alone: 1 peers can be asked, 2 are needed", ""},
		"the ring has not run":  {func(w *world) { w.joined("n1"); w.joined("n2") }, &agentv1.InstanceFacts{}, "by the token alone: 0 peers", ""},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			c.world(w)
			s := w.third(c.who)
			_, err := w.Join(ctx, s)
			if c.doubts == "" {
				if err != nil {
					t.Fatal(err)
				}
				if how := w.confirmation("n3"); !strings.HasPrefix(how, c.how) {
					t.Errorf("confirmed %q, want %q", how, c.how)
				}
				return
			}
			wantReason(t, err, "approval-pending")
			if err == nil || !strings.Contains(err.Error(), c.doubts) {
				t.Errorf("got %v, want %q", err, c.doubts)
			}
		})
	}
}

// queued is a third node that waits for a person.
func (w *world) queued() (fleet.JoinSpec, fleet.JoinRequest) {
	w.t.Helper()
	w.peers(1, 2)
	s := w.third(running(3))
	_, err := w.Join(ctx, s)
	wantReason(w.t, err, "approval-pending")
	all, err := w.ListJoinRequests(ctx, "default")
	if err != nil || len(all) != 1 || all[0].State != "pending" || all[0].Method != "token" || all[0].Node != cluster+"/nodes/n3" {
		w.t.Fatalf("requests = %+v, %v", all, err)
	}
	return s, all[0]
}

func TestAnApprovedTokenJoinGoesOnEvenAfterTheTokensEnd(t *testing.T) {
	w := newWorld(t)
	s, r := w.queued()
	before := w.log.Store.Applied()
	_, err := w.Join(ctx, s)
	wantReason(t, err, "approval-pending")
	if after := w.log.Store.Applied(); after != before {
		t.Errorf("asking again cost %d commands", after-before)
	}
	if _, err := w.DecideJoin(ctx, r.Name, true, "I racked it", ann); err != nil {
		t.Fatal(err)
	}
	w.log.Clock.Advance(23 * time.Hour)
	j, err := w.Join(ctx, s)
	if err != nil || j.Node != r.Node {
		t.Fatalf("%+v, %v", j, err)
	}
	if how := w.confirmation("n3"); how != "by "+ann {
		t.Errorf("confirmed %q", how)
	}
	if again, err := w.Join(ctx, s); err != nil || !again.Repeated {
		t.Errorf("a lost answer: %+v, %v", again, err)
	}
	if r, err = w.GetJoinRequest(ctx, r.Name); err != nil || r.State != "joined" {
		t.Errorf("request = %+v, %v", r, err)
	}
}

func TestADeniedTokenJoinStaysDenied(t *testing.T) {
	w := newWorld(t)
	s, r := w.queued()
	if _, err := w.DecideJoin(ctx, r.Name, false, "not ours", ann); err != nil {
		t.Fatal(err)
	}
	_, err := w.Join(ctx, s)
	wantReason(t, err, "join-denied")
	s.Key = keyOf("the key of the right host")
	if _, err := w.Join(ctx, s); err == nil || strings.Contains(err.Error(), "another key waits") {
		t.Errorf("the token is held by who was denied: %v", err)
	}
}

func TestWhoWaitsBecomesAMemberWhenItsPeersSeeIt(t *testing.T) {
	w := newWorld(t)
	nodes := w.peers(1, 2)
	s := w.third(running(3))
	_, err := w.Join(ctx, s)
	wantReason(t, err, "approval-pending")
	nodes["n1"].sees(1, 1, 2, 3)
	nodes["n2"].sees(2, 1, 2, 3)
	if _, err := w.Join(ctx, s); err != nil {
		t.Fatal(err)
	}
}

func TestATokenThatOneKeyWaitsForTakesNoOther(t *testing.T) {
	w := newWorld(t)
	s, _ := w.queued()
	thief := s
	thief.Key, thief.Instance = keyOf("a thief's key"), &agentv1.InstanceFacts{ClusterName: "ring"} // says that it does not run
	_, err := w.Join(ctx, thief)
	wantReason(t, err, "token-held")
	alarms, err := w.Alarms(ctx, 10)
	if err != nil || len(alarms) != 1 || alarms[0].Kind != "token-reused" {
		t.Errorf("alarms = %+v, %v", alarms, err)
	}
}

func TestAHostIsRebuiltUnderTheHostIDThatItHad(t *testing.T) {
	w := newWorld(t)
	w.peers(1, 2, 3)
	j, err := w.Join(ctx, w.third(running(3)))
	if err != nil {
		t.Fatal(err)
	}
	w.member(j).sees(3, 1, 2, 3)
	s := w.spec(w.token("n3", fleet.TokenSpec{Rejoin: true}), "the new key of n3")
	if _, err := w.Join(ctx, s); err != nil { // its Cassandra is stopped, its peers still know its host id
		t.Error(err)
	}
}
