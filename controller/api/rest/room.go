package rest

import (
	"container/list"
	"context"
	"math/rand/v2"
	"sync"
	"time"

	"github.com/cassandra-security-manager/csm/shared/fault"
)

// roomPerCore is how many requests are read at a time for each core.
const roomPerCore = 8

const (
	// freshFor is for how long the first to come is the next to be read.
	freshFor = 5 * time.Second
	// waitFor is the longest that one waits for a place. Some wait for half of it, so that a crowd is not sent away all at once.
	waitFor = 28 * time.Second
)

// Who found no place may come again after crowdedFor and up to crowdedSpread more, drawn anew for each: those who came together do not do so
// again, before who is on time.
const (
	crowdedFor    = 5 * time.Second
	crowdedSpread = 55 * time.Second
)

// room lets few requests at a time be worked on: when thousands come at once and all are, what applies the log finds no processor. Who waits
// for something else (a body, the log, the signer) leaves it, and goes before all who were not in yet when he comes back.
//
// Of those outside who came within freshFor the first is next, and only then one of the others, the newest: when there are more than can be
// read, who was told to come at a certain time finds his turn then, not behind a crowd that waits since long, and nobody who has come in time is
// buried under those who come after him.
type room struct {
	mu   sync.Mutex
	free int
	// Those who wait, each in the order in which they came: who was in before, who has just come, and who came long ago.
	inside, fresh, stale list.List // of *waiter
}

type waiter struct {
	since time.Time
	in    *list.List
	place *list.Element // of in
	turn  chan struct{} // closed when the place is given
}

func (w *waiter) stand(l *list.List) {
	if w.in != nil {
		w.in.Remove(w.place)
	}
	w.in, w.place = l, l.PushBack(w)
}

// enter waits for a place. leave gives it to the next; more than once does nothing.
func (r *room) enter(ctx context.Context, again bool) (leave func(), err error) {
	r.mu.Lock()
	if r.free > 0 {
		r.free--
		r.mu.Unlock()
		return sync.OnceFunc(r.leave), nil
	}
	w := &waiter{since: time.Now(), turn: make(chan struct{})}
	if again {
		w.stand(&r.inside)
	} else {
		w.stand(&r.fresh)
	}
	r.mu.Unlock()
	enough := time.NewTimer(waitFor - rand.N(waitFor/2))
	defer enough.Stop()
	select {
	case <-w.turn:
		return sync.OnceFunc(r.leave), nil
	case <-enough.C:
	case <-ctx.Done():
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	select {
	case <-w.turn: // just now, and nobody is there to take it
		r.next()
	default:
		w.in.Remove(w.place)
	}
	return nil, fault.New(fault.Unavailable, "crowded", "so many requests wait here that this one was not read").Do("ask again later, or another controller").
		After(crowdedFor + rand.N(crowdedSpread))
}

func (r *room) leave() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.next()
}

// next gives a place away.
func (r *room) next() {
	for old := time.Now().Add(-freshFor); r.fresh.Len() > 0; {
		w := r.fresh.Front().Value.(*waiter)
		if w.since.After(old) {
			break
		}
		w.stand(&r.stale)
	}
	for _, place := range []*list.Element{r.inside.Front(), r.fresh.Front(), r.stale.Back()} {
		if place != nil {
			w := place.Value.(*waiter)
			w.in.Remove(place)
			close(w.turn)
			return
		}
	}
	r.free++
}
