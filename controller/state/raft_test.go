package state_test

import (
	"bytes"
	"io"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/hashicorp/raft"
	"google.golang.org/protobuf/types/known/timestamppb"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/cassandra-security-manager/csm/controller/state"
)

// voter is one real raft node over a machine, alone in its cluster.
type voter struct {
	*raft.Raft
	m         *machine
	logs      *raft.InmemStore
	snapshots *raft.FileSnapshotStore
	transport *raft.InmemTransport
}

func startVoter(t *testing.T, m *machine, from *voter) *voter {
	t.Helper()
	v := &voter{m: m, logs: raft.NewInmemStore()}
	if from != nil {
		v.logs, v.snapshots = from.logs, from.snapshots
	} else {
		var err error
		if v.snapshots, err = raft.NewFileSnapshotStore(t.TempDir(), 2, io.Discard); err != nil {
			t.Fatal(err)
		}
	}
	cfg := raft.DefaultConfig()
	cfg.LocalID, cfg.Logger = "n1", hclog.NewNullLogger()
	cfg.HeartbeatTimeout, cfg.ElectionTimeout, cfg.LeaderLeaseTimeout = 50*time.Millisecond, 50*time.Millisecond, 50*time.Millisecond
	cfg.NoSnapshotRestoreOnStart, cfg.BatchApplyCh, cfg.MaxAppendEntries = true, true, 512
	cfg.TrailingLogs = 5
	var address raft.ServerAddress
	address, v.transport = raft.NewInmemTransport("")
	if from == nil {
		if err := raft.BootstrapCluster(cfg, v.logs, v.logs, v.snapshots, v.transport,
			raft.Configuration{Servers: []raft.Server{{ID: cfg.LocalID, Address: address}}}); err != nil {
			t.Fatal(err)
		}
	}
	var err error
	if v.Raft, err = raft.NewRaft(cfg, m.Store, v.logs, v.logs, v.snapshots, v.transport); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { v.Shutdown().Error() })
	for lead := range v.LeaderCh() {
		if lead {
			return v
		}
	}
	t.Fatal("no leader")
	return nil
}

func (v *voter) put(name string) (state.Result, error) {
	e, err := state.NewEnvelope(proposal(wrapperspb.String(name), ""), v.m.now)
	if err != nil {
		return state.Result{}, err
	}
	e.Stamp = timestamppb.New(v.m.now)
	f := v.Raft.Apply(encode(v.m.t, e), time.Minute)
	if err := f.Error(); err != nil {
		return state.Result{}, err
	}
	return decide(f.Response())
}

func (v *voter) backup(t *testing.T) (*raft.SnapshotMeta, []byte) {
	t.Helper()
	f := v.Snapshot()
	if err := f.Error(); err != nil {
		t.Fatal(err)
	}
	meta, r, err := f.Open()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	b, err := io.ReadAll(r)
	if err != nil {
		t.Fatal(err)
	}
	return meta, b
}

func TestUnderRealRaftARestartSkipsWhatTheFileHasAndABackupOfAHigherIndexIsRestored(t *testing.T) {
	dir := t.TempDir()
	v := startVoter(t, open(t, dir), nil)
	for i := range 40 {
		if _, err := v.put("box-" + string(rune('A'+i))); err != nil {
			t.Fatal(err)
		}
	}
	v.backup(t)
	for i := range 7 {
		if _, err := v.put("later-" + string(rune('A'+i))); err != nil {
			t.Fatal(err)
		}
	}
	before := v.m.Applied()
	v.Shutdown().Error()
	v.m.Close()

	v = startVoter(t, open(t, dir), v)
	if _, err := v.put("after the restart"); err != nil {
		t.Fatal(err)
	}
	if n := v.m.count("SELECT count(*) FROM boxes"); n != 48 || v.m.Applied() <= before {
		t.Fatalf("%d boxes, applied %d", n, v.m.Applied())
	}

	// A backup of a cluster that had come to index 1,000,000.
	old := open(t, t.TempDir())
	old.index = 999_999
	old.mustDo(wrapperspb.String("from the old cluster"))
	meta, _ := v.backup(t)
	content := old.snapshot()
	meta.Index, meta.Size = old.Applied(), int64(len(content))
	if err := v.Restore(meta, bytes.NewReader(content), time.Minute); err != nil {
		t.Fatal(err)
	}
	res, err := v.put("next")
	if err != nil || res.Index <= 1_000_000 {
		t.Fatalf("the next write: %+v, %v", res, err)
	}
	if n := v.m.count("SELECT count(*) FROM boxes"); n != 2 {
		t.Errorf("%d boxes", n)
	}
	if m, _ := v.backup(t); m.Index < v.m.Applied() {
		t.Errorf("a snapshot of %d is labelled %d", v.m.Applied(), m.Index)
	}
	if v.m.fatal != nil {
		t.Error(v.m.fatal)
	}
}
