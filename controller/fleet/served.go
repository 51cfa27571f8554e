package fleet

import (
	"bytes"
	"context"
	"database/sql"

	"google.golang.org/protobuf/proto"

	agentv1 "github.com/cassandra-security-manager/csm/protocol/agent/v1"

	"github.com/cassandra-security-manager/csm/controller/state"
	"github.com/cassandra-security-manager/csm/shared/fault"
)

// Served is what a store serves as far as others have proved it, for those who decide by it in Apply.
type Served struct {
	Node, Store string
	// Leaf is the SHA-256 of the leaf that a neighbour saw served and that is still the one in the files; nil when that is
	// not known.
	Leaf []byte
	// InFiles is the leaf that the agent reports.
	InFiles []byte
	// Ports are those that the store was last reported with.
	Ports []*agentv1.Port
	// Internode and Client are the TLS sections of the node's cassandra.yaml; nil from agents that do not tell.
	Internode, Client *agentv1.TLSSection
}

// ServedOf reads what the stores of a cluster serve, by node and store.
func ServedOf(ctx context.Context, q state.Querier, cluster string) ([]Served, error) {
	return collect(ctx, q, func(r *sql.Rows) (s Served, err error) {
		var proven, facts, instance []byte
		if err := r.Scan(&s.Node, &s.Store, &s.InFiles, &proven, &facts, &instance); err != nil {
			return s, err
		}
		var f agentv1.StoreFacts
		var i agentv1.InstanceFacts
		if err := proto.Unmarshal(facts, &f); err != nil {
			return s, fault.Wrap(err, fault.Internal, "bad-row", "facts of a store of %s cannot be read", s.Node)
		}
		if err := proto.Unmarshal(instance, &i); err != nil {
			return s, fault.Wrap(err, fault.Internal, "bad-row", "facts of %s cannot be read", s.Node)
		}
		if len(proven) > 0 && bytes.Equal(proven, s.InFiles) {
			s.Leaf = proven
		}
		s.Ports, s.Internode, s.Client = f.Ports, i.Internode, i.Client
		return s, nil
	}, `SELECT s.node, s.store, s.leaf_sha256, s.proven_sha256, s.facts, n.instance FROM stores s JOIN nodes n ON n.name = s.node WHERE n.cluster = ? ORDER BY s.node, s.store`, cluster)
}
