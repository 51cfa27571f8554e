package startup

import (
	"fmt"

	"github.com/hashicorp/raft"

	"github.com/cassandra-security-manager/csm/controller/consensus/wal"
	"github.com/cassandra-security-manager/csm/controller/state"
	"github.com/cassandra-security-manager/csm/shared/fault"
)

// ScanLog is rule (a): every record from index from on can be read, is what was written, stands where it belongs, and
// no term goes backwards. raft itself would stop in the middle of its work, or worse, hand a changed command to the state.
func ScanLog(log Log, from uint64) error {
	first, err := log.FirstIndex()
	if err != nil {
		return err
	}
	last, err := log.LastIndex()
	if err != nil {
		return err
	}
	var term uint64
	for i := max(from, first); i <= last && last > 0; i++ {
		var l raft.Log
		if err := log.GetLog(i, &l); err != nil {
			return fault.Wrap(err, fault.Internal, "raft-log-broken", "record %d of the raft log (%d to %d) cannot be trusted", i, first, last).Do(wal.Remedy)
		}
		if l.Index != i || l.Term < term {
			return fault.New(fault.Internal, "raft-log-broken", "record %d of the raft log says index %d, term %d after term %d", i, l.Index, l.Term, term).Do(wal.Remedy)
		}
		term = l.Term
	}
	return nil
}

// ResetLog is rule (c): a log that ends before the snapshot (a crash between taking in a snapshot and resetting the log), or
// that holds another entry at its index, is emptied: appending after the snapshot would be refused as non-monotonic and
// this controller could never lead.
func ResetLog(log Log, snap *raft.SnapshotMeta) (bool, error) {
	first, err := log.FirstIndex()
	if err != nil {
		return false, err
	}
	last, err := log.LastIndex()
	if err != nil {
		return false, err
	}
	if snap == nil || last == 0 {
		return false, nil
	}
	reset := last < snap.Index
	if !reset && first <= snap.Index {
		var l raft.Log
		if err := log.GetLog(snap.Index, &l); err == nil {
			reset = l.Term != snap.Term
		}
	}
	if !reset {
		return false, nil
	}
	if err := log.DeleteRange(first, last); err != nil {
		return false, fmt.Errorf("empty the raft log that ends at %d, before the snapshot at %d: %w", last, snap.Index, err)
	}
	return true, nil
}

// Disk is what rules (d) to (f) judge.
type Disk struct {
	// State is what the state file says of itself; StateErr why it cannot be used at all (broken, absent).
	State    state.FileInfo
	StateErr error
	// First and Last of the log; both 0 when it is empty.
	First, Last uint64
	// Snapshot is the newest good one; nil without one.
	Snapshot *raft.SnapshotMeta
	// Entry reads a log entry; false when it is not there or cannot be read.
	Entry func(index uint64) (raft.Log, bool)
}

// Verdict says what becomes of the state file.
type Verdict string

// The verdicts.
const (
	Keep    Verdict = "keep"
	Restore Verdict = "restore"
	Empty   Verdict = "empty"
)

// LostTail is rule (e). raft-wal cannot tell a batch whose end rotted from one that was never finished, and shortens the log
// without a word; the state, which applies only what a majority stored, is the witness.
func LostTail(d Disk) error {
	end := d.Last
	if d.Snapshot != nil {
		end = max(end, d.Snapshot.Index)
	}
	if d.StateErr != nil || d.State.Applied <= end {
		return nil
	}
	return fault.New(fault.Internal, "raft-log-lost-tail",
		"the raft log ends at %d, but this controller had applied %d: entries that it acknowledged are lost, so it must not vote", end, d.State.Applied).Do(wal.Remedy)
}

// Judge is rules (d), (e) and (f): keep the state file, restore the snapshot, start empty, or refuse to start (a fault).
func Judge(d Disk, clusterID, nodeID string) (Verdict, string, error) {
	var snapIndex uint64
	if d.Snapshot != nil {
		snapIndex = d.Snapshot.Index
	}
	if d.Last > 0 && d.First > snapIndex+1 {
		return "", "", fault.New(fault.Internal, "raft-log-gap", "the raft log begins at %d, the newest good snapshot ends at %d: the entries between are lost", d.First, snapIndex).Do(wal.Remedy)
	}
	if d.StateErr == nil {
		if err := mine(d.State, clusterID, nodeID); err != nil {
			return "", "", err
		}
		if err := LostTail(d); err != nil {
			return "", "", err
		}
	}
	why := unusable(d, snapIndex)
	switch {
	case why == "":
		return Keep, "", nil
	case d.Snapshot != nil:
		return Restore, why, nil
	default: // the log begins at 1 or is empty: the gap rule above saw to it
		return Empty, why, nil
	}
}

// mine refuses a folder that was copied from another controller: two of one id would both vote.
func mine(i state.FileInfo, clusterID, nodeID string) error {
	if i.ClusterID != clusterID {
		return fault.New(fault.Refused, "other-cluster", "the state belongs to system %q, this controller to %q", i.ClusterID, clusterID).
			Do("point data_dir to the folder of this controller")
	}
	if i.NodeID != "" && i.NodeID != nodeID {
		return fault.New(fault.Refused, "other-node", "the state belongs to installation %q, this is %q", i.NodeID, nodeID).
			Do("never copy a data folder between controllers; wipe this one and let it join")
	}
	return nil
}

// unusable says why the state file cannot go on with this log; empty when it can (rule d).
func unusable(d Disk, snapIndex uint64) string {
	if d.StateErr != nil {
		return d.StateErr.Error()
	}
	applied := d.State.Applied
	if d.State.Format > state.Format {
		return fmt.Sprintf("it has format %d, this controller knows %d", d.State.Format, state.Format)
	}
	if d.Last > 0 && d.First > applied+1 {
		return fmt.Sprintf("it ends at %d, the log begins at %d", applied, d.First)
	}
	// raft replays from the snapshot's index on. What lies between the state and that index must be entries that
	// never reach the state machine.
	for i := applied + 1; i <= snapIndex; i++ {
		l, ok := d.Entry(i)
		if !ok || l.Type == raft.LogCommand || l.Type == raft.LogConfiguration {
			return fmt.Sprintf("it ends at %d, before the snapshot at %d", applied, snapIndex)
		}
	}
	if applied == 0 {
		return ""
	}
	term := uint64(0)
	if l, ok := d.Entry(applied); ok {
		term = l.Term
	} else if d.Snapshot != nil && applied == snapIndex {
		term = d.Snapshot.Term
	} else {
		return fmt.Sprintf("nothing on this disk says which entry %d was", applied)
	}
	if term != d.State.AppliedTerm {
		return fmt.Sprintf("it applied entry %d of term %d, the log holds term %d there", applied, d.State.AppliedTerm, term)
	}
	return ""
}
