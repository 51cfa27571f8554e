package consensus

import (
	"sync/atomic"
	"time"

	"github.com/hashicorp/raft"
)

const (
	// gatherFor is how long a leader under load lets writes gather before it syncs its log: where a sync takes no longer than a
	// write, every write would else be synced, sent and committed alone, three times over. Of 2, 5 and 8 ms, 5 ms took the least
	// CPU for a certificate; a write of a loaded leader waits longer for its turn at the CPU than for this.
	gatherFor = 5 * time.Millisecond
	// gatherFrom so many writes that wait beside those at hand it does: one client alone never waits.
	gatherFrom = 8
)

// gather delays what a busy leader stores (as PostgreSQL's commit_delay and commit_siblings): raft takes all that has
// gathered meanwhile as the next batch, and so do the followers and the state machines.
type gather struct {
	raft.LogStore
	// waiting counts the writes that this controller has appended as leader and not yet answered.
	waiting *atomic.Int64
}

// StoreLogs stores, a moment later under load.
func (g gather) StoreLogs(logs []*raft.Log) error {
	if g.waiting.Load() >= int64(len(logs)+gatherFrom) {
		time.Sleep(gatherFor)
	}
	return g.LogStore.StoreLogs(logs)
}

// StoreLog is StoreLogs of one.
func (g gather) StoreLog(l *raft.Log) error { return g.StoreLogs([]*raft.Log{l}) }

// IsMonotonic says that the log takes no gaps; raft then empties it after it took in a snapshot.
func (g gather) IsMonotonic() bool {
	m, ok := g.LogStore.(raft.MonotonicLogStore)
	return ok && m.IsMonotonic()
}
