package state

import (
	"container/heap"
	"context"
	"strings"
	"sync"

	"github.com/cassandra-security-manager/csm/shared/fault"
)

// Everything is the name that a Watch on all resources takes.
const Everything = "/"

// Watch wakes when one of its names changed. Changes that come while nobody looks are one wake-up: read the state after
// each. A restored snapshot wakes every watch.
type Watch struct {
	c     chan struct{}
	names []string
	owner *watches
}

// C delivers after commit, at most one pending wake-up. It is never closed.
func (w *Watch) C() <-chan struct{} { return w.c }

// Close ends the watch; it may be called twice.
func (w *Watch) Close() { w.owner.remove(w) }

// Watch begins to watch resources by full name, or all below a prefix when the name ends in "/". What is committed after
// it returns wakes it. Close it.
func (s *Store) Watch(names ...string) *Watch {
	w := &Watch{c: make(chan struct{}, 1), names: names, owner: &s.watches}
	s.watches.add(w)
	return w
}

// watches finds the waiters of a resource by its name and by each of its prefixes: the cost of a change is the depth of
// its name and the number of those it wakes, however many others wait.
type watches struct {
	mu     sync.RWMutex
	byName map[string]map[*Watch]struct{}
}

func (ws *watches) add(w *Watch) {
	ws.mu.Lock()
	defer ws.mu.Unlock()
	if ws.byName == nil {
		ws.byName = map[string]map[*Watch]struct{}{}
	}
	for _, n := range w.names {
		if ws.byName[n] == nil {
			ws.byName[n] = map[*Watch]struct{}{}
		}
		ws.byName[n][w] = struct{}{}
	}
}

func (ws *watches) remove(w *Watch) {
	ws.mu.Lock()
	defer ws.mu.Unlock()
	for _, n := range w.names {
		delete(ws.byName[n], w)
		if len(ws.byName[n]) == 0 {
			delete(ws.byName, n)
		}
	}
}

func (w *Watch) wake() {
	select {
	case w.c <- struct{}{}:
	default:
	}
}

func (ws *watches) notify(resources map[string]struct{}) {
	if len(resources) == 0 {
		return
	}
	ws.mu.RLock()
	defer ws.mu.RUnlock()
	if len(ws.byName) == 0 {
		return
	}
	names := map[string]struct{}{Everything: {}}
	for r := range resources {
		names[r] = struct{}{}
		for i := 0; ; {
			n := strings.IndexByte(r[i:], '/')
			if n < 0 {
				break
			}
			i += n + 1
			names[r[:i]] = struct{}{}
		}
	}
	for n := range names {
		for w := range ws.byName[n] {
			w.wake()
		}
	}
}

func (ws *watches) notifyAll() {
	ws.mu.RLock()
	defer ws.mu.RUnlock()
	for _, group := range ws.byName {
		for w := range group {
			w.wake()
		}
	}
}

// waiters are those that wait for an index, the nearest first.
type waiters struct {
	mu      sync.Mutex
	queue   waitQueue
	reached uint64
	closed  bool
}

type waiter struct {
	index uint64
	done  chan struct{}
	at    int
}

// WaitApplied waits until Applied is at least index and the watches of what changed up to there were woken: who was answered
// after it meets no memory of the state before. So it goes by the waiters, which come last, not by Applied.
func (s *Store) WaitApplied(ctx context.Context, index uint64) error {
	w := s.waiters.add(index)
	if w == nil {
		if s.Applied() >= index {
			return nil
		}
		return errClosed
	}
	defer s.waiters.drop(w)
	select {
	case <-w.done:
		if s.Applied() < index {
			return errClosed
		}
		return nil
	case <-ctx.Done():
		return fault.Wrap(ctx.Err(), fault.Unavailable, "behind", "this controller has applied %d, not yet %d", s.Applied(), index).
			Do("try again, or ask another controller")
	}
}

// add gives nil when there is nothing to wait for.
func (ws *waiters) add(index uint64) *waiter {
	ws.mu.Lock()
	defer ws.mu.Unlock()
	if ws.closed || ws.reached >= index {
		return nil
	}
	w := &waiter{index: index, done: make(chan struct{})}
	heap.Push(&ws.queue, w)
	return w
}

func (ws *waiters) drop(w *waiter) {
	ws.mu.Lock()
	defer ws.mu.Unlock()
	if w.at >= 0 {
		heap.Remove(&ws.queue, w.at)
	}
}

func (ws *waiters) wake(applied uint64) {
	ws.mu.Lock()
	defer ws.mu.Unlock()
	ws.reached = applied
	for len(ws.queue) > 0 && ws.queue[0].index <= applied {
		close(heap.Pop(&ws.queue).(*waiter).done)
	}
}

func (ws *waiters) close() {
	ws.mu.Lock()
	defer ws.mu.Unlock()
	ws.closed = true
	for len(ws.queue) > 0 {
		close(heap.Pop(&ws.queue).(*waiter).done)
	}
}

type waitQueue []*waiter

func (q waitQueue) Len() int           { return len(q) }
func (q waitQueue) Less(i, j int) bool { return q[i].index < q[j].index }
func (q waitQueue) Swap(i, j int) {
	q[i], q[j] = q[j], q[i]
	q[i].at, q[j].at = i, j
}
func (q *waitQueue) Push(x any) {
	w := x.(*waiter)
	w.at = len(*q)
	*q = append(*q, w)
}
func (q *waitQueue) Pop() any {
	old := *q
	w := old[len(old)-1]
	old[len(old)-1] = nil
	*q, w.at = old[:len(old)-1], -1
	return w
}
