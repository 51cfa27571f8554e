package wal

import (
	"errors"
	"fmt"
	"os"
	"syscall"

	"github.com/hashicorp/go-hclog"
	"github.com/hashicorp/raft"
	raftwal "github.com/hashicorp/raft-wal"
	"github.com/hashicorp/raft-wal/fs"
	"github.com/hashicorp/raft-wal/segment"
	"github.com/hashicorp/raft-wal/types"

	"github.com/cassandra-security-manager/csm/shared/fault"
)

// Log is raft's log and stable store in one folder.
type Log struct {
	*raftwal.WAL
	meta *meta
}

var (
	_ raft.LogStore          = (*Log)(nil)
	_ raft.StableStore       = (*Log)(nil)
	_ raft.MonotonicLogStore = (*Log)(nil)
)

// Open opens the log in dir, or makes an empty one. One process at a time: a second one gets Conflict after three seconds.
func Open(dir string, logger hclog.Logger) (*Log, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("make the folder of the raft log: %w", err)
	}
	m, err := openMeta(dir)
	if err != nil {
		return nil, err
	}
	if logger == nil {
		logger = hclog.NewNullLogger()
	}
	w, err := raftwal.Open(dir, raftwal.WithCodec(codec{}), raftwal.WithMetaStore(m), raftwal.WithLogger(logger),
		raftwal.WithSegmentFiler(filer{segment.NewFiler(dir, fs.New())}))
	if err != nil {
		m.Close()
		if f := blocked(err, dir); f != nil {
			return nil, f
		}
		return nil, fault.Wrap(err, fault.Internal, "raft-log-broken", "the raft log in %s cannot be opened", dir).Do(Remedy)
	}
	return &Log{WAL: w, meta: m}, nil
}

// Remedy of every damage that makes a controller's log unfit to vote on.
const Remedy = "remove this controller from the system, wipe its data folder and let it join again under a new id; the others hold everything"

// blocked tells a disk that takes nothing apart from a log that is broken: the former loses nothing.
func blocked(err error, dir string) *fault.Error {
	switch {
	case errors.Is(err, syscall.ENOSPC), errors.Is(err, syscall.EDQUOT):
		return fault.Wrap(err, fault.Unavailable, "disk-full", "%s cannot be written", dir).Do("free space on the disk of data_dir (100 MB at least), then start again; nothing is lost")
	case errors.Is(err, syscall.EROFS), errors.Is(err, os.ErrPermission):
		return fault.Wrap(err, fault.Unavailable, "disk-locked", "%s cannot be written", dir).Do("run as the owner of data_dir, on a disk mounted for writing; nothing is lost")
	}
	return nil
}

// Close closes the log and its meta store.
func (l *Log) Close() error { return errors.Join(l.WAL.Close(), l.meta.Close()) }

// filer writes our codec's id into segment headers; see meta.CommitState.
type filer struct{ types.SegmentFiler }

func (f filer) Create(i types.SegmentInfo) (types.SegmentWriter, error) {
	i.Codec = CodecID
	return f.SegmentFiler.Create(i)
}

func (f filer) RecoverTail(i types.SegmentInfo) (types.SegmentWriter, error) {
	i.Codec = CodecID
	return f.SegmentFiler.RecoverTail(i)
}

// Open also reads a segment that a truncation closed. raft-wal 0.4.0 marks such a segment as sealed without writing its
// index ("sealed segment has no index block", hashicorp/raft-wal issue 31): after each conflict with a new leader the
// log could not be read again after a restart. Its frames are all there, so it is read as an unsealed one is.
func (f filer) Open(i types.SegmentInfo) (types.SegmentReader, error) {
	if i.IndexStart != 0 {
		i.Codec = CodecID
		return f.SegmentFiler.Open(i)
	}
	w, err := f.RecoverTail(i)
	if err != nil {
		return nil, err
	}
	if last := w.LastIndex(); last < i.MaxIndex {
		w.Close()
		return nil, fmt.Errorf("%w: the segment from %d ends at %d instead of %d", types.ErrCorrupt, i.BaseIndex, last, i.MaxIndex)
	}
	return w, nil
}
