package fleet

import (
	"slices"

	agentv1 "github.com/cassandra-security-manager/csm/protocol/agent/v1"

	"github.com/cassandra-security-manager/csm/controller/state"
)

// Moving is a store about to move, or one that has moved.
type Moving struct {
	Cluster, Node string
	Incarnation   uint64
	Store         string
	Kind          agentv1.MoveKind
	Generation    uint64
	PlanHash      []byte
	// Outcome and Detail are told by Moved.
	Outcome agentv1.MoveOutcome
	Detail  string
}

// Gates are asked in Apply by those who know more of a move than the node it is on: rollouts and rotations. They are pure
// but for the tables that they own.
type Gates interface {
	// MayMove is asked by each claim, after what fleet itself asks. owned: the caller has weighed how many may move at once,
	// and one node at a time is not asked besides.
	MayMove(a *state.Apply, m Moving) (owned bool, err error)
	// Moved is told the outcome of a claim, when the store's row says it already.
	Moved(a *state.Apply, m Moving) error
	// MayRaise is asked before a person, or trust that grows, raises a store's generation. store is empty and node the cluster
	// when all its stores are meant. RaiseStore asks nobody.
	MayRaise(a *state.Apply, node, store string) error
}

// TrustGates is what one of the Gates may be besides: it knows which authorities are to be trusted by now.
type TrustGates interface {
	// TrustToProve names the authorities whose certificates each port of the store that asks for client certificates must
	// accept, beside the neighbour's own: those whose anchors came with the wave that raised the store, or before. A store
	// whose wave has not opened has none of them to prove.
	TrustToProve(a *state.Apply, node, store string) (authorities []string, err error)
}

type gates []Gates

// trustToProve names the authorities, sorted, each once.
func (g gates) trustToProve(a *state.Apply, node, store string) (out []string, err error) {
	for _, x := range g {
		t, ok := x.(TrustGates)
		if !ok {
			continue
		}
		list, err := t.TrustToProve(a, node, store)
		if err != nil {
			return nil, err
		}
		out = append(out, list...)
	}
	slices.Sort(out)
	return slices.Compact(out), nil
}

func (g gates) mayMove(a *state.Apply, m Moving) (owned bool, err error) {
	for _, x := range g {
		o, err := x.MayMove(a, m)
		if err != nil {
			return false, err
		}
		owned = owned || o
	}
	return owned, nil
}

func (g gates) moved(a *state.Apply, m Moving) error {
	for _, x := range g {
		if err := x.Moved(a, m); err != nil {
			return err
		}
	}
	return nil
}

func (g gates) mayRaise(a *state.Apply, node, store string) error {
	for _, x := range g {
		if err := x.MayRaise(a, node, store); err != nil {
			return err
		}
	}
	return nil
}
