package fleet_test

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/cassandra-security-manager/csm/controller/fleet"
	agentv1 "github.com/cassandra-security-manager/csm/protocol/agent/v1"
	"github.com/cassandra-security-manager/csm/shared/fault"
)

// tells lets a node report how it finds the others: what it answers at each quorum, and what it is busy with.
func (m *member) tells(look uint64, probes map[int]string, works ...string) {
	m.w.t.Helper()
	m.w.log.Clock.Advance(time.Second)
	h := &agentv1.HealthFacts{Time: timestamppb.New(m.w.log.Clock.Now()), Look: look, Source: "cql", SingleReplica: []string{"one"}}
	for n := 1; n < 10; n++ {
		wrong, probed := probes[n]
		if !probed {
			continue
		}
		id, _ := hostID(n)
		p := &agentv1.RangeProbe{HostId: id, Table: "system_distributed.view_build_status"}
		for _, c := range []string{"LOCAL_QUORUM", "QUORUM", "ALL"} {
			a := &agentv1.ProbeAnswer{Consistency: c, Ok: c != wrong}
			if !a.Ok {
				a.Error = "unavailable: Cannot achieve consistency level " + c
			}
			p.Answers = append(p.Answers, a)
		}
		h.Probes = append(h.Probes, p)
	}
	for _, w := range works {
		h.Works = append(h.Works, &agentv1.Work{Kind: w, Detail: "of ks"})
	}
	m.instance.Health = h
	m.must(m.connect())
}

func (w *world) health() fleet.RingHealth {
	w.t.Helper()
	h, err := w.Health(ctx, cluster)
	if err != nil {
		w.t.Fatal(err)
	}
	return h
}

func codesOf(rs []fleet.HealthReason) (out []string) {
	for _, r := range rs {
		out = append(out, r.Code)
	}
	return out
}

func threeHealthy(t *testing.T) (*world, map[string]*member, uint64) {
	w := newWorld(t)
	nodes := w.ring("n1", "n2", "n3")
	look, err := w.AskHealth(ctx, cluster, ann)
	if err != nil || look == 0 {
		t.Fatal(look, err)
	}
	for i, n := range []string{"n1", "n2", "n3"} {
		nodes[n].look(i+1, 1, 2, 3)
		probes := map[int]string{1: "", 2: "", 3: ""}
		delete(probes, i+1)
		nodes[n].tells(look, probes)
	}
	return w, nodes, look
}

func TestANodeMayBeTouchedWhenTwoOthersFindTheWholeRingWell(t *testing.T) {
	w, _, look := threeHealthy(t)
	h := w.health()
	for _, n := range []string{"n1", "n2", "n3"} {
		if why := h.Weigh(fleet.HealthNeed{Look: look, Probe: true}).Holds(cluster + "/nodes/" + n); len(why) > 0 {
			t.Errorf("%s is held: %v", n, why)
		}
	}
	if m := h.Members[0]; len(m.Witnesses) != 2 || m.Witnesses[0].Probe == nil || m.HostID == "" || m.Address != "10.0.0.1" {
		t.Errorf("%+v", m)
	}
	if !slices.Equal(h.SingleReplica, []string{"one"}) {
		t.Errorf("keyspaces of one replica: %v", h.SingleReplica)
	}
	if _, err := w.Health(ctx, "tenants/default/clusters/none"); !fault.Is(err, fault.NotFound) {
		t.Errorf("a cluster that is not there: %v", err)
	}
	if _, err := w.AskHealth(ctx, "tenants/default/clusters/none", ann); !fault.Is(err, fault.NotFound) {
		t.Errorf("a question to a cluster that is not there: %v", err)
	}
}

