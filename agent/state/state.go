// Package state is the agent's memory of one Cassandra node: its identity, the highest generation it has taken, the
// counter that shows copied folders, the freeze it is under, and reports that have not been acknowledged. README.md says why it is so.
//
// It keeps these promises: whatever was saved is there after kill -9 and after a power cut (each file is written beside,
// fsynced, renamed, and its folder fsynced); generations and the counter never go back; one process at a time uses a
// folder; keys are readable by their owner alone. It refuses a folder of a newer format.
package state

import (
	"crypto"
	"crypto/rand"
	"crypto/x509"
	"encoding/hex"
	"encoding/json"
	"errors"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"

	agentv1 "github.com/cassandra-security-manager/csm/protocol/agent/v1"
	"github.com/cassandra-security-manager/csm/shared/algorithm"
	"github.com/cassandra-security-manager/csm/shared/atomicfile"
	"github.com/cassandra-security-manager/csm/shared/certificate"
	"github.com/cassandra-security-manager/csm/shared/fault"
	"github.com/cassandra-security-manager/csm/shared/owner"
)

const format = 1

// memory is state.json.
type memory struct {
	Format  int    `json:"format"`
	Machine string `json:"machine"`
	// Counter counts the starts of an agent on this folder.
	Counter uint64 `json:"counter"`
	Highest uint64 `json:"highest_generation"`
	// Proved is the leaf of each store that the controllers hold for proven, in hex.
	Proved map[string]string `json:"proved,omitempty"`
	// Frozen is the newest freeze, as protobuf in JSON; Released is why the cluster was let go.
	Frozen   json.RawMessage `json:"frozen,omitempty"`
	Released string          `json:"released,omitempty"`
}

// Identity is who this agent is. The key never leaves the folder.
type Identity struct {
	Node        string
	UID         string
	Incarnation uint64
	TrustDomain string
	Key         crypto.Signer
	// Chain is leaf first; Bundle are the roots of the system CA.
	Chain, Bundle []*x509.Certificate
	// RenewAt was drawn once for this certificate.
	RenewAt time.Time
}

type identityFile struct {
	Format      int       `json:"format"`
	Node        string    `json:"node"`
	UID         string    `json:"uid"`
	Incarnation uint64    `json:"incarnation"`
	TrustDomain string    `json:"trust_domain"`
	Key         string    `json:"key"`
	Chain       string    `json:"chain"`
	Bundle      string    `json:"bundle"`
	RenewAt     time.Time `json:"renew_at"`
}

// Folder is an open state folder. It is safe for concurrent use.
type Folder struct {
	dir    string
	unlock func()
	copied bool

	mu       sync.Mutex
	m        memory
	frozen   *agentv1.Frozen
	identity *Identity
}

// Open locks the folder, makes it if need be, and counts this start. machine is the hash of the host's machine id, zero
// when the host has none.
//
// Root is refused in the folder of another user: the agent could not read what root leaves there.
func Open(dir string, machine [32]byte) (*Folder, error) {
	if err := owner.Check(dir); err != nil {
		return nil, err
	}
	for _, d := range []string{dir, filepath.Join(dir, "reports"), filepath.Join(dir, "install")} {
		if err := os.MkdirAll(d, 0o700); err != nil {
			return nil, unwritable(dir, err)
		}
	}
	unlock, err := lock(filepath.Join(dir, "lock"))
	if err != nil {
		return nil, fault.Wrap(err, fault.Conflict, "state-in-use", "the state folder %s is used by another agent", dir).
			Do("stop the other agent, or give each Cassandra a name and state folder of its own")
	}
	f := &Folder{dir: dir, unlock: unlock}
	if err := f.load(machine); err != nil {
		unlock()
		return nil, err
	}
	return f, nil
}

func unwritable(dir string, err error) error {
	return fault.Wrap(err, fault.Internal, "state-unwritable", "the state folder %s cannot be written", dir).
		Do("free space there and give it to the agent's user: install -d -o cassandra -m 0700 %s", dir)
}

func (f *Folder) load(machine [32]byte) error {
	f.m = memory{Format: format}
	if _, err := f.read("state.json", &f.m); err != nil {
		return err
	}
	if f.m.Format > format {
		return fault.New(fault.Refused, "state-newer", "the state folder %s was written by a newer agent (format %d)", f.dir, f.m.Format).
			Do("install that version again")
	}
	if len(f.m.Frozen) > 0 {
		f.frozen = &agentv1.Frozen{}
		if err := (protojson.UnmarshalOptions{DiscardUnknown: true}).Unmarshal(f.m.Frozen, f.frozen); err != nil {
			return unreadable("state.json", f.dir, err)
		}
	}
	if machine != ([32]byte{}) {
		here := hex.EncodeToString(machine[:])
		f.copied = f.m.Machine != "" && f.m.Machine != here
		if f.m.Machine == "" {
			f.m.Machine = here
		}
	}
	f.m.Counter++
	if err := f.save("state.json", f.m); err != nil {
		return err
	}
	var file identityFile
	there, err := f.read("identity.json", &file)
	if err != nil || !there {
		return err
	}
	f.identity, err = file.open()
	if err != nil {
		return fault.Wrap(err, fault.Internal, "identity-unreadable", "the identity in %s cannot be read", f.dir).
			Do("move identity.json away and join again with a new token")
	}
	return nil
}

