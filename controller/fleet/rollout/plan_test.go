package rollout

import (
	"testing"
	"time"

	"github.com/cassandra-security-manager/csm/controller/fleet"
)

func TestAPlanOfNamedNodesMovesNoOther(t *testing.T) {
	var nodes []fleet.Standing
	for _, n := range []string{"n1", "n2", "n3"} {
		nodes = append(nodes, fleet.Standing{Node: "tenants/default/clusters/c/nodes/" + n, Incarnation: 1, Agent: fleet.Active, Mode: "manage", Connected: true, Rack: n,
			Stores: []fleet.StoreStanding{{Store: "node"}}})
	}
	s := Usual("tenants/default/clusters/c", Renew)
	for _, n := range []string{"n1", "n2", "n3"} {
		s.Nodes = []string{n}
		p, err := Make(s, nodes, time.Now(), Pace{})
		if err != nil || len(p.Waves) != 1 || len(p.Waves[0].Nodes) != 1 || p.Waves[0].Nodes[0].Node != nodes[0].Node[:len(nodes[0].Node)-2]+n {
			t.Errorf("a plan of %s: %+v %v", n, p.Waves, err)
		}
	}
}

func TestAPlanCountsTheLooksAtTheRingBetweenWaves(t *testing.T) {
	var nodes []fleet.Standing
	for _, n := range []string{"n1", "n2", "n3"} {
		nodes = append(nodes, fleet.Standing{Node: "tenants/default/clusters/c/nodes/" + n, Incarnation: 1, Agent: fleet.Active, Mode: "manage", Connected: true, Rack: n,
			Stores: []fleet.StoreStanding{{Store: "node"}}})
	}
	s := Usual("tenants/default/clusters/c", Renew)
	s.Bake = time.Minute
	p, err := Make(s, nodes, time.Now(), Pace{Move: 3 * time.Second, Look: 8 * time.Second})
	if want := 3*(3+8) + 2*60.0; err != nil || p.Seconds != want {
		t.Errorf("three waves take %v s, not %v: %v", p.Seconds, want, err)
	}
	s.Width, s.Canary = 2, 0
	for i := range nodes {
		nodes[i].Rack = "r1"
	}
	if p, err = Make(s, nodes, time.Now(), Pace{Move: 3 * time.Second, Slowest: 5 * time.Second, Look: 8 * time.Second}); err != nil || p.Seconds != 8+3+5 {
		t.Errorf("a wave ends with its slowest node: %v s, %v", p.Seconds, err)
	}
	for i, n := range []string{"n1", "n2", "n3"} {
		nodes[i].Rack = n
	}
	s.Width, s.Canary = 1, 1
	if p, err = Make(s, nodes, time.Now(), Pace{}); err != nil || p.Seconds != 3*(usualMove+usualLook).Seconds()+2*60 {
		t.Errorf("where nothing was seen yet: %v s, %v", p.Seconds, err)
	}
	waiting := map[string]time.Duration{nodes[1].Node: 21 * time.Minute}
	if p, err = Make(s, nodes, time.Now(), Pace{Settles: waiting}); err != nil || p.Seconds != (2*usualMove+3*usualLook).Seconds()+630+2*60 {
		t.Errorf("where one node waits for Cassandra's own look at its files: %v s, %v", p.Seconds, err)
	}
}
