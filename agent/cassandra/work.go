package cassandra

import (
	"slices"
	"strings"

	agentv1 "github.com/cassandra-security-manager/csm/protocol/agent/v1"
	"github.com/cassandra-security-manager/csm/shared/fault"
)

// maxWorks is how much of what is under way is told, the wire's bound.
const maxWorks = 20

// modes are what `nodetool netstats` calls a node that is not NORMAL (StorageService.Mode), as works.
var modes = map[string]string{"STARTING": "bootstrap", "JOINING": "bootstrap", "JOINING_FAILED": "bootstrap", "LEAVING": "decommission", "DECOMMISSIONED": "decommission",
	"DECOMMISSION_FAILED": "decommission", "MOVING": "move", "MOVE_FAILED": "move", "DRAINING": "drain", "DRAINED": "drain"}

// operations are how netstats names a plan of streams (StreamOperation.getDescription), as works.
var operations = map[string]string{"Repair": "repair", "Bootstrap": "bootstrap", "Unbootstrap": "decommission", "Relocation": "move", "Rebuild": "stream",
	"Bulk Load": "stream", "Restore replica count": "stream", "Other": "stream", "Unknown": "stream"}

// ParseNetstats reads what `nodetool netstats` printed: the node's mode, and a line "OPERATION UUID" for each plan of streams,
// before the statistics. An output without a mode is an error.
func ParseNetstats(out string) ([]*agentv1.Work, error) {
	var works []*agentv1.Work
	known := false
	for line := range strings.Lines(out) {
		line = strings.TrimRight(line, "\r\n")
		if mode, ok := strings.CutPrefix(line, "Mode: "); ok {
			known = true
			if kind := modes[strings.TrimSpace(mode)]; kind != "" {
				works = append(works, &agentv1.Work{Kind: kind, Detail: "mode " + strings.TrimSpace(mode)})
			} else if strings.TrimSpace(mode) != "NORMAL" {
				works = append(works, &agentv1.Work{Kind: "stream", Detail: clip("mode "+strings.TrimSpace(mode), 512)})
			}
			continue
		}
		if strings.HasPrefix(line, "Read Repair Statistics") {
			break
		}
		at := strings.LastIndexByte(line, ' ')
		if at <= 0 || ParseHostID(line[at+1:]) == nil || strings.HasPrefix(line, " ") {
			continue
		}
		kind := operations[line[:at]]
		if kind == "" {
			kind = "stream"
		}
		works = append(works, &agentv1.Work{Kind: kind, Detail: clip("streams of "+line, 512)})
	}
	if !known {
		return nil, fault.New(fault.Unavailable, "streams-unknown", "nodetool netstats tells no mode: %.200q", out).Do("run nodetool netstats by hand as the agent's user")
	}
	return works[:min(len(works), maxWorks)], nil
}

// Working is what a node is at by its own word in its view of the ring: joining, leaving, moving. Nil when it is normal, or not
// in the view.
func (i *Instance) Working(v *agentv1.RingView) *agentv1.Work {
	id := i.HostID(v)
	at := slices.IndexFunc(v.GetMembers(), func(m *agentv1.RingMember) bool { return id != "" && FormatHostID(m.HostId) == id })
	if at < 0 {
		return nil
	}
	switch v.Members[at].State {
	case agentv1.RingState_RING_STATE_JOINING:
		return &agentv1.Work{Kind: "bootstrap", Detail: "it joins the ring"}
	case agentv1.RingState_RING_STATE_LEAVING:
		return &agentv1.Work{Kind: "decommission", Detail: "it leaves the ring"}
	case agentv1.RingState_RING_STATE_MOVING:
		return &agentv1.Work{Kind: "move", Detail: "it moves in the ring"}
	}
	return nil
}