func TestWhatHoldsANode(t *testing.T) {
	n1 := cluster + "/nodes/n1"
	down := func(m *member, who int) {
		for _, x := range m.instance.Ring.Members {
			if x.HostId[15] == byte(who) {
				x.Up = false
			}
		}
		m.must(m.connect())
	}
	for name, c := range map[string]struct {
		do   func(w *world, nodes map[string]*member, look uint64)
		need func(look uint64) fleet.HealthNeed
		want string
		text string
	}{
		"another member is down in one pair of eyes": {do: func(w *world, nodes map[string]*member, look uint64) { down(nodes["n2"], 3) }, want: "replica-down", text: "prod/n3 is down in the eyes of prod/n2"},
		"a member that no view of n2 holds":          {do: func(w *world, nodes map[string]*member, look uint64) { nodes["n2"].sees(2, 1, 2) }, want: "member-unseen"},
		"an unenrolled member joins": {do: func(w *world, nodes map[string]*member, look uint64) {
			for i, n := range []string{"n1", "n2", "n3"} {
				nodes[n].look(i+1, 1, 2, 3, 4)
				nodes[n].instance.Ring.Members[3].State = agentv1.RingState_RING_STATE_JOINING
				nodes[n].must(nodes[n].connect())
			}
		}, want: "ring-moving", text: "10.0.0.4 (not enrolled) is not normal: prod/n1 says joining"},
		"a range cannot be read at QUORUM": {do: func(w *world, nodes map[string]*member, look uint64) {
			nodes["n3"].tells(look, map[int]string{1: "QUORUM", 2: ""})
		}, want: "quorum-failed", text: "prod/n3 at QUORUM"},
		"a range cannot be read at LOCAL_QUORUM, of another member": {do: func(w *world, nodes map[string]*member, look uint64) {
			nodes["n3"].tells(look, map[int]string{1: "", 2: "LOCAL_QUORUM"})
		}, want: "quorum-failed", text: "a range of prod/n2"},
		"another node repairs": {do: func(w *world, nodes map[string]*member, look uint64) {
			nodes["n2"].tells(look, map[int]string{1: "", 3: ""}, "repair")
		}, want: "busy", text: "prod/n2 is at work: repair of ks"},
		"one answer is older than the question": {do: func(w *world, nodes map[string]*member, look uint64) {}, need: func(look uint64) fleet.HealthNeed { return fleet.HealthNeed{Look: look + 1} }, want: "health-unknown"},
		"answers of long ago": {do: func(w *world, nodes map[string]*member, look uint64) {}, need: func(uint64) fleet.HealthNeed {
			return fleet.HealthNeed{After: time.Now().AddDate(50, 0, 0)}
		}, want: "health-unknown"},
		"a witness is away": {do: func(w *world, nodes map[string]*member, look uint64) {
			m := nodes["n2"]
			m.must(w.Disconnected(ctx, m.uid, m.incarnation, fmt.Sprint(m.stream)))
		}, want: "health-unknown"},
		"nobody could read, and it is asked for": {do: func(w *world, nodes map[string]*member, look uint64) {
			nodes["n2"].tells(look, nil)
			nodes["n3"].tells(look, nil)
		}, need: func(look uint64) fleet.HealthNeed { return fleet.HealthNeed{Look: look, Probe: true} }, want: "health-unprobed"},
	} {
		t.Run(name, func(t *testing.T) {
			w, nodes, look := threeHealthy(t)
			c.do(w, nodes, look)
			need := fleet.HealthNeed{Look: look}
			if c.need != nil {
				need = c.need(look)
			}
			why := w.health().Weigh(need).Holds(n1)
			if !slices.Contains(codesOf(why), c.want) {
				t.Fatalf("%v, want %s", why, c.want)
			}
			for _, r := range why {
				if r.Code == c.want && strings.Contains(r.Text, c.text) {
					return
				}
			}
			t.Errorf("%v does not say %q", why, c.text)
		})
	}
}

