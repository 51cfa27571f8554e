package consensus

import (
	"bytes"
	"context"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"testing"

	"github.com/hashicorp/raft"

	"github.com/cassandra-security-manager/csm/controller/consensus/startup"
	"github.com/cassandra-security-manager/csm/controller/consensus/wal"
	"github.com/cassandra-security-manager/csm/controller/state"
	"github.com/cassandra-security-manager/csm/shared/fault"
)

// TestADamagedDiskIsRefusedOrHealed damages copies of one controller's folder: 20 writes, a snapshot in the middle.
func TestADamagedDiskIsRefusedOrHealed(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	a := w.box("a")
	if err := a.open(true); err != nil {
		t.Fatal(err)
	}
	for i := range 20 {
		a.mustWrite(fmt.Sprintf("write-%02d", i))
		if i == 4 || i == 9 {
			if err := a.node.raft.Snapshot().Error(); err != nil {
				t.Fatal(err)
			}
		}
	}
	a.kill()
	whole := a.dir

	prepare := func() (startup.Report, error) {
		return startup.Prepare(context.Background(), a.dir, w.id, a.nodeID, slog.New(slog.DiscardHandler))
	}
	for _, c := range []struct {
		name    string
		damage  func(t *testing.T)
		refused string
		healed  func(r startup.Report) bool
	}{
		{"nothing is damaged", func(*testing.T) {}, "", func(r startup.Report) bool { return !r.Restored && !r.Discarded && !r.LogReset && r.Applied >= 20 }},
		{"a record changed", func(t *testing.T) { flip(t, a.dir, "raft/*.wal", "write-13") }, "raft-log-broken", nil},
		{"the last batch rotted, so that the log is silently shorter", func(t *testing.T) { flip(t, a.dir, "raft/*.wal", "write-19") }, "raft-log-lost-tail", nil},
		{"the log lost its tail", func(t *testing.T) { truncate(t, a.dir, 3) }, "raft-log-lost-tail", nil},
		{"the log is gone", func(t *testing.T) { remove(t, a.dir, "raft") }, "raft-log-lost-tail", nil},
		{"the votes are unreadable", func(t *testing.T) { scribble(t, a.dir, "raft/meta.db", 0, 16<<10) }, "raft-meta-broken", nil},
		{"the folder was copied to another controller", func(*testing.T) {}, "other-node", nil},
		{"the state file is broken", func(t *testing.T) { dirty(t, a.dir); scribble(t, a.dir, "state/*/state.db", 4096, 64<<10) }, "", func(r startup.Report) bool { return r.Restored }},
		{"the state is gone", func(t *testing.T) { remove(t, a.dir, "state") }, "", func(r startup.Report) bool { return r.Restored }},
		{"the state and the snapshots are gone", func(t *testing.T) { remove(t, a.dir, "state"); remove(t, a.dir, "snapshots") }, "",
			func(r startup.Report) bool { return !r.Restored && r.Applied == 0 && r.FirstIndex == 1 }},
		{"the newest snapshot is bad", func(t *testing.T) { scribble(t, a.dir, newest(t, a.dir)+"/state.bin", 100, 10) }, "",
			func(r startup.Report) bool { return len(r.MovedSnapshots) == 1 && r.SnapshotIndex > 0 && !r.Restored }},
		{"both snapshots and the state are bad", func(t *testing.T) {
			scribble(t, a.dir, "snapshots/*/state.bin", 100, 10)
			remove(t, a.dir, "state")
		}, "", func(r startup.Report) bool { return len(r.MovedSnapshots) == 2 && r.SnapshotIndex == 0 }},
		{"a snapshot's description is unreadable", func(t *testing.T) { scribble(t, a.dir, newest(t, a.dir)+"/meta.json", 0, 40) }, "",
			func(r startup.Report) bool { return len(r.MovedSnapshots) == 1 && r.SnapshotIndex > 0 }},
		{"the log begins after the only good snapshot", func(t *testing.T) {
			behead(t, a.dir)
			scribble(t, a.dir, newest(t, a.dir)+"/state.bin", 100, 10)
		}, "raft-log-gap", nil},
		{"a crash came between the snapshot and the reset of the log", func(t *testing.T) {
			truncate(t, a.dir, 14) // the log ends before the snapshot, as that of one who had been away
			remove(t, a.dir, "state")
		}, "", func(r startup.Report) bool { return r.LogReset && r.Restored && r.LastIndex == 0 }},
	} {
		t.Run(c.name, func(t *testing.T) {
			a.dir = filepath.Join(t.TempDir(), "copy")
			if err := os.CopyFS(a.dir, os.DirFS(whole)); err != nil {
				t.Fatal(err)
			}
			c.damage(t)
			if c.refused == "other-node" {
				_, err := startup.Prepare(context.Background(), a.dir, w.id, "another", slog.New(slog.DiscardHandler))
				wantReason(t, err, fault.Refused, c.refused)
				return
			}
			r, err := prepare()
			if c.refused != "" {
				wantReason(t, err, fault.Internal, c.refused)
				if err := a.open(false); err == nil {
					t.Fatal("it started all the same")
				}
				return
			}
			if err != nil || !c.healed(r) {
				t.Fatalf("%+v %v", r, err)
			}
			defer a.kill()
			a.start()
			a.mustWrite("after") // it leads: one voter
			got := a.written()
			last := 20
			if r.LogReset {
				last = 10 // alone in the world, it has what its snapshot has; in a quorum the others fill up the rest
			}
			for i := range last {
				if !got[fmt.Sprintf("write-%02d", i)] {
					t.Errorf("write-%02d is gone", i)
				}
			}
		})
	}
}

