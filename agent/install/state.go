package install

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"time"

	agentv1 "github.com/cassandra-security-manager/csm/protocol/agent/v1"
	"github.com/cassandra-security-manager/csm/shared/fault"
)

// format of record and journal. A newer one is refused: an older agent must not act on what it does not understand.
const format = 1

// snapshot is one pair of files. Hashes are hex SHA-256, empty where a file is absent.
type snapshot struct {
	// Dir holds the copies, in the state folder under generations/; empty when both files are absent.
	Dir            string `json:"dir,omitempty"`
	Generation     uint64 `json:"generation"`
	Keystore       string `json:"keystore,omitempty"`
	Truststore     string `json:"truststore,omitempty"`
	Leaf           string `json:"leaf,omitempty"`
	KeystoreMeta   meta   `json:"keystore_meta"`
	TruststoreMeta meta   `json:"truststore_meta"`
}

func (s snapshot) same(o snapshot) bool {
	return s.Keystore == o.Keystore && s.Truststore == o.Truststore
}

func (s snapshot) absent() bool { return s.Keystore == "" }

// record is what CSM last wrote to a store and knows of it.
type record struct {
	Format     int                  `json:"format"`
	Claim      string               `json:"claim,omitempty"`
	Generation uint64               `json:"generation"`
	State      agentv1.InstallState `json:"state"`
	Detail     string               `json:"detail,omitempty"`
	// History holds the pair in place first, then older ones.
	History []snapshot `json:"history"`
	// Ours are the anchors that CSM has ever written, by hex SHA-256: all others in the truststore are foreign and stay.
	Ours []string `json:"ours,omitempty"`
	// Installed is when the files were last written; Files how many were.
	Installed time.Time `json:"installed"`
	Files     int       `json:"files"`
	// Proved is the last proof on all ports.
	Proved time.Time `json:"proved"`
	// Foreign are the times at which somebody else's change was seen, within ContestWindow.
	Foreign   []time.Time `json:"foreign,omitempty"`
	Contested bool        `json:"contested,omitempty"`
	// Restoring is the foreign pair that is being replaced: a restore or a move that was interrupted is not a second foreign change.
	Restoring *snapshot `json:"restoring,omitempty"`
	// Theirs says that the pair in place is somebody else's: adopted, or put back after a first install failed. It is
	// never restored over a newer one of theirs.
	Theirs bool `json:"theirs,omitempty"`
	// Last is how the last move ended, for a report that was lost with the process.
	Last *Outcome `json:"last,omitempty"`
}

func (r *record) current() snapshot {
	if r == nil || len(r.History) == 0 {
		return snapshot{}
	}
	return r.History[0]
}

// journal is an open transaction. It is complete before the first rename.
type journal struct {
	Format     int      `json:"format"`
	Claim      string   `json:"claim,omitempty"`
	Generation uint64   `json:"generation"`
	Old        snapshot `json:"old"`
	New        snapshot `json:"new"`
	// Served is the leaf seen in the baseline, hex; empty when nothing was.
	Served string `json:"served,omitempty"`
	// Ours as the record will have it after the commit.
	Ours []string `json:"ours,omitempty"`
	// Back is why a rollback has begun; a transaction that turned never goes forward again.
	Back string `json:"back,omitempty"`
	// NoWayBack: the old pair was known to be broken.
	NoWayBack bool `json:"no_way_back,omitempty"`
	// TrustOnly: the leaf stays, so that the served leaf tells nothing of the reload.
	TrustOnly bool `json:"trust_only,omitempty"`
	// GiveBack: a leaf of another CA is put back, so that the files are theirs again.
	GiveBack bool      `json:"give_back,omitempty"`
	Begun    time.Time `json:"begun"`
}

// folder is one store's part of the state folder.
type folder struct {
	dir string
	d   disk
}

func (f folder) path(name string) string { return filepath.Join(f.dir, name) }

func load[T any](path string, versionOf func(*T) int) (*T, error) {
	data, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	v := new(T)
	if err == nil {
		err = json.Unmarshal(data, v)
	}
	if err == nil && versionOf(v) != format {
		err = fmt.Errorf("format %d, this agent knows %d", versionOf(v), format)
	}
	if err != nil {
		return nil, fault.Wrap(err, fault.Internal, "state-unreadable", "%s", path).
			Do("run the agent version that wrote it, or move the file away: then the store counts as foreign")
	}
	return v, nil
}

func (f folder) record() (*record, error) {
	return load(f.path("record.json"), func(r *record) int { return r.Format })
}

func (f folder) journal() (*journal, error) {
	return load(f.path("journal.json"), func(j *journal) int { return j.Format })
}

func (f folder) save(name string, v any) error {
	data, err := json.MarshalIndent(v, "", " ")
	if err != nil {
		return err
	}
	return f.d.replace(f.path(name), data)
}

func (f folder) saveRecord(r *record) error {
	r.Format = format
	return f.save("record.json", r)
}

func (f folder) saveJournal(j *journal) error {
	j.Format = format
	return f.save("journal.json", j)
}

func (f folder) closeJournal() error {
	if err := f.d.remove(f.path("journal.json")); err != nil {
		return err
	}
	if _, err := os.Stat(f.dir); err != nil {
		return nil
	}
	return f.d.syncFolder(f.dir)
}

// keep copies a pair into the state folder under its own content's name, so that keeping it twice costs nothing.
func (f folder) keep(s *snapshot, keystore, truststore []byte) error {
	s.Dir = hash([]byte(s.Keystore + "/" + s.Truststore))[:24]
	dir := f.path(filepath.Join("generations", s.Dir))
	if err := f.d.mkdir(dir); err != nil {
		return err
	}
	for _, c := range []struct {
		name string
		data []byte
	}{{"keystore", keystore}, {"truststore", truststore}} {
		if have, err := os.ReadFile(filepath.Join(dir, c.name)); c.data == nil || err == nil && hash(have) == hash(c.data) {
			continue
		}
		if err := f.d.replace(filepath.Join(dir, c.name), c.data); err != nil {
			return err
		}
	}
	return f.d.syncFolder(f.path("generations"))
}

// kept reads a copy back and checks it.
func (f folder) kept(s snapshot, name, sum string) ([]byte, error) {
	path := f.path(filepath.Join("generations", s.Dir, name))
	data, err := os.ReadFile(path)
	if err == nil && hash(data) != sum {
		err = errors.New("its content has changed")
	}
	if err != nil {
		return nil, fault.Wrap(err, fault.Internal, "copy-lost", "the kept copy %s cannot be used", path).Do("renew the store: csm node renew")
	}
	return data, nil
}

// prune removes the copies that no record names.
func (f folder) prune(r *record) error {
	entries, err := os.ReadDir(f.path("generations"))
	if err != nil {
		return nil
	}
	for _, e := range entries {
		if !slices.ContainsFunc(r.History, func(s snapshot) bool { return s.Dir == e.Name() }) {
			if err := f.d.removeAll(f.path(filepath.Join("generations", e.Name()))); err != nil {
				return err
			}
		}
	}
	return nil
}

// succeed puts a pair first in the history and lets the oldest go, but only where proved: a key is never deleted before its
// successor is proved.
func (r *record) succeed(s snapshot, proved bool) {
	h := slices.DeleteFunc(slices.Clone(r.History), func(o snapshot) bool { return o.same(s) || o.absent() })
	r.History = append([]snapshot{s}, h...)
	if proved && len(r.History) > KeepGenerations+1 {
		r.History = r.History[:KeepGenerations+1]
	}
}
