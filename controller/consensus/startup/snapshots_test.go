package startup_test

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/hashicorp/raft"

	"github.com/cassandra-security-manager/csm/controller/consensus/startup"
)

func snapshot(t *testing.T, s *raft.FileSnapshotStore, index uint64) string {
	t.Helper()
	sink, err := s.Create(1, index, 1, raft.Configuration{}, 1, nil)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := sink.Write([]byte("what the state was")); err != nil {
		t.Fatal(err)
	}
	if err := sink.Close(); err != nil {
		t.Fatal(err)
	}
	return sink.ID()
}

func TestRuleB_TheNewestSnapshotThatVerifiesIsTaken(t *testing.T) {
	dir := t.TempDir()
	store, err := startup.Snapshots(dir, nil)
	if err != nil {
		t.Fatal(err)
	}
	if best, moved, err := startup.PickSnapshot(dir, store); best != nil || len(moved) > 0 || err != nil {
		t.Fatalf("without any: %v, moved %v (%v)", best, moved, err)
	}
	snapshot(t, store, 10)
	rotten := snapshot(t, store, 20)
	at := func(parts ...string) string { return filepath.Join(append([]string{dir, "snapshots"}, parts...)...) }
	for path, content := range map[string]string{at(rotten, "state.bin"): "what the state wAs", at("5-30-1", "meta.json"): "{", at("5-40-1.tmp", "meta.json"): "{}"} {
		if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	best, moved, err := startup.PickSnapshot(dir, store)
	if err != nil || best == nil || best.Index != 10 {
		t.Fatalf("taken: %+v (%v)", best, err)
	}
	if len(moved) != 2 {
		t.Errorf("moved away: %v", moved)
	}
	for _, m := range moved {
		if _, err := os.Stat(m); err != nil {
			t.Errorf("what was moved away must be there to be looked at: %v", err)
		}
	}
	left, err := os.ReadDir(at())
	if err != nil || len(left) != 1 {
		t.Errorf("left: %v (%v)", left, err)
	}
}
