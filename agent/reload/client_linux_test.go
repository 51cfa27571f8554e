package reload_test

import (
	"bytes"
	"context"
	"flag"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/cassandra-security-manager/csm/agent/reload"
	"github.com/cassandra-security-manager/csm/shared/fault"
	"github.com/cassandra-security-manager/csm/test/port"
	"github.com/cassandra-security-manager/csm/test/ring"
)

var update = flag.Bool("update", false, "write client/Client.class")

// java is the JDK of the tests' Cassandra.
func java(t *testing.T) string {
	t.Helper()
	tools, err := ring.Setup(t.Context(), false, func(s string) { t.Log(s) })
	if err != nil {
		t.Fatal(err)
	}
	return tools.Java
}

// alone is a host without nodetool, whose JMX would be at a port.
func alone(t *testing.T, number int, more func(*reload.Command)) reload.Reloader {
	t.Helper()
	c := reload.ByNodetool("127.0.0.1", uint16(number))
	c.Path, c.Way, c.Java, c.Home = "nodetool-that-is-nowhere", reload.Auto, java(t), filepath.Join(t.TempDir(), "nodetool")
	if more != nil {
		more(&c)
	}
	t.Cleanup(func() {
		if left, _ := filepath.Glob(filepath.Join(c.Home, "*")); len(left) > 0 {
			t.Errorf("left behind: %v", left)
		}
	})
	return over(t, c)
}

// over is a helper with one command.
func over(t *testing.T, c reload.Command) reload.Reloader {
	t.Helper()
	agent, child := net.Pipe()
	go reload.Serve(context.Background(), child, map[string]reload.Command{"node": c})
	h, err := reload.Over(func() (io.ReadWriteCloser, error) { return agent, nil })
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { h.Close() })
	return h.Reloader("node")
}

func TestTheClientIsMadeOfItsSource(t *testing.T) {
	javac, out := filepath.Join(filepath.Dir(java(t)), "javac"), t.TempDir()
	if said, err := exec.Command(javac, "--release", "8", "-g:none", "-Xlint:-options", "-d", out, "client/Client.java").CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, said)
	}
	made, err := os.ReadFile(filepath.Join(out, "Client.class"))
	if err != nil {
		t.Fatal(err)
	}
	if *update {
		if err := os.WriteFile("client/Client.class", made, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	kept, err := os.ReadFile("client/Client.class")
	if err != nil || !bytes.Equal(made, kept) {
		t.Errorf("client/Client.class is not what client/Client.java makes (%v): run make java and commit", err)
	}
	if all, _ := filepath.Glob(filepath.Join(out, "*")); len(all) != 1 {
		t.Errorf("more than one class is made: %v", all)
	}
}

func TestWithoutNodetoolOurOwnClientIsRunAndCarriesTheExitCode(t *testing.T) {
	free, err := port.Free()
	if err != nil {
		t.Fatal(err)
	}
	out, err := alone(t, free, nil).Reload(t.Context())
	if err != nil || out.ExitCode != 1 || !strings.Contains(out.Stderr, "cannot connect to JMX at 127.0.0.1:"+strconv.Itoa(free)) || !strings.Contains(out.Stderr, "Connection refused") {
		t.Errorf("%+v %v", out, err)
	}
	ring, err := alone(t, free, nil).(reload.Lister).Ring(t.Context())
	if !fault.HasReason(err, "ring-unknown") || ring != "" {
		t.Errorf("%q %v", ring, err)
	}
}

func TestAPortThatSaysNothingIsLeftAtTheTimeLimit(t *testing.T) {
	silent, err := port.Listen()
	if err != nil {
		t.Fatal(err)
	}
	defer silent.Close()
	r := alone(t, silent.Addr().(*net.TCPAddr).Port, func(c *reload.Command) { c.Timeout = 3 * time.Second })
	if _, err := r.Reload(t.Context()); !fault.HasReason(err, "reload-timeout") {
		t.Error(err)
	}
}

func TestANodetoolThatFailsIsNotReplaced(t *testing.T) {
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	out, err := over(t, reload.Command{Path: self, Args: []string{"nodetool"}, Way: reload.Auto, Java: "/no/such/java"}).Reload(t.Context())
	if err != nil || out.ExitCode != 3 {
		t.Errorf("%+v %v", out, err)
	}
}

// A host may keep its Java where nobody looks; the process of a Cassandra of our own user shows it.
func TestTheJavaOfARunningCassandraIsFound(t *testing.T) {
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	for name, args := range map[string][]string{"java": {"sleep", "org.apache.cassandra.service.CassandraDaemon"}, "other/java": {"sleep", "org.example.Daemon"}, "perl": {"sleep", "org.apache.cassandra.service.CassandraDaemon"}} {
		path := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
			t.Fatal(err)
		}
		program, err := os.ReadFile(self)
		if err == nil {
			err = os.WriteFile(path, program, 0o700)
		}
		if err != nil {
			t.Fatal(err)
		}
		cmd := exec.Command(path, append(args, "last")...)
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { cmd.Process.Kill(); cmd.Wait() })
	}
	found := reload.Running()
	if !slices.Contains(found, filepath.Join(dir, "java")) || slices.Contains(found, filepath.Join(dir, "other/java")) || slices.Contains(found, filepath.Join(dir, "perl")) {
		t.Errorf("found %v in %s", found, dir)
	}
}

func TestWhereThereIsNoJavaItIsSaid(t *testing.T) {
	for _, way := range []reload.Way{reload.Auto, reload.JMX} {
		_, err := over(t, reload.Command{Path: "nodetool-that-is-nowhere", Args: []string{"reloadssl"}, Way: way, Java: "/no/such/java"}).Reload(t.Context())
		if !fault.HasReason(err, "no-java") || fault.From(err).Remedy == "" {
			t.Errorf("%s: %v", way, err)
		}
	}
}

func TestWherePollingIsChosenNothingIsReloaded(t *testing.T) {
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	r := over(t, reload.Command{Path: self, Args: []string{"ringtool", "reloadssl"}, Way: reload.Poll})
	if _, err := r.Reload(t.Context()); !fault.HasReason(err, "reload-polled") {
		t.Error(err)
	}
	if out, err := r.(reload.Lister).Ring(t.Context()); err != nil || !strings.HasPrefix(out, "UN 10.0.0.1") {
		t.Errorf("the ring is not asked: %q %v", out, err)
	}
}
