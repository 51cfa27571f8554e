package fleet

import (
	"context"
	"net/netip"

	"google.golang.org/protobuf/proto"

	agentv1 "github.com/cassandra-security-manager/csm/protocol/agent/v1"
	clusterv1 "github.com/cassandra-security-manager/csm/protocol/cluster/v1"

	"github.com/cassandra-security-manager/csm/controller/state"
	"github.com/cassandra-security-manager/csm/shared/fault"
)

// RingSeen records what an agent's node knows of its ring by gossip. The caller keeps quiet about what has not changed.
func (f *Fleet) RingSeen(ctx context.Context, uid string, incarnation uint64, v *agentv1.RingView) error {
	_, err := f.propose(ctx, "", agentActor(uid, incarnation), "", &clusterv1.RingSeen{Uid: uid, Incarnation: incarnation, View: v})
	return err
}

func applyRingSeen(a *state.Apply, c *clusterv1.RingSeen) (*clusterv1.Empty, error) {
	n, err := activeAgent(a, c.Uid, c.Incarnation)
	if err != nil {
		return nil, err
	}
	b, err := proto.MarshalOptions{Deterministic: true}.Marshal(c.GetView())
	if err != nil {
		return nil, fault.Wrap(err, fault.Invalid, "bad-view", "the view of the ring cannot be encoded")
	}
	if _, err := a.Exec(`INSERT INTO ring_views (node, cluster, view, changed_ms) VALUES (?,?,?,?)
		ON CONFLICT (node) DO UPDATE SET view = excluded.view, changed_ms = excluded.changed_ms`, n.name, n.cluster, b, a.Now.UnixMilli()); err != nil {
		return nil, err
	}
	a.Touch(state.Updated, n.name)
	return &clusterv1.Empty{}, nil
}

// gone are states in gossip of endpoints that are no members any more.
var gone = map[string]bool{"LEFT": true, "removed": true, "removing": true, "hibernate": true}

// gossip counts the enrolled nodes of a cluster besides one, and how many of them know an address as a member's.
func gossip(ctx context.Context, q state.Querier, cluster, besides string) (enrolled int, seenBy map[string]int, err error) {
	rows, err := q.QueryContext(ctx, `SELECT v.view FROM nodes n JOIN agents g ON g.uid = n.uid AND g.incarnation = n.incarnation LEFT JOIN ring_views v ON v.node = n.name
		WHERE n.cluster = ? AND n.name <> ? AND g.state = ? ORDER BY n.name`, cluster, besides, Active)
	if err != nil {
		return 0, nil, err
	}
	defer rows.Close()
	seenBy = map[string]int{}
	for rows.Next() {
		var b []byte
		if err := rows.Scan(&b); err != nil {
			return 0, nil, err
		}
		enrolled++
		var v agentv1.RingView
		if err := proto.Unmarshal(b, &v); err != nil {
			return 0, nil, fault.Wrap(err, fault.Internal, "bad-row", "a view of the ring cannot be read")
		}
		for address := range addresses(&v) {
			seenBy[address]++
		}
	}
	return enrolled, seenBy, rows.Err()
}

// addresses are those of the members in a view, each once, in canonical form.
func addresses(v *agentv1.RingView) map[string]bool {
	out := map[string]bool{}
	for _, m := range v.GetMembers() {
		if gone[m.GetStatus()] {
			continue
		}
		for _, s := range m.GetAddresses() {
			if a, err := netip.ParseAddr(s); err == nil && !a.IsUnspecified() {
				out[a.Unmap().String()] = true
			}
		}
	}
	return out
}
