package fleet_test

import (
	"bytes"
	"fmt"
	"slices"
	"testing"

	agentv1 "github.com/cassandra-security-manager/csm/protocol/agent/v1"
)

// hostID is a node's host id in tests, as bytes and as text.
func hostID(n int) ([]byte, string) {
	return append(bytes.Repeat([]byte{0}, 15), byte(n)), fmt.Sprintf("00000000-0000-0000-0000-%012x", n)
}

// sees lets a node report that its Cassandra is the member self of a ring of these members.
func (m *member) sees(self int, members ...int) {
	m.w.t.Helper()
	m.look(self, members...)
	m.must(m.connect())
}

func (m *member) look(self int, members ...int) {
	slices.Sort(members)
	v := &agentv1.RingView{Source: "nodetool"}
	for _, n := range members {
		id, _ := hostID(n)
		v.Members = append(v.Members, &agentv1.RingMember{HostId: id, Address: []byte{10, 0, 0, byte(n)}, Up: true, State: agentv1.RingState_RING_STATE_NORMAL})
	}
	_, m.instance.HostId = hostID(self)
	m.instance.Ring, m.instance.Running = v, true
}

func TestAViewOfTheRingIsHeldOnceForAllWhoSeeIt(t *testing.T) {
	w := newWorld(t)
	nodes := w.ring("n1", "n2", "n3")
	for i, n := range []string{"n1", "n2", "n3"} {
		nodes[n].sees(i+1, 1, 2, 3)
	}
	if n := w.count(`SELECT count(*) FROM ring_views`); n != 1 {
		t.Errorf("%d views are held, want 1", n)
	}
	if n := nodes["n2"].view(); n.Instance.HostID != "00000000-0000-0000-0000-000000000002" {
		t.Errorf("host id %q", n.Instance.HostID)
	}
	for i, n := range []string{"n1", "n2", "n3"} {
		nodes[n].sees(i+1, 1, 2, 3, 4)
	}
	if n := w.count(`SELECT count(*) FROM ring_views`); n != 1 {
		t.Errorf("%d views are held after all of them changed, want 1", n)
	}
}
