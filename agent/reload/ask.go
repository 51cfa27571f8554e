package reload

import (
	"context"
	"slices"

	"github.com/cassandra-security-manager/csm/shared/fault"
)

// Lister is a Reloader that can also list the ring, by a command that is as fixed as the other.
type Lister interface {
	// Ring gives what `nodetool status` printed.
	Ring(ctx context.Context) (string, error)
}

// Streamer is a Reloader that can also say whether its Cassandra streams.
type Streamer interface {
	// Netstats gives what `nodetool netstats` printed.
	Netstats(ctx context.Context) (string, error)
}

// question is what is asked of Cassandra without changing it.
type question struct {
	// word is nodetool's command, which takes the place of reloadssl.
	word string
	// own is the whole command that agent.yaml names, if it does, under the key of the same name.
	own func(Command) []string
	key string
	// missing and unknown are reasons: no command is known, and the command failed.
	missing, unknown string
}

// questions are all that a helper asks; keys are words of the wire between agent and helper.
var questions = map[string]question{
	"ring":     {"status", func(c Command) []string { return c.Ring }, "ring", "no-ring-command", "ring-unknown"},
	"netstats": {"netstats", func(c Command) []string { return c.Netstats }, "netstats", "no-netstats-command", "streams-unknown"},
}

// command is the one that asks: the configured one, or nodetool's with another word.
func (q question) command(c Command) (Command, error) {
	out := c
	out.Timeout = askTimeout
	own := q.own(c)
	switch n := len(c.Args); {
	case len(own) > 0:
		out.Path, out.Args, out.Way = own[0], own[1:], ""
	case n > 0 && c.Args[n-1] == "reloadssl":
		out.Args = append(slices.Clone(c.Args[:n-1]), q.word)
	default:
		return out, fault.New(fault.Unavailable, q.missing, "the reload command is not nodetool reloadssl, so it does not tell how to run nodetool %s", q.word).
			Do("add %s: [nodetool, %s] to reload in agent.yaml", q.key, q.word)
	}
	return out, nil
}
