package install

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"

	"golang.org/x/sys/windows"
)

func metaOf(_ string, st fs.FileInfo) meta {
	return meta{Mode: st.Mode().Perm(), UID: -1, GID: -1} // access lists are inherited from the folder
}

func folderOwner(string) (uid, gid int) { return -1, -1 }

func chown(*os.File, int, int) error { return nil }

// lockFolder locks a file in the folder, since folders cannot be locked here.
func lockFolder(dir string) (unlock func(), taken bool, err error) {
	f, err := os.OpenFile(filepath.Join(dir, ".csm-lock"), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, false, err
	}
	err = windows.LockFileEx(windows.Handle(f.Fd()), windows.LOCKFILE_EXCLUSIVE_LOCK|windows.LOCKFILE_FAIL_IMMEDIATELY, 0, 1, 0, new(windows.Overlapped))
	if err != nil {
		f.Close()
		return nil, errors.Is(err, windows.ERROR_LOCK_VIOLATION), err
	}
	return func() { f.Close() }, false, nil
}
