//go:build linux

package runbooks

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"testing"

	"github.com/cassandra-security-manager/csm/test/clock"
)

// folder holds the programs of all tests of this package.
var folder string

func TestMain(m *testing.M) {
	var err error
	if folder, err = os.MkdirTemp("", "csm-runbooks-"); err != nil {
		panic(err)
	}
	code := m.Run()
	os.RemoveAll(folder)
	os.Exit(code)
}

const module = "github.com/cassandra-security-manager/csm/"

var programs = []string{module + "controller/cmd/csm-controller", module + "controller/cmd/csm", module + "agent/cmd/csm-agent"}

// shipped are the programs as they are shipped, built once; shifted are those whose clock clock.Shift sets.
var (
	shipped = sync.OnceValues(func() (string, error) {
		bin := filepath.Join(folder, "shipped")
		c := exec.Command("go", append([]string{"build", "-o", bin + "/"}, programs...)...)
		c.Env = append(os.Environ(), "CGO_ENABLED=0", "GOFLAGS=-trimpath")
		if out, err := c.CombinedOutput(); err != nil {
			return "", fmt.Errorf("%w: %s", err, out)
		}
		return bin, nil
	})
	shifted = sync.OnceValues(func() (string, error) {
		bin := filepath.Join(folder, "shifted")
		return bin, clock.Build(bin, programs...)
	})
)

func must[T any](t *testing.T) func(T, error) T {
	t.Helper()
	return func(v T, err error) T {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return v
	}
}

// asRoot fails a test that mounts a disk when it may not: what it rehearses is rehearsed nowhere else.
func asRoot(t *testing.T) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Fatal("this test mounts disks and needs root: run it with sudo, or leave it out with -short")
	}
}
