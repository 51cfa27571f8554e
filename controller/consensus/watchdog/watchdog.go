// Package watchdog notices a disk that hangs: a leader whose disk no longer answers would keep its followers calm by
// heartbeats for ever and acknowledge nothing (hashicorp/raft issue 503). Work that is under way for longer than the
// limit ends the process, so that another controller leads.
package watchdog

import (
	"context"
	"sync"
	"time"

	"github.com/hashicorp/raft"

	"github.com/cassandra-security-manager/csm/shared/fault"
)

// Dog watches operations that must end soon.
type Dog struct {
	limit time.Duration
	bite  func(error)

	mu   sync.Mutex
	next uint64
	work map[uint64]work
}

type work struct {
	what  string
	since time.Time
}

// New watches until ctx ends; bite is called once when an operation takes longer than limit.
func New(ctx context.Context, limit time.Duration, bite func(error)) *Dog {
	d := &Dog{limit: limit, bite: bite, work: map[uint64]work{}}
	go d.run(ctx)
	return d
}

// Begin says that an operation has begun; call what it returns when it has ended.
func (d *Dog) Begin(what string) (end func()) {
	_, end = d.steps(what)
	return end
}

// steps is Begin for an operation of many parts: each part has the whole limit. A machine that is short of processors is slow at all of
// them and hangs at none; to end there would leave its work to the others, which have no more.
func (d *Dog) steps(what string) (step, end func()) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.next++
	n := d.next
	d.work[n] = work{what, time.Now()}
	step = func() {
		d.mu.Lock()
		defer d.mu.Unlock()
		d.work[n] = work{what, time.Now()}
	}
	end = func() {
		d.mu.Lock()
		defer d.mu.Unlock()
		delete(d.work, n)
	}
	return step, end
}

func (d *Dog) run(ctx context.Context) {
	tick := time.NewTicker(d.limit / 10)
	defer tick.Stop()
	for last := time.Now(); ; {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
			now := time.Now()
			d.forgive(now.Sub(last) - d.limit/10)
			last = now
			if w, late := d.oldest(now); late {
				d.bite(fault.New(fault.Internal, "disk-hangs", "%s has made no progress for %s", w.what, now.Sub(w.since).Round(100*time.Millisecond)).
					Do("the process ends so that another controller leads; check the disk of the data folder, then start it again"))
				return
			}
		}
	}
}

// forgive gives all that is under way more time: as much as the dog itself came late to look. Where it finds no processor, nobody does,
// and no disk is to blame.
func (d *Dog) forgive(late time.Duration) {
	if late <= 0 {
		return
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	for n, w := range d.work {
		w.since = w.since.Add(late)
		d.work[n] = w
	}
}

func (d *Dog) oldest(now time.Time) (work, bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, w := range d.work {
		if now.Sub(w.since) > d.limit {
			return w, true
		}
	}
	return work{}, false
}

// Log watches raft's log.
type Log struct {
	raft.LogStore
	Dog *Dog
}

// StoreLog and StoreLogs are raft.LogStore, watched.
func (l Log) StoreLog(e *raft.Log) error { return l.StoreLogs([]*raft.Log{e}) }

// StoreLogs appends, watched.
func (l Log) StoreLogs(es []*raft.Log) error {
	defer l.Dog.Begin("writing the raft log")()
	return l.LogStore.StoreLogs(es)
}

// IsMonotonic says that the log takes no gaps; raft then empties it after it took in a snapshot.
func (l Log) IsMonotonic() bool {
	m, ok := l.LogStore.(raft.MonotonicLogStore)
	return ok && m.IsMonotonic()
}

// Stable watches raft's term and vote.
type Stable struct {
	raft.StableStore
	Dog *Dog
}

// Set is raft.StableStore, watched.
func (s Stable) Set(key, val []byte) error {
	defer s.Dog.Begin("writing raft's vote")()
	return s.StableStore.Set(key, val)
}

// SetUint64 is raft.StableStore, watched.
func (s Stable) SetUint64(key []byte, val uint64) error {
	defer s.Dog.Begin("writing raft's term")()
	return s.StableStore.SetUint64(key, val)
}

// Stepping is a state machine that says when it goes on to the next entry of a batch.
type Stepping interface {
	raft.BatchingFSM
	ApplySteps(logs []*raft.Log, step func()) []any
}

// FSM watches the state machine's batches. Restore is not watched: taking in a large snapshot may take its time.
type FSM struct {
	Stepping
	Dog *Dog
}

// ApplyBatch is raft.BatchingFSM, watched.
func (f FSM) ApplyBatch(logs []*raft.Log) []any {
	step, end := f.Dog.steps("applying the raft log")
	defer end()
	return f.ApplySteps(logs, step)
}

// Apply is raft.FSM, watched.
func (f FSM) Apply(l *raft.Log) any {
	defer f.Dog.Begin("applying the raft log")()
	return f.Stepping.Apply(l)
}
