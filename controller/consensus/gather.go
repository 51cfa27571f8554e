package consensus

import (
	"sync/atomic"
	"time"

	"github.com/hashicorp/raft"
)

const (
	// gatherEach is how long a leader under load lets writes gather before it syncs its log, for each write that waits, and
	// gatherMost is the longest: where a sync takes no longer than a write, every write would else be synced, sent and committed
	// alone, three times over. The more wait, the more CPU a batch saves, and the longer each waits for its turn at the CPU anyway.
	gatherEach = 150 * time.Microsecond
	gatherMost = 5 * time.Millisecond
	// gatherFrom so many writes that wait beside those at hand it does: one client alone never waits.
	gatherFrom = 8
)

// gatherFor says how long logs that are at hand wait for more while so many writes wait in all.
func gatherFor(logs int, waiting int64) time.Duration {
	if waiting < int64(logs+gatherFrom) {
		return 0
	}
	return min(time.Duration(waiting)*gatherEach, gatherMost)
}

// gather delays what a busy leader stores (as PostgreSQL's commit_delay and commit_siblings): raft takes all that has
// gathered meanwhile as the next batch, and so do the followers and the state machines.
type gather struct {
	raft.LogStore
	// waiting counts the writes that this controller has appended as leader and not yet answered.
	waiting *atomic.Int64
}

// StoreLogs stores, a moment later under load.
func (g gather) StoreLogs(logs []*raft.Log) error {
	if d := gatherFor(len(logs), g.waiting.Load()); d > 0 {
		time.Sleep(d)
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
