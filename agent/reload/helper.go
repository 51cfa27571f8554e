package reload

import (
	"context"
	"io"

	"github.com/cassandra-security-manager/csm/agent/helper"
	"github.com/cassandra-security-manager/csm/shared/fault"
)

// request names what to do. There is no field for a program: that is the point.
type request struct {
	// Do is "reload", or what is asked of nodetool: a key of questions.
	Do       string `json:"do"`
	Instance string `json:"instance"`
}

const remedy = "check that csm-agent may start itself, or that csm-agent-reload.socket is enabled"

// Serve is the helper: it answers requests on rw one after the other until it is closed, and runs nothing but the
// commands given here, which `csm-agent helper` reads from its own local configuration. Keys are instance names (the path
// of cassandra.yaml). It returns nil when the agent has gone.
func Serve(ctx context.Context, rw io.ReadWriter, commands map[string]Command) error {
	return helper.Serve(rw, func(q request) (Output, error) {
		c, known := commands[q.Instance]
		if !known {
			return Output{}, fault.New(fault.Refused, "helper-refused", "the helper has no command for %.300q", q.Instance).Do("restart the agent after changing agent.yaml")
		}
		if q.Do == "reload" {
			if c.Way == Poll {
				return Output{ExitCode: -1}, fault.New(fault.Refused, "reload-polled", "reload.way in agent.yaml is poll: nothing is run").Do("restart the agent after changing agent.yaml")
			}
			return c.run(ctx, maxOutput)
		}
		ask, known := questions[q.Do]
		if !known {
			return Output{}, fault.New(fault.Refused, "helper-refused", "the helper does not do %.40q", q.Do).Do("agent and helper must be of one version")
		}
		asking, err := ask.command(c)
		if err != nil {
			return Output{ExitCode: -1}, err
		}
		return asking.run(ctx, maxRing)
	})
}

// Helper is the agent's side: a connection to the one helper process. Requests go one at a time, so there is never more
// than one nodetool.
type Helper struct{ client *helper.Client }

// Start runs the helper program (the agent itself with the argument "helper") as a child and connects to its stdin and stdout.
// A helper that has died is started again at the next reload.
func Start(program string, args ...string) (*Helper, error) {
	return wrap(helper.Start(remedy, program, args...))
}

// Dial uses a unix socket on which systemd starts a helper for each connection.
func Dial(socket string) *Helper { return &Helper{helper.Dial(remedy, socket)} }

// Over uses any connection maker; tests and other platforms need it.
func Over(dial func() (io.ReadWriteCloser, error)) (*Helper, error) {
	return wrap(helper.Over(remedy, dial))
}

func wrap(c *helper.Client, err error) (*Helper, error) {
	if err != nil {
		return nil, err
	}
	return &Helper{c}, nil
}

// Check says whether the helper can be reached now.
func (h *Helper) Check() error { return h.client.Check() }

// Close ends the helper.
func (h *Helper) Close() error { return h.client.Close() }

// Reloader is the reloader of one instance, named as in the helper's configuration.
func (h *Helper) Reloader(instance string) Reloader { return instanceReloader{h, instance} }

type instanceReloader struct {
	h        *Helper
	instance string
}

func (r instanceReloader) Reload(ctx context.Context) (out Output, err error) {
	err = r.h.client.Call(ctx, request{Do: "reload", Instance: r.instance}, &out)
	return out, err
}

// Ring is of Lister.
func (r instanceReloader) Ring(ctx context.Context) (string, error) { return r.ask(ctx, "ring") }

// Netstats is of Streamer.
func (r instanceReloader) Netstats(ctx context.Context) (string, error) {
	return r.ask(ctx, "netstats")
}

func (r instanceReloader) ask(ctx context.Context, what string) (string, error) {
	var out Output
	err := r.h.client.Call(ctx, request{Do: what, Instance: r.instance}, &out)
	if q := questions[what]; err == nil && out.ExitCode != 0 {
		err = fault.New(fault.Unavailable, q.unknown, "nodetool %s ended with %d: %.300s", q.word, out.ExitCode, out.Stderr).Do("run nodetool %s by hand as the agent's user", q.word)
	}
	return out.Stdout, err
}
