package wal

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/hashicorp/raft-wal/types"
	"go.etcd.io/bbolt"
	bolterrors "go.etcd.io/bbolt/errors"

	"github.com/cassandra-security-manager/csm/shared/atomicfile"
	"github.com/cassandra-security-manager/csm/shared/fault"
)

const (
	metaFile    = "meta.db"
	lockTimeout = 3 * time.Second
)

var (
	metaBucket   = []byte("segments")
	stableBucket = []byte("stable")
	metaKey      = []byte("state")
)

// meta is raft-wal's meta store over bbolt: the list of segments, and raft's term and vote. Opened before the WAL, with a
// bounded wait for the lock (raft-wal's own waits for ever), and closed by us (raft-wal never closes it).
type meta struct{ db *bbolt.DB }

func openMeta(dir string) (*meta, error) {
	path := filepath.Join(dir, metaFile)
	if _, err := os.Stat(path); os.IsNotExist(err) {
		if err := createMeta(dir, path); err != nil {
			return nil, fmt.Errorf("make %s: %w", path, err)
		}
	}
	db, err := openBolt(path)
	if err != nil {
		return nil, err
	}
	return &meta{db}, nil
}

func openBolt(path string) (*bbolt.DB, error) {
	db, err := bbolt.Open(path, 0o600, &bbolt.Options{Timeout: lockTimeout})
	if errors.Is(err, bolterrors.ErrTimeout) {
		return nil, fault.New(fault.Conflict, "data-folder-in-use", "another process holds %s", path).Do("stop the other csm-controller of this data folder")
	}
	if f := blocked(err, filepath.Dir(path)); f != nil {
		return nil, f
	}
	if err != nil {
		return nil, fault.Wrap(err, fault.Internal, "raft-meta-broken", "%s cannot be read", path).
			Do("this controller forgot its votes and must not take part: remove it, wipe its data folder and let it join again under a new id")
	}
	return db, nil
}

// createMeta makes the file whole under another name: a crash leaves no half-made one.
func createMeta(dir, path string) error {
	tmp := path + ".tmp"
	if err := os.RemoveAll(tmp); err != nil {
		return err
	}
	db, err := openBolt(tmp)
	if err != nil {
		return err
	}
	err = db.Update(func(tx *bbolt.Tx) error {
		if _, err := tx.CreateBucket(metaBucket); err != nil {
			return err
		}
		_, err := tx.CreateBucket(stableBucket)
		return err
	})
	if closeErr := db.Close(); err == nil {
		err = closeErr
	}
	if err != nil {
		return err
	}
	if err := os.Rename(tmp, path); err != nil {
		return err
	}
	return atomicfile.SyncFolder(dir)
}

// Load implements types.MetaStore.
func (m *meta) Load(string) (types.PersistentState, error) {
	var st types.PersistentState
	err := m.db.View(func(tx *bbolt.Tx) error {
		raw := tx.Bucket(metaBucket).Get(metaKey)
		if raw == nil {
			return nil
		}
		if err := json.Unmarshal(raw, &st); err != nil {
			return fmt.Errorf("%w: the list of segments: %v", types.ErrCorrupt, err)
		}
		return nil
	})
	return st, err
}

// CommitState writes our codec's id: raft-wal 0.4.0 puts its own into each new segment (wal.go, newSegment) and would then
// refuse to open the log a second time.
func (m *meta) CommitState(st types.PersistentState) error {
	st.Segments = slices.Clone(st.Segments)
	for i := range st.Segments {
		st.Segments[i].Codec = CodecID
	}
	raw, err := json.Marshal(st)
	if err != nil {
		return err
	}
	return m.db.Update(func(tx *bbolt.Tx) error { return tx.Bucket(metaBucket).Put(metaKey, raw) })
}

// GetStable implements types.MetaStore.
func (m *meta) GetStable(key []byte) ([]byte, error) {
	var out []byte
	err := m.db.View(func(tx *bbolt.Tx) error {
		out = slices.Clone(tx.Bucket(stableBucket).Get(key))
		return nil
	})
	return out, err
}

// SetStable implements types.MetaStore.
func (m *meta) SetStable(key, value []byte) error {
	return m.db.Update(func(tx *bbolt.Tx) error {
		if value == nil {
			return tx.Bucket(stableBucket).Delete(key)
		}
		return tx.Bucket(stableBucket).Put(key, value)
	})
}

func (m *meta) Close() error { return m.db.Close() }
