package fleet

import (
	"context"
	"database/sql"
	"net/netip"
	"time"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	agentv1 "github.com/cassandra-security-manager/csm/protocol/agent/v1"
	clusterv1 "github.com/cassandra-security-manager/csm/protocol/cluster/v1"

	"github.com/cassandra-security-manager/csm/controller/state"
	"github.com/cassandra-security-manager/csm/shared/fault"
)

// linksSchema: the newest wish of a node to cycle its links. The name of the wish is its generation.
const linksSchema = `
CREATE TABLE link_wishes (
	node TEXT PRIMARY KEY,
	cluster TEXT NOT NULL,
	incarnation INTEGER NOT NULL,
	generation INTEGER NOT NULL,
	actor TEXT NOT NULL,
	reason TEXT NOT NULL,
	wished_ms INTEGER NOT NULL,
	until_ms INTEGER NOT NULL
) STRICT, WITHOUT ROWID;
CREATE INDEX link_wishes_cluster ON link_wishes (cluster, node);
`

// CycleFor is how long a node has to cycle its links. A node that streams longer is asked again.
const CycleFor = time.Hour

// NodeLinks are the internode connections of a node that live on certificates of before its last reload, as its agent sees them.
type NodeLinks struct {
	Node string `json:"-"`
	// Unseen is empty exactly when Old is what the kernel says: a gate may count on it then.
	Unseen     string    `json:"unseen,omitempty" doc:"why they are not known"`
	Old        uint32    `json:"old" doc:"how many there are, in both directions"`
	Peers      []string  `json:"peers,omitempty" doc:"addresses at the other end"`
	Since      time.Time `json:"sinceTime,omitzero" doc:"end of the reload that the oldest has outlived, by the node's clock"`
	Recorded   time.Time `json:"recordTime,omitzero" doc:"end of the newest reload at which they were noted, by the node's clock"`
	Uncuttable string    `json:"uncuttable,omitempty" doc:"why the host cannot end a connection"`
	Cycled     uint64    `json:"cycled,omitempty" doc:"generation of the newest wish that came to its end"`
	Result     string    `json:"result,omitempty" doc:"how it ended; done: none was left"`
	Detail     string    `json:"detail,omitempty"`
	Waits      string    `json:"waits,omitempty" doc:"what a wish under way waits for"`
	WaitsFor   string    `json:"waitsFor,omitempty"`
	Wish       *LinkWish `json:"wish,omitempty" doc:"the newest wish to cycle them"`
}

// LinkWish asks a node to end its old connections, one peer after the other.
type LinkWish struct {
	Generation uint64    `json:"generation"`
	Actor      string    `json:"actor"`
	Reason     string    `json:"reason,omitempty"`
	Time       time.Time `json:"time"`
	Until      time.Time `json:"untilTime"`
}

// open says whether a wish is still to be fulfilled.
func (l *NodeLinks) open(now time.Time) bool {
	return l.Wish != nil && l.Cycled < l.Wish.Generation && now.Before(l.Wish.Until)
}

func linksOf(node string, f *agentv1.LinkFacts) *NodeLinks {
	if f == nil {
		return nil
	}
	l := &NodeLinks{Node: node, Unseen: f.Unseen, Old: f.Old, Uncuttable: f.Uncuttable, Cycled: f.Cycled, Result: f.Result, Detail: f.Detail, Waits: f.Waits, WaitsFor: f.WaitsFor}
	for _, p := range f.Peers {
		if a, ok := netip.AddrFromSlice(p); ok {
			l.Peers = append(l.Peers, a.Unmap().String())
		}
	}
	if f.Since != nil {
		l.Since = f.Since.AsTime()
	}
	if f.Recorded != nil {
		l.Recorded = f.Recorded.AsTime()
	}
	return l
}

// unknownLinks stand for a node whose agent does not tell.
func unknownLinks(node string) *NodeLinks {
	return &NodeLinks{Node: node, Unseen: "its agent has not told of them"}
}

// Links are those of each node of a cluster that has joined, by name; for gates, in Apply or out of it.
func Links(ctx context.Context, q state.Querier, cluster string) ([]NodeLinks, error) {
	type row struct {
		NodeLinks
		incarnation uint64
	}
	rows, err := collect(ctx, q, func(r *sql.Rows) (x row, err error) {
		var name string
		var instance []byte
		if err := r.Scan(&name, &x.incarnation, &instance); err != nil {
			return x, err
		}
		var f agentv1.InstanceFacts
		if err := proto.Unmarshal(instance, &f); err != nil {
			return x, fault.Wrap(err, fault.Internal, "bad-row", "facts of %s cannot be read", name)
		}
		l := linksOf(name, f.Links)
		if l == nil {
			l = unknownLinks(name)
		}
		x.NodeLinks = *l
		return x, nil
	}, `SELECT name, incarnation, instance FROM nodes WHERE cluster = ? AND incarnation > 0 ORDER BY name`, cluster)
	if err != nil {
		return nil, err
	}
	var out []NodeLinks
	for _, x := range rows {
		if x.Wish, err = linkWish(ctx, q, x.Node, x.incarnation); err != nil {
			return nil, err
		}
		out = append(out, x.NodeLinks)
	}
	return out, nil
}

func linkWish(ctx context.Context, q state.Querier, node string, incarnation uint64) (*LinkWish, error) {
	var w LinkWish
	var wished, until int64
	ok, err := found(q.QueryRowContext(ctx, `SELECT generation, actor, reason, wished_ms, until_ms FROM link_wishes WHERE node = ? AND incarnation = ?`, node, incarnation).
		Scan(&w.Generation, &w.Actor, &w.Reason, &wished, &until))
	if err != nil || !ok {
		return nil, err
	}
	w.Time, w.Until = at(wished), at(until)
	return &w, nil
}

