package install

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"github.com/cassandra-security-manager/csm/shared/atomicfile"
	"github.com/cassandra-security-manager/csm/shared/keystore"
)

// disk does every effect on files, and asks gate before each of them.
type disk struct {
	gate func(do, path string) error
}

// meta is what a replaced file passes on to its successor.
type meta struct {
	Mode   fs.FileMode       `json:"mode"`
	UID    int               `json:"uid"`
	GID    int               `json:"gid"`
	Xattrs map[string][]byte `json:"xattrs,omitempty"` // POSIX ACL and SELinux label among them
}

// file is a store file as it is now.
type file struct {
	data   []byte
	sum    string // hex SHA-256, empty when absent
	mtime  time.Time
	meta   meta
	exists bool
}

func hash(data []byte) string {
	s := sha256.Sum256(data)
	return hex.EncodeToString(s[:])
}

// read reads a store file; one that is absent is no error.
func read(path string) (file, error) {
	f, err := os.Open(path)
	if errors.Is(err, fs.ErrNotExist) {
		return file{}, nil
	}
	if err != nil {
		return file{}, err
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil {
		return file{}, err
	}
	data, err := io.ReadAll(io.LimitReader(f, keystore.MaxSize+1))
	if err != nil {
		return file{}, err
	}
	return file{data: data, sum: hash(data), mtime: st.ModTime(), meta: metaOf(path, st), exists: true}, nil
}

// stage writes a complete file under a temporary name beside its target, with owner, mode and attributes, on the disk.
func (d disk) stage(path string, data []byte, m meta) (err error) {
	if err := d.remove(path); err != nil {
		return err
	}
	if err := d.gate("create", path); err != nil {
		return err
	}
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	defer func() {
		if e := f.Close(); err == nil {
			err = e
		}
	}()
	if err := d.gate("write", path); err != nil {
		return err
	}
	if _, err := f.Write(data); err != nil {
		return err
	}
	if err := d.gate("owner", path); err != nil {
		return err
	}
	if err := m.apply(path, f); err != nil {
		return err
	}
	if err := d.gate("sync", path); err != nil {
		return err
	}
	return f.Sync()
}

// place makes the staged file the target, with a time of change that Cassandra's poll cannot miss: 4.0 to 4.1.3 compare
// whole seconds and never load an older file.
func (d disk) place(staged, target string, mtime time.Time) error {
	if err := d.gate("times", staged); err != nil {
		return err
	}
	if err := os.Chtimes(staged, mtime, mtime); err != nil {
		return err
	}
	if err := d.gate("rename", target); err != nil {
		return err
	}
	if err := os.Rename(staged, target); err != nil {
		return err
	}
	return d.syncFolder(filepath.Dir(target))
}

// fresh is the time of change of a file that replaces one of previous.
func fresh(now, previous time.Time) time.Time {
	if least := previous.Add(2 * time.Second); now.Before(least) {
		return least
	}
	return now
}

func (d disk) syncFolder(dir string) error {
	if err := d.gate("sync-folder", dir); err != nil {
		return err
	}
	return atomicfile.SyncFolder(dir)
}

func (d disk) mkdir(dir string) error {
	if st, err := os.Stat(dir); err == nil && st.IsDir() {
		return nil
	}
	if err := d.gate("mkdir", dir); err != nil {
		return err
	}
	return os.MkdirAll(dir, 0o700)
}

// remove deletes a file; one that is absent costs nothing.
func (d disk) remove(path string) error {
	if _, err := os.Lstat(path); errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err := d.gate("remove", path); err != nil {
		return err
	}
	return os.Remove(path)
}

func (d disk) removeAll(dir string) error {
	if _, err := os.Lstat(dir); errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err := d.gate("remove", dir); err != nil {
		return err
	}
	return os.RemoveAll(dir)
}

// replace writes a file of the state folder as a whole: temporary, fsync, rename, fsync of the folder.
func (d disk) replace(path string, data []byte) error {
	if err := d.mkdir(filepath.Dir(path)); err != nil {
		return err
	}
	tmp := path + ".tmp"
	if err := d.stage(tmp, data, meta{Mode: 0o600, UID: -1, GID: -1}); err != nil {
		return err
	}
	if err := d.gate("rename", path); err != nil {
		return err
	}
	if err := os.Rename(tmp, path); err != nil {
		return err
	}
	return d.syncFolder(filepath.Dir(path))
}

// apply gives the file its mode, owner and attributes. What cannot be kept is an error: a file that Cassandra's user may
// no longer read would be worse than none.
func (m meta) apply(path string, f *os.File) error {
	if m.UID >= 0 {
		if err := chown(f, m.UID, m.GID); err != nil {
			return err
		}
	}
	for name, value := range m.Xattrs {
		if err := setXattr(path, name, value); err != nil {
			return err
		}
	}
	return f.Chmod(m.Mode)
}
