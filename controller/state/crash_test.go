package state_test

import (
	"bufio"
	"bytes"
	"context"
	"flag"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/hashicorp/raft"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/cassandra-security-manager/csm/controller/state"
	clusterv1 "github.com/cassandra-security-manager/csm/protocol/cluster/v1"
	"github.com/cassandra-security-manager/csm/shared/fault"
)

// numbered is entry i of a log that every process of these tests can write down by itself.
func numbered(m *machine, i uint64) *raft.Log {
	m.index = i - 1
	var c proto.Message = wrapperspb.Bytes(bytes.Repeat([]byte{byte(i)}, int(i*37%3000)))
	if i%7 == 0 {
		c = wrapperspb.Int64(2)
	}
	if i%11 == 0 {
		c = wrapperspb.String("forbidden")
	}
	return m.entry(proposal(c, "id-"+strconv.FormatUint(i, 10)))
}

// sameAsLog proves that the file is the result of exactly the first Applied entries.
func sameAsLog(t *testing.T, m *machine) {
	t.Helper()
	ref := open(t, t.TempDir())
	defer ref.Close()
	n := m.Applied()
	var logs []*raft.Log
	for i := uint64(1); i <= n; i++ {
		logs = append(logs, numbered(ref, i))
	}
	ref.ApplyBatch(logs)
	ref.index = n
	marker := ref.entry(proposal(&clusterv1.Marker{}, "marker"))
	ref.Apply(marker)
	m.Apply(marker)
	want, _, err := ref.Checksum(context.Background(), marker.Index)
	got, _, err2 := m.Checksum(context.Background(), marker.Index)
	if err != nil || err2 != nil || got != want {
		t.Errorf("the file at %d is not what the log says: %v, %v", n, err, err2)
	}
}

const crashDir = "STATE_TEST_CRASH_DIR"

// TestMain is the victim of the kill test when its folder is given.
func TestMain(m *testing.M) {
	if dir := os.Getenv(crashDir); dir != "" {
		victim(dir)
		return
	}
	flag.Set("rapid.checks", "40") // each check makes two stores on disk; the command line still decides
	os.Exit(m.Run())
}

func victim(dir string) {
	s, err := state.Open(context.Background(), state.Options{Dir: dir, ClusterID: cluster, NodeID: "n1", Modules: []state.Module{boxes()}})
	if err != nil {
		fmt.Println("error", err)
		return
	}
	m := &machine{Store: s, t: new(testing.T), now: start}
	for i := s.Applied() + 1; ; {
		var logs []*raft.Log
		for range 1 + i%17 {
			logs = append(logs, numbered(m, i))
			i++
		}
		s.ApplyBatch(logs)
		if i%5 == 0 {
			s.Checkpoint()
		}
		fmt.Println("applied", i-1)
	}
}

func TestAKilledProcessLosesNothingThatItAnswered(t *testing.T) {
	dir := t.TempDir()
	for round := range 4 {
		cmd := exec.Command(os.Args[0])
		cmd.Env = append(os.Environ(), crashDir+"="+dir)
		out, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		var last uint64
		lines := bufio.NewScanner(out)
		for n := 0; lines.Scan(); n++ {
			what, number, _ := strings.Cut(lines.Text(), " ")
			if what != "applied" {
				t.Errorf("the victim says %q", lines.Text())
				break
			}
			last, _ = strconv.ParseUint(number, 10, 64)
			if n == 5+round*9 {
				cmd.Process.Kill() // in the middle of whatever it is doing; what it printed before dying still comes
			}
		}
		cmd.Wait()
		info, err := state.Inspect(dir)
		if err != nil || info.Clean || info.Applied < last {
			t.Fatalf("after %d answered entries: %+v, %v", last, info, err)
		}
		copied := t.TempDir()
		copyTree(t, dir, copied)
		m := open(t, copied)
		sameAsLog(t, m)
		m.Close()
	}
}

func copyTree(t *testing.T, from, to string) {
	t.Helper()
	if err := os.CopyFS(to, os.DirFS(from)); err != nil {
		t.Fatal(err)
	}
}

// A crash of the machine leaves the file as of the last checkpoint and any part of the log written since, with anything
// behind it.
func TestAPowerCutLosesASuffixAndNeverThePrefix(t *testing.T) {
	dir := t.TempDir()
	m := open(t, dir)
	var i, checkpointed uint64
	batch := func(n int) {
		var logs []*raft.Log
		for range n {
			i++
			logs = append(logs, numbered(m, i))
		}
		m.ApplyBatch(logs)
	}
	for range 5 {
		batch(13)
	}
	m.Checkpoint()
	checkpointed = i
	for range 12 {
		batch(9)
	}
	wal, err := os.ReadFile(m.Path() + "-wal")
	if err != nil {
		t.Fatal(err)
	}
	dice := rand.New(rand.NewPCG(1, 2))
	lost := map[uint64]bool{}
	for range 12 {
		at := dice.IntN(len(wal) + 1)
		tail := wal[:at:at]
		if dice.IntN(2) == 0 { // sectors that were never written hold what was there before
			rubbish := make([]byte, dice.IntN(9000))
			for i := range rubbish {
				rubbish[i] = byte(dice.Uint32())
			}
			tail = append(tail, rubbish...)
		}
		cut := t.TempDir()
		copyTree(t, dir, cut)
		for _, f := range []string{"-wal", "-shm"} {
			os.Remove(filepath.Join(cut, "1", "state.db"+f))
		}
		if err := os.WriteFile(filepath.Join(cut, "1", "state.db-wal"), tail, 0o600); err != nil {
			t.Fatal(err)
		}
		again := open(t, cut)
		if again.Applied() > i || again.Applied() < checkpointed {
			t.Fatalf("cut at %d: applied %d of %d, checkpoint at %d", at, again.Applied(), i, checkpointed)
		}
		lost[again.Applied()] = true
		sameAsLog(t, again)
		// The raft log refills it.
		again.Close()
	}
	if len(lost) < 4 {
		t.Errorf("the cuts lost too little to prove anything: %v", lost)
	}
}

