package links

import (
	"strings"

	"github.com/cassandra-security-manager/csm/shared/fault"
)

// Streaming reads what `nodetool netstats` printed (4.0 to 6.0, NetStats.java): the zero Reason when the node is in mode NORMAL and
// streams nothing in either direction, otherwise why its connections must be left alone. An output that says neither is a fault.
func Streaming(netstats string) (Reason, error) {
	mode, idle := "", false
	for line := range strings.Lines(netstats) {
		line = strings.TrimSpace(line)
		if after, is := strings.CutPrefix(line, "Mode:"); is && mode == "" {
			mode = strings.TrimSpace(after)
		}
		idle = idle || line == "Not sending any streams."
	}
	switch {
	case mode == "":
		return Reason{}, fault.New(fault.Unavailable, "streams-unknown", "nodetool netstats tells no mode: %.200q", netstats).Do("run nodetool netstats by hand as the agent's user")
	case mode != "NORMAL":
		return Reason{"node-not-normal", "Cassandra's mode is " + mode}, nil
	case !idle:
		return Reason{"streaming", "Cassandra streams: see `nodetool netstats`"}, nil
	}
	return Reason{}, nil
}
