package cql

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
)

// Consistency levels, section 3.
type Consistency uint16

// The levels that are read at.
const (
	One         Consistency = 0x0001
	Quorum      Consistency = 0x0004
	All         Consistency = 0x0005
	LocalQuorum Consistency = 0x0006
	LocalOne    Consistency = 0x000A
)

func (c Consistency) String() string {
	return map[Consistency]string{One: "ONE", Quorum: "QUORUM", All: "ALL", LocalQuorum: "LOCAL_QUORUM", LocalOne: "LOCAL_ONE"}[c]
}

// pageRows is how many rows one answer brings.
const pageRows = 500

// maxDepth bounds types within types.
const maxDepth = 8

// Query reads up to limit rows of a SELECT. more says that there were more. An error that Answered leaves the connection usable.
func (c *Conn) Query(ctx context.Context, statement string, level Consistency, limit int) (rows []Row, more bool, err error) {
	stop := c.bound(ctx)
	defer stop()
	var state []byte
	for {
		page, next, err := c.page(statement, level, state, min(pageRows, limit-len(rows)+1))
		if err != nil {
			return nil, false, err
		}
		rows, state = append(rows, page...), next
		if len(rows) > limit {
			return rows[:limit], true, nil
		}
		if state == nil {
			return rows, false, nil
		}
	}
}

func (c *Conn) page(statement string, level Consistency, state []byte, size int) ([]Row, []byte, error) {
	const withPageSize, withState = 0x04, 0x08
	var b body
	b.long(statement)
	b.short(int(level))
	flags := byte(withPageSize)
	if state != nil {
		flags |= withState
	}
	b = append(b, flags)
	b.int(size)
	if state != nil {
		b.bytes(state)
	}
	op, answer, err := c.call(opQuery, b)
	if err != nil {
		return nil, nil, err
	}
	if op != opResult {
		return nil, nil, fmt.Errorf("QUERY was answered by opcode %#02x", op)
	}
	return parseRows(answer)
}

// Row is one row: values by the names of their columns, undecoded. Columns of a type that is not read are there as bytes.
type Row map[string][]byte

func parseRows(b []byte) (rows []Row, next []byte, err error) {
	const kindRows, globalTable, morePages, noMetadata = 2, 1, 2, 4
	r := &reader{b: b}
	if kind := r.int(); kind != kindRows || r.err != nil {
		return nil, nil, errors.Join(r.err, fmt.Errorf("a result of kind %d, not rows", kind))
	}
	flags, columns := r.int(), int(r.int())
	if flags&noMetadata != 0 || columns < 1 || columns > 1000 {
		return nil, nil, fmt.Errorf("rows of %d columns, flags %#x", columns, flags)
	}
	if flags&morePages != 0 {
		next = append([]byte{}, r.bytes()...)
	}
	if flags&globalTable != 0 {
		r.text()
		r.text()
	}
	names := make([]string, columns)
	for i := range names {
		if flags&globalTable == 0 {
			r.text()
			r.text()
		}
		names[i] = r.text()
		r.skipType(0)
	}
	n := int(r.int())
	if n > len(r.b)/(4*columns) { // each value has a length at least
		return nil, nil, errShort
	}
	for ; n > 0 && r.err == nil; n-- {
		row := make(Row, columns)
		for _, name := range names {
			row[name] = r.bytes()
		}
		rows = append(rows, row)
	}
	return rows, next, r.err
}

// skipType passes over a column's type: what it means is known to who asks.
func (r *reader) skipType(depth int) {
	if depth > maxDepth {
		r.err = errors.New("a type nested too deeply")
		return
	}
	switch r.short() {
	case 0x0000: // custom
		r.text()
	case 0x0020, 0x0022: // list, set
		r.skipType(depth + 1)
	case 0x0021: // map
		r.skipType(depth + 1)
		r.skipType(depth + 1)
	case 0x0030: // user-defined
		r.text()
		r.text()
		for n := r.short(); n > 0 && r.err == nil; n-- {
			r.text()
			r.skipType(depth + 1)
		}
	case 0x0031: // tuple
		for n := r.short(); n > 0 && r.err == nil; n-- {
			r.skipType(depth + 1)
		}
	}
}

// Text is a text, ascii or varchar.
func (r Row) Text(column string) string { return string(r[column]) }

// Bool is a boolean; null is false.
func (r Row) Bool(column string) bool { return len(r[column]) == 1 && r[column][0] != 0 }

// Int is an int; null is 0.
func (r Row) Int(column string) int {
	if b := r[column]; len(b) == 4 {
		return int(int32(binary.BigEndian.Uint32(b)))
	}
	return 0
}

// Address is an inet; invalid when null.
func (r Row) Address(column string) netip.Addr {
	a, _ := netip.AddrFromSlice(r[column])
	return a.Unmap()
}

// UUID is 16 bytes; nil when null.
func (r Row) UUID(column string) []byte {
	if b := r[column]; len(b) == 16 {
		return b
	}
	return nil
}

// Texts is a set or list of text.
func (r Row) Texts(column string) (out []string) {
	x := &reader{b: r[column]}
	for n := x.int(); n > 0 && x.err == nil; n-- {
		if s := x.bytes(); x.err == nil {
			out = append(out, string(s))
		}
	}
	return out
}

// Map is a map of text to text.
func (r Row) Map(column string) map[string]string {
	out, x := map[string]string{}, &reader{b: r[column]}
	for n := x.int(); n > 0 && x.err == nil; n-- {
		k, v := x.bytes(), x.bytes()
		if x.err == nil {
			out[string(k)] = string(v)
		}
	}
	return out
}
