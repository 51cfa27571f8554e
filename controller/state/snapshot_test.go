package state_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"sync"
	"testing"

	"github.com/hashicorp/raft"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/cassandra-security-manager/csm/controller/state"
	clusterv1 "github.com/cassandra-security-manager/csm/protocol/cluster/v1"
	"github.com/cassandra-security-manager/csm/shared/fault"
)

// sink keeps a snapshot in memory; label is the index raft would write on it.
type sink struct {
	bytes.Buffer
	label            uint64
	failAfter        int
	closed, canceled bool
}

func (s *sink) Write(b []byte) (int, error) {
	if s.failAfter > 0 && s.Len()+len(b) > s.failAfter {
		return 0, errors.New("no space left on device")
	}
	return s.Buffer.Write(b)
}
func (s *sink) ID() string            { return "1-1-1" }
func (s *sink) Close() error          { s.closed = true; return nil }
func (s *sink) Cancel() error         { s.canceled = true; return nil }
func (s *sink) SnapshotIndex() uint64 { return s.label }

// labelled is what raft hands to Restore.
type labelled struct {
	io.Reader
	label uint64
}

func (labelled) Close() error            { return nil }
func (l labelled) SnapshotIndex() uint64 { return l.label }

func (m *machine) snapshot() []byte {
	m.t.Helper()
	n, err := m.Snapshot()
	if err != nil {
		m.t.Fatal(err)
	}
	defer n.Release()
	s := &sink{label: m.Applied()}
	if err := n.Persist(s); err != nil || !s.closed {
		m.t.Fatalf("persist: %v", err)
	}
	return s.Bytes()
}

func (m *machine) restore(b []byte) error {
	return m.Restore(labelled{bytes.NewReader(b), ^uint64(0)})
}

func TestASnapshotUnderLoadRestoresTheSameState(t *testing.T) {
	m := open(t, t.TempDir())
	var logs []*raft.Log
	apply := func() {
		l := m.entry(proposal(wrapperspb.Bytes(bytes.Repeat([]byte{byte(m.index)}, 2000)), ""))
		logs = append(logs, l)
		m.Apply(l)
	}
	for range 300 {
		apply()
	}
	n, err := m.Snapshot()
	if err != nil {
		t.Fatal(err)
	}
	index := m.Applied()
	var load sync.WaitGroup
	stop := make(chan struct{})
	load.Go(func() {
		for {
			select {
			case <-stop:
				return
			default:
				apply()
			}
		}
	})
	for m.Applied() < index+20 { // the load is running
		m.WaitApplied(context.Background(), index+20)
	}
	s := &sink{label: index}
	if err := n.Persist(s); err != nil {
		t.Fatal(err)
	}
	n.Release()
	close(stop)
	load.Wait()

	other := open(t, t.TempDir())
	other.mustDo(wrapperspb.String("to be replaced"))
	if err := other.restore(s.Bytes()); err != nil {
		t.Fatal(err)
	}
	if other.Applied() != index {
		t.Fatalf("the snapshot holds %d, taken at %d", other.Applied(), index)
	}
	for _, l := range logs[index:] {
		other.Apply(l)
	}
	other.index = m.index
	marker := m.entry(proposal(&clusterv1.Marker{}, ""))
	for _, x := range []*machine{m, other} {
		if _, err := decide(x.Apply(marker)); err != nil {
			t.Fatal(err)
		}
	}
	a, rows, err := m.Checksum(context.Background(), marker.Index)
	b, _, err2 := other.Checksum(context.Background(), marker.Index)
	if err != nil || err2 != nil || a != b || rows < int64(len(logs)) {
		t.Errorf("checksums %x and %x over %d rows, %v, %v", a, b, rows, err, err2)
	}
	if strays, _ := filepath.Glob(filepath.Join(m.dir, "scratch-*")); len(strays) > 0 {
		t.Errorf("%v stay", strays)
	}
}

