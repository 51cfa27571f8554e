//go:build linux

package main

import (
	"context"
	"fmt"
	"time"

	"github.com/cassandra-security-manager/csm/shared/workload"
	"github.com/cassandra-security-manager/csm/test/plane"
	"github.com/cassandra-security-manager/csm/test/ring"
)

// outage is what the loads of all data centres did in a time, and failed at.
type outage struct {
	Queries     uint64            `json:"queries"`
	Connections uint64            `json:"connections"`
	Failed      uint64            `json:"failed"`
	Wrong       uint64            `json:"wrong"`
	Errors      map[string]uint64 `json:"errors,omitempty"`
}

// without takes another time away that lies within this one.
func (o outage) without(x outage) outage {
	out := outage{Queries: o.Queries - x.Queries, Connections: o.Connections - x.Connections, Failed: o.Failed - x.Failed, Wrong: o.Wrong - x.Wrong, Errors: map[string]uint64{}}
	for text, n := range o.Errors {
		if n -= x.Errors[text]; n > 0 {
			out.Errors[text] = n
		}
	}
	return out
}

// marks remembers this moment of every load.
func (d *demo) marks() map[string]workload.Mark {
	out := map[string]workload.Mark{}
	for dc, l := range d.loads {
		out[dc] = l.Mark()
	}
	return out
}

// since sums up what happened in all data centres after marks.
func (d *demo) since(from map[string]workload.Mark) outage {
	out := outage{Errors: map[string]uint64{}}
	for dc, l := range d.loads {
		r := l.Since(from[dc])
		out.Queries, out.Connections, out.Failed, out.Wrong = out.Queries+r.Queries, out.Connections+r.Connections, out.Failed+r.Failed, out.Wrong+r.Wrong
		for text, n := range r.Errors {
			out.Errors[text] += n
		}
	}
	return out
}

// killedNode kills a Cassandra, starts it again after some seconds, and tells what that cost until nothing fails any more.
func (d *demo) killedNode(ctx context.Context, n *ring.Node) (outage, error) {
	from := d.marks()
	n.Kill()
	pause(ctx, 5*time.Second)
	if err := n.Start(); err != nil {
		return outage{}, err
	}
	wait, cancel := context.WithTimeout(ctx, 2*time.Minute)
	defer cancel()
	if err := n.WaitReady(wait); err != nil {
		return outage{}, err
	}
	err := plane.Eventually(ctx, time.Minute, func() error {
		quiet := d.marks()
		pause(ctx, 3*time.Second) // every host gets a new session in that time, and the driver comes back to one it lost
		if o := d.since(quiet); o.Failed > 0 {
			return fmt.Errorf("queries still fail: %v", o.Errors)
		}
		return nil
	})
	return d.since(from), err
}
