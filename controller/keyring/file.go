package keyring

import (
	"errors"
	"io/fs"
	"os"

	"github.com/cassandra-security-manager/csm/shared/atomicfile"
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

// writeNew writes a private file that does not exist yet.
func writeNew(path string, data []byte) error {
	if err := atomicfile.Create(path, data, 0o600); err != nil {
		return fault.Wrap(err, fault.Internal, "kek-write", "%s cannot be written", path).Do("check space and owner of its folder")
	}
	return nil
}
