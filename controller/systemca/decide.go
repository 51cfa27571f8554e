package systemca

// Action is what is to be done next.
type Action string

// The actions. Turn gives the next controller, or all agents, the word.
const (
	Wait  Action = "wait"
	Turn  Action = "turn"
	Enter Action = "enter"
	Rest  Action = "rest"
)

// Decision is what the state machine does next, and why not more.
type Decision struct {
	Action Action
	// Next is the phase to enter; Turn whose turn it is to be.
	Next    Phase
	Turn    string
	Reasons []Reason
}

// Decide says what follows. Pure: the same view gives the same decision on every controller.
func (g Gates) Decide(v View) Decision {
	if v.Phase.Ended() {
		return Decision{Action: Rest}
	}
	if v.Paused {
		return Decision{Action: Wait, Reasons: []Reason{{Code: "paused", Message: "a person paused it", Remedy: "`csm rotation resume --system`"}}}
	}
	switch {
	case v.Phase == Reissued:
		return Decision{Action: Wait, Reasons: append(g.Ask(StepRetire, v), Reason{Code: "by-hand",
			Message: "the root before is withdrawn by a person only", Remedy: "`csm rotation retire --system --plan HASH`"})}
	case v.Phase.moves():
		if d, moving := g.turn(v); moving {
			return d
		}
	}
	step, next := leaving(v.Phase)
	if reasons := g.Ask(step, v); len(reasons) > 0 {
		return Decision{Action: Wait, Reasons: reasons}
	}
	return Decision{Action: Enter, Next: next}
}

// turn moves one controller after the other, then all agents; false when nobody is left to be told.
func (g Gates) turn(v View) (Decision, bool) {
	next := Agents
	for _, x := range v.Identities {
		if x.Kind == Controller && (x.Leaf != v.Phase.want() || x.Stray) {
			next = x.Name
			break
		}
	}
	if next == v.Turn && next == Agents {
		return Decision{}, false
	}
	if reasons := g.Ask(StepTurn, v); len(reasons) > 0 {
		return Decision{Action: Wait, Reasons: reasons}, true
	}
	if next == v.Turn {
		return Decision{Action: Wait, Reasons: []Reason{{Code: "turn", Node: next, Message: "takes its new identity now; another controller has to see it", Remedy: "see its log"}}}, true
	}
	return Decision{Action: Turn, Turn: next}, true
}

// leaving gives the step that ends a phase, and the phase after it.
func leaving(p Phase) (Step, Phase) {
	switch p {
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
