package fleet

import (
	"bytes"

	agentv1 "github.com/cassandra-security-manager/csm/protocol/agent/v1"
	clusterv1 "github.com/cassandra-security-manager/csm/protocol/cluster/v1"

	"github.com/cassandra-security-manager/csm/shared/fault"
)

// trusted decides what the report of a trust-first move makes of a store: it stays another CA's, and its leaf must be the
// one that was there before. Pure.
func trusted(n nodeRow, m moveRow, s storeRow, c *clusterv1.CompleteMove, t settled) (settled, error) {
	t.state = agentv1.InstallState_INSTALL_STATE_FOREIGN
	switch c.Outcome {
	case agentv1.MoveOutcome_MOVE_OUTCOME_PROVEN, agentv1.MoveOutcome_MOVE_OUTCOME_UNPROVEN:
		if !bytes.Equal(c.AfterSha256, s.leaf) || len(c.AfterSha256) == 0 {
			return t, fault.New(fault.Refused, "leaf-changed", "trust was to be added to store %s, and its leaf is another now", m.store).
				Do("see what writes the files of %s", short(n.name))
		}
		t.installed = max(m.generation, s.installed)
		if t.unproved = c.Outcome == agentv1.MoveOutcome_MOVE_OUTCOME_UNPROVEN && n.running; !t.unproved && c.Outcome == agentv1.MoveOutcome_MOVE_OUTCOME_PROVEN {
			t.proven = c.AfterSha256
		}
	case agentv1.MoveOutcome_MOVE_OUTCOME_ROLLED_BACK, agentv1.MoveOutcome_MOVE_OUTCOME_REFUSED:
	case agentv1.MoveOutcome_MOVE_OUTCOME_FAILED:
		t.state, t.unproved = agentv1.InstallState_INSTALL_STATE_FAILED, true
	default:
		return t, fault.New(fault.Invalid, "no-outcome", "a report of a move needs an outcome")
	}
	return t, nil
}
