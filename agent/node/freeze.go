package node

import (
	"fmt"
	"time"

	agentv1 "github.com/cassandra-security-manager/csm/protocol/agent/v1"
	"github.com/cassandra-security-manager/csm/shared/fault"
)

// inForce is the freeze if it stops effects at a time, else nil. One with an end lifts itself, controllers or not.
func inForce(f *agentv1.Frozen, now time.Time) *agentv1.Frozen {
	if !f.GetActive() || f.Until != nil && !now.Before(f.Until.AsTime()) {
		return nil
	}
	return f
}

// halted says why no effect may begin now: suspension, a lowered mode, a freeze. The installer asks it before each effect, so
// that one that arrives in the middle of a move stops it as a HOLD file does.
func (n *Node) halted() error {
	n.mu.Lock()
	f, suspended := inForce(n.frozenBy, n.told()), n.suspended
	n.mu.Unlock()
	if suspended != "" {
		return fault.New(fault.Refused, "suspended", "the controllers suspended this agent: %s", suspended).Do("see `csm node get`; then `csm node resume`")
	}
	if m := n.mode(); m != agentv1.Mode_MODE_MANAGE {
		return fault.New(fault.Refused, "mode-lowered", "the mode in agent.yaml is %s now", modeWord(m)).Do("write mode: manage and restart csm-agent when it may act again")
	}
	if f == nil {
		return nil
	}
	return fault.New(fault.Refused, "frozen", "%s", freezeWords(f)).Do("`csm status` shows who froze it; nothing is to be done on the node")
}

// freezeWords says what is frozen, by whom, since and until when, and why.
func freezeWords(f *agentv1.Frozen) string {
	span := ""
	if f.Since != nil {
		span = " since " + f.Since.AsTime().UTC().Format(time.RFC3339)
	}
	if f.Until != nil {
		span += " until " + f.Until.AsTime().UTC().Format(time.RFC3339)
	}
	return fmt.Sprintf("%s is frozen by %s%s: %s", f.Scope, f.Actor, span, f.Reason)
}
