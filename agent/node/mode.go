package node

import (
	agentv1 "github.com/cassandra-security-manager/csm/protocol/agent/v1"
)

// mode is what may be done: that of the start, or less when agent.yaml says less now. Nothing raises it while the agent runs.
func (n *Node) mode() agentv1.Mode {
	m := n.o.Config.AgentMode()
	if n.o.Mode != nil {
		m = min(m, n.o.Mode())
	}
	return m
}

// modeWord is the mode as agent.yaml writes it.
func modeWord(m agentv1.Mode) string {
	switch m {
	case agentv1.Mode_MODE_MANAGE:
		return "manage"
	case agentv1.Mode_MODE_STAGE:
		return "stage"
	}
	return "observe"
}
