//go:build linux

package runbooks

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/cassandra-security-manager/csm/test/clock"
	"github.com/cassandra-security-manager/csm/test/plane"
)

// mount puts a disk of so many megabytes at a folder.
func mount(t *testing.T, dir string, megabytes int) {
	t.Helper()
	asRoot(t)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mount("csm", dir, "tmpfs", 0, fmt.Sprintf("size=%dm,mode=0700", megabytes)); err != nil {
		t.Fatalf("mount a tmpfs: %v; a container needs CAP_SYS_ADMIN for it", err)
	}
	t.Cleanup(func() { unix.Unmount(dir, unix.MNT_DETACH) })
}

// fill takes the room of the disk of a folder until so many bytes are left; the function gives it back.
func fill(t *testing.T, dir string, left uint64) func() {
	t.Helper()
	path := filepath.Join(dir, "filler")
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	block := make([]byte, 16<<10)
	for {
		var s unix.Statfs_t
		if err := unix.Fstatfs(int(f.Fd()), &s); err != nil {
			t.Fatal(err)
		}
		if s.Bavail*uint64(s.Bsize) < left+uint64(len(block)) {
			break
		}
		if _, err := f.Write(block); err != nil {
			t.Fatal(err)
		}
	}
	return func() {
		if err := os.Remove(path); err != nil {
			t.Error(err)
		}
	}
}

// host runs a line of a runbook that is for the host of a controller.
func (o operator) host(c *plane.Controller, line string) string {
	o.t.Helper()
	b, err := exec.Command("sh", "-c", strings.ReplaceAll(line, "/var/lib/csm", c.Data())).CombinedOutput()
	if err != nil {
		o.t.Errorf("%s: %v: %s", line, err, b)
	}
	return string(b)
}

// until waits until a figure is as wanted, as an alert does.
func (o operator) until(c *plane.Controller, name string, ok func(float64) bool) {
	o.t.Helper()
	if err := plane.Eventually(o.t.Context(), 45*time.Second, func() error {
		if all := o.metrics(c, name); len(all) == 0 || !ok(all[0]) {
			return fmt.Errorf("%s of %s is %v", name, c.Name, all)
		}
		return nil
	}); err != nil {
		o.t.Fatalf("%v\n%s", err, o.p.Tails(5))
	}
}

func is(want float64) func(float64) bool { return func(v float64) bool { return v == want } }

// clockWrong: the clock of one of three controllers is set 20 minutes ahead, and back, while it runs.
func clockWrong(o operator) {
	o.t.Helper()
	wrong := o.p.Controllers[2]
	hand := must[clock.Hand](o.t)(clock.NewHand(filepath.Join(o.t.TempDir(), "hand")))
	name, value, _ := strings.Cut(hand.Entry(), "=")
	o.t.Setenv(name, value) // programs as they are shipped do not know it
	wrong.Kill()
	wrong.Use(must[string](o.t)(shifted()))
	o.start(2)
	o.expect("csm doctor", 0)
	if err := hand.Set(20 * time.Minute); err != nil {
		o.t.Fatal(err)
	}
	o.expect("csm doctor", 10, "the clock of csm3 is off by", "runbooks/clock-wrong.md")
	o.until(o.p.Controllers[0], `csm_clock_offset_seconds\{peer="csm3"\}`, func(v float64) bool { return v > 1100 && v < 1300 })
	o.expect("csm system controllers", 0, "csm3", "20m")
	if err := hand.Set(0); err != nil {
		o.t.Fatal(err)
	}
	o.expect("csm status", 0)
	o.expect("csm doctor", 0)
	wrong.Kill()
	wrong.Use(o.bin)
	o.start(2)
	o.expect("csm doctor", 0)
}

// diskFull: the disk of csm2, which begin made small, has too little room left.
func diskFull(o operator) {
	o.t.Helper()
	full := o.p.Controllers[1]
	free := fill(o.t, full.Data(), smallDisk<<20*3/100)
	o.expect("csm doctor", 10, "the disk of csm2 has", "it takes no writes", "runbooks/disk-full.md")
	o.until(full, "csm_disk_free_ratio", func(v float64) bool { return v < 0.05 })
	o.expect("csm check controllers", 2, "csm2")
	if out := o.host(full, "df -h /var/lib/csm"); !strings.Contains(out, full.Data()) {
		o.t.Errorf("df says %s", out)
	}
	o.host(full, "du -xsh /var/lib/csm/raft /var/lib/csm/state")
	o.expect("csm cluster create while-full --ca root", 0) // the others take writes
	free()
	o.expect("csm check controllers", 0)
	o.expect("csm doctor", 0)
	o.expect("csm status --verify", 0)
}

// backupOld: no folder, a full disk, and then a backup.
func backupOld(o operator) {
	o.t.Helper()
	const verified = "csm_backup_last_verified_timestamp_seconds"
	fresh := func(v float64) bool { return time.Since(time.Unix(int64(v), 0)) < time.Minute }
	if at := o.metric(o.p.Controllers[0], verified); at != 0 {
		o.t.Errorf("a backup was verified at %v", at)
	}
	o.expect("csm backup create --wait --timeout 10m", 1, "does not exist", "install -d")
	o.expect("csm backup list", 0, "failed", "does not exist")
	mount(o.whole, o.backups(), 32)
	o.expect("csm backup create --wait --timeout 10m", 0, "ready")
	o.expect("csm backup list", 0, "ready")
	o.until(o.p.Controllers[0], verified, fresh)

	before, at := o.files(), o.metric(o.p.Controllers[0], verified)
	free := fill(o.t, o.backups(), 16<<10)
	o.expect("csm backup create --wait --timeout 10m", 1, "does not fit into", "earlier ones are untouched", "free space there")
	o.expect("csm backup list", 0, "failed", "does not fit into")
	o.until(o.p.Controllers[0], verified, is(at)) // which is what the alert looks at
	free()
	if after := o.files(); fmt.Sprint(after) != fmt.Sprint(before) {
		o.t.Errorf("a backup that did not fit left %v beside %v", after, before)
	}
	o.expect("csm-controller snapshot inspect "+before[0]+" --recovery-share "+o.p.Recovery(), 0, "verified")
	o.expect("csm backup create --wait --timeout 10m", 0, "ready")
}

func (o operator) backups() string { return filepath.Join(o.p.Dir, "backups") }

// files are the backups that lie there, and whatever else does.
func (o operator) files() []string {
	o.t.Helper()
	entries, err := os.ReadDir(o.backups())
	if err != nil || len(entries) == 0 {
		o.t.Fatal(entries, err)
	}
	var out []string
	for _, e := range entries {
		out = append(out, filepath.Join(o.backups(), e.Name()))
	}
	return out
}
