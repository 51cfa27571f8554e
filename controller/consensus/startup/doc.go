// Package startup decides, before raft starts, whether this controller may take part with what its disk holds, and heals what
// can be healed without asking anybody: rules (a) to (f), each a function here. It keeps one invariant: a controller whose log
// lost or changed an entry that it had acknowledged never votes again under its old id.
//
// Each rule is a function of its own; Prepare runs them in order. Nothing else may have the folders open.
package startup

import (
	"github.com/hashicorp/raft"
)

// Log is the part of raft's log store that the rules read and, in rule (c), empty.
type Log interface {
	FirstIndex() (uint64, error)
	LastIndex() (uint64, error)
	GetLog(index uint64, log *raft.Log) error
	DeleteRange(min, max uint64) error
}

// Report says what was found and done.
type Report struct {
	// FirstIndex and LastIndex of the log; 0 when it is empty.
	FirstIndex, LastIndex uint64
	// SnapshotIndex is the newest good snapshot; 0 without one.
	SnapshotIndex uint64
	// Applied by the state that will be opened.
	Applied uint64
	// MovedSnapshots are folders of bad snapshots that were moved away.
	MovedSnapshots []string
	// LogReset: the log lay before the snapshot and was emptied. Restored: the state was made anew from the snapshot.
	// Discarded: the state was thrown away; the log gives it back.
	LogReset, Restored, Discarded bool
}
