package rollout

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/cassandra-security-manager/csm/controller/fleet"
	"github.com/cassandra-security-manager/csm/shared/resource"
)

// Reason says what is waited for, or why it stopped: the same words in explain, in why, in a refused claim and in metrics.
type Reason struct {
	// Code is a stable kebab-case word.
	Code string `json:"code"`
	// Node that it is about; empty: all.
	Node    string `json:"node,omitempty"`
	Message string `json:"message"`
	// Remedy is what to do about it, if anything.
	Remedy string `json:"remedy,omitempty"`
	// Since when this node stands so; Until when it ends by time alone.
	Since time.Time `json:"since,omitzero"`
	Until time.Time `json:"until,omitzero"`
}

// OfRing says whether it is about what the members of the ring say of each other: that is as old as their last look.
func (r Reason) OfRing() bool {
	return strings.HasPrefix(r.Code, "ring-") || slices.Contains([]string{"member-down", "agent-away", "member-unseen", "up", "settled", "replica-down", "quorum-failed", "busy", "health-unknown", "health-unprobed"}, r.Code)
}

// Phases of a node in a rollout.
const (
	Pending  = "pending"  // its turn has not come
	Told     = "told"     // its wish is raised, its agent has not claimed yet
	Moving   = "moving"   // a claim is open
	Unproved = "unproved" // written, and nobody has proved it yet
	Proved   = "proved"
	Failed   = "failed" // it went back by itself, or could not
	Gone     = "gone"   // it is no longer the node that the plan was made for
)

// Node is one node of a rollout, as far as deciding goes.
type Node struct {
	Name   string
	Wave   int
	Phase  string
	Since  time.Time
	Detail string
	// Broken: it could go neither forward nor back.
	Broken bool
	// Fallen: it was proved in this rollout, and what is in its files now was not.
	Fallen bool
	// Unable says why its agent cannot move now, Frozen why it may not.
	Unable, Frozen string
	// Waits is until when its move waits for Cassandra's own look at its files; zero where it waits for none.
	Waits time.Time
	// Canary: it is one of the first.
	Canary bool
	// Ring is what its neighbours hold against touching it.
	Ring []Reason
	// Later: others of its wave come first, so nobody has been asked about it.
	Later bool
}

// Facts are all that a decision depends on.
type Facts struct {
	Now   time.Time
	Spec  Spec
	State string
	// Note is why it is paused, halted or aborting.
	Note  string
	Nodes []Node
	// Failures so far, those that a resume forgave not counted.
	Failures int
	// Outside are nodes that are on the move, or unproved, without this rollout.
	Outside []Reason
	// Down, Unsettled and Unknown are what the ring's members say of each other.
	Down, Unsettled, Unknown []Reason
	// away are the members, by host id, that tell nothing of the ring now: how many of them a plan bears is a gate's question.
	away []string
	// Freeze of the cluster or above.
	Freeze *Reason
	// Looked: the neighbours were asked how the ring is, for the wave that is about to begin.
	Looked bool
	// gone: some node is no longer the one that the plan was made for, and the rows do not say so yet.
	gone bool
}

// Do is what comes next.
type Do string

// What may come next.
const (
	Wait   Do = "wait"
	Look   Do = "look" // agents are asked to look at the ring now
	Open   Do = "open"
	Halt   Do = "halt"
	Finish Do = "finish"
	Abort  Do = "abort" // nothing of it is on the move any more
)

// Action is the decision.
type Action struct {
	Do Do
	// Nodes that begin now.
	Nodes []string
	// Why it halts.
	Why string
}

