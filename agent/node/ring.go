package node

import (
	"context"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/cassandra-security-manager/csm/agent/cassandra"
	"github.com/cassandra-security-manager/csm/agent/reload"
	agentv1 "github.com/cassandra-security-manager/csm/protocol/agent/v1"
	"github.com/cassandra-security-manager/csm/shared/fault"
)

// How often the ring is listed while Cassandra runs: each time costs a JVM that lives a second or two.
const (
	ringEvery = 10 * time.Minute
	// ringSoon is after the ports have changed: a node that came or went shows a little later.
	ringSoon = 20 * time.Second
	// ringAgain is after a list that failed or has a member that is down or on its way, twice as long each time up to ringEvery: many
	// nodes that start on busy hosts fail together, and what was seen in a start should not hold others for ten minutes.
	ringAgain = 30 * time.Second
)

// ring is what the node's Cassandra says of its ring. It is read beside the deciding goroutine, which takes it up.
type ring struct {
	view *agentv1.RingView
	soon chan struct{}
}

// watchRing lists the ring again and again until ctx ends.
func (n *Node) watchRing(ctx context.Context) {
	if _, ok := n.o.Reloader.(reload.Lister); !ok {
		return
	}
	again := ringAgain
	for {
		wait := ringEvery
		n.mu.Lock()
		if !settled(n.ring.view) {
			wait, again = again, min(2*again, ringEvery)
		} else {
			again = ringAgain
		}
		n.mu.Unlock()
		timer := n.o.Clock.NewTimer(time.Duration(float64(wait) * (0.9 + 0.2*n.o.Jitter())))
		select {
		case <-ctx.Done():
			timer.Stop()
			return
		case <-timer.Chan():
		case <-n.ring.soon:
			timer.Stop()
			select {
			case <-ctx.Done():
				return
			case <-n.o.Clock.After(time.Duration(float64(ringSoon) * (0.5 + n.o.Jitter()))):
			}
		}
		n.listRing(ctx)
	}
}

// settled: everybody was seen, up and at rest.
func settled(v *agentv1.RingView) bool {
	for _, m := range v.GetMembers() {
		if !m.Up || m.State != agentv1.RingState_RING_STATE_NORMAL {
			return false
		}
	}
	return v.GetError() == ""
}

// ringMoved asks for the ring soon: Cassandra came or went.
func (n *Node) ringMoved() {
	select {
	case n.ring.soon <- struct{}{}:
	default:
	}
}

// listRing asks Cassandra once, if it runs. What it last said of the ring stays while it is down: the others' views
// count then, and its own host id is still its own.
func (n *Node) listRing(ctx context.Context) {
	l, ok := n.o.Reloader.(reload.Lister)
	n.mu.Lock()
	up := n.up
	n.mu.Unlock()
	if !ok || !up {
		return
	}
	out, err := l.Ring(ctx)
	var v *agentv1.RingView
	if err == nil {
		v, err = cassandra.ParseRing(out)
	}
	if err != nil {
		if ctx.Err() != nil {
			return
		}
		n.log.Warn("the ring could not be listed", "error", err)
		v = &agentv1.RingView{Source: "nodetool", Error: clip(fault.From(err).Error(), 512)}
	}
	n.mu.Lock()
	same := proto.Equal(n.ring.view, v)
	n.ring.view = v
	n.mu.Unlock()
	if !same {
		n.poke()
	}
}
