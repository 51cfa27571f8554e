//go:build linux

package packages_test

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
)

// programs are also the names of the packages.
var programs = []string{"csm", "csm-agent", "csm-controller"}

// source is the root of the repository.
func source(t testing.TB) string {
	t.Helper()
	dir, err := filepath.Abs("../..")
	if err != nil {
		t.Fatal(err)
	}
	return dir
}

var built = sync.OnceValues(func() (string, error) {
	c := exec.Command("make", "packages")
	c.Dir = "../.."
	out, err := c.CombinedOutput()
	return string(out), err
})

// build makes the packages once and gives the path of one of them.
func build(t testing.TB, name, format string) string {
	t.Helper()
	if out, err := built(); err != nil {
		t.Fatalf("make packages: %v\n%s", err, out)
	}
	pattern := map[string]string{"deb": name + "_*.deb", "rpm": name + "-[0-9]*.rpm"}[format]
	found, _ := filepath.Glob(filepath.Join(source(t), "build/packages", pattern))
	if len(found) != 1 {
		t.Fatalf("%s: %v", pattern, found)
	}
	return found[0]
}

// run runs a program of the system and gives what it printed; it must succeed.
func run(t testing.TB, name string, args ...string) string {
	t.Helper()
	out, err := exec.Command(name, args...).CombinedOutput()
	if err != nil {
		t.Fatalf("%s %s: %v\n%s", name, strings.Join(args, " "), err, out)
	}
	return string(out)
}

// unpacked is a folder with the contents of the three debs, and the targets of this machine's systemd.
func unpacked(t testing.TB) string {
	t.Helper()
	root := t.TempDir()
	for _, p := range programs {
		run(t, "dpkg-deb", "-x", build(t, p, "deb"), root)
	}
	targets, _ := filepath.Glob("/usr/lib/systemd/system/*.target")
	if len(targets) == 0 {
		targets, _ = filepath.Glob("/lib/systemd/system/*.target")
	}
	for _, f := range targets {
		data, err := os.ReadFile(f)
		if err != nil {
			continue // an alias
		}
		if err := os.WriteFile(filepath.Join(root, "usr/lib/systemd/system", filepath.Base(f)), data, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return root
}
