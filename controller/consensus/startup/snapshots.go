package startup

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/hashicorp/go-hclog"
	"github.com/hashicorp/raft"
)

// Retain is how many snapshots are kept: the newest, and one more should its file rot.
const Retain = 2

// Snapshots opens the snapshot store of a data folder (its sub-folder snapshots).
func Snapshots(dataDir string, logger hclog.Logger) (*raft.FileSnapshotStore, error) {
	if logger == nil {
		logger = hclog.NewNullLogger()
	}
	s, err := raft.NewFileSnapshotStoreWithLogger(dataDir, Retain, logger)
	if err != nil {
		return nil, fmt.Errorf("open the snapshots: %w", err)
	}
	return s, nil
}

// PickSnapshot is rule (b): the newest snapshot whose content matches its checksum; newer ones that do not are moved to
// snapshots-bad, because raft would take the index of a bad one for granted.
func PickSnapshot(dataDir string, store *raft.FileSnapshotStore) (best *raft.SnapshotMeta, moved []string, err error) {
	dir := filepath.Join(dataDir, "snapshots")
	if moved, err = moveUnlisted(dataDir, dir); err != nil {
		return nil, moved, err
	}
	for {
		list, err := store.List()
		if err != nil {
			return nil, moved, fmt.Errorf("list the snapshots: %w", err)
		}
		if len(list) == 0 {
			return nil, moved, nil
		}
		meta, content, err := store.Open(list[0].ID)
		if err == nil {
			return meta, moved, content.Close()
		}
		to, err := moveAway(dataDir, filepath.Join(dir, list[0].ID))
		if err != nil {
			return nil, moved, err
		}
		moved = append(moved, to)
	}
}

// moveUnlisted moves folders whose description cannot be read (raft does not list them) and removes half-written ones.
func moveUnlisted(dataDir, dir string) (moved []string, err error) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, fmt.Errorf("list the snapshots: %w", err)
	}
	for _, e := range entries {
		path := filepath.Join(dir, e.Name())
		if !e.IsDir() {
			continue
		}
		if strings.HasSuffix(e.Name(), ".tmp") {
			if err := os.RemoveAll(path); err != nil {
				return moved, err
			}
			continue
		}
		var meta raft.SnapshotMeta
		b, err := os.ReadFile(filepath.Join(path, "meta.json"))
		if err == nil {
			err = json.Unmarshal(b, &meta)
		}
		if err == nil && meta.ID == e.Name() {
			continue
		}
		to, err := moveAway(dataDir, path)
		if err != nil {
			return moved, err
		}
		moved = append(moved, to)
	}
	return moved, nil
}

func moveAway(dataDir, path string) (string, error) {
	bad := filepath.Join(dataDir, "snapshots-bad")
	if err := os.MkdirAll(bad, 0o700); err != nil {
		return "", err
	}
	to := filepath.Join(bad, filepath.Base(path))
	if err := os.RemoveAll(to); err != nil {
		return "", err
	}
	if err := os.Rename(path, to); err != nil {
		return "", fmt.Errorf("move the bad snapshot away: %w", err)
	}
	return to, nil
}