// decide says what comes next, and what is waited for. Pure.
func decide(f Facts) (Action, []Reason) {
	switch f.State {
	case Paused, Halted:
		return Action{Do: Wait}, append(f.stopped(), f.underWay()...)
	case Aborting:
		if r := f.underWay(); len(r) > 0 {
			return Action{Do: Wait}, append(f.stopped(), r...)
		}
		return Action{Do: Abort}, nil
	case Running, RollingBack:
	default:
		return Action{Do: Wait}, nil
	}
	if why := f.mustHalt(); why != "" {
		return Action{Do: Halt, Why: why}, nil
	}
	wave, begun := f.wave()
	if wave < 0 {
		return Action{Do: Finish}, nil
	}
	var pending []Node
	for _, n := range f.Nodes {
		if n.Wave == wave && n.Phase == Pending {
			pending = append(pending, n)
		}
	}
	busy := f.underWay()
	if len(pending) == 0 {
		return Action{Do: Wait}, append(f.atClaim(), busy...)
	}
	reasons := f.gated()
	if !begun {
		reasons = append(reasons, f.baking(wave)...)
	}
	if len(reasons) > 0 {
		return Action{Do: Wait}, append(reasons, busy...)
	}
	if !begun && !f.Looked {
		return Action{Do: Look}, nil
	}
	slots := f.Spec.Width - f.inFlight()
	if slots <= 0 {
		return Action{Do: Wait}, append(f.atClaim(), busy...)
	}
	var open []string
	for _, n := range pending {
		if n.Later {
			continue
		}
		if r := n.held(); len(r) > 0 {
			reasons = append(reasons, r...)
		} else if len(open) < slots {
			open = append(open, n.Name)
		}
	}
	if len(open) == 0 {
		return Action{Do: Wait}, append(reasons, busy...)
	}
	return Action{Do: Open, Nodes: open}, nil
}

// stopped says why a rollout that does not run does not.
func (f Facts) stopped() []Reason {
	r := Reason{Code: f.State, Message: f.State + ": " + f.Note}
	switch f.State {
	case Paused:
		r.Remedy = "`csm rollout resume` lets it go on"
	case Halted:
		r.Remedy = "see which node failed and why, put it right, then `csm rollout resume`; or `csm rollout abort`, or `csm rollout rollback`"
	case Aborting:
		r.Remedy = "wait: what is on the move ends first"
	}
	return []Reason{r}
}

// mustHalt says why nothing further may begin until a person has looked; empty when it may.
func (f Facts) mustHalt() string {
	for _, n := range f.Nodes {
		switch {
		case n.Broken:
			return fmt.Sprintf("%s could go neither forward nor back: %s", fleet.Short(n.Name), n.Detail)
		case n.Phase == Failed && n.Canary:
			return fmt.Sprintf("the canary %s failed: %s", fleet.Short(n.Name), n.Detail)
		}
	}
	if f.Failures > f.Spec.FailureBudget {
		return fmt.Sprintf("%s failed, and the plan bears %s%s", count(f.Failures, "node"), count(f.Spec.FailureBudget, "failure"), f.lastFailure())
	}
	return ""
}

func (f Facts) lastFailure() string {
	for _, n := range slices.Backward(f.Nodes) {
		if n.Phase == Failed {
			return fmt.Sprintf(": %s: %s", fleet.Short(n.Name), n.Detail)
		}
	}
	return ""
}

// wave is the first that is not at its end, -1 when all are; begun: some node of it has begun.
func (f Facts) wave() (wave int, begun bool) {
	wave = -1
	for _, n := range f.Nodes {
		if n.atEnd() || wave >= 0 && n.Wave >= wave {
			continue
		}
		wave = n.Wave
	}
	for _, n := range f.Nodes {
		begun = begun || n.Wave == wave && n.Phase != Pending && n.Phase != Gone
	}
	return wave, begun
}

func (n Node) atEnd() bool { return n.Phase == Proved || n.Phase == Failed || n.Phase == Gone }

func (n Node) flying() bool { return n.Phase == Told || n.Phase == Moving || n.Phase == Unproved }

func (f Facts) inFlight() (k int) {
	for _, n := range f.Nodes {
		if n.flying() {
			k++
		}
	}
	return k
}

// underWay says what the nodes do that have begun.
func (f Facts) underWay() (out []Reason) {
	for _, n := range f.Nodes {
		r := Reason{Node: n.Name, Since: n.Since}
		switch n.Phase {
		case Told:
			r.Code, r.Message = "told", fmt.Sprintf("%s has been told and has not claimed its move yet", fleet.Short(n.Name))
			if n.Unable != "" {
				r.Message += ": " + n.Unable
			} else if n.Detail != "" {
				r.Message += "; the last time: " + n.Detail
			}
		case Moving:
			r.Code, r.Message = "moving", fleet.Short(n.Name)+" is on the move"
			if !n.Waits.IsZero() {
				r.Message, r.Until = r.Message+": its files are written and wait for Cassandra's own look at them", n.Waits
			}
		case Unproved:
			r.Code, r.Message = "unproved", fleet.Short(n.Name)+" has moved and is not proved yet"
			r.Remedy = fmt.Sprintf("see why with `csm node get %s`", fleet.Short(n.Name))
		default:
			continue
		}
		if f.State == Aborting && n.Phase == Told {
			continue // its wish is taken back
		}
		out = append(out, r)
	}
	return out
}

