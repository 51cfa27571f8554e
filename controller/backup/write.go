package backup

import (
	"bufio"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"filippo.io/age"

	"github.com/cassandra-security-manager/csm/controller/keyring"
	"github.com/cassandra-security-manager/csm/controller/state"
	"github.com/cassandra-security-manager/csm/shared/atomicfile"
	"github.com/cassandra-security-manager/csm/shared/fault"
)

// Source is a state that can be copied; *state.Pinned is one.
type Source interface {
	Info() state.SnapshotInfo
	Write(w io.Writer) (state.SnapshotInfo, error)
}

// Order says what to write and for whom.
type Order struct {
	// ID of the backup, see name; Folder takes the file, it exists.
	ID         string
	Folder     string
	Controller string
	Version    string
	Migrations []int
	// Holders are the controllers and the recovery share; Further come from the configuration.
	Holders []keyring.Recipient
	Further []age.Recipient
	Now     time.Time
}

// Written is a whole backup on disk.
type Written struct {
	Header Header
	Path   string
	Size   int64
	SHA256 [32]byte
}

// Write writes a backup beside its place, syncs it, and gives it its name only then: a file with the name of a backup is a whole
// one. What fails is removed, and no other backup is touched.
func Write(src Source, o Order) (w Written, err error) {
	info := src.Info()
	w.Header = Header{ID: o.ID, SystemID: info.ClusterID, Index: info.Applied, Term: info.AppliedTerm,
		StateFormat: info.Format, Migrations: o.Migrations, Version: o.Version, Created: o.Now.UTC().Truncate(time.Second), Controller: o.Controller}
	recipients := slices.Clone(o.Further)
	for _, h := range o.Holders {
		recipients = append(recipients, holder(h))
		w.Header.Opens = append(w.Header.Opens, h.Name)
	}
	for _, r := range o.Further {
		w.Header.Opens = append(w.Header.Opens, fmt.Sprint(r))
	}
	w.Path = filepath.Join(o.Folder, w.Header.ID+Extension)
	beside := filepath.Join(o.Folder, "."+w.Header.ID+Extension+partial)
	if _, err := os.Lstat(w.Path); err == nil {
		return w, cannotWrite(o.Folder, os.ErrExist)
	}
	f, err := os.OpenFile(beside, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if err != nil {
		return w, cannotWrite(o.Folder, err)
	}
	defer func() {
		if err != nil {
			os.Remove(beside)
		}
	}()
	sum := sha256.New()
	out := bufio.NewWriterSize(f, 1<<20)
	err = fill(io.MultiWriter(out, sum), src, w.Header, recipients)
	if err == nil {
		_, err = out.Write(sum.Sum(nil))
	}
	if err = errors.Join(err, out.Flush(), f.Sync(), f.Close()); err != nil {
		return w, cannotWrite(o.Folder, err)
	}
	if w.Size, w.SHA256, err = hashFile(beside); err != nil {
		return w, cannotWrite(o.Folder, err)
	}
	if err = errors.Join(os.Rename(beside, w.Path), atomicfile.SyncFolder(o.Folder)); err != nil {
		return w, cannotWrite(o.Folder, err)
	}
	return w, nil
}

// name sorts by time; the index keeps two systems and two controllers apart.
func name(now time.Time, index uint64) string {
	return fmt.Sprintf("%s-%d", strings.ToLower(now.UTC().Format("20060102t150405z")), index)
}

func fill(out io.Writer, src Source, h Header, recipients []age.Recipient) error {
	head, err := encodeHeader(h)
	if err != nil {
		return err
	}
	if _, err := out.Write(append([]byte(magic), head...)); err != nil {
		return err
	}
	sealed, err := age.Encrypt(out, recipients...)
	if err != nil {
		return fmt.Errorf("backup: %w", err)
	}
	if _, err := sealed.Write(head); err != nil {
		return err
	}
	if _, err := src.Write(sealed); err != nil {
		return err
	}
	return sealed.Close()
}

// hashFile reads the file back as it is on disk; its own trailer is compared on the way.
func hashFile(path string) (size int64, sum [32]byte, err error) {
	f, err := os.Open(path)
	if err != nil {
		return 0, sum, err
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil {
		return 0, sum, err
	}
	b, err := body(path, f, st.Size())
	if err != nil {
		return 0, sum, err
	}
	all := sha256.New()
	if _, err := io.Copy(all, b); err != nil {
		return 0, sum, err
	}
	if err := b.check(); err != nil {
		return 0, sum, err
	}
	all.Write(b.sum.Sum(nil))
	return st.Size(), [32]byte(all.Sum(nil)), nil
}

func cannotWrite(folder string, err error) error {
	var f *fault.Error
	switch {
	case errors.Is(err, syscall.ENOSPC), errors.Is(err, syscall.EDQUOT):
		return fault.Wrap(err, fault.Unavailable, "backup-disk-full", "the backup does not fit into %s; earlier ones are untouched", folder).
			Do("free space there, or lower backup.keep; then `csm backup create`")
	case errors.As(err, &f):
		return err
	case errors.Is(err, os.ErrNotExist):
		return fault.New(fault.Unavailable, "no-backup-folder", "the folder %s does not exist", folder).Do("mount it or make it: install -d -m 700 -o csm %s", folder)
	case errors.Is(err, os.ErrExist):
		return fault.New(fault.Conflict, "backup-exists", "a backup of this second and index exists already in %s", folder).Do("nothing was written since; use that one")
	}
	return fault.Wrap(err, fault.Unavailable, "backup-not-written", "the backup cannot be written into %s; earlier ones are untouched", folder).Do("check the owner and the disk of that folder")
}
