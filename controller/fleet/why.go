package fleet

import (
	"fmt"
	"time"

	agentv1 "github.com/cassandra-security-manager/csm/protocol/agent/v1"

	"github.com/cassandra-security-manager/csm/shared/resource"
)

// policy is one possible answer to "why does this node not move": the first that applies is given.
type policy func(n Node, b *blocking, now time.Time) string

// why explains where a node stands, in one sentence. Pure.
func why(n Node, b *blocking, now time.Time) string {
	for _, p := range []policy{whyGone, whyAgent, whyBroken, whyMoving, whyTurnedBack, whyNothing, whyHeld, whyWave, whyRefused} {
		if s := p(n, b, now); s != "" {
			return s + stopped(n, s)
		}
	}
	return "the agent is about to claim its move"
}

// stopped adds a freeze or a HOLD file to an answer that does not speak of it: whoever looks at a node sees it.
func stopped(n Node, said string) string {
	switch held := whyHeld(n, nil, time.Time{}); {
	case held == said, n.Frozen == nil && n.Agent.Hold == "":
		return ""
	default:
		return "; " + held
	}
}

// whyGone tells of a node whose peers no longer see it; its agent may well be there.
func whyGone(n Node, _ *blocking, _ time.Time) string {
	for _, c := range n.Conditions {
		if c.Type == "removal-proposed" {
			return c.Message
		}
	}
	return ""
}

func whyAgent(n Node, _ *blocking, _ time.Time) string {
	switch {
	case n.State == Pending:
		return "no agent has joined yet: start it with a join token"
	case n.State != Active:
		return fmt.Sprintf("the agent is %s: %s", n.State, n.StateReason)
	case n.Claim == nil && !n.Agent.Connected && n.Agent.Transition.IsZero():
		return "the agent has joined and has not connected yet"
	case n.Claim == nil && n.Agent.orphaned:
		return fmt.Sprintf("%s, which held the agent's stream, does not answer, and the agent has not come to another controller: files stay as they are", n.Agent.Controller)
	case n.Claim == nil && !n.Agent.Connected:
		return "the agent is not connected since " + n.Agent.Transition.Format(time.RFC3339) + ": files stay as they are"
	case len(n.Stores) == 0:
		return "the agent has reported no TLS store: see findings"
	}
	return ""
}

func whyBroken(n Node, _ *blocking, _ time.Time) string {
	for _, s := range n.Stores {
		switch s.State {
		case "failed":
			return fmt.Sprintf("store %s could neither go forward nor back: a person is needed: %s", resource.Last(s.Name), s.Detail)
		case "contested":
			return "another tool writes the files: stop it, then restart the agent"
		case "foreign":
			if s.Installed > 0 && s.Wanted == "" { // CSM never gave this store a leaf
				return "trusts our CA beside its own; its certificate is that of another CA"
			}
			return "the files were not written by CSM and are left alone"
		}
	}
	return ""
}

func whyMoving(n Node, _ *blocking, _ time.Time) string {
	if n.Claim == nil {
		return ""
	}
	words := fmt.Sprintf("on the move since %s (claim of store %s, until %s)", n.Claim.Opened.Format(time.RFC3339), n.Claim.Store, n.Claim.Expires.Format(time.RFC3339))
	if r := n.Instance.Reload; r != nil && r.Waits == n.Claim.Store {
		words += fmt.Sprintf(": its files are written and wait for Cassandra's own look at them, at most until %s", r.Until.Format(time.RFC3339))
	}
	return words
}

func whyTurnedBack(n Node, _ *blocking, _ time.Time) string {
	for _, s := range n.Stores {
		if s.State == "rolled-back" {
			return fmt.Sprintf("the last install of store %s was rolled back: %s; the agent tries again after a pause that doubles", resource.Last(s.Name), s.Detail)
		}
	}
	return ""
}

func whyNothing(n Node, _ *blocking, now time.Time) string {
	unproved := ""
	for _, s := range n.Stores {
		if s.Installed < s.Generation || (!s.RenewAt.IsZero() && !now.Before(s.RenewAt)) {
			return ""
		}
		if s.State != "proven" {
			unproved = s.State
		}
	}
	if unproved == "" {
		return "as it should be"
	}
	if !n.Instance.Running {
		return "installed; proved when Cassandra runs"
	}
	return ""
}

func whyHeld(n Node, _ *blocking, _ time.Time) string {
	switch {
	case n.Frozen != nil:
		until := ""
		if !n.Frozen.Until.IsZero() {
			until = " until " + n.Frozen.Until.Format(time.RFC3339)
		}
		return fmt.Sprintf("frozen (%s)%s by %s: %s", n.Frozen.Scope, until, n.Frozen.Actor, n.Frozen.Reason)
	case n.Agent.Hold != "":
		return "held by a HOLD file on the node: " + n.Agent.Hold
	case n.Agent.Mode != "manage":
		return "the agent only does what mode " + n.Agent.Mode + " allows: set mode: manage in its agent.yaml"
	}
	return ""
}

func whyWave(_ Node, b *blocking, _ time.Time) string {
	if b == nil {
		return ""
	}
	if b.unproved != "" {
		return "waits for " + short(b.node) + ", which has moved and is not proved"
	}
	return "waits for " + short(b.node) + ", which is on the move"
}

// whyRefused tells what the agent itself holds against what it is told, as it said when it last tried.
func whyRefused(n Node, _ *blocking, _ time.Time) string {
	m := n.last
	if m == nil || m.Outcome != outcomeName(agentv1.MoveOutcome_MOVE_OUTCOME_REFUSED) {
		return ""
	}
	for _, s := range n.Stores {
		if resource.Last(s.Name) == m.Store && s.Generation == m.Generation {
			return fmt.Sprintf("its agent refused the move of store %s at %s, and tries again by itself: %s", m.Store, m.Closed.Format(time.RFC3339), m.Detail)
		}
	}
	return ""
}
