package startup_test

import (
	"errors"
	"testing"

	"github.com/hashicorp/raft"

	"github.com/cassandra-security-manager/csm/controller/consensus/startup"
	"github.com/cassandra-security-manager/csm/controller/state"
	"github.com/cassandra-security-manager/csm/shared/fault"
)

const cluster, node = "system", "node-1"

// logOf holds commands from index first on, one for each term.
func logOf(t *testing.T, first uint64, terms ...uint64) *raft.InmemStore {
	t.Helper()
	s := raft.NewInmemStore()
	for i, term := range terms {
		if err := s.StoreLog(&raft.Log{Index: first + uint64(i), Term: term, Type: raft.LogCommand}); err != nil {
			t.Fatal(err)
		}
	}
	return s
}

// lying answers for one index with another record, or with an error when there is none.
type lying struct {
	startup.Log
	at  uint64
	say *raft.Log
}

func (l lying) GetLog(i uint64, out *raft.Log) error {
	if i != l.at {
		return l.Log.GetLog(i, out)
	}
	if l.say == nil {
		return errors.New("checksum differs")
	}
	*out = *l.say
	return nil
}

func TestRuleA_ALogIsReadWholeBeforeItIsTrusted(t *testing.T) {
	good := logOf(t, 4, 1, 1, 2, 2)
	for what, c := range map[string]struct {
		log  startup.Log
		from uint64
		bad  bool
	}{
		"whole":                                     {good, 1, false},
		"empty":                                     {raft.NewInmemStore(), 1, false},
		"a record that cannot be read":              {lying{good, 5, nil}, 1, true},
		"the last record cannot be read":            {lying{good, 7, nil}, 1, true},
		"a record of another place":                 {lying{good, 6, &raft.Log{Index: 9, Term: 2}}, 1, true},
		"a term that goes back":                     {lying{good, 7, &raft.Log{Index: 7, Term: 1}}, 1, true},
		"what the snapshot covers is not looked at": {lying{good, 5, nil}, 6, false},
	} {
		if err := startup.ScanLog(c.log, c.from); fault.HasReason(err, "raft-log-broken") != c.bad || !c.bad && err != nil {
			t.Errorf("%s: %v", what, err)
		}
	}
}

func TestRuleC_ALogThatDoesNotReachTheSnapshotIsEmptied(t *testing.T) {
	for what, c := range map[string]struct {
		log   *raft.InmemStore
		snap  *raft.SnapshotMeta
		reset bool
	}{
		"no snapshot":                       {logOf(t, 1, 1, 1), nil, false},
		"an empty log":                      {raft.NewInmemStore(), &raft.SnapshotMeta{Index: 9, Term: 1}, false},
		"it ends before the snapshot":       {logOf(t, 1, 1, 1), &raft.SnapshotMeta{Index: 3, Term: 1}, true},
		"it ends at the snapshot":           {logOf(t, 1, 1, 1, 1), &raft.SnapshotMeta{Index: 3, Term: 1}, false},
		"it holds another entry there":      {logOf(t, 1, 1, 1, 1, 1), &raft.SnapshotMeta{Index: 3, Term: 2}, true},
		"it goes on after the snapshot":     {logOf(t, 4, 1, 1), &raft.SnapshotMeta{Index: 3, Term: 1}, false},
		"it holds the same entry, and more": {logOf(t, 2, 1, 1, 2, 2), &raft.SnapshotMeta{Index: 3, Term: 1}, false},
	} {
		reset, err := startup.ResetLog(c.log, c.snap)
		if err != nil || reset != c.reset {
			t.Errorf("%s: emptied %v (%v)", what, reset, err)
		}
		if last, _ := c.log.LastIndex(); reset && last != 0 {
			t.Errorf("%s: it still ends at %d", what, last)
		}
	}
}

// disk is one whose log, state and snapshot agree: entries 1 to 6, applied to 5.
func disk(t *testing.T) startup.Disk {
	return withLog(startup.Disk{State: state.FileInfo{ClusterID: cluster, NodeID: node, Format: state.Format, Applied: 5, AppliedTerm: 2, Clean: true}},
		logOf(t, 1, 1, 1, 1, 2, 2, 3))
}

