package fleet

import (
	"context"
	"crypto/sha256"
	"database/sql"
	"encoding/hex"
	"net/netip"
	"slices"

	"google.golang.org/protobuf/proto"

	agentv1 "github.com/cassandra-security-manager/csm/protocol/agent/v1"
	clusterv1 "github.com/cassandra-security-manager/csm/protocol/cluster/v1"

	"github.com/cassandra-security-manager/csm/controller/state"
	"github.com/cassandra-security-manager/csm/shared/fault"
)

// ringSchema: a view is held once, however many nodes see the same. "seen_ms" is when a node began to see it.
const ringSchema = `
CREATE TABLE ring_views (
	cluster TEXT NOT NULL,
	sha256 BLOB NOT NULL,
	view BLOB NOT NULL,
	PRIMARY KEY (cluster, sha256)
) STRICT, WITHOUT ROWID;
CREATE TABLE ring_seen (
	node TEXT PRIMARY KEY,
	cluster TEXT NOT NULL,
	incarnation INTEGER NOT NULL,
	sha256 BLOB NOT NULL,
	host_id TEXT NOT NULL,
	seen_ms INTEGER NOT NULL
) STRICT, WITHOUT ROWID;
CREATE INDEX ring_seen_cluster ON ring_seen (cluster, sha256);
`

// ringMember is a node of the ring as a peer's Cassandra sees it.
type ringMember struct {
	hostID  string
	address netip.Addr
	up      bool
	state   agentv1.RingState
}

// ringView is what one node's Cassandra says of the ring.
type ringView struct {
	node, hostID string
	// counts: the agent is active and connected, its Cassandra runs, and the view is whole and holds the node itself. Only
	// such a view is evidence.
	counts  bool
	members []ringMember
	// failed is why the node could not list the ring, as it says.
	failed string
	// sight is shared by all nodes that see the same; nil where only members are given.
	sight *ringSight
}

// ringSight is what several nodes see alike, by host id.
type ringSight struct {
	members []ringMember
	byID    map[string]ringMember
}

func sightOf(members []ringMember) *ringSight {
	s := &ringSight{members, make(map[string]ringMember, len(members))}
	for _, m := range members {
		s.byID[m.hostID] = m
	}
	return s
}

// ringSights are the views that count, each different one with the nodes that have it. A ring of a thousand has one or two: what
// costs by view costs little.
type ringSights []*seenBy

type seenBy struct {
	*ringSight
	nodes []string
}

func sightsOf(views []ringView) (out ringSights) {
	at := map[*ringSight]*seenBy{}
	for _, v := range views {
		if !v.counts {
			continue
		}
		s := v.sight
		if s == nil {
			s = sightOf(v.members)
		}
		if at[s] == nil {
			at[s] = &seenBy{ringSight: s}
			out = append(out, at[s])
		}
		at[s].nodes = append(at[s].nodes, v.node)
	}
	return out
}

// others are the nodes of a sight but for one, which may be none of them.
func (s *seenBy) others(but string) []string {
	i, ok := slices.BinarySearch(s.nodes, but)
	if !ok {
		return s.nodes
	}
	return slices.Concat(s.nodes[:i], s.nodes[i+1:])
}

// any says whether there are nodes of a sight but for one.
func (s *seenBy) any(but string) bool { return len(s.nodes) > 1 || s.nodes[0] != but }

// witnesses are the nodes, but for one, by whether they see a member.
func (all ringSights) witnesses(id, but string) (see, lack []string) {
	var with, without []*seenBy
	for _, s := range all {
		if _, ok := s.byID[id]; ok {
			with = append(with, s)
		} else {
			without = append(without, s)
		}
	}
	if len(without) == 0 { // the usual case: whether anybody sees it is all that is asked
		for _, s := range with {
			for _, n := range s.nodes {
				if n != but {
					return []string{n}, nil
				}
			}
		}
		return nil, nil
	}
	for _, s := range with {
		see = append(see, s.others(but)...)
	}
	for _, s := range without {
		lack = append(lack, s.others(but)...)
	}
	slices.Sort(see)
	slices.Sort(lack)
	return see, lack
}

