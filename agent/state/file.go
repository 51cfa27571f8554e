package state

import (
	"os"
	"path/filepath"
)

// writeFile replaces a file so that after a crash there is the old content or the new, never a part.
func writeFile(path string, data []byte) error {
	t, err := os.CreateTemp(filepath.Dir(path), ".tmp-*") // mode 0600
	if err != nil {
		return err
	}
	defer os.Remove(t.Name())
	if _, err = t.Write(data); err == nil {
		err = t.Sync()
	}
	if cerr := t.Close(); err == nil {
		err = cerr
	}
	if err == nil {
		err = os.Rename(t.Name(), path)
	}
	if err != nil {
		return err
	}
	return syncDir(filepath.Dir(path))
}

// WriteFile is writeFile for what stands beside the folders of the instances, such as the status file.
func WriteFile(path string, data []byte) error { return writeFile(path, data) }
