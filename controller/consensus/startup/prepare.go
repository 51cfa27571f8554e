package startup

import (
	"context"
	"fmt"
	"log/slog"
	"path/filepath"

	"github.com/hashicorp/raft"

	"github.com/cassandra-security-manager/csm/controller/consensus/wal"
	"github.com/cassandra-security-manager/csm/controller/state"
	"github.com/cassandra-security-manager/csm/shared/fault"
)

// LogDir and StateDir are the folders inside a data folder.
func LogDir(dataDir string) string   { return filepath.Join(dataDir, "raft") }
func StateDir(dataDir string) string { return filepath.Join(dataDir, "state") }

// Prepare runs the rules. It is called before the state and raft are opened; an error means that neither may be.
func Prepare(ctx context.Context, dataDir, clusterID, nodeID string, logger *slog.Logger) (Report, error) {
	var r Report
	log, err := wal.Open(LogDir(dataDir), nil)
	if err != nil {
		return r, err
	}
	defer log.Close()
	store, err := Snapshots(dataDir, nil)
	if err != nil {
		return r, err
	}
	snap, moved, err := PickSnapshot(dataDir, store)
	r.MovedSnapshots = moved
	for _, m := range moved {
		logger.Warn("a snapshot is bad and was moved away", "to", m)
	}
	if err != nil {
		return r, err
	}
	if snap != nil {
		r.SnapshotIndex = snap.Index
	}
	if err := ScanLog(log, r.SnapshotIndex+1); err != nil {
		return r, err
	}
	// The witness of a lost tail is heard before the log may be emptied.
	d, err := look(log, snap, dataDir)
	if err != nil {
		return r, err
	}
	r.FirstIndex, r.LastIndex = d.First, d.Last
	if err := LostTail(d); err != nil {
		return r, err
	}
	if r.LogReset, err = ResetLog(log, snap); err != nil {
		return r, err
	}
	if r.LogReset {
		logger.Warn("the raft log ended before the snapshot and was emptied", "log", d.Last, "snapshot", r.SnapshotIndex)
		if d, err = look(log, snap, dataDir); err != nil {
			return r, err
		}
		r.FirstIndex, r.LastIndex = d.First, d.Last
	}
	return r, settle(ctx, &r, d, store, dataDir, clusterID, nodeID, logger)
}

func look(log Log, snap *raft.SnapshotMeta, dataDir string) (d Disk, err error) {
	if d.First, err = log.FirstIndex(); err != nil {
		return d, err
	}
	if d.Last, err = log.LastIndex(); err != nil {
		return d, err
	}
	d.Snapshot = snap
	d.State, d.StateErr = state.Inspect(StateDir(dataDir))
	d.Entry = func(i uint64) (l raft.Log, ok bool) {
		if i < d.First || i > d.Last || d.Last == 0 {
			return l, false
		}
		return l, log.GetLog(i, &l) == nil
	}
	return d, nil
}

// settle does what the verdict says.
func settle(ctx context.Context, r *Report, d Disk, store *raft.FileSnapshotStore, dataDir, clusterID, nodeID string, logger *slog.Logger) error {
	verdict, why, err := Judge(d, clusterID, nodeID)
	if err != nil {
		return err
	}
	switch verdict {
	case Keep:
		r.Applied = d.State.Applied
		return nil
	case Empty:
		if !fault.HasReason(d.StateErr, "no-state") {
			logger.Warn("the state is thrown away; the raft log gives it back", "why", why)
			r.Discarded = true
		}
		return state.Discard(StateDir(dataDir))
	}
	logger.Warn("the state is restored from the snapshot", "snapshot", d.Snapshot.Index, "why", why)
	_, content, err := store.Open(d.Snapshot.ID)
	if err != nil {
		return fmt.Errorf("open the snapshot: %w", err)
	}
	defer content.Close()
	if err := state.Discard(StateDir(dataDir)); err != nil {
		return err
	}
	info, err := state.RestoreFile(ctx, StateDir(dataDir), content)
	if err != nil {
		return fmt.Errorf("restore the state from the snapshot at %d: %w", d.Snapshot.Index, err)
	}
	if info.Applied > d.Snapshot.Index {
		return fault.New(fault.Internal, "snapshot-broken", "the snapshot at %d holds a state applied to %d", d.Snapshot.Index, info.Applied).Do(wal.Remedy)
	}
	r.Restored, r.Applied = true, info.Applied
	return nil
}
