package rollout

import (
	"testing"
	"time"

	"github.com/cassandra-security-manager/csm/controller/fleet"
)

func TestWhatNodesReadAndWorkOnHoldsTheWaveAndIsAskedAgain(t *testing.T) {
	now := time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)
	failed := &fleet.RangeProbe{Answers: []fleet.ProbeAnswer{{Consistency: "QUORUM", Error: "unavailable"}}}
	lagging := &fleet.RangeProbe{Answers: []fleet.ProbeAnswer{{Consistency: "QUORUM", OK: true}, {Consistency: "ALL", Error: "unavailable"}}}
	member := func(p *fleet.RangeProbe, seen time.Duration, works ...fleet.Work) []fleet.MemberHealth {
		return []fleet.MemberHealth{{Node: "tenants/t/clusters/c/nodes/n1", Seen: now.Add(-seen), Works: works, Witnesses: []fleet.Witness{{Node: "tenants/t/clusters/c/nodes/n2", Up: true, State: "normal", Seen: now.Add(-seen), Probe: p}}}}
	}
	for name, c := range map[string]struct {
		members []fleet.MemberHealth
		asked   time.Duration
		want    string
		ask     bool
	}{
		"nothing was told":          {nil, time.Hour, "", false},
		"all is well":               {member(lagging, time.Minute), time.Hour, "", false},
		"no quorum":                 {member(failed, time.Minute), time.Hour, "ring-quorum-failed", true},
		"no quorum, asked just now": {member(failed, time.Minute), time.Second, "ring-quorum-failed", false},
		"a repair":                  {member(nil, time.Minute, fleet.Work{Kind: "repair"}), time.Minute, "ring-busy", true},
		"what was told long ago":    {member(failed, time.Hour, fleet.Work{Kind: "repair"}), time.Minute, "", false},
	} {
		f := Facts{Now: now, State: Running, Spec: Spec{Cluster: "tenants/t/clusters/c"}}
		f.health(fleet.RingHealth{Asked: now.Add(-c.asked), Members: c.members})
		got := ""
		for _, r := range f.Unsettled {
			got += r.Code
		}
		if got != c.want || f.ask != c.ask {
			t.Errorf("%s: %q, asks %v", name, got, f.ask)
		}
	}
}
