//go:build linux

package main

import (
	"os"
	"os/exec"
	"path/filepath"
	"testing"
)

// TestTheWholePath runs the demonstration with the programs as they are built: controllers, agents, a real ring under
// load, every node renewed and proved by a neighbour, and every scenario of what must not happen.
func TestTheWholePath(t *testing.T) {
	if os.Getenv("CSM_TEST_FULL") == "" {
		t.Skip("`make test` ends with `make run`, which is the same; `make test-full` runs it here")
	}
	demonstrate(t, "renewal", "")
}

// TestARootIsChangedUnderLoad replaces the root of a real ring of two data centres while things break, with a load that must not lose a query.
func TestARootIsChangedUnderLoad(t *testing.T) {
	if os.Getenv("CSM_TEST_FULL") == "" {
		t.Skip("it takes minutes: `make test-full` runs it")
	}
	demonstrate(t, "rotation", "")
}

// demonstrate tells a story, with one scenario or with all when only is empty, and fails for each proof that did not hold.
func demonstrate(t *testing.T, name, only string) {
	t.Helper()
	bin := t.TempDir()
	for _, p := range []string{"controller/cmd/csm-controller", "controller/cmd/csm", "agent/cmd/csm-agent"} {
		c := exec.Command("go", "build", "-o", filepath.Join(bin, filepath.Base(p)), "./"+p)
		c.Dir, c.Env = "../..", append(os.Environ(), "CGO_ENABLED=0")
		if out, err := c.CombinedOutput(); err != nil {
			t.Fatalf("%s: %v\n%s", p, err, out)
		}
	}
	cache, err := filepath.Abs("../../build/cassandra")
	if err != nil {
		t.Fatal(err)
	}
	d := &demo{story: stories[name], screen: newScreen(t.Output(), false), bin: bin, dir: t.TempDir(), cache: cache, only: only}
	defer d.close()
	if !d.run(t.Context()) {
		for _, p := range d.proofs {
			if p.err != nil {
				t.Errorf("%s: %v", p.what, p.err)
			}
		}
	}
}

func TestATableAlignsWhatItHolds(t *testing.T) {
	got := table([][]string{{"a", "bb"}, {"ccc", "d"}})
	if want := "  a    bb\n  ccc  d\n"; got != want {
		t.Errorf("%q, want %q", got, want)
	}
}

func TestAFolderOfSomebodyElseIsNotEmptied(t *testing.T) {
	d := &demo{dir: t.TempDir()}
	precious := filepath.Join(d.dir, "thesis.tex")
	if err := os.WriteFile(precious, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := d.empty(); err == nil {
		t.Error("a folder with a foreign file was taken")
	}
	if _, err := os.Stat(precious); err != nil {
		t.Error(err)
	}
}