func TestWhoIsDownAndBorneNeedNotTell(t *testing.T) {
	w, nodes, _ := threeHealthy(t)
	look, err := w.AskHealth(ctx, cluster, ann)
	if err != nil {
		t.Fatal(err)
	}
	nodes["n1"].tells(look, map[int]string{2: ""})
	nodes["n2"].tells(look, map[int]string{1: ""}) // n3 answers no more
	h := w.health()
	if why := h.Weigh(fleet.HealthNeed{Look: look}).Holds(cluster + "/nodes/n1"); !slices.Contains(codesOf(why), "health-unknown") {
		t.Errorf("one of two others has told, and: %v", why)
	}
	need := fleet.HealthNeed{Look: look, Without: []string{h.Members[2].HostID}}
	if why := h.Weigh(need).Holds(cluster + "/nodes/n1"); len(why) > 0 {
		t.Errorf("the only other one that is up has told, and: %v", why)
	}
	if why := h.Weigh(need).Holds(cluster + "/nodes/n3"); !slices.Contains(codesOf(why), "health-unknown") {
		t.Errorf("who is down has told nothing itself, and: %v", why)
	}
}

func TestWhatNobodyCouldReadHoldsNothingUnlessAskedFor(t *testing.T) {
	w, nodes, look := threeHealthy(t)
	for _, n := range nodes {
		n.tells(look, nil)
	}
	nodes["n2"].tells(look, map[int]string{1: "ALL"}) // one replica did not answer: gossip says who is down
	if why := w.health().Weigh(fleet.HealthNeed{Look: look}).Holds(cluster + "/nodes/n1"); len(why) > 0 {
		t.Errorf("held: %v", why)
	}
}

// enrolledOnly joins a node whose Cassandra has never started.
func (w *world) enrolledOnly(node string) {
	w.t.Helper()
	s := w.spec(w.token(node, fleet.TokenSpec{Names: fleet.Names{DNS: []string{node + ".example"}, IPs: []string{"10.0.0.99"}}}), "key of "+node)
	s.Peer = "10.0.0.99"
	if _, err := w.Join(ctx, s); err != nil {
		w.t.Fatal(err)
	}
}

func TestANodeThatNeverStartedHoldsNobody(t *testing.T) {
	w, _, look := threeHealthy(t)
	w.enrolledOnly("n4")
	if why := w.health().Weigh(fleet.HealthNeed{Look: look, Probe: true}).Holds(cluster + "/nodes/n1"); len(why) > 0 {
		t.Errorf("held: %v", why)
	}
	w = newWorld(t)
	n := w.joined("n1")
	n.look(1, 1)
	n.tells(0, nil)
	w.enrolledOnly("n2")
	if why := w.health().Weigh(fleet.HealthNeed{Probe: true}).Holds(n.name); len(why) > 0 {
		t.Errorf("the only member is held: %v", why)
	}
}

func TestARingOfOneHasNoOtherEyes(t *testing.T) {
	w := newWorld(t)
	n := w.joined("n1")
	n.look(1, 1)
	n.tells(0, nil)
	if why := w.health().Weigh(fleet.HealthNeed{Probe: true}).Holds(n.name); len(why) > 0 {
		t.Errorf("held: %v", why)
	}
	if why := w.health().Weigh(fleet.HealthNeed{}).Holds(cluster + "/nodes/n9"); !slices.Equal(codesOf(why), []string{"health-unknown"}) {
		t.Errorf("a node that is not there: %v", why)
	}
}

func TestAnAnswerCannotBeToAQuestionThatWasNotAsked(t *testing.T) {
	w, nodes, look := threeHealthy(t)
	nodes["n2"].tells(look+1000, map[int]string{1: "", 3: ""})
	next, err := w.AskHealth(ctx, cluster, ann)
	if err != nil || next <= look {
		t.Fatal(next, err)
	}
	if why := w.health().Weigh(fleet.HealthNeed{Look: next}).Holds(cluster + "/nodes/n1"); !slices.Contains(codesOf(why), "health-unknown") {
		t.Errorf("an agent answered ahead of the question: %v", why)
	}
	tgt, _, err := w.Target(ctx, cluster+"/nodes/n1")
	if err != nil || tgt.Look != next {
		t.Errorf("the agent is asked %d, want %d, %v", tgt.GetLook(), next, err)
	}
}
