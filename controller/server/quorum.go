package server

import (
	"context"
	"errors"

	"github.com/cassandra-security-manager/csm/controller/consensus"
	"github.com/cassandra-security-manager/csm/shared/fault"
)

// quorum is the control plane as the API sees it: what consensus does, and what the keys demand of it.
type quorum struct {
	*consensus.Node
	s *Server
}

// Remove takes a controller out and then makes a new data key, because the one that left holds the old. Keys that were sealed
// under the old one are sealed anew; those that it could open are named in the log. When the second half failed, the same
// call again finishes it.
func (q quorum) Remove(ctx context.Context, name, actor, reason string) error {
	if name == q.s.in.Name {
		return fault.New(fault.Refused, "own-removal", "%s cannot replace the data key that it holds itself", name).
			Do("ask another controller: --server https://…")
	}
	removed := q.Node.Remove(ctx, name, actor, reason)
	if removed != nil && !fault.Is(removed, fault.NotFound) {
		return removed
	}
	held, err := q.s.dom.keyring.Holds(ctx, name)
	if err != nil || !held {
		return errors.Join(removed, err)
	}
	rotation, err := q.s.dom.keyring.Rotate(ctx, name, actor, "controller "+name+" was removed")
	if err != nil {
		return fault.Wrap(err, fault.Partial, "not-rotated", "%s is removed, but the data key is still the one it holds", name).
			Do("remove it once more: csm system remove %s", name)
	}
	q.s.log.Warn("a controller was removed and the data key replaced", "removed", name, "resealed", rotation.Resealed, "known_to_removed", rotation.Exposed)
	return nil
}

// approved wraps the data key to a controller that was let in.
func (s *Server) approved(ctx context.Context, m consensus.Member, actor string) error {
	return s.dom.keyring.WrapFor(ctx, m.Name, m.KEKPublic, actor)
}
