// Package turns lets requests to the signer one after the other: an HSM signs so many times a second, and when a whole fleet
// wants certificates at once, what decides is who comes first. It owns the line of those who wait, by when what they replace ends.
//
// It promises that the next turn goes to the nearest deadline of those who wait, that no more turns are given than the signer is
// said to bear, and that nobody waits in vain: whose turn cannot come in time is told at once when to come back, and keeps its
// place. The line is bounded and in memory; a controller that restarts begins with an empty one.
package turns

import (
	"context"
	"math"
	"sync"
	"time"

	"github.com/jonboulle/clockwork"

	"github.com/cassandra-security-manager/csm/shared/fault"
)

const (
	// patience is the longest that a call waits in the line: it holds a connection meanwhile.
	patience = 10 * time.Second
	// afterwards is what a call needs once it has had its turn: signing, verifying, recording.
	afterwards = 2 * time.Second
	// mostHere is how many may wait, mostAway how many places are kept for who was told to come back.
	mostHere, mostAway = 10_000, 100_000
	// grace is how long after the time it was told somebody may come back and find its place.
	grace = time.Minute
	// catchUp is how much of the rate that a busy machine did not use may be made good at once.
	catchUp = 50 * time.Millisecond
)

// Options of a Queue.
type Options struct {
	// Rate is how many signatures the signer makes in a second; 0 or less: there is no line.
	Rate  float64
	Clock clockwork.Clock
	// Observe is told how long a turn was waited for, or that a request was told to come back; it may be nil.
	Observe func(waited time.Duration, turnedAway bool)
}

// Request is who asks for a turn.
type Request struct {
	// ID finds the place of who comes back; empty keeps none.
	ID string
	// Due is when what is replaced ends; zero: it is needed now, since there is nothing that holds until then.
	Due time.Time
}

// Queue is the line before one signer. A nil Queue gives every turn at once. It is safe for concurrent use.
type Queue struct {
	o        Options
	every    time.Duration
	atOnce   int // how many may be with the signer
	mu       sync.Mutex
	here     line
	away     line
	known    map[string]*place // of away
	seq      uint64
	busy     int       // turns given and not ended
	next     time.Time // when the next turn may be given
	timer    clockwork.Timer
	forgotAt time.Time
}

// New makes a line before a signer; nil when it has no known rate.
func New(o Options) *Queue {
	if o.Rate <= 0 {
		return nil
	}
	if o.Clock == nil {
		o.Clock = clockwork.NewRealClock()
	}
	if o.Observe == nil {
		o.Observe = func(time.Duration, bool) {}
	}
	return &Queue{o: o, every: time.Duration(float64(time.Second) / o.Rate), atOnce: max(1, int(math.Ceil(o.Rate))), known: map[string]*place{}}
}

// Take waits for a turn; end it with done when the signer has answered. Who cannot have one in time is refused with reason
// "signer-busy" and told when to come back (fault.Error.RetryAfter), with the same ID.
func (q *Queue) Take(ctx context.Context, r Request) (done func(), err error) {
	if q == nil {
		return func() {}, nil
	}
	began := q.o.Clock.Now()
	end := began.Add(patience)
	if d, ok := ctx.Deadline(); ok {
		// The deadline is the system's time, the line's may be another.
		end = began.Add(min(patience, time.Until(d)-afterwards))
	}
	q.mu.Lock()
	p := q.enter(r, began)
	wait := q.waitFor(p, began)
	if len(q.here) >= mostHere || wait > 0 && began.Add(wait).After(end) {
		defer q.mu.Unlock()
		return nil, q.turnAway(p, wait, began)
	}
	q.here.add(p)
	q.give()
	q.mu.Unlock()
	timer := q.o.Clock.NewTimer(end.Sub(began))
	defer timer.Stop()
	select {
	case <-p.turn:
	case <-timer.Chan():
		err = q.leave(p, true)
	case <-ctx.Done():
		if err = q.leave(p, false); err == nil { // it had just got its turn, and nobody waits for it any more
			q.end()
			err = fault.From(ctx.Err())
		}
	}
	if err != nil {
		return nil, err
	}
	q.o.Observe(q.o.Clock.Since(began), false)
	return sync.OnceFunc(q.end), nil
}

