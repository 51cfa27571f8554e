package fleet

import (
	"context"

	"github.com/cassandra-security-manager/csm/controller/state"
	clusterv1 "github.com/cassandra-security-manager/csm/protocol/cluster/v1"
)

// RaiseTargets gives every node a target of a new generation that wishes for what the old one did: after a restore the state
// is older than what agents were told, and an agent refuses a generation below the highest it has seen.
func RaiseTargets(ctx context.Context, log state.Log, actor, reason string) error {
	_, err := log.Propose(ctx, state.Proposal{Command: &clusterv1.RaiseTargets{}, Actor: actor, Reason: reason})
	return err
}

func applyRaiseTargets(a *state.Apply, _ *clusterv1.RaiseTargets) (*clusterv1.Empty, error) {
	_, err := a.Exec(`UPDATE clusters SET changed = ?`, a.Index)
	return &clusterv1.Empty{}, err
}
