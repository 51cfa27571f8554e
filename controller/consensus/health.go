package consensus

import (
	"time"

	"github.com/cassandra-security-manager/csm/shared/fault"
)

// Health is what this controller knows of itself without asking anybody: a probe each second costs nothing.
type Health struct {
	// Leader it knows; empty without one.
	Leader string
	// Age of the state; AgeUnknown before the first tick of a leader.
	Age time.Duration
	// Applied here, and how many entries the leader was ahead when it last answered (0 when unknown).
	Applied, Lag uint64
	// DiskFree is the free share of the disk under the data folder, 0 to 1.
	DiskFree float64
	// ClockAhead says how far the clock of the state is ahead of this machine's: an earlier leader dated writes in the future.
	ClockAhead time.Duration
	// DiskLow, ClockWrong and ShutOut say what is wrong and what to do; nil when nothing is.
	DiskLow, ClockWrong, ShutOut *fault.Error
	// LeaderChanges counts the leaders that were heard of since the start.
	LeaderChanges uint64
}

// Health implements Quorum.
func (n *Node) Health() Health {
	h := Health{Leader: n.Leader(), Age: n.Age(), Applied: n.store.Applied(), DiskFree: float64(n.free.Load()) / 1e6,
		ClockAhead: n.store.Now().Sub(n.cfg.Clock.Now()), DiskLow: n.diskLow.Load(), ClockWrong: n.clockDoubt(), ShutOut: n.shutOut.Load(),
		LeaderChanges: n.leaders.changes.Load()}
	if id := n.leaderID(); id != "" && id != n.cfg.NodeID {
		if a := n.contacts.get(id).answer; a != nil && a.Applied > h.Applied {
			h.Lag = a.Applied - h.Applied
		}
	}
	return h
}