func TestABrokenFileIsFoundBeforeItIsUsed(t *testing.T) {
	dir := t.TempDir()
	m := open(t, dir)
	for i := uint64(1); i < 200; i++ {
		m.Apply(numbered(m, i))
	}
	m.Checkpoint()
	image := t.TempDir()
	copyTree(t, dir, image) // not closed: the next start is after an unclean stop
	file := filepath.Join(image, "1", "state.db")
	whole, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	const page = 4096
	for name, damage := range map[string]func([]byte) []byte{
		"no database":      func([]byte) []byte { return bytes.Repeat([]byte("x"), 8192) },
		"cut":              func(b []byte) []byte { return b[:len(b)/2/page*page] },
		"a page of zeroes": func(b []byte) []byte { clear(b[3*page : 4*page]); return b },
		"a torn page":      func(b []byte) []byte { copy(b[5*page:], b[7*page:7*page+512]); return b },
		"empty":            func([]byte) []byte { return nil },
	} {
		if err := os.WriteFile(file, damage(bytes.Clone(whole)), 0o600); err != nil {
			t.Fatal(err)
		}
		os.Remove(file + "-wal")
		os.Remove(file + "-shm")
		if _, err := state.Inspect(image); !fault.HasReason(err, "state-broken") || fault.From(err).Remedy == "" {
			t.Errorf("%s: inspect says %v", name, err)
		}
		if _, err := tryOpen(t, image, nil); !fault.HasReason(err, "state-broken") {
			t.Errorf("%s: open says %v", name, err)
		}
	}
	if err := state.Discard(image); err != nil {
		t.Fatal(err)
	}
	if _, err := state.Inspect(image); !fault.HasReason(err, "no-state") {
		t.Errorf("after discarding: %v", err)
	}
	if again := open(t, image); again.Applied() != 0 {
		t.Error("a discarded state is back")
	}
	if err := state.Discard(filepath.Join(image, "absent")); err != nil {
		t.Error(err)
	}
}

func TestAStateOfAnotherClusterNodeSchemaOrFormatIsRefused(t *testing.T) {
	dir := t.TempDir()
	m := open(t, dir)
	m.mustDo(wrapperspb.String("a"))
	m.Close()
	if info, err := state.Inspect(dir); err != nil || !info.Clean || info.Applied != 1 || info.AppliedTerm != 1 || info.Format != state.Format || info.NodeID != "n1" {
		t.Fatalf("%+v, %v", info, err)
	}
	for reason, change := range map[string]func(*state.Options){
		"other-cluster": func(o *state.Options) { o.ClusterID = "ffffffffffffffff" },
		"other-node":    func(o *state.Options) { o.NodeID = "n2" },
		"schema-newer":  func(o *state.Options) { o.Modules = nil },
	} {
		if _, err := tryOpen(t, dir, change); !fault.HasReason(err, reason) || !fault.Is(err, fault.Refused) {
			t.Errorf("%s: %v", reason, err)
		}
	}
	m = open(t, dir)
	if err := m.Tamper("UPDATE meta SET format = 99"); err != nil {
		t.Fatal(err)
	}
	m.Close()
	if _, err := tryOpen(t, dir, nil); !fault.HasReason(err, "newer-format") {
		t.Errorf("newer format: %v", err)
	}
	for _, modules := range [][]state.Module{{boxes(), boxes()}, {boxes(), {Name: "other", Migrations: []state.Migration{{Number: 9001}}}}} {
		if _, err := tryOpen(t, t.TempDir(), func(o *state.Options) { o.Modules = modules }); err == nil {
			t.Error("two owners of one name or number")
		}
	}
}

func TestAReadThatIsGivenUpEndsAndTheReaderServesOthers(t *testing.T) {
	m := open(t, t.TempDir())
	m.mustDo(wrapperspb.String("a"))
	for range 20 {
		ctx, cancel := context.WithCancel(context.Background())
		err := m.View(ctx, func(ctx context.Context, q state.Querier) error {
			cancel()
			var n int
			return q.QueryRowContext(ctx, "WITH RECURSIVE c(x) AS (SELECT 1 UNION ALL SELECT x+1 FROM c) SELECT count(*) FROM c").Scan(&n)
		})
		if err == nil {
			t.Fatal("an endless query ended")
		}
	}
	err := m.View(context.Background(), func(ctx context.Context, q state.Querier) error {
		_, err := q.QueryContext(ctx, "DELETE FROM boxes RETURNING name")
		return err
	})
	if err == nil || m.count("SELECT count(*) FROM boxes") != 1 {
		t.Errorf("a reader can write: %v", err)
	}
	m.Close()
	if err := m.View(context.Background(), nil); !fault.Is(err, fault.Unavailable) {
		t.Errorf("a closed state: %v", err)
	}
	if _, err := decide(m.Apply(m.entry(proposal(wrapperspb.String("b"), "")))); !fault.Is(err, fault.Unavailable) || m.fatal != nil {
		t.Errorf("a closed state: %v, %v", err, m.fatal)
	}
}
