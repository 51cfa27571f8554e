package fleet

import (
	"context"
	"database/sql"
	"time"

	"google.golang.org/protobuf/proto"

	agentv1 "github.com/cassandra-security-manager/csm/protocol/agent/v1"

	"github.com/cassandra-security-manager/csm/controller/state"
	"github.com/cassandra-security-manager/csm/shared/fault"
)

// NodeFacts is what a node's agent told, as it told it, for reports that judge all of it.
type NodeFacts struct {
	Name, State, StateReason string
	Connected                bool
	Transition               time.Time
	// Agent and Instance are nil before the first join.
	Agent    *agentv1.AgentFacts
	Instance *agentv1.InstanceFacts
	Stores   []*agentv1.StoreFacts
}

// Facts reads what the agents of a cluster told, by name, in two queries however many nodes there are. A cluster that does
// not exist is an error.
func (f *Fleet) Facts(ctx context.Context, cluster string) ([]NodeFacts, error) {
	return view(ctx, f.read, func(ctx context.Context, q state.Querier) ([]NodeFacts, error) {
		if cs, err := f.clusters(ctx, q, `c.name = ?`, 1, cluster); err != nil || len(cs) == 0 {
			if err == nil {
				err = noCluster(cluster)
			}
			return nil, err
		}
		list, err := collect(ctx, q, scanFacts, `SELECT n.name, n.instance, coalesce(g.state, 'pending'), coalesce(g.reason, ''), g.facts,
			coalesce(g.connected, 0), coalesce(g.transition_ms, 0)
			FROM nodes n LEFT JOIN agents g ON g.uid = n.uid AND g.incarnation = n.incarnation WHERE n.cluster = ? ORDER BY n.name`, cluster)
		if err != nil {
			return nil, err
		}
		at := map[string]int{}
		for i := range list {
			at[list[i].Name] = i
		}
		_, err = collect(ctx, q, func(r *sql.Rows) (struct{}, error) {
			var node string
			var facts []byte
			if err := r.Scan(&node, &facts); err != nil {
				return struct{}{}, err
			}
			s := &agentv1.StoreFacts{}
			if err := proto.Unmarshal(facts, s); err != nil {
				return struct{}{}, fault.Wrap(err, fault.Internal, "bad-row", "facts of a store of %s cannot be read", node)
			}
			list[at[node]].Stores = append(list[at[node]].Stores, s)
			return struct{}{}, nil
		}, `SELECT s.node, s.facts FROM stores s JOIN nodes n ON n.name = s.node WHERE n.cluster = ? ORDER BY s.node, s.store`, cluster)
		return list, err
	})
}

func scanFacts(r *sql.Rows) (n NodeFacts, err error) {
	var agent, instance []byte
	var transition int64
	if err := r.Scan(&n.Name, &instance, &n.State, &n.StateReason, &agent, &n.Connected, &transition); err != nil {
		return n, err
	}
	n.Transition = at(transition)
	if len(agent) > 0 {
		n.Agent = &agentv1.AgentFacts{}
		err = proto.Unmarshal(agent, n.Agent)
	}
	if err == nil && len(instance) > 0 {
		n.Instance = &agentv1.InstanceFacts{}
		err = proto.Unmarshal(instance, n.Instance)
	}
	if err != nil {
		return n, fault.Wrap(err, fault.Internal, "bad-row", "facts of %s cannot be read", n.Name)
	}
	return n, nil
}
