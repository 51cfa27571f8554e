package systemca

import (
	"fmt"
	"slices"
	"time"

	"github.com/cassandra-security-manager/csm/shared/fault"
)

// Step is something that could cut somebody off if it came too early.
type Step string

// The steps.
const (
	StepReissue  Step = "reissue"  // leave distribute: the root that comes signs
	StepTurn     Step = "turn"     // the next controller takes its identity
	StepReissued Step = "reissued" // leave reissue
	StepRetire   Step = "retire"   // the root before is trusted no more
	StepDone     Step = "done"     // nothing is left to do
	StepWithdraw Step = "withdraw" // the root that came is trusted no more, after the identities are back
	StepUndone   Step = "undone"   // the way back is over
)

// Gate is one condition of safety. Each has a test that fails without it.
type Gate struct {
	Code  string
	steps []Step
	asks  func(s Step, v View) []Reason
}

// Gates are asked together.
type Gates []Gate

// Ask gives every reason against a step; none: it is safe as far as the state knows.
func (g Gates) Ask(s Step, v View) []Reason {
	var out []Reason
	for _, x := range g {
		if !slices.Contains(x.steps, s) {
			continue
		}
		for _, r := range x.asks(s, v) {
			r.Code = x.Code
			out = append(out, r)
		}
	}
	return out
}

// Without leaves one gate out: for tests that show what it prevents.
func (g Gates) Without(code string) Gates {
	return slices.DeleteFunc(slices.Clone(g), func(x Gate) bool { return x.Code == code })
}

var every = []Step{StepReissue, StepTurn, StepReissued, StepRetire, StepDone, StepWithdraw, StepUndone}

// All are the gates, in the order in which people are told of them.
func All() Gates {
	return Gates{
		{"frozen", every, frozenGate},
		{"paused", every, pausedGate},
		{"signer", []Step{StepReissue}, signerGate},
		{"controller-seen", every, each(Controller, seenGate)},
		{"controller-trusts", []Step{StepReissue, StepTurn, StepReissued, StepRetire, StepWithdraw}, each(Controller, controllerTrusts)},
		{"agent-trusts", []Step{StepReissue, StepRetire, StepWithdraw}, each(Agent, agentTrusts)},
		{"controller-leaf", []Step{StepReissued, StepRetire, StepWithdraw}, each(Controller, leafGate)},
		{"agent-leaf", []Step{StepReissued, StepRetire, StepWithdraw}, each(Agent, leafGate)},
		{"issued", []Step{StepWithdraw}, issuedGate},
		{"administrator", []Step{StepRetire, StepWithdraw}, each(Admin, leafGate)},
		{"used", []Step{StepRetire}, each(Admin, usedGate)},
		{"forgotten", []Step{StepDone, StepUndone}, forgottenGate},
	}
}

// each asks about every identity of a kind that nobody has named. Controllers cannot be named.
func each(k Kind, ask func(s Step, v View, x Identity) *Reason) func(Step, View) []Reason {
	return func(s Step, v View) (out []Reason) {
		for _, x := range v.Identities {
			if x.Kind != k || x.Named != "" && k != Controller {
				continue
			}
			if r := ask(s, v, x); r != nil {
				r.Node = x.Name
				out = append(out, *r)
			}
		}
		return out
	}
}

func frozenGate(_ Step, v View) []Reason {
	if v.Frozen == "" {
		return nil
	}
	return []Reason{{Message: v.Frozen, Remedy: "lift the freeze: `csm system unfreeze`"}}
}

func pausedGate(_ Step, v View) []Reason {
	if !v.Paused {
		return nil
	}
	return []Reason{{Message: "a person paused it", Remedy: "`csm rotation resume --system`"}}
}

func signerGate(_ Step, v View) []Reason {
	if v.Signer == "" {
		return nil
	}
	return []Reason{{Message: v.Signer, Remedy: "roll back and start again: `csm rotation rollback --system`"}}
}

// seenFor is how long a controller counts as there after another one has spoken with it. It is asked each few seconds.
const seenFor = 20 * time.Second

func seenGate(_ Step, v View, x Identity) *Reason {
	if v.Now.Sub(x.Seen) <= seenFor {
		return nil
	}
	text := "was seen by no other controller since this began"
	if !x.Seen.IsZero() {
		text = "was last seen by another controller " + v.Now.Sub(x.Seen).Round(time.Second).String() + " ago"
	}
	return &Reason{Message: text, Remedy: "start it; one that is gone for good: `csm system remove NAME`"}
}

