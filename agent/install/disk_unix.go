//go:build unix

package install

import (
	"errors"
	"io/fs"
	"os"
	"syscall"

	"golang.org/x/sys/unix"
)

func metaOf(path string, st fs.FileInfo) meta {
	m := meta{Mode: st.Mode().Perm(), UID: -1, GID: -1, Xattrs: xattrs(path)}
	if s, ok := st.Sys().(*syscall.Stat_t); ok {
		m.UID, m.GID = int(s.Uid), int(s.Gid)
	}
	return m
}

// folderOwner is who should own the first file of a folder: an agent started as root must not leave files that
// Cassandra's user cannot read.
func folderOwner(dir string) (uid, gid int) {
	if os.Geteuid() != 0 {
		return -1, -1
	}
	st, err := os.Stat(dir)
	if err != nil {
		return -1, -1
	}
	m := metaOf(dir, st)
	return m.UID, m.GID
}

// chown changes the owner only where it differs: an unprivileged agent may keep its own.
func chown(f *os.File, uid, gid int) error {
	st, err := f.Stat()
	if err != nil {
		return err
	}
	if s, ok := st.Sys().(*syscall.Stat_t); ok && int(s.Uid) == uid && int(s.Gid) == gid {
		return nil
	}
	return f.Chown(uid, gid)
}

// lockFolder takes the folder's own lock (flock(2) on its descriptor: no file is left behind) or says that it is taken.
func lockFolder(dir string) (unlock func(), taken bool, err error) {
	d, err := os.Open(dir)
	if err != nil {
		return nil, false, err
	}
	err = unix.Flock(int(d.Fd()), unix.LOCK_EX|unix.LOCK_NB)
	if err != nil {
		d.Close()
		return nil, errors.Is(err, unix.EWOULDBLOCK), err
	}
	return func() { d.Close() }, false, nil
}
