package backup

import (
	"bytes"
	"context"
	"errors"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"filippo.io/age"

	"github.com/cassandra-security-manager/csm/controller/state"
	"github.com/cassandra-security-manager/csm/shared/fault"
)

// Reader is an opened backup. Until Close has said nothing, what was read of it is worth nothing.
type Reader struct {
	Header Header
	// Size of the file in bytes.
	Size  int64
	state io.Reader
	body  *summed
	file  *os.File
	path  string
}

// Open opens a backup with any of these keys and compares its two headers.
func Open(path string, keys ...age.Identity) (r *Reader, err error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, unreadable(path, err)
	}
	defer func() {
		if err != nil {
			f.Close()
		}
	}()
	st, err := f.Stat()
	if err != nil {
		return nil, unreadable(path, err)
	}
	b, err := body(path, f, st.Size())
	if err != nil {
		return nil, err
	}
	h, raw, err := readHeader(path, b)
	if err != nil {
		return nil, err
	}
	plain, err := age.Decrypt(b, keys...)
	var noMatch *age.NoIdentityMatchError
	switch {
	case errors.As(err, &noMatch):
		return nil, fault.New(fault.Refused, "wrong-key", "%s was not made for the key that was given", path).
			Do("it opens for: %s. Of a recovery share take the one that was written down when this system was made", strings.Join(h.Opens, ", "))
	case err != nil:
		return nil, broken(path, err)
	}
	inner := make([]byte, len(raw))
	if _, err := io.ReadFull(plain, inner); err != nil {
		return nil, broken(path, err)
	}
	if !bytes.Equal(inner, raw) {
		return nil, broken(path, errors.New("its description was changed"))
	}
	return &Reader{Header: h, Size: st.Size(), state: plain, body: b, file: f, path: path}, nil
}

// Restore writes the state into dir and compares every checksum on the way. migrations are those of this program: a state of a
// newer or an older one is refused before anything is written.
func (r *Reader) Restore(ctx context.Context, dir string, migrations []int) (state.FileInfo, error) {
	if err := r.Header.readable(migrations); err != nil {
		return state.FileInfo{}, err
	}
	info, err := state.RestoreFile(ctx, dir, r.state)
	if err != nil {
		return info, r.wrap(err)
	}
	if n, err := io.Copy(io.Discard, r.state); err != nil || n > 0 {
		return info, broken(r.path, errors.Join(err, errors.New("it holds more than a state")))
	}
	if _, err := io.Copy(io.Discard, r.body); err != nil {
		return info, broken(r.path, err)
	}
	if err := r.body.check(); err != nil {
		return info, err
	}
	if info.ClusterID != r.Header.SystemID || info.Applied != r.Header.Index {
		return info, broken(r.path, errors.New("its description does not fit its content"))
	}
	return info, nil
}

// wrap tells a bad file from a bad disk.
func (r *Reader) wrap(err error) error {
	if f := fault.From(err); f.Reason == "snapshot-broken" || errors.Is(err, io.ErrUnexpectedEOF) {
		return broken(r.path, err)
	}
	return fault.Wrap(err, fault.Unavailable, "backup-not-restored", "%s cannot be restored", r.path).Do("check space and owner of the folder that it is restored to; the backup is unchanged")
}

// Close closes the file.
func (r *Reader) Close() error { return r.file.Close() }

// readable refuses a state that this program would read wrongly.
func (h Header) readable(migrations []int) error {
	newer := h.StateFormat > state.Format
	for _, n := range h.Migrations {
		newer = newer || !slices.Contains(migrations, n)
	}
	if newer {
		return fault.New(fault.Refused, "backup-newer", "the backup was made by csm-controller %s, which is newer than this one", h.Version).
			Do("install csm-controller %s or later here and run the command again; nothing was changed", h.Version)
	}
	if !slices.Equal(h.Migrations, migrations) {
		return fault.New(fault.Refused, "backup-older", "the backup was made by csm-controller %s with an older form of the state", h.Version).
			Do("restore it with csm-controller %s, then upgrade; nothing was changed", h.Version)
	}
	return nil
}

// Report is what a verification found.
type Report struct {
	Header Header
	Size   int64
	State  state.FileInfo
}

// Verify restores a backup into a folder of its own inside scratch, reads every page of it, and takes it away again.
func Verify(ctx context.Context, path, scratch string, migrations []int, keys ...age.Identity) (rep Report, err error) {
	r, err := Open(path, keys...)
	if err != nil {
		return rep, err
	}
	defer r.Close()
	rep.Header, rep.Size = r.Header, r.Size
	dir, err := os.MkdirTemp(scratch, "verify-")
	if err != nil {
		return rep, fault.Wrap(err, fault.Unavailable, "no-scratch", "there is no place to restore a backup for a trial").Do("check space and owner of %s", scratch)
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	if _, err := r.Restore(ctx, dir, migrations); err != nil {
		return rep, err
	}
	info, have, err := state.Examine(ctx, dir)
	if err != nil {
		return rep, broken(path, err)
	}
	if !slices.Equal(have, r.Header.Migrations) {
		return rep, broken(path, errors.New("its description does not fit its content"))
	}
	rep.State = info
	return rep, nil
}

// File is one backup in a folder, as its header tells.
type File struct {
	Header Header
	Path   string
	Size   int64
}

// Files are the backups of a system in a folder, oldest first; what is none is left out.
func Files(folder, system string) ([]File, error) {
	entries, err := os.ReadDir(folder)
	if err != nil {
		return nil, unreadable(folder, err)
	}
	var out []File
	for _, e := range entries {
		if !e.Type().IsRegular() || !strings.HasSuffix(e.Name(), Extension) || strings.HasPrefix(e.Name(), ".") {
			continue
		}
		path := filepath.Join(folder, e.Name())
		h, size, err := Inspect(path, false)
		if err != nil || h.SystemID != system || h.ID+Extension != e.Name() {
			continue
		}
		out = append(out, File{h, path, size})
	}
	slices.SortFunc(out, func(a, b File) int { return a.Header.Created.Compare(b.Header.Created) })
	return out, nil
}
