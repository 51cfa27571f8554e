package fleet

import (
	"context"
	"database/sql"

	agentv1 "github.com/cassandra-security-manager/csm/protocol/agent/v1"
	clusterv1 "github.com/cassandra-security-manager/csm/protocol/cluster/v1"

	"github.com/cassandra-security-manager/csm/controller/state"
	"github.com/cassandra-security-manager/csm/shared/fault"
)

// nodeRow is a node with the agent of its current incarnation, as Apply decides by it.
type nodeRow struct {
	name, cluster, uid string
	incarnation        uint64
	running            bool
	agent              agentRow
	ringMoved          bool // the report at hand brought another view of the ring
}

type agentRow struct {
	state, reason, hold string
	mode                agentv1.Mode
	machine             []byte
	counter             uint64
}

func readNode(a *state.Apply, name string) (nodeRow, error) {
	n, ok, err := scanNode(a.QueryRow(nodeColumns+` WHERE n.name = ?`, name))
	if err == nil && !ok {
		err = noNode(name)
	}
	return n, err
}

const nodeColumns = `SELECT n.name, n.cluster, n.uid, n.incarnation, n.running, coalesce(g.state, ''), coalesce(g.reason, ''), coalesce(g.hold, ''), coalesce(g.mode, 0), g.machine, coalesce(g.counter, 0)
	FROM nodes n LEFT JOIN agents g ON g.uid = n.uid AND g.incarnation = n.incarnation`

func scanNode(r *sql.Row) (n nodeRow, ok bool, err error) {
	ok, err = found(r.Scan(&n.name, &n.cluster, &n.uid, &n.incarnation, &n.running, &n.agent.state, &n.agent.reason, &n.agent.hold, &n.agent.mode, &n.agent.machine, &n.agent.counter))
	return n, ok, err
}

// nodeOfAgent finds the node of an identity and refuses one that is revoked or of an older incarnation.
func nodeOfAgent(a *state.Apply, uid string, incarnation uint64) (nodeRow, error) {
	c, err := caller(a.Context(), a.Querier(), uid, incarnation)
	if err != nil {
		return nodeRow{}, err
	}
	if c.State == Revoked {
		return nodeRow{}, c.Allowed()
	}
	n, err := readNode(a, c.Node)
	if err != nil {
		return n, err
	}
	if n.incarnation != incarnation {
		return n, oldIncarnation(n, incarnation)
	}
	return n, nil
}

// activeAgent is nodeOfAgent that also refuses a suspended one.
func activeAgent(a *state.Apply, uid string, incarnation uint64) (nodeRow, error) {
	n, err := nodeOfAgent(a, uid, incarnation)
	if err != nil {
		return n, err
	}
	return n, Caller{Node: n.name, State: n.agent.state, Reason: n.agent.reason}.Allowed()
}

func oldIncarnation(n nodeRow, incarnation uint64) error {
	return fault.New(fault.Refused, "old-incarnation", "incarnation %d of %s was replaced by %d", incarnation, short(n.name), n.incarnation).
		Do("this host is no longer that node; if it should be, let it join anew: `csm cluster join-command %s --rejoin`", short(n.name))
}

// SetNames replaces what the node's certificates may carry. It holds for the next certificate at once; no store moves
// until it is asked to (RequestRenewal) or its renewal is due, because a name more or less is no reason for a reload
// that nobody expects.
func (f *Fleet) SetNames(ctx context.Context, node string, names Names, actor string) error {
	names, err := names.Normalise()
	if err != nil {
		return err
	}
	if names.Empty() {
		return fault.New(fault.Invalid, "no-names", "a node's certificate needs at least one name")
	}
	_, err = f.propose(ctx, node, actor, "", &clusterv1.SetNodeNames{Node: node, Names: names.wire()})
	return err
}

func applySetNodeNames(a *state.Apply, c *clusterv1.SetNodeNames) (*clusterv1.Empty, error) {
	column, err := namesOf(c.Names).column()
	if err != nil {
		return nil, err
	}
	res, err := a.Exec(`UPDATE nodes SET names = ?, changed = ?, updated_ms = ?, revision = ? WHERE name = ?`, column, a.Index, a.Now.UnixMilli(), a.Index, c.Node)
	if err != nil {
		return nil, err
	}
	if n, err := res.RowsAffected(); err != nil || n == 0 {
		if err != nil {
			return nil, err
		}
		return nil, noNode(c.Node)
	}
	a.Touch(state.Updated, c.Node)
	signalTarget(a, c.Node)
	return &clusterv1.Empty{}, nil
}

// RequestRenewal asks a node's store (all of them when store is empty) to move; it does so when the wave reaches it.
// The answer is the generation that its stores will have.
func (f *Fleet) RequestRenewal(ctx context.Context, node, store, reason, actor string) (uint64, error) {
	if reason == "" {
		reason = "renewal asked for"
	}
	r, err := reply[*clusterv1.RequestRenewalReply](f.propose(ctx, node, actor, reason, &clusterv1.RequestRenewal{Node: node, Store: store, Reason: reason}))
	if err != nil {
		return 0, err
	}
	return r.Generation, nil
}

func (g gates) applyRequestRenewal(a *state.Apply, c *clusterv1.RequestRenewal) (*clusterv1.RequestRenewalReply, error) {
	n, err := readNode(a, c.Node)
	if err != nil {
		return nil, err
	}
	stores, err := collect(a.Context(), a.Querier(), scanString, `SELECT store FROM stores WHERE node = ? AND (? = '' OR store = ?) ORDER BY store`, c.Node, c.Store, c.Store)
	if err != nil {
		return nil, err
	}
	if len(stores) == 0 {
		return nil, fault.New(fault.NotFound, "no-store", "no such store of %s is known", short(n.name)).Do("its agent reports stores when it has connected: `csm node get %s`", short(n.name))
	}
	for _, s := range stores {
		if err := g.mayRaise(a, n.name, s); err != nil {
			return nil, err
		}
	}
	for _, s := range stores {
		if err := raise(a, Wish{Node: n.name, Store: s, Reason: c.Reason}); err != nil {
			return nil, err
		}
	}
	return &clusterv1.RequestRenewalReply{Generation: a.Index, Stores: stores}, nil
}
