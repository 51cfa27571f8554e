package rotation

import "slices"

// Action is what is to be done next.
type Action string

// The actions. Halt waits for a person: resume begins the phase's waves again, rollback turns round.
const (
	Wait  Action = "wait"
	Begin Action = "begin"
	Enter Action = "enter"
	Halt  Action = "halt"
	Rest  Action = "rest"
	Cycle Action = "cycle"
)

// Decision is what the state machine does next, and why not more.
type Decision struct {
	Action Action
	// Next is the phase to enter.
	Next Phase
	// Node is the one whose links are to be cycled, by full name.
	Node string
	// Reasons for waiting, in the words of explain.
	Reasons []Reason
}

// States of a rollout that matter here.
const (
	rolloutRunning = "running"
	rolloutDone    = "done"
)

// Decide says what follows. Pure: the same view gives the same decision on every controller.
func (g Gates) Decide(v View) Decision {
	if v.Phase.Ended() {
		return Decision{Action: Rest}
	}
	if v.Paused {
		return Decision{Action: Wait, Reasons: []Reason{{Code: "paused", Message: "a person paused it", Remedy: "`csm rotation resume`"}}}
	}
	if v.Phase == Reissued {
		reasons := g.Ask(StepRetire, v, "")
		if node := toCycle(v); node != "" && v.Frozen == "" {
			return Decision{Action: Cycle, Node: node, Reasons: reasons}
		}
		if v.relaxes(relaxByHand) {
			if len(reasons) == 0 {
				return Decision{Action: Enter, Next: Retire}
			}
			return Decision{Action: Wait, Reasons: reasons}
		}
		return Decision{Action: Wait, Reasons: append(reasons, Reason{Code: "by-hand", Message: "every member is proved; the CA before is withdrawn by a person only", Remedy: "`csm rotation retire --plan HASH`"})}
	}
	step, next := leaving(v)
	reasons := g.Ask(step, v, "")
	state := v.Rollout.State
	if v.Idle {
		state = rolloutDone
	}
	switch state {
	case "":
		return Decision{Action: Begin, Reasons: reasons}
	case rolloutDone:
		if len(reasons) == 0 {
			return Decision{Action: Enter, Next: next}
		}
		if waits := g.waitsForCanary(v); len(waits) > 0 {
			return Decision{Action: Wait, Reasons: append(waits, reasons...)}
		}
		if behind(v) {
			return Decision{Action: Begin, Reasons: reasons}
		}
		return Decision{Action: Wait, Reasons: reasons}
	case rolloutRunning:
		return Decision{Action: Wait, Reasons: append([]Reason{{Code: "waves", Message: "the waves of this phase are under way: " + v.Rollout.Detail, Remedy: "see `csm rollout explain`"}}, reasons...)}
	}
	return Decision{Action: Halt, Reasons: append([]Reason{{Code: "waves", Message: "the waves of this phase are " + v.Rollout.State + ": " + v.Rollout.Detail,
		Remedy: "see `csm rollout explain`, put it right, then `csm rotation resume`, or turn round: `csm rotation rollback`"}}, reasons...)}
}

// leaving gives the step that ends a phase, and the phase after it.
func leaving(v View) (Step, Phase) {
	switch v.Phase {
	case Distribute:
		return StepReissue, Reissue
	case Reissue:
		return StepReissued, Reissued
	case Retire:
		return StepDone, Done
	case Undoing:
		return StepWithdraw, Withdrawing
	}
	return StepUndone, RolledBack
}

// behind says whether a member that counts lacks what the phase asks for, so that more waves would help: nodes that joined in
// the middle, or fell back after they were proved.
func behind(v View) bool {
	return slices.ContainsFunc(v.Members, func(m Member) bool { return m.counts() && m.Up && moves(v, m) })
}

// moves says whether a wave of the phase would take a member in: its agent may act, it was not set aside, and it lacks something.
func moves(v View, m Member) bool { return m.Node != "" && m.Active && !m.left() && lacks(v, m) }

// lacking says whether a store would gain by the waves of this phase. One that is on the move is waited for.
func lacking(v View, s Store) bool {
	switch {
	case s.Moving:
		return false
	case v.Phase == Reissue:
		return s.Leaf != After
	case v.Phase == Undoing && v.Kind == Takeover:
		return s.Kept && !s.Stays && s.Gone == "" && s.Leaf != Before
	case v.Phase == Undoing:
		return s.Leaf != Before
	case v.Phase == Distribute:
		return s.Behind || trustProved(v, s) != ""
	}
	if v.Phase == Retire && s.Leaf == Before || v.Phase == Withdrawing && v.Kind != Takeover && s.Leaf == After {
		return false // it came late: its leaf comes first
	}
	return s.Behind
}
