package install_test

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/cassandra-security-manager/csm/agent/install"
	"github.com/cassandra-security-manager/csm/shared/keystore"
)

// asRoot fails a test that mounts a disk or gives files away when it may not: what it proves is proved nowhere else.
func asRoot(t *testing.T) {
	t.Helper()
	if testing.Short() {
		t.Skip("needs root, and is left out of -short runs")
	}
	if os.Geteuid() != 0 {
		t.Fatal("this test needs root: run it with sudo, or leave it out with -short")
	}
}

// tmpfs mounts a disk of a megabyte.
func tmpfs(t *testing.T) string {
	t.Helper()
	asRoot(t)
	dir := t.TempDir()
	if err := unix.Mount("csm", dir, "tmpfs", 0, "size=1m"); err != nil {
		t.Fatalf("mount a tmpfs: %v; a container needs CAP_SYS_ADMIN for it", err)
	}
	t.Cleanup(func() { unix.Unmount(dir, unix.MNT_DETACH) })
	return dir
}

func fill(t *testing.T, dir string) {
	t.Helper()
	f, err := os.Create(filepath.Join(dir, "filler"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	block := make([]byte, 4096)
	for {
		if _, err := f.Write(block); err != nil {
			return
		}
	}
}

// onRealDisk runs an install whose disk breaks at a step, heals it, recovers, and demands old or new.
func onRealDisk(t *testing.T, name string, state bool, breakIt, heal func(*testing.T, string)) {
	for _, s := range append(install.Steps(), install.RollbackSteps()...) {
		t.Run(fmt.Sprintf("%s-%s-state=%v", name, s, state), func(t *testing.T) {
			disk := tmpfs(t)
			stores, stateDir := filepath.Join(disk, "tls"), t.TempDir()
			if state {
				stateDir = filepath.Join(disk, "state")
			}
			os.MkdirAll(stores, 0o755)
			w := worldIn(t, keystore.PEM, stores, stateDir)
			w.firstInstall()
			if _, back := index(install.RollbackSteps(), s); back {
				w.node.IgnoreReloads(true)
			}
			old, p, broken := w.leafOnDisk(), growing(w), false
			o, err := w.installer(func(o *install.Options) {
				o.Before = func(op install.Op) error {
					if op.Step == s && op.Do == "begin" && !broken {
						broken = true
						breakIt(t, disk)
					}
					return nil
				}
			}).Run(context.Background(), p)
			if now := w.leafOnDisk(); now != old && now != leafSum(p.Chain) {
				t.Fatalf("broken disk: neither old nor new, %v %v", o.Result, err)
			}
			if broken {
				heal(t, disk)
			}
			w.node.IgnoreReloads(false)
			w.installer().Recover(context.Background(), w.site())
			now := w.leafOnDisk()
			if now != old && now != leafSum(p.Chain) {
				t.Fatal("healed disk: neither old nor new")
			}
			w.serves(now)
			w.clean()
		})
	}
}

func index(steps []install.Step, s install.Step) (int, bool) {
	for n, x := range steps {
		if x == s {
			return n, true
		}
	}
	return 0, false
}

func TestAFullDiskAtEachStepLeavesOldOrNew(t *testing.T) {
	empty := func(t *testing.T, dir string) { os.Remove(filepath.Join(dir, "filler")) }
	onRealDisk(t, "full", true, fill, empty)
}

func TestAReadOnlyFolderAtEachStepLeavesOldOrNew(t *testing.T) {
	remount := func(flags uintptr) func(*testing.T, string) {
		return func(t *testing.T, dir string) {
			if err := unix.Mount("", dir, "", unix.MS_REMOUNT|flags, ""); err != nil {
				t.Fatal(err)
			}
		}
	}
	onRealDisk(t, "read-only", false, remount(unix.MS_RDONLY), remount(0))
}

func TestOwnerModeAndAttributesAreKept(t *testing.T) {
	asRoot(t)
	w := running(t, keystore.PEM)
	if err := os.Chown(w.store.KeystorePath, 12345, 54321); err != nil {
		t.Fatal(err)
	}
	os.Chmod(w.store.KeystorePath, 0o640)
	attr := unix.Setxattr(w.store.KeystorePath, "user.csm", []byte("label"), 0) == nil
	if _, err := w.installer().Run(context.Background(), w.plan(2)); err != nil {
		t.Fatal(err)
	}
	var st unix.Stat_t
	unix.Stat(w.store.KeystorePath, &st)
	if st.Uid != 12345 || st.Gid != 54321 || st.Mode&0o777 != 0o640 {
		t.Errorf("owner %d:%d mode %o", st.Uid, st.Gid, st.Mode)
	}
	buf := make([]byte, 64)
	if n, err := unix.Getxattr(w.store.KeystorePath, "user.csm", buf); attr && (err != nil || string(buf[:n]) != "label") {
		t.Errorf("attribute lost: %v", err)
	}
}
