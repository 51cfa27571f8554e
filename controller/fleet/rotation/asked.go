package rotation

import (
	agentv1 "github.com/cassandra-security-manager/csm/protocol/agent/v1"

	"github.com/cassandra-security-manager/csm/controller/fleet"
	"github.com/cassandra-security-manager/csm/controller/state"
	"github.com/cassandra-security-manager/csm/shared/fault"
	"github.com/cassandra-security-manager/csm/shared/resource"
)

// Asked is what fleet asks of rotations, in Apply: each claim meets the gates again, because what was proved when the phase
// began may have fallen back since.
type Asked struct{ gates Gates }

var _ fleet.Gates = Asked{}

// MayMove refuses a leaf of the CA that comes, and every shrinking of trust, while a gate is closed.
func (g Asked) MayMove(a *state.Apply, mv fleet.Moving) (owned bool, err error) {
	r, ok, err := running(a.Context(), a.Querier(), mv.Cluster)
	if err == nil && !ok && (mv.Kind == agentv1.MoveKind_MOVE_KIND_TAKE_OVER || mv.Kind == agentv1.MoveKind_MOVE_KIND_GIVE_BACK) {
		return false, fault.New(fault.Refused, "rotation-phase", "no rotation runs on %s: only one replaces the leaf of another CA, or gives it back", short(mv.Cluster)).Do("see `csm rotation list`")
	}
	if err != nil || !ok || mv.Kind == agentv1.MoveKind_MOVE_KIND_TRUST || r.kind == Rekey {
		return false, err
	}
	s := look(a.Context(), a.Querier(), a.Now, r)
	v, err := s.view(nil)
	if err != nil {
		return false, err
	}
	stores, err := s.stores()
	if err != nil {
		return false, err
	}
	for _, x := range stores[mv.Node] {
		if x.Name == mv.Store {
			return false, g.judge(r, v, x, mv)
		}
	}
	return false, nil
}

// judge weighs one claim. Pure.
func (g Asked) judge(r row, v View, s Store, mv fleet.Moving) error {
	step, early := stepOf(r, s, mv.Kind)
	if early != "" {
		return fault.New(fault.Refused, "rotation-phase", "%s; the rotation of %s is in phase %s", early, short(r.cluster), r.phase).Do("see `csm rotation explain`")
	}
	if step == "" {
		return nil
	}
	if reasons := g.gates.Ask(step, v, mv.Node); len(reasons) > 0 {
		return refusal(reasons)
	}
	return nil
}

// stepOf says which gates a claim must pass; none when it changes nothing between the two CAs. early: it is not its time.
func stepOf(r row, s Store, kind agentv1.MoveKind) (step Step, early string) {
	if kind == agentv1.MoveKind_MOVE_KIND_SHRINK {
		switch r.phase {
		case Retire:
			return StepShrink, ""
		case Withdrawing:
			return StepUnshrink, ""
		}
		return "", "trust shrinks only when every member is proved without it"
	}
	switch kind {
	case agentv1.MoveKind_MOVE_KIND_TAKE_OVER:
		if r.phase == Reissue || r.phase == Reissued {
			return StepLeaf, ""
		}
		return "", "the leaf of another CA is replaced only when every member is proved to trust ours"
	case agentv1.MoveKind_MOVE_KIND_GIVE_BACK:
		if r.phase == Undoing {
			return StepBack, ""
		}
		return "", "a leaf of another CA comes back only by a rollback of its take-over"
	}
	switch {
	case r.kind == Takeover && r.phase.Undo(): // a leaf of ours again, where one is: it is trusted everywhere
		return "", ""
	case s.Files == After && s.Signer == r.after: // a leaf of the same CA again, or the proof of the one that is there
		return "", ""
	case s.Leaf == After && s.Signer == r.after, s.Leaf == Before && s.Signer == r.before && r.phase != Retire:
		return "", ""
	case s.Signer == r.after && r.before != r.after || r.kind == Takeover:
		switch r.phase {
		case Reissue, Reissued:
			return StepLeaf, ""
		case Retire:
			return "", "" // every member was proved to trust it, and the CA before is gone
		}
		return "", "a leaf of the new CA comes only when every member is proved to trust it"
	case s.Signer == r.before && r.phase == Retire:
		return "", "the CA before is withdrawn: no leaf of it may be served any more"
	case s.Leaf == After && !r.phase.Undo():
		return "", "a leaf of the CA before comes again only by a rollback"
	}
	return StepBack, ""
}

// refusal makes one fault of the reasons: the first in full, the number of the others.
func refusal(reasons []Reason) error {
	first := reasons[0]
	text := first.Message
	if first.Node != "" {
		text = first.Node + " " + text
	}
	if n := len(reasons) - 1; n > 0 {
		return fault.New(fault.Refused, "gate-"+first.Code, "%s (and %d more reasons)", text, n).Do("%s; all reasons: `csm rotation explain`", first.Remedy)
	}
	return fault.New(fault.Refused, "gate-"+first.Code, "%s", text).Do("%s", first.Remedy)
}

// Moved writes down that a member which was set aside is back.
func (g Asked) Moved(a *state.Apply, mv fleet.Moving) error {
	r, ok, err := running(a.Context(), a.Querier(), mv.Cluster)
	if err != nil || !ok {
		return err
	}
	asides, err := asidesOf(a.Context(), a.Querier(), r.name)
	if err != nil {
		return err
	}
	for _, x := range asides {
		if x.Node == mv.Node && x.Incarnation == mv.Incarnation {
			return event(a, r, short(mv.Node)+", which was set aside, has moved again")
		}
	}
	return nil
}

// MayRaise refuses to change the bundle of a ring whose CA is changing.
func (g Asked) MayRaise(a *state.Apply, node, store string) error {
	if store != "" {
		return nil
	}
	r, ok, err := running(a.Context(), a.Querier(), node)
	if err != nil || !ok {
		return err
	}
	return fault.New(fault.Refused, "rotation-running", "the CA of %s is changing (%s, phase %s)", short(r.cluster), short(r.name), r.phase).Do("wait for its end: `csm rotation status`")
}

var _ fleet.TrustGates = Asked{}

// TrustToProve gives the authority whose certificates each port of a store must accept beside those in use, while a ring's CA
// changes: every move of it is proved so from the wave on that brought the anchors, that of a node which joins in the middle too.
func (g Asked) TrustToProve(a *state.Apply, node, store string) ([]string, error) {
	r, ok, err := running(a.Context(), a.Querier(), resource.Parent(node))
	if err != nil || !ok || r.kind == Rekey || r.phase.Undo() {
		return nil, err
	}
	if r.phase == Distribute {
		standings, err := fleet.Standings(a.Context(), a.Querier(), r.cluster, a.Now)
		if err != nil {
			return nil, err
		}
		for _, n := range standings {
			for _, s := range n.Stores {
				if n.Node == node && s.Store == store && s.Generation < r.generation {
					return nil, nil
				}
			}
		}
	}
	return []string{r.after}, nil
}