func (i identityFile) open() (*Identity, error) {
	key, err := certificate.DecodeKeyPEM([]byte(i.Key))
	if err != nil {
		return nil, err
	}
	chain, err := certificate.DecodePEM([]byte(i.Chain))
	if err != nil {
		return nil, err
	}
	bundle, err := certificate.DecodePEM([]byte(i.Bundle))
	if err != nil {
		return nil, err
	}
	if !certificate.SameKey(key.Public(), chain[0].PublicKey) {
		return nil, errors.New("the key does not belong to the certificate")
	}
	return &Identity{Node: i.Node, UID: i.UID, Incarnation: i.Incarnation, TrustDomain: i.TrustDomain, Key: key, Chain: chain, Bundle: bundle, RenewAt: i.RenewAt}, nil
}

// Close lets go of the folder.
func (f *Folder) Close() { f.unlock() }

// InUse says whether an agent has the folder open.
func InUse(dir string) bool {
	path := filepath.Join(dir, "lock")
	if _, err := os.Stat(path); err != nil {
		return false // and none is made: root may be asking, whose file the agent could not open
	}
	unlock, err := lock(path)
	if err == nil {
		unlock()
	}
	return err != nil
}

// Dir is the folder.
func (f *Folder) Dir() string { return f.dir }

// InstallDir is where package install keeps journal and old generations.
func (f *Folder) InstallDir() string { return filepath.Join(f.dir, "install") }

// Counter is how often an agent has started on this folder, this time included.
func (f *Folder) Counter() uint64 {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.m.Counter
}

// Copied says that the folder was made on another machine: a cloned image. Nothing may be changed then.
func (f *Folder) Copied() bool { return f.copied }

// Highest is the highest generation ever taken.
func (f *Folder) Highest() uint64 {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.m.Highest
}

// Raise keeps a generation before anything is done by it. A lower one is refused as stale.
func (f *Folder) Raise(generation uint64) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	switch {
	case generation == f.m.Highest:
		return nil
	case generation < f.m.Highest:
		return fault.New(fault.Stale, "generation-went-back", "a controller offered generation %d, this node has seen %d", generation, f.m.Highest).
			Do("the controller lags behind or was restored from a backup: see `csm status`")
	}
	next := f.m
	next.Highest = generation
	if err := f.save("state.json", next); err != nil {
		return err
	}
	f.m = next
	return nil
}

// KeepStop keeps what stops effects on this node: the freeze in force, nil for none, and why the cluster was let go, empty
// when it was not. A later start honours both before a controller has said anything.
func (f *Folder) KeepStop(frozen *agentv1.Frozen, released string) error {
	if !frozen.GetActive() {
		frozen = nil
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if proto.Equal(frozen, f.frozen) && released == f.m.Released {
		return nil
	}
	next := f.m
	next.Frozen, next.Released = nil, released
	if frozen != nil {
		data, err := protojson.Marshal(frozen)
		if err != nil {
			return fault.Wrap(err, fault.Internal, "freeze", "the freeze cannot be encoded")
		}
		next.Frozen = data
	}
	if err := f.save("state.json", next); err != nil {
		return err
	}
	f.m, f.frozen = next, proto.CloneOf(frozen)
	return nil
}

// Stop is what KeepStop kept.
func (f *Folder) Stop() (frozen *agentv1.Frozen, released string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return proto.CloneOf(f.frozen), f.m.Released
}

// Acknowledge keeps that the controllers hold a store's leaf for proven.
func (f *Folder) Acknowledge(store string, leaf []byte) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	next := f.m
	next.Proved = maps.Clone(f.m.Proved)
	if next.Proved == nil {
		next.Proved = map[string]string{}
	}
	next.Proved[store] = hex.EncodeToString(leaf)
	if err := f.save("state.json", next); err != nil {
		return err
	}
	f.m = next
	return nil
}

// Acknowledged is the leaf of a store that the controllers hold for proven; empty when none is.
func (f *Folder) Acknowledged(store string) []byte {
	f.mu.Lock()
	defer f.mu.Unlock()
	b, _ := hex.DecodeString(f.m.Proved[store])
	return b
}

// Identity is nil before joining.
func (f *Folder) Identity() *Identity {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.identity
}

// SaveIdentity replaces the identity and drops the key that was kept for joining or renewing.
func (f *Folder) SaveIdentity(i *Identity) error {
	if err := f.saveIdentity(i); err != nil {
		return err
	}
	if err := os.Remove(filepath.Join(f.dir, "next.key")); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return unwritable(f.dir, err)
	}
	return nil
}