func match(t *testing.T, dir, pattern string) []string {
	t.Helper()
	files, err := filepath.Glob(filepath.Join(dir, pattern))
	if err != nil || len(files) == 0 {
		t.Fatal(pattern, err)
	}
	return files
}

func flip(t *testing.T, dir, pattern, text string) {
	t.Helper()
	for _, f := range match(t, dir, pattern) {
		b, err := os.ReadFile(f)
		if err != nil {
			t.Fatal(err)
		}
		if i := bytes.LastIndex(b, []byte(text)); i >= 0 {
			b[i] ^= 1
			if err := os.WriteFile(f, b, 0o600); err != nil {
				t.Fatal(err)
			}
			return
		}
	}
	t.Fatalf("%s is nowhere", text)
}

func scribble(t *testing.T, dir, pattern string, at, size int) {
	t.Helper()
	for _, f := range match(t, dir, pattern) {
		b, err := os.ReadFile(f)
		if err != nil {
			t.Fatal(err)
		}
		for i := at; i < min(at+size, len(b)); i++ {
			b[i] ^= 0x5A
		}
		if err := os.WriteFile(f, b, 0o600); err != nil {
			t.Fatal(err)
		}
	}
}

func remove(t *testing.T, dir, what string) {
	t.Helper()
	if err := os.RemoveAll(filepath.Join(dir, what)); err != nil {
		t.Fatal(err)
	}
}

// newest is the folder of the newest snapshot, relative to dir.
func newest(t *testing.T, dir string) string {
	t.Helper()
	s, err := startup.Snapshots(dir, nil)
	if err != nil {
		t.Fatal(err)
	}
	list, err := s.List()
	if err != nil || len(list) != 2 {
		t.Fatal(len(list), err)
	}
	return "snapshots/" + list[0].ID
}

func withLog(t *testing.T, dir string, do func(l *wal.Log, first, last uint64) error) {
	t.Helper()
	l, err := wal.Open(startup.LogDir(dir), nil)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	first, _ := l.FirstIndex()
	last, _ := l.LastIndex()
	if err := do(l, first, last); err != nil {
		t.Fatal(err)
	}
}

func truncate(t *testing.T, dir string, n uint64) {
	withLog(t, dir, func(l *wal.Log, _, last uint64) error { return l.DeleteRange(last-n+1, last) })
}

// behead removes the log up to the newest snapshot.
func behead(t *testing.T, dir string) {
	s, _ := startup.Snapshots(dir, nil)
	list, _ := s.List()
	withLog(t, dir, func(l *wal.Log, first, _ uint64) error { return l.DeleteRange(first, list[0].Index) })
}