func TestABackupOfAHigherIndexIsRestoredAndTheNextWriteIsApplied(t *testing.T) {
	old := open(t, t.TempDir())
	old.index = 999_999
	old.mustDo(wrapperspb.String("from the old cluster"))
	backup := old.snapshot()

	m := open(t, t.TempDir())
	for i := range 5 {
		m.mustDo(wrapperspb.String(fmt.Sprint("box-", i)))
	}
	w := m.Watch("tenants/default/boxes/nobody")
	if err := m.restore(backup); err != nil {
		t.Fatal(err)
	}
	if !woken(w) {
		t.Error("a restored snapshot must wake every watch")
	}
	if m.Applied() != 1_000_000 || m.count("SELECT count(*) FROM boxes") != 1 {
		t.Errorf("applied %d", m.Applied())
	}
	m.index = 1_000_001
	if res := m.mustDo(wrapperspb.String("next")); res.Index != 1_000_002 || m.count("SELECT count(*) FROM boxes") != 2 {
		t.Errorf("the next write went to %d", res.Index)
	}
}

func TestReadersOfTheReplacedFileMayFinish(t *testing.T) {
	dir := t.TempDir()
	m := open(t, dir)
	m.mustDo(wrapperspb.String("a"))
	snapshot := m.snapshot()
	m.mustDo(wrapperspb.String("b"))
	err := m.View(context.Background(), func(ctx context.Context, q state.Querier) error {
		var before, after int
		if err := q.QueryRowContext(ctx, "SELECT count(*) FROM boxes").Scan(&before); err != nil {
			return err
		}
		if err := m.restore(snapshot); err != nil {
			return err
		}
		if n := m.count("SELECT count(*) FROM boxes"); n != 1 {
			t.Errorf("a new reader sees %d boxes", n)
		}
		if err := q.QueryRowContext(ctx, "SELECT count(*) FROM boxes").Scan(&after); err != nil {
			return err
		}
		if before != 2 || after != 2 {
			t.Errorf("the old reader saw %d, then %d boxes", before, after)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	m.Close()
	if left, _ := filepath.Glob(filepath.Join(dir, "[0-9]*")); len(left) != 1 {
		t.Errorf("generations left: %v", left)
	}
	if again := open(t, dir); again.count("SELECT count(*) FROM boxes") != 1 {
		t.Error("the next start opens another state")
	}
}

func TestNothingIsNewToSnapshotWhileRaftDeliversWhatTheFileHas(t *testing.T) {
	dir := t.TempDir()
	m := open(t, dir)
	var logs []*raft.Log
	for i := range 3 {
		logs = append(logs, m.entry(proposal(wrapperspb.String(fmt.Sprint(i)), "")))
	}
	m.ApplyBatch(logs)
	m.Close()
	m = open(t, dir)
	for i, want := range []error{raft.ErrNothingNewToSnapshot, raft.ErrNothingNewToSnapshot, nil} {
		m.Apply(logs[i])
		n, err := m.Snapshot()
		if !errors.Is(err, want) {
			t.Errorf("after entry %d: %v", i+1, err)
		}
		if n != nil {
			n.Release()
		}
	}
}

func TestABrokenOrForeignSnapshotIsRefusedAndTheStateStays(t *testing.T) {
	m := open(t, t.TempDir())
	m.mustDo(wrapperspb.String("a"))
	good := m.snapshot()
	m.mustDo(wrapperspb.String("b"))
	foreign, err := tryOpen(t, t.TempDir(), func(o *state.Options) { o.ClusterID = "ffffffffffffffff" })
	if err != nil {
		t.Fatal(err)
	}
	foreign.mustDo(wrapperspb.String("c"))
	flip := func(at int) []byte {
		b := bytes.Clone(good)
		b[at] ^= 1
		return b
	}
	for name, b := range map[string][]byte{
		"empty": {}, "cut": good[:len(good)-1], "cut in the header": good[:20], "no snapshot": bytes.Repeat([]byte("x"), 1000),
		"a flipped bit": flip(len(good) / 2), "a flipped bit in the sum": flip(len(good) - 1), "a flipped bit in the header": flip(20),
		"another cluster's": foreign.snapshot(), "a huge header": append([]byte("CSM-STATE-1\n\xff\xff\xff\xff"), good...),
	} {
		if err := m.restore(b); err == nil {
			t.Errorf("%s: restored", name)
		}
		if m.count("SELECT count(*) FROM boxes") != 2 || m.Applied() != 2 {
			t.Fatalf("%s: the state is gone", name)
		}
		if _, err := state.VerifySnapshot(bytes.NewReader(b)); err == nil && name != "another cluster's" {
			t.Errorf("%s: verifies", name)
		}
	}
	if err := m.Restore(labelled{bytes.NewReader(good), 0}); !fault.HasReason(err, "snapshot-broken") {
		t.Errorf("a snapshot labelled below what it holds: %v", err)
	}
	if info, err := state.VerifySnapshot(bytes.NewReader(good)); err != nil || info.Applied != 1 || info.ClusterID != cluster {
		t.Errorf("%+v, %v", info, err)
	}
	m.mustDo(wrapperspb.String("goes on"))
}

func TestASinkThatFailsLeavesNothingBehind(t *testing.T) {
	m := open(t, t.TempDir())
	m.mustDo(wrapperspb.Bytes(make([]byte, 50_000)))
	for _, at := range []int{1, 5, 30_000} {
		n, err := m.Snapshot()
		if err != nil {
			t.Fatal(err)
		}
		s := &sink{label: m.Applied(), failAfter: at}
		if err := n.Persist(s); err == nil || !s.canceled || s.closed {
			t.Errorf("after %d bytes: %v", at, err)
		}
		n.Release()
	}
	n, err := m.Snapshot()
	if err != nil {
		t.Fatal(err)
	}
	defer n.Release()
	if err := n.Persist(&sink{label: 0}); !fault.HasReason(err, "snapshot-broken") {
		t.Errorf("a label below the content: %v", err)
	}
	if strays, _ := filepath.Glob(filepath.Join(m.dir, "scratch-*")); len(strays) > 0 {
		t.Errorf("%v stay", strays)
	}
}

func TestARestoredFileBelongsToWhoOpensItFirst(t *testing.T) {
	m := open(t, t.TempDir())
	m.mustDo(wrapperspb.String("a"))
	dir := filepath.Join(t.TempDir(), "state")
	info, err := state.RestoreFile(context.Background(), dir, bytes.NewReader(m.snapshot()))
	if err != nil || info.Applied != 1 || info.NodeID != "" || info.ClusterID != cluster {
		t.Fatalf("%+v, %v", info, err)
	}
	if info, err = state.Inspect(dir); err != nil || !info.Clean || info.Applied != 1 {
		t.Fatalf("%+v, %v", info, err)
	}
	other, err := tryOpen(t, dir, func(o *state.Options) { o.NodeID = "n2" })
	if err != nil {
		t.Fatal(err)
	}
	other.mustDo(wrapperspb.String("b"))
	other.Close()
	if _, err := tryOpen(t, dir, nil); !fault.HasReason(err, "other-node") {
		t.Errorf("n1 opens the state of n2: %v", err)
	}
	// A broken snapshot never replaces what is there.
	if _, err := state.RestoreFile(context.Background(), dir, bytes.NewReader(m.snapshot()[:9000])); !fault.HasReason(err, "snapshot-broken") {
		t.Error(err)
	}
	if info, err := state.Inspect(dir); err != nil || info.Applied != 2 {
		t.Errorf("%+v, %v", info, err)
	}
	// And a whole one replaces even a broken state.
	if err := os.WriteFile(filepath.Join(dir, "CURRENT"), []byte("77\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := state.Inspect(dir); !fault.HasReason(err, "state-broken") {
		t.Error(err)
	}
	if _, err := state.RestoreFile(context.Background(), dir, bytes.NewReader(m.snapshot())); err != nil {
		t.Error(err)
	}
	if info, err := state.Inspect(dir); err != nil || info.Applied != 1 {
		t.Errorf("%+v, %v", info, err)
	}
}
