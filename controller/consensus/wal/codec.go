// Package wal opens raft's log on hashicorp/raft-wal with what that library leaves open: a checksum over each record (it
// returns a flipped bit inside a record without an error), a codec id that survives a reopen, and a meta store
// whose lock is waited for a bounded time and which is closed.
package wal

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"time"

	"github.com/hashicorp/raft"
)

// CodecID stands in the header of each segment file and in the meta store.
const CodecID uint64 = 1<<16 + 0xC5A1

// ErrChanged says that a record is not what was written.
var ErrChanged = errors.New("the record's checksum does not match")

// maxField bounds what a broken length can make us allocate: the largest entry is a command of 128 KiB twice in an envelope.
const maxField = 4 << 20

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// codec writes: version byte 1, index, term, type, time of appending (unix nanoseconds; 0 for none), data and extensions
// with their lengths, all integers as uvarint, and the CRC-32C of all that, little endian.
type codec struct{}

func (codec) ID() uint64 { return CodecID }

func (codec) Encode(l *raft.Log, w io.Writer) error {
	b := make([]byte, 0, len(l.Data)+len(l.Extensions)+64)
	b = append(b, 1)
	b = binary.AppendUvarint(b, l.Index)
	b = binary.AppendUvarint(b, l.Term)
	b = binary.AppendUvarint(b, uint64(l.Type))
	var at int64
	if !l.AppendedAt.IsZero() {
		at = l.AppendedAt.UnixNano()
	}
	b = binary.AppendVarint(b, at)
	b = binary.AppendUvarint(b, uint64(len(l.Data)))
	b = append(b, l.Data...)
	b = binary.AppendUvarint(b, uint64(len(l.Extensions)))
	b = append(b, l.Extensions...)
	b = binary.LittleEndian.AppendUint32(b, crc32.Checksum(b, castagnoli))
	_, err := w.Write(b)
	return err
}

func (codec) Decode(b []byte, l *raft.Log) error {
	if len(b) < 5 {
		return fmt.Errorf("%w: %d bytes", ErrChanged, len(b))
	}
	body, sum := b[:len(b)-4], binary.LittleEndian.Uint32(b[len(b)-4:])
	if crc32.Checksum(body, castagnoli) != sum {
		return ErrChanged
	}
	if body[0] != 1 {
		return fmt.Errorf("a log record has format %d, this controller knows 1", body[0])
	}
	d := decoder{b: body[1:]}
	l.Index = d.uvarint()
	l.Term = d.uvarint()
	l.Type = raft.LogType(d.uvarint())
	l.AppendedAt = time.Time{}
	if at := d.varint(); at != 0 {
		l.AppendedAt = time.Unix(0, at)
	}
	l.Data = d.bytes()
	l.Extensions = d.bytes()
	if d.bad || len(d.b) != 0 {
		return fmt.Errorf("%w: its parts do not add up", ErrChanged)
	}
	return nil
}

type decoder struct {
	b   []byte
	bad bool
}

func (d *decoder) uvarint() uint64 {
	v, n := binary.Uvarint(d.b)
	d.step(n)
	return v
}

func (d *decoder) varint() int64 {
	v, n := binary.Varint(d.b)
	d.step(n)
	return v
}

func (d *decoder) step(n int) {
	if n <= 0 || n > len(d.b) {
		d.bad, d.b = true, nil
		return
	}
	d.b = d.b[n:]
}

// bytes copies: raft-wal uses the buffer again.
func (d *decoder) bytes() []byte {
	n := d.uvarint()
	if d.bad || n > uint64(len(d.b)) || n > maxField {
		d.bad = true
		return nil
	}
	if n == 0 {
		return nil
	}
	out := make([]byte, n)
	copy(out, d.b)
	d.b = d.b[n:]
	return out
}
