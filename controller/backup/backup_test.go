package backup_test

import (
	"bytes"
	"context"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"filippo.io/age"

	"github.com/cassandra-security-manager/csm/controller/backup"
	"github.com/cassandra-security-manager/csm/controller/keyring"
	"github.com/cassandra-security-manager/csm/controller/state"
	"github.com/cassandra-security-manager/csm/controller/state/statetest"
	"github.com/cassandra-security-manager/csm/shared/fault"
)

type fixture struct {
	t          *testing.T
	log        *statetest.Log
	folder     string
	kek        *keyring.KEK
	recovery   *keyring.KEK
	holders    []keyring.Recipient
	migrations []int
}

func newFixture(t *testing.T) *fixture {
	t.Helper()
	f := &fixture{t: t, log: statetest.New(t, backup.Module()), folder: t.TempDir()}
	var err error
	f.kek, err = keyring.CreateKEK(t.TempDir(), keyring.FileSealer{Path: filepath.Join(t.TempDir(), "master")})
	f.must(err)
	public, share, err := keyring.NewRecovery()
	f.must(err)
	f.recovery, err = keyring.OpenRecovery(share)
	f.must(err)
	f.holders = []keyring.Recipient{{Name: "csm1", Public: f.kek.Public()}, {Name: keyring.RecoveryRecipient, Public: public}}
	f.migrations, err = state.Numbers([]state.Module{backup.Module()})
	f.must(err)
	return f
}

func (f *fixture) must(err error) {
	f.t.Helper()
	if err != nil {
		f.t.Fatal(err)
	}
}

func (f *fixture) order() backup.Order {
	return backup.Order{ID: "20260301t120000z-7", Folder: f.folder, Controller: "csm1", Version: "v1", Migrations: f.migrations, Holders: f.holders, Now: f.log.Clock.Now()}
}

func (f *fixture) write(o backup.Order) backup.Written {
	f.t.Helper()
	p, err := f.log.Store.Pin()
	f.must(err)
	defer p.Release()
	w, err := backup.Write(p, o)
	f.must(err)
	return w
}

func (f *fixture) verify(path string, key age.Identity) error {
	_, err := backup.Verify(context.Background(), path, f.t.TempDir(), f.migrations, key)
	return err
}

