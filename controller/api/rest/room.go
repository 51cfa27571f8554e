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

// Who found no place may come again after crowdedFor and up to crowdedSpread more, drawn anew for each: those who came together do not do so
// again, before who is on time.
const (
	crowdedFor    = 5 * time.Second
	crowdedSpread = 25 * time.Second
)

// room lets few requests at a time be worked on: when thousands come at once and all are, what applies the log finds no processor. Who waits
// for something else (a body, the log, the signer) leaves it, and goes before all who were not in yet when he comes back.
//
// Of those outside the newest is next. When there are more than can be read, the oldest have waited for so long that they will be told to come
// again, and who was told to come at a certain time finds his turn then, not behind a crowd.
type room struct {
	mu              sync.Mutex
	free            int
	inside, outside list.List // of chan struct{}, closed when the place is given
}

// enter waits for a place. leave gives it to the next; more than once does nothing.
func (r *room) enter(ctx context.Context, again bool) (leave func(), err error) {
	r.mu.Lock()
	if r.free > 0 {
		r.free--
		r.mu.Unlock()
		return sync.OnceFunc(r.leave), nil
	}
	turn := make(chan struct{})
	line := &r.outside
	if again {
		line = &r.inside
	}
	place := line.PushBack(turn)
	r.mu.Unlock()
	select {
	case <-turn:
		return sync.OnceFunc(r.leave), nil
	case <-ctx.Done():
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	select {
	case <-turn: // just now, and nobody is there to take it
		r.next()
	default:
		line.Remove(place)
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
	line, place := &r.inside, r.inside.Front()
	if place == nil {
		line, place = &r.outside, r.outside.Back()
	}
	if place == nil {
		r.free++
		return
	}
	close(line.Remove(place).(chan struct{}))
}
