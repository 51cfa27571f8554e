package agentapi

import (
	"context"
	"sync"
	"time"

	agentv1 "github.com/cassandra-security-manager/csm/protocol/agent/v1"
	"google.golang.org/protobuf/types/known/timestamppb"
)

const (
	// turnPause is the time between two nodes of one cluster that look whether they may claim: were all of a thousand waiting
	// nodes told of each move that ends, each of them would claim and all but one be refused.
	turnPause = 125 * time.Millisecond
	// plannedPause is when a node whose wave of a plan is open, and which a gate held, asks again without a word.
	plannedPause = 5 * time.Second
	// wavePause is when a waiting node looks again without a word.
	wavePause = 20 * time.Second
)

// turns hands out the moments at which the waiting nodes of a cluster look, first come first.
type turns struct {
	mu   sync.Mutex
	last map[string]time.Time // by cluster
}

func (t *turns) next(cluster string, now time.Time) time.Time {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.last == nil {
		t.last = map[string]time.Time{}
	}
	turn := now
	if after := t.last[cluster].Add(turnPause); after.After(now) {
		turn = after
	}
	t.last[cluster] = turn
	return turn
}

// waiting is what a stream knows of a claim that was refused because the wave was busy.
type waiting struct {
	is bool
	// planned: the wave of a plan is open for the node. Its gates are others than those of a move of one's own, and no more
	// nodes wait at once than the wave is wide.
	planned bool
	// turn is when the node may look; zero when it has none.
	turn time.Time
}

// refused begins to wait.
func (p *pusher) refused(ctx context.Context) error {
	p.waits.is, p.waits.planned = true, p.x.planned.Load()
	if p.waits.planned {
		p.at["wave"] = p.s.Clock.Now().Add(plannedPause)
		return nil
	}
	return p.wave(ctx)
}

// wave tells a node that was refused that it may ask again.
func (p *pusher) wave(ctx context.Context) error {
	delete(p.at, "wave")
	if !p.waits.is {
		return nil
	}
	if !p.waits.planned {
		now := p.s.Clock.Now()
		if p.waits.turn.IsZero() {
			p.waits.turn = p.s.turns.next(p.x.Cluster, now)
		}
		if now.Before(p.waits.turn) {
			p.at["wave"] = p.waits.turn
			return nil
		}
		p.waits.turn = time.Time{}
		free, retry, err := p.s.Fleet.WaveFree(ctx, p.x.Node, p.x.Cluster)
		if err != nil {
			return err
		}
		if !free {
			p.at["wave"] = now.Add(wavePause)
			if !retry.IsZero() && retry.Before(p.at["wave"]) {
				p.at["wave"] = retry
			}
			return nil
		}
	}
	p.waits = waiting{}
	return p.send(&agentv1.Control{ClaimsOpen: true, ServerTime: timestamppb.New(p.s.Clock.Now())})
}