func controllerTrusts(s Step, v View, x Identity) *Reason {
	if x.TrustsBefore && x.TrustsAfter {
		return nil
	}
	return &Reason{Message: "does not hold both roots in its verifier", Remedy: "it takes them from the state by itself; see its log"}
}

// agentTrusts lets an agent that is away pass until its verifier alone decides: up to then controllers send a certificate that
// leads from each root to the other.
func agentTrusts(s Step, v View, x Identity) *Reason {
	trusts := x.TrustsAfter
	if v.Phase.Undo() {
		trusts = x.TrustsBefore
	}
	switch {
	case trusts, s == StepReissue && !x.Connected:
		return nil
	case x.Seen.IsZero():
		return &Reason{Message: "its agent was not seen since this began", Remedy: "start it; or name it: " + nameIt(v, x)}
	}
	return &Reason{Message: "its agent does not hold the root that stays in its verifier", Remedy: "it takes it over its stream by itself; an agent of an older release does not: update it"}
}

func leafGate(_ Step, v View, x Identity) *Reason {
	want := v.Phase.want()
	if x.Leaf == want {
		return nil
	}
	r := &Reason{Message: "its identity is not of the root that stays", Remedy: "it renews by itself when its turn comes; see its log"}
	switch {
	case x.Kind == Admin:
		r.Remedy = "`csm-controller admin add " + short(x.Name) + " --out FILE` on a controller; or name it: " + nameIt(v, x)
	case x.Leaf == Unknown:
		r.Message, r.Remedy = "was not seen since this began", "start it"
	}
	if x.Kind == Agent {
		r.Remedy += "; or name it: " + nameIt(v, x)
	}
	return r
}

// issuedGate asks whether somebody was seen with a leaf that is older than a certificate of the root that goes: a reply that was on its
// way may be taken at any time after he was seen with what he had before. Each asks for one certificate at a time, so who shows a newer
// one takes no older one any more.
func issuedGate(s Step, v View) (out []Reason) {
	for _, k := range []Kind{Controller, Agent} {
		out = append(out, each(k, func(_ Step, v View, x Identity) *Reason {
			if !x.Stray || x.Leaf != v.Phase.want() { // another gate tells of that leaf
				return nil
			}
			r := &Reason{Message: "a certificate of the root that goes was signed for it after the one that it was seen with: it may be about to take it", Remedy: "it renews by itself when its turn comes; see its log"}
			if k == Agent {
				r.Remedy += "; or name it: " + nameIt(v, x)
			}
			return r
		})(s, v)...)
	}
	return out
}

// usedGate asks whether an administrator has used the certificate that replaced the one of the root that goes: a file that lies where nobody
// has it, or beside a pin of the root that goes, opens nothing.
func usedGate(_ Step, v View, x Identity) *Reason {
	if x.Leaf != v.Phase.want() || !x.Seen.IsZero() { // another gate tells of that certificate
		return nil
	}
	return &Reason{Message: "has not used the certificate of the root that stays", Remedy: "let " + short(x.Name) + " run `csm status` with it; or name " + short(x.Name) + ": " + nameIt(v, x)}
}

// nameIt is how a person says that an identity is not waited for.
func nameIt(v View, x Identity) string {
	verb := "resume"
	if v.Phase == Reissued {
		verb = "retire"
	}
	back := ""
	if x.Kind == Agent {
		back = " (it comes back by `csm cluster join-command NODE --rejoin`)"
	}
	return fmt.Sprintf("`csm rotation %s --system --except %s --reason ...`%s", verb, x.Name, back)
}

// forgottenGate asks whether the root that goes is in nobody's verifier.
func forgottenGate(_ Step, v View) (out []Reason) {
	for _, x := range v.Identities {
		holds := x.TrustsBefore
		if v.Phase.Undo() {
			holds = x.TrustsAfter
		}
		if !holds || x.Named != "" && x.Kind != Controller {
			continue
		}
		r := Reason{Node: x.Name, Message: "still holds the root that goes in its verifier", Remedy: "it drops it by itself when it is connected"}
		if x.Kind == Agent {
			r.Remedy += "; or name it: " + nameIt(v, x)
		}
		out = append(out, r)
	}
	return out
}

// refusal makes one fault of the reasons: the first in full, the number of the others.
func refusal(reasons []Reason) error {
	first := reasons[0]
	text := first.Message
	if first.Node != "" {
		text = first.Node + " " + text
	}
	if n := len(reasons) - 1; n > 0 {
		text = fmt.Sprintf("%s (and %d more reasons)", text, n)
	}
	return fault.New(fault.Refused, "gate-"+first.Code, "%s", text).Do("%s; all reasons: `csm rotation explain --system`", first.Remedy)
}