func TestABackupOpensForEachHolderAndForNobodyElse(t *testing.T) {
	f := newFixture(t)
	further, err := age.GenerateX25519Identity()
	f.must(err)
	o := f.order()
	o.Further, err = backup.ParseRecipients([]string{further.Recipient().String()})
	f.must(err)
	w := f.write(o)
	for name, key := range map[string]age.Identity{"controller": backup.Key(f.kek), "recovery": backup.Key(f.recovery), "further": further} {
		if err := f.verify(w.Path, key); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
	_, other, err := keyring.NewRecovery()
	f.must(err)
	kek, err := keyring.OpenRecovery(other)
	f.must(err)
	if err := f.verify(w.Path, backup.Key(kek)); !fault.HasReason(err, "wrong-key") || !strings.Contains(fault.From(err).Remedy, "csm1, recovery, age1") {
		t.Errorf("another system's share: %v", err)
	}
	b, err := os.ReadFile(w.Path)
	f.must(err)
	if bytes.Contains(b, []byte("SQLite format 3")) {
		t.Error("the state stands in the clear")
	}
}

func TestAPostQuantumRecipientBesideClassicalKeysIsRefused(t *testing.T) {
	if _, err := backup.ParseRecipients([]string{"age1pq1whatever"}); !fault.HasReason(err, "bad-recipient") {
		t.Fatal(err)
	}
}

// TestEveryDamageIsFound cuts the file at, and changes, many places.
func TestEveryDamageIsFound(t *testing.T) {
	f := newFixture(t)
	w := f.write(f.order())
	whole, err := os.ReadFile(w.Path)
	f.must(err)
	if int64(len(whole)) != w.Size {
		t.Fatalf("%d bytes, %d told", len(whole), w.Size)
	}
	path := filepath.Join(t.TempDir(), "damaged.csmbackup")
	refused := func(what string, b []byte) {
		t.Helper()
		f.must(os.WriteFile(path, b, 0o600))
		err := f.verify(path, backup.Key(f.kek))
		if !fault.HasReason(err, "backup-broken") && !fault.HasReason(err, "backup-foreign") {
			t.Errorf("%s: %v", what, err)
		}
		if _, _, err := backup.Inspect(path, true); err == nil {
			t.Errorf("%s: inspect found nothing", what)
		}
	}
	refused("empty", nil)
	refused("foreign", bytes.Repeat([]byte("PK\x03\x04"), 1000))
	refused("longer", append(bytes.Clone(whole), 0))
	for i := 1; i < 12; i++ {
		at := len(whole) * i / 12
		refused("cut", whole[:at])
		b := bytes.Clone(whole)
		b[at] ^= 1
		refused("flipped", b)
	}
}

func TestAChangedDescriptionIsFoundEvenWithANewChecksum(t *testing.T) {
	f := newFixture(t)
	w := f.write(f.order())
	b, err := os.ReadFile(w.Path)
	f.must(err)
	b = bytes.Replace(b, []byte(`"version":"v1"`), []byte(`"version":"v0"`), 1)
	b = backup.Resum(b)
	f.must(os.WriteFile(w.Path, b, 0o600))
	if _, _, err := backup.Inspect(w.Path, true); err != nil {
		t.Fatal(err)
	}
	if err := f.verify(w.Path, backup.Key(f.kek)); !fault.HasReason(err, "backup-broken") {
		t.Errorf("%v", err)
	}
}

func TestABackupOfANewerProgramIsRefusedBeforeAnythingIsWritten(t *testing.T) {
	f := newFixture(t)
	o := f.order()
	o.Migrations, o.Version = append(o.Migrations, 9999), "v9"
	w := f.write(o)
	r, err := backup.Open(w.Path, backup.Key(f.kek))
	f.must(err)
	defer r.Close()
	dir := t.TempDir()
	_, err = r.Restore(context.Background(), dir, f.migrations)
	if !fault.HasReason(err, "backup-newer") || !strings.Contains(fault.From(err).Remedy, "v9") {
		t.Fatalf("%v", err)
	}
	if left, _ := os.ReadDir(dir); len(left) > 0 {
		t.Errorf("it left %v", left)
	}
}

func TestABackupOfAnOlderProgramIsRefused(t *testing.T) {
	f := newFixture(t)
	r, err := backup.Open(f.write(f.order()).Path, backup.Key(f.kek))
	f.must(err)
	defer r.Close()
	if _, err := r.Restore(context.Background(), t.TempDir(), append(f.migrations, 1<<20)); !fault.HasReason(err, "backup-older") {
		t.Errorf("%v", err)
	}
}

// failing is a state whose copy stops in the middle.
type failing struct {
	backup.Source
	after int
	err   error
}

// Write writes a little and fails.
func (f failing) Write(w io.Writer) (state.SnapshotInfo, error) {
	if _, err := w.Write(make([]byte, f.after)); err != nil {
		return state.SnapshotInfo{}, err
	}
	return state.SnapshotInfo{}, f.err
}

func TestAFailedBackupLeavesNothingAndEarlierOnesAsTheyWere(t *testing.T) {
	f := newFixture(t)
	first := f.write(f.order())
	p, err := f.log.Store.Pin()
	f.must(err)
	defer p.Release()
	o := f.order()
	o.ID = "20260301t130000z-8"
	if _, err := backup.Write(failing{p, 4096, os.ErrInvalid}, o); err == nil {
		t.Fatal("it was written")
	}
	entries, err := os.ReadDir(f.folder)
	f.must(err)
	if len(entries) != 1 {
		t.Errorf("the folder holds %v", entries)
	}
	f.must(f.verify(first.Path, backup.Key(f.recovery)))
	if _, err := backup.Write(p, f.order()); !fault.HasReason(err, "backup-exists") {
		t.Errorf("again under the same name: %v", err)
	}
}

func TestFilesAreThoseOfThisSystemByTime(t *testing.T) {
	f := newFixture(t)
	o := f.order()
	f.write(o)
	o.ID, o.Now = "20260301t110000z-5", o.Now.Add(-time.Hour)
	f.write(o)
	f.must(os.WriteFile(filepath.Join(f.folder, "notes.csmbackup"), []byte("hello"), 0o600))
	files, err := backup.Files(f.folder, "testcluster00000")
	f.must(err)
	if len(files) != 2 || files[0].Header.ID != "20260301t110000z-5" {
		t.Errorf("%+v", files)
	}
	if other, _ := backup.Files(f.folder, "another"); len(other) != 0 {
		t.Errorf("of another system: %+v", other)
	}
}
