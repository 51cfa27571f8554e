package backup_test

import (
	"context"
	"log/slog"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/cassandra-security-manager/csm/controller/backup"
	"github.com/cassandra-security-manager/csm/controller/keyring"
	"github.com/cassandra-security-manager/csm/shared/fault"
)

// fullDisk mounts a disk, and leaves a page of room when fill is called.
func (f *fixture) fullDisk() (fill func()) {
	f.t.Helper()
	if testing.Short() {
		f.t.Skip("needs root, and is left out of -short runs")
	}
	if os.Geteuid() != 0 {
		f.t.Fatal("this test mounts a disk and needs root: run it with sudo, or leave it out with -short")
	}
	if err := unix.Mount("csm", f.folder, "tmpfs", 0, "size=16m"); err != nil {
		f.t.Fatalf("mount a tmpfs: %v; a container needs CAP_SYS_ADMIN for it", err)
	}
	f.t.Cleanup(func() { unix.Unmount(f.folder, unix.MNT_DETACH) })
	return func() {
		f.t.Helper()
		file, err := os.Create(filepath.Join(f.folder, "filler"))
		f.must(err)
		defer file.Close()
		block := make([]byte, 4096)
		for err == nil {
			_, err = file.Write(block)
		}
		st, err := file.Stat()
		f.must(err)
		f.must(file.Truncate(st.Size() - 2*int64(len(block)))) // the backup begins, and does not fit
	}
}

// TestAFullDiskLeavesEarlierBackupsAsTheyWere: by hand and on schedule, with a real full disk.
func TestAFullDiskLeavesEarlierBackupsAsTheyWere(t *testing.T) {
	f := newFixture(t)
	fill := f.fullDisk()
	scratch := t.TempDir()
	ctx, stop := context.WithTimeout(t.Context(), time.Minute)
	defer stop()
	b := backup.New(f.log.Store, f.log, f.kek, func(context.Context) ([]keyring.Recipient, error) { return f.holders, nil }, func() bool { return true },
		f.log.Clock, slog.New(slog.DiscardHandler), backup.Options{Folder: f.folder, Every: time.Hour, Keep: 3, Scratch: scratch, Controller: "csm1", SystemID: "testcluster00000", Version: "v1", Migrations: f.migrations})
	ended := make(chan error, 1)
	run, halt := context.WithCancel(ctx)
	go func() { ended <- b.Run(run) }()
	t.Cleanup(func() { halt(); <-ended })

	first := f.settled(ctx, b, 1)
	if first.State != backup.Ready || first.Verified.IsZero() || !first.Scheduled {
		t.Fatalf("the first: %+v", first)
	}
	was, err := os.ReadFile(first.Location)
	f.must(err)
	verified, err := b.LastVerified(ctx)
	f.must(err)
	fill()

	f.log.Clock.Advance(2 * time.Hour) // the schedule wants one
	f.full(f.settled(ctx, b, 2), true)
	hand := f.create(ctx, b)
	made := f.settled(ctx, b, 3)
	if made.ID != hand.ID {
		t.Errorf("%+v is not %+v", made, hand)
	}
	f.full(made, false)

	if now, err := os.ReadFile(first.Location); err != nil || string(now) != string(was) {
		t.Errorf("the earlier backup was touched: %v", err)
	}
	f.must(f.verify(first.Location, backup.Key(f.recovery)))
	if at, err := b.LastVerified(ctx); err != nil || !at.Equal(verified) {
		t.Errorf("what the alert looks at went from %s to %s, %v", verified, at, err)
	}
	entries, err := os.ReadDir(f.folder)
	f.must(err)
	if len(entries) != 2 {
		t.Errorf("beside the filler and the first backup there is %v", entries)
	}
	f.must(os.Remove(filepath.Join(f.folder, "filler")))
	f.create(ctx, b)
	if k := f.settled(ctx, b, 4); k.State != backup.Ready || k.Verified.IsZero() {
		t.Errorf("with room again: %+v", k)
	}
}

// create begins one by hand, a minute later, as soon as the one before is done with.
func (f *fixture) create(ctx context.Context, b *backup.Backups) backup.Backup {
	f.t.Helper()
	f.log.Clock.Advance(time.Minute)
	for {
		k, err := b.Create(ctx, "ann", "by hand")
		if !fault.HasReason(err, "backup-busy") || ctx.Err() != nil {
			f.must(err)
			return k
		}
		runtime.Gosched()
	}
}

// full says of a backup that it failed for want of room.
func (f *fixture) full(k backup.Backup, scheduled bool) {
	f.t.Helper()
	if k.State != backup.Failed || k.Scheduled != scheduled || !strings.Contains(k.Problem, "does not fit into "+f.folder) || !strings.Contains(k.Problem, "free space there") {
		f.t.Errorf("on the full disk: %+v", k)
	}
}

// settled waits until there are n backups, none of which is at work, and gives the newest.
func (f *fixture) settled(ctx context.Context, b *backup.Backups, n int) backup.Backup {
	f.t.Helper()
	watch := f.log.Store.Watch("")
	defer watch.Close()
	for {
		all, err := b.List(ctx)
		f.must(err)
		var newest backup.Backup
		busy := len(all) < n
		for _, k := range all {
			busy = busy || k.State == backup.Running || k.State == backup.Ready && k.Verified.IsZero()
			if k.Created.After(newest.Created) {
				newest = k
			}
		}
		if !busy {
			return newest
		}
		select {
		case <-watch.C():
		case <-time.After(20 * time.Millisecond): // a file that is there and not yet told
		case <-ctx.Done():
			f.t.Fatalf("%d backups, %d are wanted: %+v", len(all), n, all)
		}
	}
}
