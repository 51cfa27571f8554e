package watch_test

import (
	"log/slog"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/cassandra-security-manager/csm/agent/watch"
)

// told waits for a notification; the time is only a bound for a test that fails.
func told(t *testing.T, w *watch.Watch, what string) {
	t.Helper()
	select {
	case <-w.C():
	case <-time.After(10 * time.Second):
		t.Fatalf("%s was not told", what)
	}
}

func TestEachWayToChangeAFileIsTold(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "keystore")
	if err := os.WriteFile(path, []byte("one"), 0o600); err != nil {
		t.Fatal(err)
	}
	w := watch.New(slog.New(slog.DiscardHandler))
	defer w.Close()
	w.Set(path, filepath.Join(dir, "absent"), filepath.Join(dir, "no", "folder"))
	for _, c := range []struct {
		what   string
		change func() error
	}{
		{"a truncation", func() error { return os.Truncate(path, 0) }},
		{"a rewrite", func() error { return os.WriteFile(path, []byte("two"), 0o600) }},
		{"a file that appears", func() error { return os.WriteFile(filepath.Join(dir, "absent"), []byte("x"), 0o600) }},
		{"a rename over it", func() error {
			if err := os.WriteFile(path+".tmp", []byte("three"), 0o600); err != nil {
				return err
			}
			return os.Rename(path+".tmp", path)
		}},
		{"a removal", func() error { return os.Remove(path) }},
	} {
		if err := c.change(); err != nil {
			t.Fatal(err)
		}
		told(t, w, c.what)
	}
}

func TestOtherFilesOfTheFolderAreNotTold(t *testing.T) {
	dir := t.TempDir()
	w := watch.New(slog.New(slog.DiscardHandler))
	defer w.Close()
	path := filepath.Join(dir, "keystore")
	w.Set(path)
	for _, n := range []string{".keystore.csm-new", "other"} {
		if err := os.WriteFile(filepath.Join(dir, n), nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	// Events come in order: the one that follows is told once, and nothing was told before it.
	if err := os.WriteFile(path, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	told(t, w, "the file")
	select {
	case <-w.C():
		t.Error("a change of another file was told")
	default:
	}
}
