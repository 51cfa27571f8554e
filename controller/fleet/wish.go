package fleet

import (
	"bytes"

	agentv1 "github.com/cassandra-security-manager/csm/protocol/agent/v1"

	"github.com/cassandra-security-manager/csm/controller/state"
	"github.com/cassandra-security-manager/csm/shared/fault"
	"github.com/cassandra-security-manager/csm/shared/resource"
)

// Wish raises the generation of one store, and says what its move is to do.
type Wish struct {
	// Node is a full name, Store the short one of its store.
	Node, Store string
	// Move is the kind of move; unspecified: the agent decides by what the store lacks.
	Move agentv1.MoveKind
	// Authority signs the next leaves of the store, until another wish names another: a full name. Empty: who signs stays.
	Authority string
	// TakeOver lets the leaf of another CA be replaced, if the store holds one and has taken our anchors: Move is then that kind.
	TakeOver bool
	// PlanHash is that of the rollout that asks; nil when none does.
	PlanHash []byte
	// Reason is for people.
	Reason string
}

// RaiseStore makes a store move: its generation becomes this entry's index. To be used in Apply only. It asks no gate: the
// claim does.
func RaiseStore(a *state.Apply, w Wish) (generation uint64, err error) {
	return a.Index, raise(a, w)
}

// SetAuthority says who signs the next leaves of a store, and moves nothing. Empty: the cluster's authority.
func SetAuthority(a *state.Apply, node, store, authority string) error {
	res, err := a.Exec(`UPDATE stores SET wish_authority = ? WHERE name = ?`, authority, resource.Store(node, store))
	if err != nil {
		return err
	}
	if k, err := res.RowsAffected(); err != nil || k > 0 {
		return err
	}
	return noStore(node, store)
}

// Withdraw takes back a wish that no claim has taken up: the store's generation, and who signs for it, become what they were.
// While a move is open, or the wish is another by now, nothing is taken back: withdrawn is false.
func Withdraw(a *state.Apply, node, store string, generation, before uint64, authority string) (withdrawn bool, err error) {
	res, err := a.Exec(`UPDATE stores SET generation = ?, reason = 'taken back', wish_move = 0, plan_hash = NULL, wish_authority = ? WHERE name = ? AND generation = ? AND installed < generation
		AND NOT EXISTS (SELECT 1 FROM moves m WHERE m.node = ? AND m.store = ? AND m.state = ? AND m.expires_ms > ?)`,
		before, authority, resource.Store(node, store), generation, node, store, moveOpen, a.Now.UnixMilli())
	if err != nil {
		return false, err
	}
	if k, err := res.RowsAffected(); err != nil || k == 0 {
		return false, err
	}
	return true, nodeMoved(a, node)
}

func raise(a *state.Apply, w Wish) error {
	if w.TakeOver {
		s, _, err := readStore(a, w.Node, w.Store)
		if err != nil {
			return err
		}
		if s.theirs() {
			w.Move = agentv1.MoveKind_MOVE_KIND_TAKE_OVER
			if err := forgetKept(a, s.name); err != nil {
				return err
			}
		}
	}
	res, err := a.Exec(`UPDATE stores SET generation = ?, reason = ?, wish_move = ?, plan_hash = ?, wish_authority = CASE WHEN ?5 = '' THEN wish_authority ELSE ?5 END WHERE name = ?6`,
		a.Index, w.Reason, int(w.Move), nullable(w.PlanHash), w.Authority, resource.Store(w.Node, w.Store))
	if err != nil {
		return err
	}
	if k, err := res.RowsAffected(); err != nil || k == 0 {
		if err != nil {
			return err
		}
		return noStore(w.Node, w.Store)
	}
	return nodeMoved(a, w.Node)
}

// nodeMoved tells a node's agent to look again.
func nodeMoved(a *state.Apply, node string) error {
	if _, err := a.Exec(`UPDATE nodes SET changed = ?, updated_ms = ?, revision = ? WHERE name = ?`, a.Index, a.Now.UnixMilli(), a.Index, node); err != nil {
		return err
	}
	a.Touch(state.Updated, node)
	signalTarget(a, node)
	return nil
}

func noStore(node, store string) error {
	return fault.New(fault.NotFound, "no-store", "%s has no store %.63q", short(node), store).Do("its agent reports stores when it has connected: `csm node get %s`", short(node))
}

// wishFits compares a claim with what the store's newest generation asks for, while that is not done. Pure.
func wishFits(n nodeRow, s storeRow, r *agentv1.ClaimMoveRequest) error {
	pending := s.installed < s.generation
	first := r.Kind == agentv1.MoveKind_MOVE_KIND_FIRST && s.installed == 0
	switch {
	case len(r.PlanHash) > 0 && !bytes.Equal(r.PlanHash, s.plan):
		return fault.New(fault.Stale, "plan-unknown", "store %s of %s is not to move by this plan", s.store, short(n.name)).Do("wait for the newest target, then claim what it says")
	case pending && len(s.plan) > 0 && len(r.PlanHash) == 0:
		return fault.New(fault.Stale, "plan-missing", "store %s of %s moves by a rollout, and the claim does not name its plan", s.store, short(n.name)).
			Do("wait for the newest target; an agent too old to know plans must be updated")
	case s.back() && r.Kind == agentv1.MoveKind_MOVE_KIND_TRUST: // it lies there already, and is to be proved
	case pending && s.move != agentv1.MoveKind_MOVE_KIND_UNSPECIFIED && r.Kind != s.move && !first:
		return fault.New(fault.Refused, "other-move", "store %s of %s is to make a %s move, not %s", s.store, short(n.name), kindName(s.move), kindName(r.Kind)).
			Do("wait for the newest target, then claim what it says")
	}
	return nil
}

// authorityOf is who signs the next leaf of a store s of a cluster c.
const authorityOf = `coalesce(nullif(s.wish_authority, ''), c.authority)`

// authorityFits refuses a leaf that another authority signed than the one that is to.
func authorityFits(a *state.Apply, m moveRow, issuer string) error {
	var want string
	if err := a.QueryRow(`SELECT `+authorityOf+` FROM stores s JOIN nodes n ON n.name = s.node JOIN clusters c ON c.name = n.cluster WHERE s.name = ?`,
		resource.Store(m.node, m.store)).Scan(&want); err != nil {
		return err
	}
	if resource.Parent(issuer) == want {
		return nil
	}
	return fault.New(fault.Stale, "other-authority", "the next leaf of store %s of %s is to be signed by %s", m.store, short(m.node), want).Do("ask for a certificate again")
}
