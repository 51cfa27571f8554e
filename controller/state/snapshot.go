package state

import (
	"bufio"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"hash"
	"io"
	"net/url"
	"os"
	"path/filepath"

	"github.com/hashicorp/raft"
	sqlite "modernc.org/sqlite"

	"github.com/cassandra-security-manager/csm/shared/fault"
)

// A snapshot is: magic, length of the header (uint32, big endian), header (JSON), the SQLite file, SHA-256 of all that.
const (
	snapshotMagic = "CSM-STATE-1\n"
	maxHeader     = 64 << 10
	scratchPrefix = "scratch-"
	// backupStep is how many pages are copied between two looks at whether the store is closing.
	backupStep = 4096
)

// SnapshotInfo is the header of a snapshot.
type SnapshotInfo struct {
	ClusterID   string `json:"cluster_id"`
	Format      int    `json:"format"`
	Applied     uint64 `json:"applied"`
	AppliedTerm uint64 `json:"applied_term"`
	// Size of the SQLite file in bytes.
	Size int64 `json:"size"`
}

// Indexed is what a snapshot store's reader or sink may also be: then the state machine makes sure that no snapshot holds
// entries later than the index raft labelled it with, which raft would apply twice.
type Indexed interface{ SnapshotIndex() uint64 }

// Snapshot pins the state as of the last commit. It gives ErrNothingNewToSnapshot while raft still hands over entries
// that the file has had since before the start: raft would label the file with an index lower than its own.
func (s *Store) Snapshot() (raft.FSMSnapshot, error) {
	s.writing.Lock()
	defer s.writing.Unlock()
	if s.failed != nil {
		return nil, s.failed
	}
	if s.delivered.Load() < s.head.applied {
		return nil, raft.ErrNothingNewToSnapshot
	}
	n, err := s.pinCurrent()
	if err != nil {
		return nil, err
	}
	return n, nil
}

// Pinned is the state as of one commit, held for a copy of it: for backups, and for whoever goes on with this state elsewhere.
type Pinned struct{ n *snapshot }

// Pin holds the state as of the last commit; commits go on meanwhile. Release it.
func (s *Store) Pin() (*Pinned, error) {
	s.writing.Lock()
	defer s.writing.Unlock()
	if s.failed != nil {
		return nil, s.failed
	}
	n, err := s.pinCurrent()
	return &Pinned{n}, err
}

// Info is what is pinned; Size is not known yet.
func (p *Pinned) Info() SnapshotInfo { return p.n.info() }

// Write streams it in the form of a snapshot. It needs as much free space beside the state as the state has itself.
func (p *Pinned) Write(w io.Writer) (SnapshotInfo, error) { return p.n.persist(w) }

// Release ends the read transaction; again is harmless.
func (p *Pinned) Release() { p.n.Release() }

func (n *snapshot) info() SnapshotInfo {
	return SnapshotInfo{ClusterID: n.store.opts.ClusterID, Format: n.format, Applied: n.head.applied, AppliedTerm: n.head.term}
}

// pinCurrent begins a read transaction that may last; the caller holds writing.
func (s *Store) pinCurrent() (*snapshot, error) {
	if s.isClosed() {
		return nil, errClosed
	}
	g := s.current
	r, h, err := g.pin(context.Background())
	if err != nil {
		return nil, fmt.Errorf("pin the state for a snapshot: %w", err)
	}
	info, err := readInfo(context.Background(), r)
	if err != nil {
		g.unpin(r)
		return nil, err
	}
	return &snapshot{store: s, generation: g, session: r, head: h, format: info.Format}, nil
}

type snapshot struct {
	store      *Store
	generation *generation
	session    *session
	head       head
	format     int
}

// Release ends the read transaction.
func (n *snapshot) Release() {
	if n.session != nil {
		n.generation.unpin(n.session)
		n.session = nil
	}
}

// Persist copies the pinned state to a file beside by SQLite's backup, page by page under the read transaction while
// commits go on, and streams that file to the sink.
func (n *snapshot) Persist(sink raft.SnapshotSink) error {
	err := checkLabel(sink, n.head.applied)
	if err == nil {
		_, err = n.persist(sink)
	}
	if err != nil {
		return errors.Join(err, sink.Cancel())
	}
	return sink.Close()
}

// checkLabel compares the index inside with the one raft labelled the snapshot with, where that can be known.
func checkLabel(source any, applied uint64) error {
	for {
		if i, ok := source.(Indexed); ok && applied > i.SnapshotIndex() {
			return badSnapshot(fmt.Errorf("it holds entry %d and is labelled %d", applied, i.SnapshotIndex()))
		}
		w, ok := source.(raft.ReadCloserWrapper)
		if !ok {
			return nil
		}
		source = w.WrappedReadCloser()
	}
}