// Len is how many wait here, and for how many who were told to come back a place is kept.
func (q *Queue) Len() (here, away int) {
	if q == nil {
		return 0, 0
	}
	q.mu.Lock()
	defer q.mu.Unlock()
	q.forget(q.o.Clock.Now())
	return len(q.here), len(q.away)
}

// enter makes the place of a request, the one that it was given before if it comes back.
func (q *Queue) enter(r Request, now time.Time) *place {
	q.forget(now)
	q.seq++
	p := &place{id: r.ID, due: r.Due, seq: q.seq, turn: make(chan struct{})}
	if p.due.IsZero() {
		p.due = now
	}
	if old := q.known[r.ID]; old != nil && r.ID != "" {
		q.drop(old)
		p.seq = old.seq
		if r.Due.IsZero() {
			p.due = old.due
		}
	}
	return p
}

// waitFor is how long the turns before this one take, of those who wait and of those who will come back.
func (q *Queue) waitFor(p *place, now time.Time) time.Duration {
	return max(0, q.next.Sub(now)) + time.Duration(q.here.before(p)+q.away.before(p))*q.every
}

// leave takes a place out of the line. It is nil when the turn has been given meanwhile.
func (q *Queue) leave(p *place, tell bool) error {
	q.mu.Lock()
	defer q.mu.Unlock()
	select {
	case <-p.turn:
		return nil
	default:
	}
	q.here.remove(p)
	if !tell {
		return fault.New(fault.Unavailable, "timeout", "gave up waiting for the signer").Do("try again with the same request id")
	}
	now := q.o.Clock.Now()
	return q.turnAway(p, q.waitFor(p, now), now)
}

// turnAway keeps a place and says when to come back: while there is still a line before it, so that the signer never waits.
func (q *Queue) turnAway(p *place, wait time.Duration, now time.Time) error {
	back := max(time.Second, wait-patience/2).Round(time.Millisecond)
	if p.id != "" && len(q.away) < mostAway {
		p.until = now.Add(back + grace)
		q.away.add(p)
		q.known[p.id] = p
	}
	q.o.Observe(0, true)
	return fault.New(fault.Unavailable, "signer-busy", "the signer makes %g signatures a second, and %d requests that end sooner are before this one", q.o.Rate, q.here.before(p)+q.away.before(p)).
		Do("ask again with the same request id in %s; its place is kept", back.Round(time.Second)).After(back)
}

// give gives turns while there are some to give.
func (q *Queue) give() {
	for len(q.here) > 0 && q.busy < q.atOnce {
		now := q.o.Clock.Now()
		if q.next.After(now) {
			q.wake(q.next.Sub(now))
			return
		}
		if late := now.Add(-catchUp); q.next.Before(late) {
			q.next = late
		}
		q.next = q.next.Add(q.every)
		p := q.here[0]
		q.here = q.here[1:]
		q.busy++
		close(p.turn)
	}
}

// wake gives turns again after a while.
func (q *Queue) wake(after time.Duration) {
	if q.timer != nil {
		return
	}
	q.timer = q.o.Clock.AfterFunc(after, func() {
		q.mu.Lock()
		defer q.mu.Unlock()
		q.timer = nil
		q.give()
	})
}

func (q *Queue) end() {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.busy--
	q.give()
}

// forget drops the places of who did not come back, now and then.
func (q *Queue) forget(now time.Time) {
	if now.Sub(q.forgotAt) < time.Second {
		return
	}
	q.forgotAt = now
	kept := q.away[:0]
	for _, p := range q.away {
		if now.Before(p.until) {
			kept = append(kept, p)
		} else if q.known[p.id] == p {
			delete(q.known, p.id)
		}
	}
	clear(q.away[len(kept):])
	q.away = kept
}

func (q *Queue) drop(p *place) {
	q.away.remove(p)
	delete(q.known, p.id)
}