func (v ringView) has(match func(ringMember) bool) bool { return slices.ContainsFunc(v.members, match) }

// witnesses are the nodes, but for one, whose views count, by whether they see a member. Pure.
func witnesses(views []ringView, but string, match func(ringMember) bool) (see, lack []string) {
	for _, v := range views {
		switch {
		case !v.counts || v.node == but:
		case v.has(match):
			see = append(see, v.node)
		default:
			lack = append(lack, v.node)
		}
	}
	return see, lack
}

// ringViews reads what the nodes of a cluster see, by name of node. Equal views are decoded once.
func ringViews(ctx context.Context, q state.Querier, cluster string) ([]ringView, error) {
	return readRing(ctx, q, `WHERE s.cluster = ? ORDER BY s.node`, cluster)
}

// ringViewOf is what one node sees; nil when it has told nothing.
func ringViewOf(ctx context.Context, q state.Querier, node string) (*ringView, error) {
	views, err := readRing(ctx, q, `WHERE s.node = ?`, node)
	if err != nil || len(views) == 0 {
		return nil, err
	}
	return &views[0], nil
}

// readRing reads views, each different one once: a row for each node would carry a thousand members.
func readRing(ctx context.Context, q state.Querier, where, name string) ([]ringView, error) {
	type row struct {
		view    ringView
		cluster string
		sum     []byte
	}
	rows, err := collect(ctx, q, func(r *sql.Rows) (x row, err error) {
		return x, r.Scan(&x.view.node, &x.view.hostID, &x.view.counts, &x.cluster, &x.sum)
	}, `SELECT s.node, s.host_id, n.running = 1 AND s.incarnation = n.incarnation AND g.state = 'active' AND g.connected = 1, s.cluster, s.sha256
		FROM ring_seen s JOIN nodes n ON n.name = s.node JOIN agents g ON g.uid = n.uid AND g.incarnation = n.incarnation `+where, name)
	if err != nil {
		return nil, err
	}
	type decoded struct {
		sight  *ringSight
		whole  bool
		failed string
	}
	known := map[string]*decoded{}
	out := make([]ringView, 0, len(rows))
	for _, x := range rows {
		d, ok := known[string(x.sum)]
		if !ok {
			var encoded []byte
			switch ok, err := found(q.QueryRowContext(ctx, `SELECT view FROM ring_views WHERE cluster = ? AND sha256 = ?`, x.cluster, x.sum).Scan(&encoded)); {
			case err != nil:
				return nil, err
			case ok:
				var v agentv1.RingView
				if err := proto.Unmarshal(encoded, &v); err != nil {
					return nil, fault.Wrap(err, fault.Internal, "bad-row", "the ring that %s sees cannot be read", x.view.node)
				}
				d = &decoded{sightOf(members(&v)), !v.Truncated && v.Error == "", v.Error}
			}
			known[string(x.sum)] = d
		}
		if d == nil {
			continue
		}
		x.view.sight, x.view.members, x.view.failed = d.sight, d.sight.members, d.failed
		_, itself := d.sight.byID[x.view.hostID]
		x.view.counts = x.view.counts && d.whole && x.view.hostID != "" && itself
		out = append(out, x.view)
	}
	return out, nil
}

func members(v *agentv1.RingView) []ringMember {
	var out []ringMember
	for _, m := range v.GetMembers() {
		a, _ := netip.AddrFromSlice(m.Address)
		out = append(out, ringMember{hostID: hostIDText(m.HostId), address: a.Unmap(), up: m.Up, state: m.State})
	}
	return out
}

// hostIDText is a host id as Cassandra writes it; empty when it is none.
func hostIDText(b []byte) string {
	if len(b) != 16 {
		return ""
	}
	h := hex.EncodeToString(b)
	return h[:8] + "-" + h[8:12] + "-" + h[12:16] + "-" + h[16:20] + "-" + h[20:]
}

