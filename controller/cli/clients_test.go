package cli_test

import (
	"strings"
	"testing"

	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/cassandra-security-manager/csm/controller/api/rest/resttest"
	agentv1 "github.com/cassandra-security-manager/csm/protocol/agent/v1"
)

// tells lets an agent say that it sees itself and one other member, and what it read.
func tells(u user, a *resttest.Agent, self byte, works ...*agentv1.Work) {
	view := &agentv1.RingView{Source: "nodetool"}
	for n := byte(1); n <= 2; n++ {
		view.Members = append(view.Members, &agentv1.RingMember{HostId: append(make([]byte, 15), n), Address: []byte{10, 0, 0, n}, Up: true, State: agentv1.RingState_RING_STATE_NORMAL})
	}
	now := timestamppb.New(u.w.Log.Clock.Now())
	a.Instance.HostId = "00000000-0000-0000-0000-00000000000" + string('0'+rune(self))
	a.Instance.Running, a.Instance.Ring = true, view
	a.Instance.Health = &agentv1.HealthFacts{Time: now, Works: works, SingleReplica: []string{"sessions"}, Probes: []*agentv1.RangeProbe{{HostId: append(make([]byte, 15), 3-self), Table: "system_distributed.view_build_status",
		Answers: []*agentv1.ProbeAnswer{{Consistency: "LOCAL_QUORUM", Ok: true}, {Consistency: "QUORUM", Ok: true}, {Consistency: "ALL", Ok: false, Error: "unavailable"}}}}}
	a.Report()
}

func TestTheRingsHealthNamesWhatHoldsANodeAndEndsWithTen(t *testing.T) {
	u := newUser(t)
	cluster := u.w.Cluster("prod")
	one, two := u.w.Join(cluster, "n1"), u.w.Join(cluster, "n2")
	tells(u, one, 1)
	tells(u, two, 2)
	u.golden("cluster_health", u.ok(u.run("cluster", "health", "prod")).out)
	tells(u, two, 2, &agentv1.Work{Kind: "repair", Detail: "of ks"})
	r := u.exits(10, u.run("cluster", "health", "prod"))
	if all := r.out + r.err; !strings.Contains(all, "n1 is held (busy): prod/n2 is at work: repair of ks") || !strings.Contains(all, "sessions") {
		t.Errorf("it says %s", all)
	}
	if out := u.exits(10, u.run("cluster", "health", "prod", "-o", "json")).out; !strings.Contains(out, `"code": "busy"`) || !strings.Contains(out, `"ok": false`) {
		t.Errorf("-o json: %s", out)
	}
	if r := u.exits(10, u.run("cluster", "health", "prod", "--ask", "--dry-run")); strings.Contains(r.out, "health-unknown") {
		t.Errorf("--dry-run asked: %s", r.out)
	}
	u.exits(4, u.run("cluster", "health", "nothing"))
}

func TestClientsThatWereSeenPlaintextFirst(t *testing.T) {
	u := newUser(t)
	cluster := u.w.Cluster("prod")
	one := u.w.Join(cluster, "n1")
	u.w.Join(cluster, "n2")
	one.Instance.Clients = &agentv1.ClientFacts{Time: timestamppb.New(u.w.Log.Clock.Now()), Encrypted: 3, Plaintext: 1, Seen: []*agentv1.SeenClient{
		{Address: []byte{10, 9, 0, 1}, User: "batch", Driver: "python-driver", DriverVersion: "3.29", Protocol: 4, Connections: 1},
		{Address: []byte{10, 9, 0, 2}, User: "shop", Driver: "java-driver", DriverVersion: "4.17", Tls: "TLSv1.3", Protocol: 5, Connections: 3}}}
	one.Report()
	r := u.ok(u.run("app", "clients", "prod"))
	u.golden("app_clients", r.out)
	if all := r.out + r.err; !strings.Contains(all, "not seen on n2 (not-told)") {
		t.Errorf("it does not say whose clients nobody saw: %s", all)
	}
	if out := u.ok(u.run("app", "clients", "prod", "--plaintext")).out; strings.Contains(out, "shop") || !strings.Contains(out, "batch") {
		t.Errorf("--plaintext: %s", out)
	}
	if out := u.ok(u.run("app", "clients", "prod", "-o", "json")).out; !strings.Contains(out, `"lastSeenTime"`) || !strings.Contains(out, `"reason": "not-told"`) {
		t.Errorf("-o json: %s", out)
	}
	u.exits(4, u.run("app", "clients", "nothing"))
}
