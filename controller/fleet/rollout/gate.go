package rollout

import (
	"context"
	"slices"
	"strings"

	agentv1 "github.com/cassandra-security-manager/csm/protocol/agent/v1"

	"github.com/cassandra-security-manager/csm/controller/fleet"
	"github.com/cassandra-security-manager/csm/controller/state"
	"github.com/cassandra-security-manager/csm/shared/fault"
	"github.com/cassandra-security-manager/csm/shared/resource"
)

// Gate is asked by each claim of the fleet, and told each outcome: it implements fleet.Gates.
type Gate struct{}

// refusalsBorne: a move refused by its node before anything was written is tried again so often before it is a failure.
const refusalsBorne = 3

// notYet begin the details of moves that were refused by nobody's failure, and that come again by themselves: one that had no turn at
// the signer, and one whose node was reloaded as often as it may be in an hour.
var notYet = []string{"signer-busy: ", "reload-budget: "}

// MayMove lets a store of a rollout move when its wave is open, and asks every gate again at that moment. A renewal that is
// due by its time needs no wave.
func (Gate) MayMove(a *state.Apply, m fleet.Moving) (owned bool, err error) {
	r, err := liveRow(a.Context(), a.Querier(), m.Cluster)
	if err != nil || r == nil {
		return false, err
	}
	x, err := storeOf(a.Context(), a.Querier(), r.name, m.Node, m.Store)
	if err != nil || x == nil {
		return false, err
	}
	switch x.state {
	case storeFailed, storeBroken:
		return false, fault.New(fault.Refused, "wave-busy", "store %s of %s failed in rollout %s: %s", m.Store, fleet.Short(m.Node), short(r.name), x.detail).
			Do("put it right, then `csm rollout resume %s`", short(r.name))
	case storePending, storeGone:
		if len(m.PlanHash) == 0 && (m.Kind == agentv1.MoveKind_MOVE_KIND_RENEW || m.Kind == agentv1.MoveKind_MOVE_KIND_FIRST) || x.state == storeGone {
			return false, nil
		}
		return false, fault.New(fault.Refused, "wave-busy", "the wave of %s in rollout %s is not open", fleet.Short(m.Node), short(r.name)).
			Do("wait: `csm rollout explain %s` says what for", short(r.name))
	case storeDone:
		return false, nil
	}
	f, _, err := factsOf(a.Context(), a.Querier(), *r, a.Now)
	if err != nil {
		return false, err
	}
	if reasons := mayBegin(f, m.Node); len(reasons) > 0 {
		return false, fault.New(fault.Refused, "wave-busy", "rollout %s: %s", short(r.name), sentences(reasons)).Do("wait: `csm rollout explain %s` says what for", short(r.name))
	}
	return true, nil
}

// mayBegin says why a node that was told may not begin after all. Who has written and only wants to be proved may always:
// the others wait for that. Pure.
func mayBegin(f Facts, node string) []Reason {
	busy := 0
	for i := range f.Nodes {
		n := &f.Nodes[i]
		switch {
		case n.Name == node && n.Phase == Unproved:
			return nil
		case n.Name == node:
			n.Phase = Told
		case n.Phase == Moving || n.Phase == Unproved:
			busy++
		}
	}
	if f.State != Running && f.State != RollingBack {
		return f.stopped()
	}
	reasons := f.gated()
	for _, n := range f.Nodes {
		if n.Name == node {
			reasons = append(reasons, n.Ring...)
		}
	}
	if len(reasons) == 0 && busy >= f.Spec.Width {
		return f.underWay()
	}
	return reasons
}

func sentences(reasons []Reason) string {
	var out []string
	for i, r := range reasons {
		if i == 3 {
			out = append(out, "and more")
			break
		}
		out = append(out, r.Message)
	}
	return strings.Join(out, "; ")
}

// Moved counts, and goes on in the same transaction.
func (Gate) Moved(a *state.Apply, m fleet.Moving) error {
	r, err := liveRow(a.Context(), a.Querier(), m.Cluster)
	if err != nil || r == nil {
		return err
	}
	x, err := storeOf(a.Context(), a.Querier(), r.name, m.Node, m.Store)
	if err != nil {
		return err
	}
	if x != nil && x.state == storeOpen && x.generation == m.Generation {
		if err := settle(a, r, *x, m); err != nil {
			return err
		}
	}
	return advance(a, r)
}

// settle writes down what became of one store.
func settle(a *state.Apply, r *row, x storeRow, m fleet.Moving) error {
	to := ""
	switch m.Outcome {
	case agentv1.MoveOutcome_MOVE_OUTCOME_PROVEN:
		return setStore(a, r.name, x, storeDone, "")
	case agentv1.MoveOutcome_MOVE_OUTCOME_ROLLED_BACK:
		to = storeFailed
	case agentv1.MoveOutcome_MOVE_OUTCOME_FAILED:
		to = storeBroken
	case agentv1.MoveOutcome_MOVE_OUTCOME_REFUSED:
		if slices.ContainsFunc(notYet, func(p string) bool { return strings.HasPrefix(m.Detail, p) }) {
			_, err := a.Exec(`UPDATE rollout_stores SET detail = ? WHERE rollout = ? AND node = ? AND store = ?`, m.Detail, r.name, x.node, x.store)
			return err
		}
		if x.refusals+1 < refusalsBorne {
			_, err := a.Exec(`UPDATE rollout_stores SET refusals = refusals + 1, detail = ? WHERE rollout = ? AND node = ? AND store = ?`, m.Detail, r.name, x.node, x.store)
			return err
		}
		to = storeFailed
	default:
		return nil
	}
	if err := setStore(a, r.name, x, to, m.Detail); err != nil {
		return err
	}
	r.failures++
	_, err := a.Exec(`UPDATE rollouts SET failures = ? WHERE name = ?`, r.failures, r.name)
	return err
}

// MayRaise keeps people, and trust that grows, from moving what a rollout is about to move.
func (Gate) MayRaise(a *state.Apply, node, store string) error {
	cluster := node
	if store != "" {
		cluster = resource.Parent(node)
	}
	r, err := liveRow(a.Context(), a.Querier(), cluster)
	if err != nil || r == nil {
		return err
	}
	refused := fault.New(fault.Refused, "in-rollout", "%s moves by rollout %s, which is %s", fleet.Short(node), short(r.name), r.state).
		Do("wait for its end, or `csm rollout abort %s`", short(r.name))
	if store == "" {
		return refused
	}
	if held, err := r.holds(a.Context(), a.Querier(), node, store); err != nil || !held {
		return err
	}
	return refused
}

// holds says whether a rollout is about to move a store, or moves it.
func (r row) holds(ctx context.Context, q state.Querier, node, store string) (bool, error) {
	x, err := storeOf(ctx, q, r.name, node, store)
	return err == nil && x != nil && x.state != storeGone && x.state != storeDone, err
}

// Holds says whether a rollout that is under way is about to move a store, or moves it: who raises it meanwhile takes it away.
func Holds(ctx context.Context, q state.Querier, cluster, node, store string) (bool, error) {
	r, err := liveRow(ctx, q, cluster)
	if err != nil || r == nil {
		return false, err
	}
	return r.holds(ctx, q, node, store)
}