// takeRing moves the view out of the facts that are kept with the node.
func takeRing(c *clusterv1.AgentReported, i *agentv1.InstanceFacts) error {
	if i.GetRing() == nil {
		return nil
	}
	b, err := proto.MarshalOptions{Deterministic: true}.Marshal(i.Ring)
	if err != nil {
		return fault.Wrap(err, fault.Invalid, "bad-facts", "the ring cannot be encoded")
	}
	sum := sha256.Sum256(b)
	c.RingSha256, c.Ring = sum[:], b
	return nil
}

// withoutKnownRing leaves the body of a view out that the state holds: all nodes of a ring see the same, and one of them
// tells it.
func (f *Fleet) withoutKnownRing(ctx context.Context, c *clusterv1.AgentReported) (*clusterv1.AgentReported, error) {
	if len(c.Ring) == 0 {
		return c, nil
	}
	known, err := view(ctx, f.read, func(ctx context.Context, q state.Querier) (n int, err error) {
		err = q.QueryRowContext(ctx, `SELECT count(*) FROM ring_views v JOIN agents g ON g.uid = ? AND g.incarnation = ? JOIN nodes n ON n.name = g.node AND n.cluster = v.cluster WHERE v.sha256 = ?`,
			c.Uid, c.Incarnation, c.RingSha256).Scan(&n)
		return n, err
	})
	if err != nil || known == 0 {
		return c, err
	}
	c = proto.CloneOf(c)
	c.Ring = nil
	return c, nil
}

// reportRing writes down what a node sees of its ring. wanted: the state does not hold that view any more.
// moved: it is another one than before.
func reportRing(a *state.Apply, n nodeRow, c *clusterv1.AgentReported, hostID string) (wanted, moved bool, err error) {
	var was []byte
	var wasID string
	if _, err := found(a.QueryRow(`SELECT sha256, host_id FROM ring_seen WHERE node = ? AND incarnation = ?`, n.name, n.incarnation).Scan(&was, &wasID)); err != nil {
		return false, false, err
	}
	if hostID == "" {
		hostID = wasID // a node that is down is still who it was
	}
	if len(c.RingSha256) == 0 || string(was) == string(c.RingSha256) && wasID == hostID {
		return false, false, nil
	}
	if len(c.Ring) > 0 {
		if sum := sha256.Sum256(c.Ring); string(sum[:]) != string(c.RingSha256) {
			return false, false, fault.New(fault.Invalid, "bad-facts", "the ring that was told is not the one that was named")
		}
		if _, err := a.Exec(`INSERT INTO ring_views (cluster, sha256, view) VALUES (?,?,?) ON CONFLICT DO NOTHING`, n.cluster, c.RingSha256, c.Ring); err != nil {
			return false, false, err
		}
	}
	var held int
	if err := a.QueryRow(`SELECT count(*) FROM ring_views WHERE cluster = ? AND sha256 = ?`, n.cluster, c.RingSha256).Scan(&held); err != nil || held == 0 {
		return err == nil, false, err
	}
	if _, err := a.Exec(`INSERT INTO ring_seen (node, cluster, incarnation, sha256, host_id, seen_ms) VALUES (?,?,?,?,?,?) ON CONFLICT (node) DO UPDATE SET
		incarnation = excluded.incarnation, sha256 = excluded.sha256, host_id = excluded.host_id, seen_ms = excluded.seen_ms`,
		n.name, n.cluster, n.incarnation, c.RingSha256, hostID, a.Now.UnixMilli()); err != nil {
		return false, false, err
	}
	_, err = a.Exec(`DELETE FROM ring_views WHERE cluster = ? AND sha256 = ? AND NOT EXISTS (SELECT 1 FROM ring_seen s WHERE s.cluster = ring_views.cluster AND s.sha256 = ring_views.sha256)`,
		n.cluster, was)
	return false, err == nil, err
}

// hostIDOf is the host id that a node last said it has; empty when it never did in this incarnation.
func hostIDOf(ctx context.Context, q state.Querier, node string) (id string, err error) {
	_, err = found(q.QueryRowContext(ctx, `SELECT s.host_id FROM ring_seen s JOIN nodes n ON n.name = s.node AND n.incarnation = s.incarnation WHERE s.node = ?`, node).Scan(&id))
	return id, err
}
