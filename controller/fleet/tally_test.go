package fleet_test

import (
	"maps"
	"reflect"
	"strings"
	"testing"
	"time"

	agentv1 "github.com/cassandra-security-manager/csm/protocol/agent/v1"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/cassandra-security-manager/csm/controller/fleet"
)

func TestAFleetIsCountedByClusterAndState(t *testing.T) {
	w := newWorld(t)
	r := w.ring("n1", "n2", "n3")
	if _, _, err := w.CreateToken(ctx, cluster, fleet.TokenSpec{Node: "n4", Names: fleet.Names{DNS: []string{"n4.example"}}}, ann); err != nil {
		t.Fatal(err)
	}
	r["n1"].must(w.Suspend(ctx, r["n1"].name, "odd", ann))
	now := w.log.Clock.Now()
	for n, end := range map[string]time.Duration{"n2": -time.Hour, "n3": 20 * 24 * time.Hour} {
		r[n].store.NotAfter = timestamppb.New(now.Add(end))
		r[n].must(r[n].connect())
	}
	r["n3"].must(w.Freeze(ctx, cluster, "maintenance", time.Time{}, ann))
	got, err := w.Tally(ctx)
	if err != nil {
		t.Fatal(err)
	}
	if want := (map[fleet.Counted]int{{Cluster: cluster, What: "suspended"}: 1, {Cluster: cluster, What: "connected"}: 2, {Cluster: cluster, What: "pending"}: 1}); !reflect.DeepEqual(got.Agents, want) {
		t.Errorf("agents %v", got.Agents)
	}
	if want := (map[fleet.Counted]int{{Cluster: cluster, What: "expired"}: 1, {Cluster: cluster, What: "21d"}: 1}); !reflect.DeepEqual(got.Expiring, want) {
		t.Errorf("expiring %v", got.Expiring)
	}
	if len(got.Freezes) != 1 || got.Freezes[0].Scope != cluster {
		t.Errorf("freezes %v", got.Freezes)
	}
}

func TestFailuresAreCountedOnceAndOnlyNewOnes(t *testing.T) {
	w, r, c := moved(t, "n1", "n2")
	m := r["n1"]
	none, mark, err := w.Failures(ctx, fleet.Mark{})
	if err != nil || len(none) != 9 {
		t.Fatalf("%v %v", none, err)
	}
	for f, n := range none {
		if n != 0 || f.Cluster != cluster {
			t.Errorf("before anything fails: %+v %d", f, n)
		}
	}
	tasks, _ := m.ask(c)
	m.must(w.RecordProof(ctx, r["n2"].uid, r["n2"].incarnation, tasks[0], &agentv1.Proof{Port: m.store.Ports[0], Verdict: agentv1.Verdict_VERDICT_REFUSED}))
	w.log.Clock.Advance(time.Second)
	m.must(m.report(c, rolledBack))
	got, mark, err := w.Failures(ctx, mark)
	want := maps.Clone(none)
	want[fleet.Failure{Cluster: cluster, Port: "internode", Verdict: "refused"}], want[fleet.Failure{Cluster: cluster}] = 1, 1
	if err != nil || !reflect.DeepEqual(got, want) {
		t.Errorf("%v %v", got, err)
	}
	if again, _, err := w.Failures(ctx, mark); err != nil || !reflect.DeepEqual(again, none) {
		t.Errorf("counted again: %v %v", again, err)
	}
}

func TestANodeWhoseLastInstallWasRolledBackSaysSo(t *testing.T) {
	_, r, c := moved(t, "n1", "n2")
	m := r["n1"]
	m.must(m.report(c, rolledBack))
	if why := m.view().Why; !strings.Contains(why, "was rolled back: ") || !strings.Contains(why, "tries again") {
		t.Errorf("why %q", why)
	}
}
