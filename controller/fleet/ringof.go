package fleet

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"

	"google.golang.org/protobuf/proto"

	agentv1 "github.com/cassandra-security-manager/csm/protocol/agent/v1"

	"github.com/cassandra-security-manager/csm/controller/state"
	"github.com/cassandra-security-manager/csm/shared/fault"
)

// Ring is who belongs to a cluster's ring as its peers' gossip reports them: enrolled or not, alive or not.
type Ring struct {
	// Witnesses are the nodes whose views count, by full name.
	Witnesses []string `json:"witnesses"`
	// Members are all that any witness sees, by host id.
	Members []RingMember `json:"members"`
	// Doubts say why the list cannot be relied on; without any, two nodes at least tell the same, or the only one of a ring of one.
	Doubts []RingDoubt `json:"doubts,omitempty"`
}

// RingMember is a member of the ring, with the node of CSM that it is.
type RingMember struct {
	HostID  string `json:"hostId"`
	Address string `json:"address"`
	// Up: nobody else who may witness sees it down, and somebody sees it up.
	Up    bool   `json:"up"`
	State string `json:"state" enum:"normal,joining,leaving,moving,unknown"`
	// Node is its full name, empty when CSM does not know the member; Incarnation of that node.
	Node        string `json:"node,omitempty"`
	Incarnation uint64 `json:"incarnation,omitempty"`
	// Active: the agent's identity is good and it may act (mode manage).
	Active bool `json:"active"`
	// Version of Cassandra as its agent reported it.
	Version    string `json:"version,omitempty"`
	Datacenter string `json:"datacenter,omitempty"`
	Rack       string `json:"rack,omitempty"`
}

// RingDoubt is one reason why the members are not known for certain.
type RingDoubt struct {
	Code    string `json:"code" enum:"no-views,few-views,views-differ,two-of-one"`
	Message string `json:"message"`
}

// RingOf reads the members of a cluster's ring as its peers report them. It is for gates: what is not agreed by the views
// that count is a doubt, never an absence. It may be asked in Apply and by readers.
func RingOf(ctx context.Context, q state.Querier, cluster string) (Ring, error) {
	views, err := ringViews(ctx, q, cluster)
	if err != nil {
		return Ring{}, err
	}
	known, err := enrolled(ctx, q, cluster)
	if err != nil {
		return Ring{}, err
	}
	return ringFrom(views, known), nil
}

// enrolledNode is a node that CSM knows, with the host id that it last said.
type enrolledNode struct {
	name, hostID, version, dc, rack string
	incarnation                     uint64
	active                          bool
}

func enrolled(ctx context.Context, q state.Querier, cluster string) ([]enrolledNode, error) {
	rows, err := q.QueryContext(ctx, `SELECT n.name, n.incarnation, g.state = ? AND g.mode = ?, s.host_id, n.instance FROM nodes n JOIN agents g ON g.uid = n.uid AND g.incarnation = n.incarnation
		JOIN ring_seen s ON s.node = n.name AND s.incarnation = n.incarnation WHERE n.cluster = ? ORDER BY n.name`, Active, int(agentv1.Mode_MODE_MANAGE), cluster)
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	var out []enrolledNode
	for rows.Next() {
		var e enrolledNode
		var b []byte
		if err := rows.Scan(&e.name, &e.incarnation, &e.active, &e.hostID, &b); err != nil {
			return nil, err
		}
		var i agentv1.InstanceFacts
		if err := proto.Unmarshal(b, &i); err != nil {
			return nil, fault.Wrap(err, fault.Internal, "bad-row", "facts of %s cannot be read", e.name)
		}
		e.version, e.dc, e.rack = i.CassandraVersion, i.Datacenter, i.Rack
		out = append(out, e)
	}
	return out, rows.Err()
}

