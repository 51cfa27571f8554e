package node

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"testing"
	"time"

	"github.com/jonboulle/clockwork"

	"github.com/cassandra-security-manager/csm/agent/reload"
	agentv1 "github.com/cassandra-security-manager/csm/protocol/agent/v1"
)

// lister stands for nodetool status; it tells of each call.
type lister struct {
	err   error
	asked chan struct{}
}

func (l *lister) Reload(context.Context) (reload.Output, error) { return reload.Output{}, nil }
func (l *lister) Ring(context.Context) (string, error) {
	l.asked <- struct{}{}
	return "", l.err
}

// A node that could not list its ring must not be silent for the ten minutes of a good list: rollouts and rotations wait for it.
func TestAListThatFailedIsTriedAgainSoon(t *testing.T) {
	listsAgainSoon(t, &agentv1.RingView{Error: "nodetool did not end"})
}

// What was seen while others started must not stay for ten minutes either.
func TestAListWithAMemberThatIsDownIsTriedAgainSoon(t *testing.T) {
	listsAgainSoon(t, &agentv1.RingView{Members: []*agentv1.RingMember{{Up: true, State: agentv1.RingState_RING_STATE_NORMAL}, {State: agentv1.RingState_RING_STATE_NORMAL}}})
	listsAgainSoon(t, &agentv1.RingView{Members: []*agentv1.RingMember{{Up: true, State: agentv1.RingState_RING_STATE_JOINING}}})
}

// listsAgainSoon wants three lists within the times of lists that failed.
func listsAgainSoon(t *testing.T, v *agentv1.RingView) {
	t.Helper()
	l := &lister{err: errors.New("nodetool did not end"), asked: make(chan struct{})}
	clock := clockwork.NewFakeClock()
	n := &Node{log: slog.New(slog.NewTextHandler(io.Discard, nil)), o: Options{Clock: clock, Reloader: l, Jitter: jitter}, up: true}
	n.ring.soon, n.wake, n.ring.view = make(chan struct{}, 1), make(chan struct{}, 1), v
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	ended := make(chan struct{})
	go func() { n.watchRing(ctx); close(ended) }()
	for i, within := range []time.Duration{ringAgain, 2 * ringAgain, 4 * ringAgain} {
		if err := clock.BlockUntilContext(ctx, 1); err != nil {
			t.Fatal(err)
		}
		clock.Advance(within * 11 / 10)
		select {
		case <-l.asked:
		case <-ctx.Done():
			t.Fatalf("list %d was not asked within %s", i, within)
		}
	}
	cancel()
	<-ended
}
