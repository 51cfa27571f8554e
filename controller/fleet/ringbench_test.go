package fleet

import (
	"fmt"
	"net/netip"
	"testing"
	"time"

	agentv1 "github.com/cassandra-security-manager/csm/protocol/agent/v1"
)

// large is a ring of n members in which each sees all, but for the last, who has not heard of the first yet.
func large(n int) (views []ringView, known []enrolledNode, all map[string]told) {
	var members []ringMember
	all = map[string]told{}
	for i := range n {
		id := hostIDText([]byte(fmt.Sprintf("%016d", i)))
		members = append(members, ringMember{hostID: id, address: netip.AddrFrom4([4]byte{10, 0, byte(i >> 8), byte(i)}), up: true, state: agentv1.RingState_RING_STATE_NORMAL})
	}
	most, few := sightOf(members), sightOf(members[1:])
	for i, m := range members {
		name := fmt.Sprintf("tenants/default/clusters/c/nodes/n%05d", i)
		v := ringView{node: name, hostID: m.hostID, counts: true, sight: most, members: members}
		if i == n-1 {
			v.sight, v.members = few, few.members
		}
		views = append(views, v)
		known = append(known, enrolledNode{name: name, hostID: m.hostID, incarnation: 1, active: true, version: "5.0.8"})
		f := &agentv1.HealthFacts{}
		for k := range 5 {
			f.Probes = append(f.Probes, &agentv1.RangeProbe{HostId: []byte(fmt.Sprintf("%016d", (i+k+1)%n)), Answers: []*agentv1.ProbeAnswer{{Consistency: "QUORUM", Ok: true}}})
		}
		all[name] = told{node: name, look: 7, seen: time.Unix(int64(i), 0), counts: true, facts: f}
	}
	return views, known, all
}

func witnessed(views []ringView, known []enrolledNode, all map[string]told) []MemberHealth {
	var names []string
	for _, e := range known {
		names = append(names, e.name)
	}
	members := membersOf(views, names)
	tell := tellersOf(views, all)
	for i := range members {
		members[i].Witnesses = tell.of(members[i])
	}
	return members
}

// What is said of each member must not grow with the ring, but for what is held against it.
func TestALargeRingIsToldInFewWords(t *testing.T) {
	views, known, all := large(300)
	r := ringFrom(views, known)
	if len(r.Members) != 300 || len(r.Doubts) != 1 || r.Doubts[0].Code != "views-differ" || !r.Members[299].Up {
		t.Fatalf("%d members, doubts %v", len(r.Members), r.Doubts)
	}
	members := witnessed(views, known, all)
	probed := 0
	for i, m := range members {
		lacks := 0
		for _, w := range m.Witnesses {
			if w.Lacks {
				lacks++
			}
			if w.Probe != nil {
				probed++
			}
		}
		if n := len(m.Witnesses); n < 5 || n > 13 || lacks != min(1, max(0, 1-i)) {
			t.Errorf("%s has %d witnesses, %d of which lack it", m.Node, n, lacks)
		}
	}
	if probed != 1500-1 { // what the last one reads of the first is not told: it does not see it
		t.Errorf("%d of 1500 probes are told", probed)
	}
}

// A ring of a thousand: go test ./controller/fleet -run - -bench Thousand.
func BenchmarkARingOfAThousand(b *testing.B) {
	views, known, all := large(1000)
	b.Run("members", func(b *testing.B) {
		for b.Loop() {
			ringFrom(views, known)
		}
	})
	b.Run("health", func(b *testing.B) {
		for b.Loop() {
			witnessed(views, known, all)
		}
	})
}