func (f *Folder) saveIdentity(i *Identity) error {
	key, err := certificate.EncodeKeyPEM(i.Key)
	if err != nil {
		return err
	}
	defer clear(key)
	file := identityFile{Format: format, Node: i.Node, UID: i.UID, Incarnation: i.Incarnation, TrustDomain: i.TrustDomain, RenewAt: i.RenewAt,
		Key: string(key), Chain: string(certificate.EncodePEM(i.Chain...)), Bundle: string(certificate.EncodePEM(i.Bundle...))}
	if err := f.save("identity.json", file); err != nil {
		return err
	}
	f.mu.Lock()
	f.identity = i
	f.mu.Unlock()
	return nil
}

// SaveBundle replaces the roots that the agent trusts, and nothing else of its identity.
func (f *Folder) SaveBundle(roots []*x509.Certificate) error {
	f.mu.Lock()
	next := *f.identity
	f.mu.Unlock()
	next.Bundle = roots
	return f.saveIdentity(&next)
}

// NextKey is the key of the identity that is asked for. It is kept until SaveIdentity, so that the same token comes again
// with the same key when an answer was lost.
func (f *Folder) NextKey() (crypto.Signer, error) {
	path := filepath.Join(f.dir, "next.key")
	data, err := os.ReadFile(path)
	if err == nil {
		if k, err := certificate.DecodeKeyPEM(data); err == nil {
			return k, nil
		}
	}
	k, err := algorithm.Generate(algorithm.Default, rand.Reader)
	if err != nil {
		return nil, err
	}
	data, err = certificate.EncodeKeyPEM(k)
	if err != nil {
		return nil, err
	}
	defer clear(data)
	if err := atomicfile.Replace(path, data, 0o600); err != nil {
		return nil, unwritable(f.dir, err)
	}
	return k, nil
}

// KeepReport keeps the outcome of a move until it is acknowledged.
func (f *Folder) KeepReport(r *agentv1.ReportMoveRequest) error {
	data, err := proto.Marshal(r)
	if err != nil {
		return fault.Wrap(err, fault.Internal, "report", "the report of a move cannot be encoded")
	}
	if err := atomicfile.Replace(f.report(r.Claim), data, 0o600); err != nil {
		return unwritable(f.dir, err)
	}
	return nil
}

func (f *Folder) report(claim string) string {
	return filepath.Join(f.dir, "reports", hex.EncodeToString([]byte(claim))+".pb")
}

// DropReport forgets an acknowledged report.
func (f *Folder) DropReport(claim string) error {
	if err := os.Remove(f.report(claim)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return unwritable(f.dir, err)
	}
	return atomicfile.SyncFolder(filepath.Join(f.dir, "reports"))
}

// Reports are those not yet acknowledged, oldest first. One that cannot be read is dropped: the store's facts tell the rest.
func (f *Folder) Reports() []*agentv1.ReportMoveRequest {
	entries, _ := os.ReadDir(filepath.Join(f.dir, "reports"))
	type dated struct {
		r  *agentv1.ReportMoveRequest
		at time.Time
	}
	var all []dated
	for _, e := range entries {
		path := filepath.Join(f.dir, "reports", e.Name())
		if !strings.HasSuffix(e.Name(), ".pb") {
			continue
		}
		r := &agentv1.ReportMoveRequest{}
		data, err := os.ReadFile(path)
		if err == nil {
			err = proto.Unmarshal(data, r)
		}
		if err != nil || r.Claim == "" {
			_ = os.Remove(path)
			continue
		}
		d := dated{r: r}
		if fi, err := e.Info(); err == nil {
			d.at = fi.ModTime()
		}
		all = append(all, d)
	}
	slices.SortStableFunc(all, func(a, b dated) int { return a.at.Compare(b.at) })
	out := make([]*agentv1.ReportMoveRequest, len(all))
	for i, d := range all {
		out[i] = d.r
	}
	return out
}

func (f *Folder) read(name string, v any) (there bool, err error) {
	data, err := os.ReadFile(filepath.Join(f.dir, name))
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	if err == nil {
		err = json.Unmarshal(data, v)
	}
	if err != nil {
		return false, unreadable(name, f.dir, err)
	}
	return true, nil
}

func unreadable(name, dir string, err error) error {
	return fault.Wrap(err, fault.Internal, "state-unreadable", "%s in the state folder %s cannot be read", name, dir).
		Do("check the disk; if the file is lost, move the folder away and join again with a new token")
}

func (f *Folder) save(name string, v any) error {
	data, err := json.MarshalIndent(v, "", "  ")
	if err == nil {
		err = atomicfile.Replace(filepath.Join(f.dir, name), data, 0o600)
		clear(data)
	}
	if err != nil {
		return unwritable(f.dir, err)
	}
	return nil
}
