package keyring

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/cassandra-security-manager/csm/shared/fault"
)

// maxSecretFile bounds a master key or passphrase file.
const maxSecretFile = 4096

// readPrivate reads a file that only its owner may read.
func readPrivate(path string) ([]byte, error) {
	info, err := os.Stat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fault.New(fault.Unavailable, "no-seal-file", "%s does not exist", path).Do("restore it from where it is kept safe; seal.path in the configuration names it")
	}
	if err != nil {
		return nil, fault.Wrap(err, fault.Unavailable, "no-seal-file", "%s cannot be read", path)
	}
	if !info.Mode().IsRegular() || info.Size() > maxSecretFile {
		return nil, fault.New(fault.Invalid, "bad-seal-file", "%s is not a small regular file", path)
	}
	if info.Mode().Perm()&0o077 != 0 {
		return nil, fault.New(fault.Refused, "seal-file-open", "%s has mode %04o: others may read it", path, info.Mode().Perm()).Do("chmod 600 %s", path)
	}
	b, err := os.ReadFile(path)
	if err != nil {
		return nil, fault.Wrap(err, fault.Unavailable, "no-seal-file", "%s cannot be read", path)
	}
	return b, nil
}

// writeNew writes a file that does not exist yet, mode 0600, so that after a crash it is there whole or not at all.
func writeNew(path string, data []byte) error {
	fail := func(err error) error {
		return fault.Wrap(err, fault.Internal, "kek-write", "%s cannot be written", path).Do("check space and owner of its folder")
	}
	tmp, err := os.CreateTemp(filepath.Dir(path), ".new-*") // CreateTemp makes mode 0600
	if err != nil {
		return fail(err)
	}
	defer os.Remove(tmp.Name())
	_, err = tmp.Write(data)
	if err = errors.Join(err, tmp.Sync(), tmp.Close()); err != nil {
		return fail(err)
	}
	if err := os.Link(tmp.Name(), path); err != nil { // a link, unlike a rename, never replaces what another made meanwhile
		return fail(err)
	}
	d, err := os.Open(filepath.Dir(path))
	if err != nil {
		return fail(err)
	}
	if err := errors.Join(d.Sync(), d.Close()); err != nil {
		return fail(err)
	}
	return nil
}
