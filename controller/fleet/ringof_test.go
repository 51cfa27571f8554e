package fleet

import (
	"net/netip"
	"slices"
	"testing"

	"pgregory.net/rapid"

	agentv1 "github.com/cassandra-security-manager/csm/protocol/agent/v1"
)

func gossipOf(node, self string, members ...ringMember) ringView {
	return ringView{node: node, hostID: self, counts: true, members: members}
}

func normal(id string) ringMember {
	return ringMember{hostID: id, address: netip.MustParseAddr("10.0.0.1"), up: true, state: agentv1.RingState_RING_STATE_NORMAL}
}

func down(m ringMember) ringMember { m.up = false; return m }

func knownAs(ids ...string) (out []enrolledNode) {
	for _, id := range ids {
		out = append(out, enrolledNode{name: "tenants/default/clusters/c/nodes/n" + id, hostID: id, incarnation: 1, active: true, version: "5.0.8"})
	}
	return out
}

func TestTheRingIsWhatItsPeersAgreeUpon(t *testing.T) {
	all := []ringMember{normal("1"), normal("2"), normal("3")}
	node := func(id string) string { return "tenants/default/clusters/c/nodes/n" + id }
	tests := []struct {
		name   string
		views  []ringView
		known  []enrolledNode
		doubts []string
		up     []bool
		nodes  []string
	}{
		{"all see all", []ringView{gossipOf(node("1"), "1", all...), gossipOf(node("2"), "2", all...), gossipOf(node("3"), "3", all...)}, knownAs("1", "2", "3"),
			nil, []bool{true, true, true}, []string{node("1"), node("2"), node("3")}},
		{"one is down by the word of one peer", []ringView{gossipOf(node("1"), "1", all...), gossipOf(node("2"), "2", normal("1"), normal("2"), down(normal("3"))), gossipOf(node("3"), "3", all...)}, knownAs("1", "2", "3"),
			nil, []bool{true, true, false}, []string{node("1"), node("2"), node("3")}},
		{"one is not enrolled", []ringView{gossipOf(node("1"), "1", all...), gossipOf(node("2"), "2", all...)}, knownAs("1", "2"),
			nil, []bool{true, true, true}, []string{node("1"), node("2"), ""}},
		{"one of three is down and the others tell", []ringView{gossipOf(node("1"), "1", normal("1"), normal("2"), down(normal("3"))), gossipOf(node("2"), "2", normal("1"), normal("2"), down(normal("3")))}, knownAs("1", "2", "3"),
			nil, []bool{true, true, false}, []string{node("1"), node("2"), node("3")}},
		{"only one of three tells", []ringView{gossipOf(node("1"), "1", all...)}, knownAs("1", "2", "3"), []string{"few-views", "few-views"}, []bool{false, true, true}, nil},
		{"a member that only one sees", []ringView{gossipOf(node("1"), "1", append(slices.Clone(all), normal("4"))...), gossipOf(node("2"), "2", all...), gossipOf(node("3"), "3", all...)}, knownAs("1", "2", "3"),
			[]string{"views-differ"}, []bool{true, true, true, true}, []string{node("1"), node("2"), node("3"), ""}},
		{"nobody tells", nil, knownAs("1"), []string{"no-views"}, nil, nil},
		{"a ring of one has only its own word", []ringView{gossipOf(node("1"), "1", normal("1"))}, knownAs("1"), nil, []bool{true}, []string{node("1")}},
		{"a ring of two has one peer each", []ringView{gossipOf(node("1"), "1", all[:2]...), gossipOf(node("2"), "2", all[:2]...)}, knownAs("1", "2"), nil, []bool{true, true}, []string{node("1"), node("2")}},
		{"two nodes are one member", []ringView{gossipOf(node("1"), "1", normal("1"))}, append(knownAs("1"), enrolledNode{name: "tenants/default/clusters/c/nodes/twin", hostID: "1"}),
			[]string{"two-of-one"}, []bool{true}, nil},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			r := ringFrom(tt.views, tt.known)
			var codes []string
			for _, d := range r.Doubts {
				codes = append(codes, d.Code)
			}
			if !slices.Equal(codes, tt.doubts) {
				t.Errorf("doubts %v, want %v", r.Doubts, tt.doubts)
			}
			for i := range tt.up {
				if m := r.Members[i]; m.Up != tt.up[i] || tt.nodes != nil && m.Node != tt.nodes[i] {
					t.Errorf("member %s: up %v as %q, want %v as %q", m.HostID, m.Up, m.Node, tt.up[i], tt.nodes[i])
				}
			}
		})
	}
}

// What proposeRemovals leaves out rests on it: where one who counts sees everybody, nobody is gone by anybody's word.
func TestWhileOneSeesEverybodyNobodyIsGone(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		ids := []string{"1", "2", "3", "4", "5"}
		hosts := knownHosts(ids)
		views := []ringView{}
		calm := false
		for _, id := range ids {
			v := gossipOf("n"+id, id)
			for _, m := range rapid.SliceOfDistinct(rapid.SampledFrom(ids), rapid.ID[string]).Draw(t, "sees") {
				v.members = append(v.members, normal(m))
			}
			v.counts, v.sight = rapid.Bool().Draw(t, "counts"), sightOf(v.members)
			views, calm = append(views, v), calm || v.seesAll(hosts)
		}
		if g := gone(views, hosts); calm && len(g) > 0 {
			t.Errorf("%v are gone", g)
		}
	})
	v := gossipOf("n1", "1", normal("1"), normal("2"))
	v.sight = sightOf(v.members)
	if !v.seesAll(knownHosts([]string{"1", "2"})) || v.seesAll(knownHosts([]string{"1", "3"})) {
		t.Error("who is seen is not")
	}
	if v.counts = false; v.seesAll(nil) {
		t.Error("a view that does not count calms")
	}
}

func knownHosts(ids []string) map[string]string {
	out := map[string]string{}
	for _, id := range ids {
		out["n"+id] = id
	}
	return out
}
