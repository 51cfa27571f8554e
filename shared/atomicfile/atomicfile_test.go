package atomicfile_test

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"testing"

	"github.com/cassandra-security-manager/csm/shared/atomicfile"
)

func TestReplaceWritesTheWholeFileWithItsMode(t *testing.T) {
	path := filepath.Join(t.TempDir(), "chain.pem")
	for _, c := range []struct {
		data string
		mode fs.FileMode
	}{{"the first, which is longer than the second", 0o600}, {"the second", 0o644}, {"", 0o666}} {
		if err := atomicfile.Replace(path, []byte(c.data), c.mode); err != nil {
			t.Fatal(err)
		}
		is(t, path, c.data)
		if fi, err := os.Stat(path); err != nil || runtime.GOOS != "windows" && fi.Mode().Perm() != c.mode {
			t.Errorf("mode %v, not %v (%v)", fi.Mode().Perm(), c.mode, err)
		}
	}
	alone(t, path)
}

func TestAFailedReplaceLeavesNothing(t *testing.T) {
	path := filepath.Join(t.TempDir(), "folder")
	if err := os.MkdirAll(filepath.Join(path, "full"), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := atomicfile.Replace(path, []byte("x"), 0o600); err == nil {
		t.Error("a folder was replaced by a file")
	}
	alone(t, path)
	if err := atomicfile.Replace(filepath.Join(path, "none", "file"), []byte("x"), 0o600); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("without a folder: %v", err)
	}
}

func TestReplaceTakesALinkAndNotItsTarget(t *testing.T) {
	target := filepath.Join(t.TempDir(), "target")
	link := filepath.Join(t.TempDir(), "link")
	if err := errors.Join(os.WriteFile(target, []byte("of another"), 0o600), os.Symlink(target, link)); err != nil {
		t.Fatal(err)
	}
	if err := atomicfile.Replace(link, []byte("ours"), 0o600); err != nil {
		t.Fatal(err)
	}
	is(t, link, "ours")
	is(t, target, "of another")
}

func TestCreateNeverReplaces(t *testing.T) {
	path := filepath.Join(t.TempDir(), "key")
	if err := atomicfile.Create(path, []byte("first"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := atomicfile.Create(path, []byte("second"), 0o600); !errors.Is(err, fs.ErrExist) {
		t.Errorf("second: %v", err)
	}
	is(t, path, "first")
	alone(t, path)
}

func is(t *testing.T, path, want string) {
	t.Helper()
	got, err := os.ReadFile(path)
	if err != nil || string(got) != want {
		t.Errorf("%s holds %q, not %q (%v)", path, got, want, err)
	}
}

// alone says that no temporary file stayed beside it.
func alone(t *testing.T, path string) {
	t.Helper()
	entries, err := os.ReadDir(filepath.Dir(path))
	if err != nil || len(entries) != 1 || entries[0].Name() != filepath.Base(path) {
		t.Errorf("the folder holds %v (%v)", entries, err)
	}
}