func (n *snapshot) persist(sink io.Writer) (info SnapshotInfo, err error) {
	scratch, err := os.MkdirTemp(n.store.opts.Dir, scratchPrefix)
	if err != nil {
		return info, fmt.Errorf("snapshot: %w", err)
	}
	defer func() { err = errors.Join(err, os.RemoveAll(scratch)) }()
	path := filepath.Join(scratch, "state.db")
	if err := n.backup(path); err != nil {
		return info, fmt.Errorf("snapshot: copy the state: %w", err)
	}
	f, err := os.Open(path)
	if err != nil {
		return info, fmt.Errorf("snapshot: %w", err)
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil {
		return info, fmt.Errorf("snapshot: %w", err)
	}
	info = n.info()
	info.Size = st.Size()
	header, err := json.Marshal(info)
	if err != nil {
		return info, fmt.Errorf("snapshot: %w", err)
	}
	sum := sha256.New()
	out := bufio.NewWriterSize(io.MultiWriter(sink, sum), 1<<20)
	out.WriteString(snapshotMagic)
	out.Write(binary.BigEndian.AppendUint32(nil, uint32(len(header))))
	out.Write(header)
	if _, err := io.CopyN(out, f, st.Size()); err != nil {
		return info, fmt.Errorf("snapshot: %w", err)
	}
	if err := out.Flush(); err != nil {
		return info, fmt.Errorf("snapshot: %w", err)
	}
	if _, err := sink.Write(sum.Sum(nil)); err != nil {
		return info, fmt.Errorf("snapshot: %w", err)
	}
	return info, nil
}

func (n *snapshot) backup(path string) error {
	to := "file:" + (&url.URL{Path: path}).EscapedPath() + "?_pragma=journal_mode(OFF)&_pragma=synchronous(OFF)"
	return n.session.conn.Raw(func(driverConn any) error {
		source, ok := driverConn.(interface {
			NewBackup(string) (*sqlite.Backup, error)
		})
		if !ok {
			return fmt.Errorf("%T has no backup", driverConn)
		}
		b, err := source.NewBackup(to)
		if err != nil {
			return err
		}
		for more := true; more && err == nil; {
			if err = n.generation.life.Err(); err == nil {
				more, err = b.Step(backupStep)
			}
		}
		return errors.Join(err, b.Finish())
	})
}

func (s *Store) isClosed() bool {
	s.mu.RLock()
	defer s.mu.RUnlock()
	return s.closed
}

// snapshotReader reads a snapshot and verifies its sum at the end of the file.
type snapshotReader struct {
	in   *bufio.Reader
	sum  hash.Hash
	Info SnapshotInfo
}

func badSnapshot(err error) error {
	return fault.Wrap(err, fault.Internal, "snapshot-broken", "the snapshot cannot be read").
		Do("move it away; an older one or another controller's serves as well")
}

func openSnapshot(r io.Reader) (*snapshotReader, error) {
	n := &snapshotReader{in: bufio.NewReaderSize(r, 1<<20), sum: sha256.New()}
	lead := make([]byte, len(snapshotMagic)+4)
	if _, err := io.ReadFull(n.in, lead); err != nil {
		return nil, badSnapshot(err)
	}
	if !bytes.HasPrefix(lead, []byte(snapshotMagic)) {
		return nil, badSnapshot(errors.New("it is no snapshot of a CSM state"))
	}
	size := binary.BigEndian.Uint32(lead[len(snapshotMagic):])
	if size > maxHeader {
		return nil, badSnapshot(fmt.Errorf("header of %d bytes", size))
	}
	header := make([]byte, size)
	if _, err := io.ReadFull(n.in, header); err != nil {
		return nil, badSnapshot(err)
	}
	if err := json.Unmarshal(header, &n.Info); err != nil {
		return nil, badSnapshot(err)
	}
	n.sum.Write(lead)
	n.sum.Write(header)
	return n, nil
}

// copyTo writes the SQLite file out; an error means that what was written is worthless.
func (n *snapshotReader) copyTo(w io.Writer) error {
	if _, err := io.CopyN(io.MultiWriter(w, n.sum), n.in, n.Info.Size); err != nil {
		return badSnapshot(err)
	}
	want := make([]byte, sha256.Size)
	if _, err := io.ReadFull(n.in, want); err != nil {
		return badSnapshot(err)
	}
	if !bytes.Equal(want, n.sum.Sum(nil)) {
		return badSnapshot(errors.New("its checksum differs"))
	}
	return nil
}

// VerifySnapshot reads a snapshot to its end and says what is in it. Fault snapshot-broken when any bit differs.
func VerifySnapshot(r io.Reader) (SnapshotInfo, error) {
	n, err := openSnapshot(r)
	if err != nil {
		return SnapshotInfo{}, err
	}
	return n.Info, n.copyTo(io.Discard)
}

// RestoreFile puts the state of a snapshot in the place of whatever is in dir, for a controller that is not running.
// The file takes the node id of the next Open. A crash leaves the old state or the new one.
func RestoreFile(ctx context.Context, dir string, r io.Reader) (FileInfo, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return FileInfo{}, fmt.Errorf("restore the state: %w", err)
	}
	number, err := currentGeneration(dir)
	if err != nil {
		// CURRENT or its file is broken: any number above the folders that are there is free.
		number = highestGeneration(dir)
	}
	info, err := placeSnapshot(ctx, dir, number+1, "", r)
	if err != nil {
		return info, err
	}
	return info, setCurrent(dir, number+1)
}

