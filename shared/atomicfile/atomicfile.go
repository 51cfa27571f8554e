// Package atomicfile writes files so that after a crash, a full disk or a lost power supply there is the old content or the
// new, never a part, and so that what was written stays written once the call returned. It knows no owners and labels of
// other programs' files: agent/install, which writes into Cassandra's folders, has a transaction of its own.
package atomicfile

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
)

// Replace writes the whole of a file in the place of what is there, if anything. The mode is set whatever the umask is; on
// Windows only its write bit counts. A symbolic link is replaced, not followed.
func Replace(path string, data []byte, mode fs.FileMode) error {
	return write(path, data, mode, os.Rename)
}

// Create writes a file that must not be there yet; the error is fs.ErrExist otherwise, even if it was made meanwhile.
func Create(path string, data []byte, mode fs.FileMode) error {
	return write(path, data, mode, os.Link) // unlike a rename, a link never replaces; the temporary name is removed after it
}

// write puts the data beside the path, so in the same file system, and gives it its name when it is on disk.
func write(path string, data []byte, mode fs.FileMode, name func(from, to string) error) error {
	dir := filepath.Dir(path)
	f, err := os.CreateTemp(dir, "."+filepath.Base(path)+"-*") // mode 0600 until it is whole
	if err != nil {
		return err
	}
	defer os.Remove(f.Name())
	_, err = f.Write(data)
	if err = errors.Join(err, f.Chmod(mode), f.Sync(), f.Close()); err != nil {
		return err
	}
	if err := name(f.Name(), path); err != nil {
		return err
	}
	return SyncFolder(dir)
}