func withLog(d startup.Disk, s *raft.InmemStore) startup.Disk {
	d.First, _ = s.FirstIndex()
	d.Last, _ = s.LastIndex()
	d.Entry = func(i uint64) (l raft.Log, ok bool) { return l, s.GetLog(i, &l) == nil }
	return d
}

func TestRulesDToF_WhatBecomesOfTheState(t *testing.T) {
	snap := func(index, term uint64) *raft.SnapshotMeta { return &raft.SnapshotMeta{Index: index, Term: term} }
	for what, c := range map[string]struct {
		change func(*startup.Disk)
		want   startup.Verdict
		reason string
	}{
		"all agrees":                                  {func(*startup.Disk) {}, startup.Keep, ""},
		"applied nothing yet":                         {func(d *startup.Disk) { d.State.Applied, d.State.AppliedTerm = 0, 0 }, startup.Keep, ""},
		"d: state of another system":                  {func(d *startup.Disk) { d.State.ClusterID = "other" }, "", "other-cluster"},
		"d: state of another controller":              {func(d *startup.Disk) { d.State.NodeID = "node-2" }, "", "other-node"},
		"d: just restored, nobody's yet":              {func(d *startup.Disk) { d.State.NodeID = "" }, startup.Keep, ""},
		"d: a format of the future, with a snapshot":  {func(d *startup.Disk) { d.State.Format++; d.Snapshot = snap(4, 2) }, startup.Restore, ""},
		"d: a format of the future, without":          {func(d *startup.Disk) { d.State.Format++ }, startup.Empty, ""},
		"d: behind the snapshot":                      {func(d *startup.Disk) { d.State.Applied, d.State.AppliedTerm = 3, 1; d.Snapshot = snap(5, 2) }, startup.Restore, ""},
		"d: another term at applied":                  {func(d *startup.Disk) { d.State.AppliedTerm = 1 }, startup.Empty, ""},
		"d: the log begins behind it":                 {func(d *startup.Disk) { *d = withLog(*d, logOf(t, 8, 3, 3)); d.Snapshot = snap(7, 3) }, startup.Restore, ""},
		"d: only the snapshot knows the entry":        {func(d *startup.Disk) { *d = withLog(*d, logOf(t, 6, 3, 3)); d.Snapshot = snap(5, 2) }, startup.Keep, ""},
		"e: it applied more than the log holds":       {func(d *startup.Disk) { d.State.Applied = 7 }, "", "raft-log-lost-tail"},
		"e: an empty log under a state":               {func(d *startup.Disk) { *d = withLog(*d, logOf(t, 1)) }, "", "raft-log-lost-tail"},
		"e: a snapshot vouches for it":                {func(d *startup.Disk) { *d = withLog(*d, logOf(t, 1)); d.Snapshot = snap(5, 2) }, startup.Keep, ""},
		"f: broken, with a snapshot":                  {func(d *startup.Disk) { d.StateErr = errors.New("malformed"); d.Snapshot = snap(4, 2) }, startup.Restore, ""},
		"f: broken, and the log begins at 1":          {func(d *startup.Disk) { d.StateErr = errors.New("malformed") }, startup.Empty, ""},
		"f: broken, and entries are missing":          {func(d *startup.Disk) { d.StateErr = errors.New("malformed"); *d = withLog(*d, logOf(t, 3, 1, 1)) }, "", "raft-log-gap"},
		"f: entries between snapshot and log missing": {func(d *startup.Disk) { *d = withLog(*d, logOf(t, 6, 3)); d.Snapshot = snap(4, 2) }, "", "raft-log-gap"},
	} {
		d := disk(t)
		c.change(&d)
		verdict, why, err := startup.Judge(d, cluster, node)
		if verdict != c.want || c.reason == "" && err != nil || c.reason != "" && !fault.HasReason(err, c.reason) {
			t.Errorf("%s: %q (%s) %v, want %q %s", what, verdict, why, err, c.want, c.reason)
		}
		if err != nil && fault.From(err).Remedy == "" {
			t.Errorf("%s: nobody is told what to do: %v", what, err)
		}
		if verdict != startup.Keep && verdict != "" && why == "" {
			t.Errorf("%s: %s without a reason", what, verdict)
		}
	}
}