// atClaim says what the claim of a node that was told would be refused for, if any was.
func (f Facts) atClaim() (out []Reason) {
	for _, n := range f.Nodes {
		if n.Phase == Told {
			if out == nil {
				out = f.gated()
			}
			out = append(out, n.Ring...)
		}
	}
	return out
}

// baking is the rest after the wave before.
func (f Facts) baking(wave int) []Reason {
	var last time.Time
	for _, n := range f.Nodes {
		if n.Wave < wave && n.Phase != Gone && n.Since.After(last) {
			last = n.Since
		}
	}
	if last.IsZero() || !f.Now.Before(last.Add(f.Spec.Bake)) {
		return nil
	}
	end := last.Add(f.Spec.Bake)
	return []Reason{{Code: "baking", Message: "the wave before rests until " + end.UTC().Format("15:04:05 UTC"), Since: last, Until: end, Remedy: "wait: it goes on by itself"}}
}

// held says why a node whose turn it is cannot begin.
func (n Node) held() []Reason {
	switch {
	case n.Frozen != "":
		return []Reason{{Code: "frozen", Node: n.Name, Message: n.Frozen, Remedy: fmt.Sprintf("`csm node unfreeze %s` when it is no longer needed", fleet.Short(n.Name))}}
	case n.Unable != "":
		return []Reason{{Code: "agent", Node: n.Name, Message: fmt.Sprintf("%s cannot move: %s", fleet.Short(n.Name), n.Unable), Remedy: fmt.Sprintf("see `csm node get %s`", fleet.Short(n.Name))}}
	}
	return n.Ring
}

// gate says why no further node may begin now; none when it has nothing against it.
type gate func(f Facts) []Reason

// gates in the order in which they are told.
var gates = []gate{
	func(f Facts) []Reason {
		c, err := calendarOf(f.Spec)
		if err != nil {
			return []Reason{{Code: "calendar", Message: err.Error()}}
		}
		if r := c.closed(f.Now); r != nil {
			return []Reason{*r}
		}
		return nil
	},
	func(f Facts) []Reason {
		if f.Freeze == nil {
			return nil
		}
		return []Reason{*f.Freeze}
	},
	func(f Facts) []Reason { return f.Unknown },
	func(f Facts) []Reason { return f.Unsettled },
	unavailable,
	func(f Facts) []Reason { return f.Outside },
	func(f Facts) (out []Reason) {
		for _, n := range f.Nodes {
			if n.Fallen && n.Phase == Proved {
				out = append(out, Reason{Code: "fell-back", Node: n.Name, Message: fmt.Sprintf("%s was proved in this rollout, and what it has now was not", fleet.Short(n.Name)),
					Remedy: fmt.Sprintf("see what changed its files: `csm node get %s`; a restored machine proves itself again or is renewed", fleet.Short(n.Name))})
			}
		}
		return out
	},
}

func (f Facts) gated() (out []Reason) {
	for _, g := range gates {
		out = append(out, g(f)...)
	}
	return out
}

// unavailable counts the members that are down, and the nodes that have moved and are not proved. Who is on the move is what
// the width counts.
func unavailable(f Facts) []Reason {
	out := slices.Clone(f.Down)
	for _, n := range f.Nodes {
		if n.Phase == Unproved && !slices.ContainsFunc(out, func(r Reason) bool { return r.Node == n.Name }) {
			out = append(out, Reason{Code: "unproved", Node: n.Name, Since: n.Since, Message: fleet.Short(n.Name) + " has moved and is not proved yet"})
		}
	}
	if len(out) <= f.Spec.MaxUnavailable {
		return nil
	}
	return out
}

// key tells apart what is waited for, without the times.
func key(reasons []Reason) string {
	var out []string
	for _, r := range reasons {
		out = append(out, r.Code+" "+resource.Last(r.Node))
	}
	return strings.Join(out, ",")
}

func count(n int, what string) string {
	if n == 1 {
		return "1 " + what
	}
	return fmt.Sprintf("%d %ss", n, what)
}
