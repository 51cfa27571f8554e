package links

import (
	"context"
	"io"
	"net/netip"
	"slices"

	"github.com/cassandra-security-manager/csm/agent/helper"
	"github.com/cassandra-security-manager/csm/shared/fault"
)

// MaxCut is how many connections one request may name: a peer has six, and some more that stream.
const MaxCut = 256

const remedy = "check that csm-agent-links.socket is enabled: `systemctl enable --now csm-agent-links.socket`; without systemd that csm-agent may start itself"

// request asks to end connections with one peer.
type request struct {
	Instance string     `json:"instance"`
	Peer     netip.Addr `json:"peer"`
	Links    []Link     `json:"links"`
}

// ended says what was done.
type ended struct {
	// Cut is how many were ended; the others had gone.
	Cut int `json:"cut"`
}

// Site is what a helper knows of one Cassandra by its own configuration.
type Site struct {
	// Port is read when it is needed, of cassandra.yaml itself.
	Port func() (Port, error)
	// Stopped says why nothing may be done on this host: HOLD, or a mode that is not manage.
	Stopped func() error
}

// Serve is the helper: it ends those of the named connections that are, now, connections of the internode port of the named
// Cassandra with the named peer. Keys of sites are paths of cassandra.yaml. It returns nil when the agent has gone.
func Serve(rw io.ReadWriter, sites map[string]Site, table Table) error {
	return helper.Serve(rw, func(q request) (ended, error) {
		site, known := sites[q.Instance]
		if !known {
			return ended{}, refused("the helper knows no Cassandra %.300q", q.Instance)
		}
		if err := site.Stopped(); err != nil {
			return ended{}, err
		}
		p, err := site.Port()
		if err != nil {
			return ended{}, err
		}
		return end(q, p, table)
	})
}

func end(q request, p Port, table Table) (ended, error) {
	if len(q.Links) == 0 || len(q.Links) > MaxCut {
		return ended{}, refused("%d connections at once", len(q.Links))
	}
	for _, l := range q.Links {
		if l.Peer() != q.Peer {
			return ended{}, refused("%s is no connection with %s: one peer at a time", l, q.Peer)
		}
		if inbound := l.Local.Port() == p.Number && p.is(l.Local.Addr()); !inbound && l.Remote.Port() != p.Number {
			return ended{}, refused("%s is no connection of the internode port %s", l, p)
		}
	}
	present, err := table.Links(p)
	if err != nil {
		return ended{}, err
	}
	var e ended
	for _, l := range q.Links {
		i := slices.IndexFunc(present, l.same)
		if i < 0 {
			continue // gone, or not Cassandra's
		}
		if err := table.Cut(present[i]); err != nil {
			return e, err
		}
		e.Cut++
	}
	return e, nil
}

func refused(format string, args ...any) error {
	return fault.New(fault.Refused, "helper-refused", format, args...).Do("agent and helper must be of one version and read the same agent.yaml")
}

// Cutter is the agent's side.
type Cutter struct{ client *helper.Client }

// Dial uses the socket on which systemd starts the helper for each request.
func Dial(socket string) *Cutter { return &Cutter{helper.Dial(remedy, socket)} }

// Spawn starts the helper program (the agent itself with the arguments "helper links") for each request. It can do what its user can.
func Spawn(program string, args ...string) *Cutter {
	return &Cutter{helper.Spawn(remedy, program, args...)}
}

// Over uses any connection maker; tests need it.
func Over(dial func() (io.ReadWriteCloser, error)) (*Cutter, error) {
	c, err := helper.Over(remedy, dial)
	return &Cutter{c}, err
}

// Close ends the helper.
func (c *Cutter) Close() error { return c.client.Close() }

// End ends connections of one instance with one peer, and says how many were still there. Some may have been ended when it fails.
func (c *Cutter) End(ctx context.Context, instance string, peer netip.Addr, links []Link) (int, error) {
	var e ended
	err := c.client.Call(ctx, request{Instance: instance, Peer: peer, Links: links}, &e)
	return e.Cut, err
}
