package state

import (
	"context"
	"os"
	"time"

	"github.com/cassandra-security-manager/csm/shared/fault"
)

const (
	checkpointEvery = time.Second
	// restartAbove is the size of the write-ahead log, in bytes, at which writers wait a little so that it can restart.
	restartAbove = 64 << 20
)

// checkpointLoop folds the write-ahead log into the file beside the writer, so that no commit ever does. It is the only
// place that does: SQLite's own (wal_autocheckpoint) would make some commits a hundred times slower than others.
func (s *Store) checkpointLoop(ctx context.Context) {
	tick := s.clock.NewTicker(checkpointEvery)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.Chan():
			s.checkpointOnce(ctx)
		}
	}
}

func (s *Store) checkpointOnce(ctx context.Context) {
	s.mu.RLock()
	g := s.current
	g.busy.Add(1)
	s.mu.RUnlock()
	defer g.busy.Done()
	mode := "PASSIVE"
	// RESTART holds writers up to the checkpointer's busy timeout of 100 ms; useless while a long reader is pinned.
	if st, err := os.Stat(g.path + "-wal"); err == nil && st.Size() > restartAbove && g.pinned.Load() == 0 {
		mode = "RESTART"
	}
	if _, err := checkpoint(ctx, g.check, mode); err != nil && ctx.Err() == nil {
		s.log.Error("the state file's log cannot be folded in", "error", err)
		// A bad disk will not get better. Close holds the lock and waits for us: then it ends by itself.
		if badDisk(err) && s.writing.TryLock() {
			defer s.writing.Unlock()
			if s.failed == nil {
				s.fail(err)
			}
		}
	}
}

// checkpoint reports whether all of the log was folded in; readers may prevent it for a while.
func checkpoint(ctx context.Context, c *session, mode string) (bool, error) {
	var busy, frames, done int
	if err := c.QueryRowContext(ctx, "PRAGMA wal_checkpoint("+mode+")").Scan(&busy, &frames, &done); err != nil {
		return false, fault.Wrap(err, fault.Internal, "checkpoint", "checkpoint of the state file")
	}
	return busy == 0 && frames == done, nil
}