// dirty makes the state look like after a crash, so that all of it is read at the next start.
func dirty(t *testing.T, dir string) {
	t.Helper()
	s, err := state.Open(context.Background(), state.Options{Dir: startup.StateDir(dir), ClusterID: "testsystem", NodeID: nodeOf(t, dir), Modules: []state.Module{Module()}})
	if err != nil {
		t.Fatal(err)
	}
	// A copy taken while it is open is what a crash leaves.
	crashed := dir + "-crashed"
	if err := os.CopyFS(crashed, os.DirFS(startup.StateDir(dir))); err != nil {
		t.Fatal(err)
	}
	s.Close()
	remove(t, dir, "state")
	if err := os.Rename(crashed, startup.StateDir(dir)); err != nil {
		t.Fatal(err)
	}
}

func nodeOf(t *testing.T, dir string) string {
	t.Helper()
	i, err := state.Inspect(startup.StateDir(dir))
	if err != nil {
		t.Fatal(err)
	}
	return i.NodeID
}

func TestTheStateGoesOnOnlyWithALogThatHoldsWhatItApplied(t *testing.T) {
	entries := func(first, last, term uint64, kind raft.LogType) func(uint64) (raft.Log, bool) {
		return func(i uint64) (raft.Log, bool) {
			return raft.Log{Index: i, Term: term, Type: kind}, i >= first && i <= last && last > 0
		}
	}
	snap := &raft.SnapshotMeta{Index: 100, Term: 2}
	info := func(applied, term uint64) state.FileInfo {
		return state.FileInfo{ClusterID: "c", NodeID: "n", Format: state.Format, Applied: applied, AppliedTerm: term}
	}
	for _, c := range []struct {
		name   string
		disk   startup.Disk
		want   startup.Verdict
		reason string
	}{
		{"first start", startup.Disk{StateErr: fault.New(fault.NotFound, "no-state", "none"), Entry: entries(0, 0, 0, 0)}, startup.Empty, ""},
		{"in step with the log", startup.Disk{State: info(120, 2), First: 50, Last: 130, Snapshot: snap, Entry: entries(50, 130, 2, raft.LogCommand)}, startup.Keep, ""},
		{"exactly the snapshot, empty log", startup.Disk{State: info(100, 2), Snapshot: snap, Entry: entries(0, 0, 0, 0)}, startup.Keep, ""},
		{"another term at the same index", startup.Disk{State: info(120, 3), First: 50, Last: 130, Snapshot: snap, Entry: entries(50, 130, 2, raft.LogCommand)}, startup.Restore, ""},
		{"behind the snapshot", startup.Disk{State: info(90, 2), First: 50, Last: 130, Snapshot: snap, Entry: entries(50, 130, 2, raft.LogCommand)}, startup.Restore, ""},
		{"behind it only by entries that never reach the state", startup.Disk{State: info(98, 2), First: 50, Last: 130, Snapshot: snap, Entry: entries(50, 130, 2, raft.LogNoop)}, startup.Keep, ""},
		{"behind the log's beginning", startup.Disk{State: info(30, 2), First: 50, Last: 130, Snapshot: snap, Entry: entries(50, 130, 2, raft.LogCommand)}, startup.Restore, ""},
		{"beyond the log", startup.Disk{State: info(131, 2), First: 50, Last: 130, Snapshot: snap, Entry: entries(50, 130, 2, raft.LogCommand)}, "", "raft-log-lost-tail"},
		{"no snapshot, log from 1", startup.Disk{StateErr: fault.New(fault.Internal, "state-broken", "broken"), First: 1, Last: 9, Entry: entries(1, 9, 1, raft.LogCommand)}, startup.Empty, ""},
		{"no snapshot, log from 5", startup.Disk{StateErr: fault.New(fault.Internal, "state-broken", "broken"), First: 5, Last: 9, Entry: entries(5, 9, 1, raft.LogCommand)}, "", "raft-log-gap"},
		{"of another system", startup.Disk{State: state.FileInfo{ClusterID: "x", NodeID: "n"}, Entry: entries(0, 0, 0, 0)}, "", "other-cluster"},
	} {
		got, _, err := startup.Judge(c.disk, "c", "n")
		if got != c.want || c.reason != "" && !fault.HasReason(err, c.reason) || c.reason == "" && err != nil {
			t.Errorf("%s: %q %v", c.name, got, err)
		}
	}
}