// wishedCycle puts the wish into the target until it has lapsed. An agent that has fulfilled it knows.
func wishedCycle(ctx context.Context, q state.Querier, t *agentv1.Target, now time.Time) error {
	w, err := linkWish(ctx, q, t.Node, t.Incarnation)
	if err == nil && w != nil && now.Before(w.Until) {
		t.Cycle, t.CycleUntil = w.Generation, timestamppb.New(w.Until)
	}
	return err
}

// CycleLinks asks a node to end its old connections. The answer is the wish's generation: it is fulfilled when the node's links say that they
// are cycled up to it.
func (f *Fleet) CycleLinks(ctx context.Context, node, reason, actor string) (uint64, error) {
	r, err := reply[*clusterv1.CycleLinksReply](f.propose(ctx, node, actor, reason, &clusterv1.CycleLinks{Node: node, Reason: reason}))
	if err != nil {
		return 0, err
	}
	return r.Generation, nil
}

// MayCycleLinks says whether CycleLinks would be refused now, and why.
func (f *Fleet) MayCycleLinks(ctx context.Context, node string) error {
	_, err := view(ctx, f.read, func(ctx context.Context, q state.Querier) (struct{}, error) {
		n, ok, err := scanNode(q.QueryRowContext(ctx, nodeColumns+` WHERE n.name = ?`, node))
		if err == nil && !ok {
			err = noNode(node)
		}
		if err != nil {
			return struct{}{}, err
		}
		_, err = mayCycle(ctx, q, n, f.clock.Now())
		return struct{}{}, err
	})
	return err
}

func applyCycleLinks(a *state.Apply, c *clusterv1.CycleLinks) (*clusterv1.CycleLinksReply, error) {
	w, err := WishCycle(a, c.Node, c.Reason)
	if err != nil {
		return nil, err
	}
	return &clusterv1.CycleLinksReply{Generation: w.Generation, UntilMs: w.Until.UnixMilli()}, nil
}

// WishCycle asks a node to cycle its links; in Apply. A wish that is still open is given again. It refuses a node that could not do it, and a second
// node of a cluster: a pair of nodes that is cut for a moment must have every other way.
func WishCycle(a *state.Apply, node, reason string) (LinkWish, error) {
	n, err := readNode(a, node)
	if err != nil {
		return LinkWish{}, err
	}
	l, err := mayCycle(a.Context(), a.Querier(), n, a.Now)
	if err != nil {
		return LinkWish{}, err
	}
	if l.open(a.Now) {
		return *l.Wish, nil
	}
	w := LinkWish{Generation: a.Index, Actor: a.Envelope.GetActor(), Reason: reason, Time: a.Now, Until: a.Now.Add(CycleFor)}
	if _, err := a.Exec(`INSERT INTO link_wishes (node, cluster, incarnation, generation, actor, reason, wished_ms, until_ms) VALUES (?,?,?,?,?,?,?,?)
		ON CONFLICT (node) DO UPDATE SET incarnation = excluded.incarnation, generation = excluded.generation, actor = excluded.actor, reason = excluded.reason,
		wished_ms = excluded.wished_ms, until_ms = excluded.until_ms`,
		n.name, n.cluster, n.incarnation, w.Generation, w.Actor, reason, w.Time.UnixMilli(), w.Until.UnixMilli()); err != nil {
		return w, err
	}
	if _, err := a.Exec(`UPDATE nodes SET changed = ?, updated_ms = ?, revision = ? WHERE name = ?`, a.Index, a.Now.UnixMilli(), a.Index, n.name); err != nil {
		return w, err
	}
	a.Touch(state.Updated, n.name)
	signalTarget(a, n.name)
	return w, nil
}

// mayCycle refuses what could not come to a good end, and gives the node's links.
func mayCycle(ctx context.Context, q state.Querier, n nodeRow, now time.Time) (l NodeLinks, err error) {
	if n.incarnation == 0 {
		return l, fault.New(fault.Refused, "no-agent", "no agent has joined for %s", short(n.name)).Do("let it join: `csm cluster join-command %s`", short(n.name))
	}
	if err := (Caller{Node: n.name, State: n.agent.state, Reason: n.agent.reason}).Allowed(); err != nil {
		return l, err
	}
	if n.agent.mode != agentv1.Mode_MODE_MANAGE {
		return l, fault.New(fault.Refused, "mode", "mode in agent.yaml of %s is %s: its agent ends nothing", short(n.name), modeName(n.agent.mode)).Do("write mode: manage there, and restart the agent")
	}
	all, err := Links(ctx, q, n.cluster)
	if err != nil {
		return l, err
	}
	for _, other := range all {
		if other.Node == n.name {
			l = other
		} else if other.open(now) {
			return l, fault.New(fault.Conflict, "cycle-busy", "%s cycles its links since %s", short(other.Node), other.Wish.Time.Format(time.RFC3339)).
				Do("one node of a cluster at a time: wait until `csm node get %s` says that it is done, at the latest until %s", short(other.Node), other.Wish.Until.Format(time.RFC3339))
		}
	}
	switch {
	case l.Unseen != "":
		return l, fault.New(fault.Refused, "links-unknown", "the connections of %s are not known: %s", short(n.name), l.Unseen).Do("they are noted at the next reload: `csm node renew %s`", short(n.name))
	case l.Uncuttable != "" && l.Old > 0:
		return l, fault.New(fault.Refused, "kernel-cannot-cut", "%s cannot end its connections: %s", short(n.name), l.Uncuttable).
			Do("%d connections are on old certificates until Cassandra is restarted there: a person decides when, one node after the other", l.Old)
	}
	return l, nil
}