// placeSnapshot makes a whole generation out of a snapshot; CURRENT still names the old one.
func placeSnapshot(ctx context.Context, dir string, number uint64, nodeID string, r io.Reader) (info FileInfo, err error) {
	n, err := openSnapshot(r)
	if err != nil {
		return info, err
	}
	if n.Info.Format > Format {
		return info, FileInfo{ClusterID: n.Info.ClusterID, Format: n.Info.Format}.belongs(n.Info.ClusterID, "")
	}
	path := generationFile(dir, number)
	folder := filepath.Dir(path)
	if err := os.RemoveAll(folder); err != nil {
		return info, fmt.Errorf("restore the state: %w", err)
	}
	if err := os.MkdirAll(folder, 0o700); err != nil {
		return info, fmt.Errorf("restore the state: %w", err)
	}
	defer func() {
		if err != nil {
			os.RemoveAll(folder)
		}
	}()
	f, err := os.OpenFile(path, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if err != nil {
		return info, fmt.Errorf("restore the state: %w", err)
	}
	if err := errors.Join(n.copyTo(f), f.Sync(), f.Close()); err != nil {
		return info, err
	}
	return adopt(ctx, path, nodeID, n.Info)
}

// adopt makes the restored file ours and checks that it is what the header said.
func adopt(ctx context.Context, path, nodeID string, want SnapshotInfo) (info FileInfo, err error) {
	db, err := openDB(path)
	if err != nil {
		return info, err
	}
	defer func() { err = errors.Join(err, db.Close()) }()
	w, err := openSession(ctx, db, "synchronous=FULL")
	if err != nil {
		return info, broken(err)
	}
	defer w.close()
	if _, err := w.ExecContext(ctx, "UPDATE local_meta SET node_id = ?, clean = 1 WHERE id = 1", nodeID); err != nil {
		return info, broken(err)
	}
	if info, err = readInfo(ctx, w); err != nil {
		return info, err
	}
	if info.ClusterID != want.ClusterID || info.Applied != want.Applied || info.AppliedTerm != want.AppliedTerm {
		return info, badSnapshot(fmt.Errorf("its header says %+v, its content %+v", want, info))
	}
	_, err = checkpoint(ctx, w, "TRUNCATE")
	return info, err
}

// Restore replaces the state by a snapshot, for raft. The new file becomes current when it is whole on disk; readers
// move to it at once, those of the old file may finish within 30 s. It refuses a snapshot of another cluster.
func (s *Store) Restore(r io.ReadCloser) error {
	defer r.Close()
	s.writing.Lock()
	defer s.writing.Unlock()
	if s.failed != nil {
		return s.failed
	}
	if s.isClosed() {
		return errClosed
	}
	ctx := context.Background()
	old := s.current
	number := old.number + 1
	info, err := placeSnapshot(ctx, s.opts.Dir, number, s.opts.NodeID, r)
	if err != nil {
		return err
	}
	if err := errors.Join(info.belongs(s.opts.ClusterID, s.opts.NodeID), checkLabel(r, info.Applied)); err != nil {
		return errors.Join(err, os.RemoveAll(filepath.Dir(generationFile(s.opts.Dir, number))))
	}
	g, h, err := s.openGeneration(ctx, number)
	if err != nil {
		return err
	}
	if err := setCurrent(s.opts.Dir, number); err != nil {
		return errors.Join(err, g.close())
	}
	s.mu.Lock()
	s.current = g
	s.mu.Unlock()
	s.head = h
	s.memory.forget()
	s.delivered.Store(h.applied)
	s.publish()
	s.watches.notifyAll()
	s.waiters.wake(h.applied)
	s.background.Add(1)
	go func() {
		defer s.background.Done()
		old.drain()
		if err := errors.Join(old.close(), os.RemoveAll(filepath.Dir(old.path))); err != nil {
			s.log.Warn("the replaced state stays on disk until the next start", "error", err)
		}
	}()
	return nil
}
