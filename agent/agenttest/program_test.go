package agenttest

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"strconv"
	"strings"
	"testing"

	"github.com/cassandra-security-manager/csm/controller/fleet"
	"github.com/cassandra-security-manager/csm/shared/keystore"
)

// program builds csm-agent once for all tests of this process.
func program(t *testing.T) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "csm-agent")
	cmd := exec.Command("go", "build", "-trimpath", "-ldflags=-s -w", "-o", path, "github.com/cassandra-security-manager/csm/agent/cmd/csm-agent")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("build: %v\n%s", err, out)
	}
	return path
}

// file writes the host's configuration as a person would.
func (h *host) file() string {
	h.t.Helper()
	in := h.conf.Cassandra[0]
	path := filepath.Join(filepath.Dir(in.Config), "agent.yaml")
	cql := ""
	if in.CQL.Username != "" {
		cql = fmt.Sprintf(", cql: {username: %s, password: %q}", in.CQL.Username, in.CQL.Password)
	}
	must(h.t, os.WriteFile(path, fmt.Appendf(nil, "controllers: [%s]\npin: %s\ncluster: prod\njoin: {method: token, file: %s}\nmode: %s\nstate_dir: %s\nhold_file: %s\n"+
		"cassandra: [{config: %s, store_roots: [%s], reload: {command: [/bin/true]}%s}]\n",
		h.w.address, h.conf.Pin, h.token, h.conf.Mode, h.conf.StateDir, h.conf.HoldFile, in.Config, in.StoreRoots[0], cql), 0o600))
	return path
}

func run(t *testing.T, bin string, args ...string) (stdout, stderr string, exit int) {
	t.Helper()
	cmd := exec.Command(bin, args...)
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	err := cmd.Run()
	var ee *exec.ExitError
	if err != nil && !errors.As(err, &ee) {
		t.Fatal(err)
	}
	return out.String(), errs.String(), cmd.ProcessState.ExitCode()
}

// start runs the program until stop, which kills it as hard as can be.
func start(t *testing.T, bin, conf string) (pid int, stop func()) {
	t.Helper()
	cmd := exec.Command(bin, "run", "--config", conf)
	log, err := os.Create(filepath.Join(t.TempDir(), "log"))
	must(t, err)
	cmd.Stderr = log
	must(t, cmd.Start())
	killed := false
	stop = func() {
		if !killed {
			killed = true
			_ = cmd.Process.Kill()
			_ = cmd.Wait()
		}
	}
	t.Cleanup(func() {
		stop()
		if t.Failed() {
			data, _ := os.ReadFile(log.Name())
			t.Logf("the agent's log:\n%s", data)
		}
	})
	return cmd.Process.Pid, stop
}

func TestTheProgramJoinsInstallsSurvivesAKillAndStaysSmall(t *testing.T) {
	t.Parallel()
	if runtime.GOOS != "linux" {
		t.Skip("reads /proc")
	}
	w := newWorld(t)
	bin := program(t)
	if fi, err := os.Stat(bin); err != nil || fi.Size() > 25<<20 {
		t.Errorf("the binary has %d bytes, at most 25 MiB are allowed", fi.Size())
	}
	h := newHost(w, "n1", keystore.PKCS12)
	conf := h.file()

	if out, errs, exit := run(t, bin, "config", "check", "--config", conf); exit != 0 {
		t.Errorf("config check: %d %s %s", exit, out, errs)
	}
	if out, _, exit := run(t, bin, "inspect", "--config", conf); exit != 10 && exit != 0 || !strings.Contains(out, "can be managed") {
		t.Errorf("inspect: %d\n%s", exit, out)
	}
	if _, errs, exit := run(t, bin, "status", "--config", conf); exit != 4 || !strings.Contains(errs, "never run") {
		t.Errorf("status before the first run: %d %s", exit, errs)
	}

	pid, kill := start(t, bin, conf)
	h.await("installed by the program", func(s fleet.Store) bool { return s.State == "installed-unproven" })
	if rss := resident(t, pid); rss > 30<<20 {
		t.Errorf("the agent has %d MiB resident, at most 30 are allowed", rss>>20)
	} else {
		t.Logf("resident: %.1f MiB", float64(rss)/(1<<20))
	}
	if n := listening(t, pid); n != 0 {
		t.Errorf("the agent listens on %d ports", n)
	}
	until := h.leaf().NotAfter.UTC().Format("2006-01-02")
	w.await("status says until when", func() bool {
		out, _, exit := run(t, bin, "status", "--config", conf)
		return exit == 10 && strings.Contains(out, until) && strings.Contains(out, "installed-unproven")
	})
	kill()
	out, errs, exit := run(t, bin, "status", "--config", conf)
	if exit != 1 || !strings.Contains(errs, "does not run") {
		t.Errorf("status of a killed agent: %d\n%s%s", exit, out, errs)
	}
	before := h.leaf()
	start(t, bin, conf)
	w.await("back after the kill", func() bool { return h.view().Agent.Connected })
	if h.view().Incarnation != 1 || !h.leaf().Equal(before) {
		t.Error("the kill cost the identity or the store")
	}
	if _, errs, exit := run(t, bin, "hold", "tea", "--config", conf); exit != 0 {
		t.Errorf("hold: %d %s", exit, errs)
	}
	w.await("the hold is told", func() bool { return h.view().Agent.Hold == "tea" })
	if _, errs, exit := run(t, bin, "release", "--config", conf); exit != 0 {
		t.Errorf("release: %d %s", exit, errs)
	}
	w.await("the release is told", func() bool { return h.view().Agent.Hold == "" })
	if out, errs, exit := run(t, bin, "doctor", "--config", conf, "-o", "json"); exit != 0 {
		t.Errorf("doctor: %d\n%s%s", exit, out, errs)
	}
	if out, errs, exit := run(t, bin, "plan", "--config", conf); exit != 0 {
		t.Errorf("plan: %d\n%s%s", exit, out, errs)
	}
}

var rssLine = regexp.MustCompile(`VmRSS:\s+(\d+) kB`)

// resident is the memory of the agent and of its reload helper together, in bytes.
func resident(t *testing.T, pid int) (sum int) {
	t.Helper()
	pids := []string{strconv.Itoa(pid)}
	children, _ := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/children", pid))
	for _, c := range children {
		data, _ := os.ReadFile(c)
		pids = append(pids, strings.Fields(string(data))...)
	}
	for i, p := range pids {
		data, err := os.ReadFile("/proc/" + p + "/status")
		if err != nil {
			continue
		}
		m := rssLine.FindSubmatch(data)
		kb, _ := strconv.Atoi(string(m[1]))
		if i == 0 {
			sum = kb << 10
		}
		t.Logf("process %s: %d kB", p, kb)
	}
	return sum
}

// listening counts the sockets of a process that take connections.
func listening(t *testing.T, pid int) (n int) {
	t.Helper()
	inodes := map[string]bool{}
	for _, table := range []string{"tcp", "tcp6"} {
		data, _ := os.ReadFile("/proc/net/" + table)
		for l := range strings.Lines(string(data)) {
			if f := strings.Fields(l); len(f) > 9 && f[3] == "0A" {
				inodes["socket:["+f[9]+"]"] = true
			}
		}
	}
	fds, _ := filepath.Glob(fmt.Sprintf("/proc/%d/fd/*", pid))
	for _, fd := range fds {
		if to, err := os.Readlink(fd); err == nil && inodes[to] {
			n++
		}
	}
	return n
}