// ringFrom joins what the witnesses see with whom CSM knows. Pure.
func ringFrom(views []ringView, known []enrolledNode) Ring {
	var r Ring
	seen := map[string]RingMember{}
	sights := sightsOf(views)
	for _, s := range sights {
		r.Witnesses = append(r.Witnesses, s.nodes...)
		for _, m := range s.members {
			seen[m.hostID] = RingMember{HostID: m.hostID, Address: m.address.String()}
		}
	}
	slices.Sort(r.Witnesses)
	if len(r.Witnesses) == 0 {
		r.Doubts = append(r.Doubts, RingDoubt{"no-views", "no connected node tells which members the ring has" + failures(views)})
		return r
	}
	if len(r.Witnesses) < min(2, len(seen)) {
		r.Doubts = append(r.Doubts, RingDoubt{"few-views", fmt.Sprintf("only %s tells of this ring of %d: two are needed", shortAll(r.Witnesses), len(seen))})
	}
	byID := map[string][]enrolledNode{}
	for _, e := range known {
		byID[e.hostID] = append(byID[e.hostID], e)
	}
	for _, id := range slices.Sorted(maps.Keys(seen)) {
		m, doubts := memberFrom(seen[id], len(seen), sights, byID[id])
		r.Members = append(r.Members, m)
		r.Doubts = append(r.Doubts, doubts...)
	}
	return r
}

// failures says why nodes could not list the ring: the first of them, in its own words, stands for the rest.
func failures(views []ringView) string {
	failed := slices.DeleteFunc(slices.Clone(views), func(v ringView) bool { return v.failed == "" })
	if len(failed) == 0 {
		return ""
	}
	return fmt.Sprintf("; %d could not list it, as %s says: %s", len(failed), short(failed[0].node), failed[0].failed)
}

// memberFrom says what the others know of one member; known are the nodes that say they are it.
func memberFrom(m RingMember, size int, sights ringSights, known []enrolledNode) (RingMember, []RingDoubt) {
	var doubts []RingDoubt
	var twins []string
	for _, e := range known {
		twins = append(twins, e.name)
		m.Node, m.Incarnation, m.Active, m.Version, m.Datacenter, m.Rack = e.name, e.incarnation, e.active, e.version, e.dc, e.rack
	}
	if len(twins) > 1 {
		doubts = append(doubts, RingDoubt{"two-of-one", fmt.Sprintf("%s say that they are the member %s", shortAll(twins), m.HostID)})
	}
	see, lack := sights.witnesses(m.HostID, m.Node)
	if len(lack) > 0 && len(see) > 0 {
		doubts = append(doubts, RingDoubt{"views-differ", fmt.Sprintf("%s see the member %s at %s, %s do not", shortAll(see), m.HostID, m.Address, shortAll(lack))})
	}
	if size > 1 && len(see) == 0 {
		doubts = append(doubts, RingDoubt{"few-views", fmt.Sprintf("nobody but itself tells of the member %s at %s", m.HostID, m.Address)})
	}
	m.Up, m.State = gossiped(sights, m, size)
	return m, doubts
}

// gossiped is the worst that the witnesses say of a member: one who sees it down, or not settled, is believed. A member's own
// word counts only in a ring of one.
func gossiped(sights ringSights, m RingMember, size int) (up bool, st string) {
	st = "unknown"
	asked := 0
	for _, v := range sights {
		x, ok := v.byID[m.HostID]
		if !ok || size > 1 && !v.any(m.Node) {
			continue
		}
		up = x.up && (asked == 0 || up)
		if s := ringStateName(x.state); asked == 0 || s != "normal" {
			st = s
		}
		asked++
	}
	return up, st
}

func ringStateName(s agentv1.RingState) string {
	switch s {
	case agentv1.RingState_RING_STATE_NORMAL:
		return "normal"
	case agentv1.RingState_RING_STATE_JOINING:
		return "joining"
	case agentv1.RingState_RING_STATE_LEAVING:
		return "leaving"
	case agentv1.RingState_RING_STATE_MOVING:
		return "moving"
	}
	return "unknown"
}

func shortAll(names []string) string {
	out := make([]string, len(names))
	for i, n := range names {
		out[i] = short(n)
	}
	return strings.Join(out, ", ")
}
