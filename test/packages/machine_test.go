//go:build linux

package packages_test

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/cassandra-security-manager/csm/test/process"
)

// machine is a Debian with systemd as its first process and a network of its own, in systemd-nspawn.
type machine struct {
	t      *testing.T
	root   string
	leader string // pid of its first process, as this machine counts
}

// debian is the root of a small Debian, made once by debootstrap.
func debian(t *testing.T) string {
	t.Helper()
	for _, program := range []string{"debootstrap", "systemd-nspawn"} {
		if _, err := exec.LookPath(program); err != nil || os.Geteuid() != 0 {
			t.Fatal("as root, after: apt-get install -y --no-install-recommends debootstrap systemd-container")
		}
	}
	base := filepath.Join(source(t), "build/nspawn/bookworm")
	if _, err := os.Stat(filepath.Join(base, "usr/lib/systemd")); err == nil {
		return base
	}
	half := base + ".half"
	if err := os.RemoveAll(half); err != nil {
		t.Fatal(err)
	}
	if err := os.MkdirAll(half, 0o755); err != nil {
		t.Fatal(err)
	}
	run(t, "debootstrap", "--variant=minbase", "--include=systemd,systemd-sysv,dbus,iproute2,rpm", "bookworm", half)
	if err := os.Rename(half, base); err != nil {
		t.Fatal(err)
	}
	return base
}

// boot starts a machine on a throw-away layer over debian. binds are HOST:INSIDE, read-only.
func boot(t *testing.T, binds ...string) *machine {
	t.Helper()
	base := debian(t)
	dir, err := os.MkdirTemp(filepath.Dir(base), "machine-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	m := &machine{t: t, root: filepath.Join(dir, "root")}
	upper, work := filepath.Join(dir, "upper"), filepath.Join(dir, "work")
	for _, d := range []string{m.root, upper, work} {
		if err := os.Mkdir(d, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if err := syscall.Mount("overlay", m.root, "overlay", 0, fmt.Sprintf("lowerdir=%s,upperdir=%s,workdir=%s", base, upper, work)); err != nil {
		t.Fatal("mount: ", err)
	}
	t.Cleanup(func() { syscall.Unmount(m.root, syscall.MNT_DETACH) })
	m.start(filepath.Base(dir), filepath.Join(dir, "console"), binds)
	return m
}

// Its own part of each hierarchy of control groups, or two machines would share /payload.
const nspawn = `for h in /sys/fs/cgroup /sys/fs/cgroup/unified /sys/fs/cgroup/systemd /sys/fs/cgroup/memory /sys/fs/cgroup/cpu /sys/fs/cgroup/cpuacct; do
  [ ! -e $h/cgroup.procs ] || { mkdir -p $h/csm-$0 && echo $$ >$h/csm-$0/cgroup.procs; }
done
exec systemd-nspawn "$@" </dev/null`

func (m *machine) start(name, console string, binds []string) {
	m.t.Helper()
	args := []string{"-c", nspawn, name, "-D", m.root, "--boot", "--register=no", "--keep-unit", "--private-network", "--console=pipe", "--settings=no"}
	for _, b := range binds {
		args = append(args, "--bind-ro="+b)
	}
	p, err := process.Start(process.Spec{Name: name, Path: "/bin/sh", Args: args, Dir: m.root, Log: console})
	if err != nil {
		m.t.Fatal(err)
	}
	m.t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
		defer cancel()
		if err := p.Stop(ctx); err != nil { // SIGTERM is a clean halt; the machine's init outlives a SIGKILL
			m.t.Log("the machine did not halt: ", err)
		}
		for _, h := range []string{"", "unified", "systemd", "memory", "cpu", "cpuacct"} {
			groups, _ := filepath.Glob(filepath.Join("/sys/fs/cgroup", h, "csm-"+name))
			for _, g := range groups {
				_ = exec.Command("find", g, "-depth", "-type", "d", "-exec", "rmdir", "{}", ";").Run()
			}
		}
	})
	ctx, cancel := context.WithTimeout(m.t.Context(), time.Minute)
	defer cancel()
	err = p.Settle(ctx, 100*time.Millisecond, func() bool {
		children, _ := os.ReadFile(fmt.Sprintf("/proc/%d/task/%[1]d/children", p.Pid()))
		m.leader, _, _ = strings.Cut(strings.TrimSpace(string(children)), " ")
		if m.leader == "" {
			return false
		}
		out, _ := m.try("systemctl is-system-running")
		return strings.TrimSpace(out) == "running"
	})
	if err != nil {
		m.t.Fatalf("the machine does not come up: %v\n%s", err, p.Tail(20))
	}
}

// limit lets the machine's systemd set limits: a container may not where control groups are of version 1; this one may, in its own
// part of them.
func (m *machine) limit() {
	m.t.Helper()
	m.do("for c in memory cpu cpuacct; do [ ! -e /sys/fs/cgroup/$c ] || mount -o remount,bind,rw /sys/fs/cgroup/$c; done; systemctl daemon-reexec")
	m.until("systemctl is-system-running", is("running"))
}

// try runs a script inside, as root.
func (m *machine) try(script string) (string, error) {
	ctx, cancel := context.WithTimeout(context.Background(), 3*time.Minute)
	defer cancel()
	c := exec.CommandContext(ctx, "nsenter", "-t", m.leader, "-m", "-p", "-n", "-i", "-u", "-C", "--", "sh", "-euc", script)
	c.Env = []string{"PATH=/usr/sbin:/usr/bin:/sbin:/bin", "HOME=/root", "NO_COLOR=1", "DEBIAN_FRONTEND=noninteractive", "CSM_CONFIG=/root/csm.yaml"}
	out, err := c.CombinedOutput()
	return string(out), err
}

// do runs a script that must succeed.
func (m *machine) do(script string) string {
	m.t.Helper()
	out, err := m.try(script)
	if err != nil {
		m.t.Fatalf("%s\n%v\n%s", script, err, out)
	}
	return strings.TrimSpace(out)
}

// until repeats a script until what it prints is as wanted.
func (m *machine) until(script string, wanted func(string) bool) string {
	m.t.Helper()
	deadline := time.Now().Add(2 * time.Minute)
	for {
		out, _ := m.try(script)
		if out = strings.TrimSpace(out); wanted(out) {
			return out
		}
		if time.Now().After(deadline) {
			m.t.Fatalf("%s: still\n%s", script, out)
		}
		<-time.After(200 * time.Millisecond)
	}
}

// write makes a file inside.
func (m *machine) write(path, content string, mode os.FileMode) {
	m.t.Helper()
	// Through the machine's own eyes: the overlay must not be changed behind its back.
	c := exec.Command("nsenter", "-t", m.leader, "-m", "--", "sh", "-euc", fmt.Sprintf("cat >%[1]s && chmod %#[2]o %[1]s", path, mode))
	c.Stdin = strings.NewReader(content)
	if out, err := c.CombinedOutput(); err != nil {
		m.t.Fatalf("%s: %v\n%s", path, err, out)
	}
}

func is(want string) func(string) bool { return func(s string) bool { return s == want } }

func has(want string) func(string) bool {
	return func(s string) bool { return strings.Contains(s, want) }
}
