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
		p, err := Make(s, nodes, time.Now(), 0)
		if err != nil || len(p.Waves) != 1 || len(p.Waves[0].Nodes) != 1 || p.Waves[0].Nodes[0].Node != nodes[0].Node[:len(nodes[0].Node)-2]+n {
			t.Errorf("a plan of %s: %+v %v", n, p.Waves, err)
		}
	}
}
