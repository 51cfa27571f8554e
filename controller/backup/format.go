package backup

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"hash"
	"io"
	"os"
	"time"

	"github.com/cassandra-security-manager/csm/shared/fault"
)

// A backup is: magic, length of the header (uint32, big endian), header (JSON, in the clear), an age file, SHA-256 of all that.
// The age file holds the header once more, with its length, and then a snapshot of the state.
const (
	magic     = "CSM-BACKUP-1\n"
	maxHeader = 64 << 10
	// Extension of a backup's file; partial ends one that is not whole yet.
	Extension = ".csmbackup"
	partial   = ".partial"
)

// Header says what a backup is, to anybody who has the file.
type Header struct {
	ID       string `json:"id"`
	SystemID string `json:"systemId"`
	// Index and Term of the newest entry in it.
	Index uint64 `json:"index"`
	Term  uint64 `json:"term"`
	// StateFormat and Migrations say which programs can read the state in it; Version is the one that wrote it.
	StateFormat int       `json:"stateFormat"`
	Migrations  []int     `json:"migrations"`
	Version     string    `json:"version"`
	Created     time.Time `json:"created"`
	Controller  string    `json:"controller"`
	// Opens names who can open it: controllers, the recovery share, further recipients.
	Opens []string `json:"opens"`
}

func encodeHeader(h Header) ([]byte, error) {
	b, err := json.Marshal(h)
	if err != nil {
		return nil, fmt.Errorf("backup: %w", err)
	}
	return append(binary.BigEndian.AppendUint32(nil, uint32(len(b))), b...), nil
}

func foreign(path string) error {
	return fault.New(fault.Invalid, "backup-foreign", "%s is no backup of CSM", path).Do("name a file that ends in %s; `csm backup list` shows where they are", Extension)
}

func broken(path string, err error) error {
	return fault.Wrap(err, fault.Internal, "backup-broken", "%s is not as it was written", path).
		Do("take another backup: it was cut off or changed; `csm-controller snapshot inspect FILE` tells which one is whole")
}

// readHeader reads magic and header; raw is the header with its length.
func readHeader(path string, r io.Reader) (h Header, raw []byte, err error) {
	lead := make([]byte, len(magic)+4)
	if _, err := io.ReadFull(r, lead); err != nil || !bytes.HasPrefix(lead, []byte(magic)) {
		return h, nil, foreign(path)
	}
	size := binary.BigEndian.Uint32(lead[len(magic):])
	if size > maxHeader {
		return h, nil, foreign(path)
	}
	raw = append(raw, lead[len(magic):]...)
	raw = append(raw, make([]byte, size)...)
	if _, err := io.ReadFull(r, raw[4:]); err != nil {
		return h, nil, broken(path, err)
	}
	if err := json.Unmarshal(raw[4:], &h); err != nil {
		return h, nil, broken(path, err)
	}
	return h, raw, nil
}

// Inspect reads the header of a backup and, with whole, compares the checksum of the file. It needs no key.
func Inspect(path string, whole bool) (h Header, size int64, err error) {
	f, err := os.Open(path)
	if err != nil {
		return h, 0, unreadable(path, err)
	}
	defer f.Close()
	if h, _, err = readHeader(path, f); err != nil {
		return h, 0, err
	}
	st, err := f.Stat()
	if err != nil {
		return h, 0, unreadable(path, err)
	}
	if !whole {
		return h, st.Size(), nil
	}
	if _, err := f.Seek(0, io.SeekStart); err != nil {
		return h, 0, unreadable(path, err)
	}
	b, err := body(path, f, st.Size())
	if err != nil {
		return h, 0, err
	}
	if _, err := io.Copy(io.Discard, b); err != nil {
		return h, 0, unreadable(path, err)
	}
	return h, st.Size(), b.check()
}

func unreadable(path string, err error) error {
	if errors.Is(err, os.ErrNotExist) {
		return fault.New(fault.NotFound, "no-backup", "there is no file %s", path).Do("`csm backup list` shows which controller holds which backup")
	}
	return fault.Wrap(err, fault.Unavailable, "backup-unreadable", "%s cannot be read", path).Do("check the owner and the disk of the folder")
}

// summed reads all of a backup but its last 32 bytes, which are the sum of the rest.
type summed struct {
	io.Reader
	path string
	file io.ReaderAt
	end  int64
	sum  hash.Hash
}

func body(path string, f *os.File, size int64) (*summed, error) {
	end := size - sha256.Size
	if end < int64(len(magic)) {
		return nil, foreign(path)
	}
	s := &summed{path: path, file: f, end: end, sum: sha256.New()}
	s.Reader = io.TeeReader(io.LimitReader(f, end), s.sum)
	return s, nil
}

// check compares the sum; everything must have been read.
func (s *summed) check() error {
	want := make([]byte, sha256.Size)
	if _, err := s.file.ReadAt(want, s.end); err != nil {
		return broken(s.path, err)
	}
	if !bytes.Equal(want, s.sum.Sum(nil)) {
		return broken(s.path, errors.New("its checksum differs"))
	}
	return nil
}
