package state

import (
	"context"
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"hash"
	"math"
	"strings"
	"sync"

	"github.com/cassandra-security-manager/csm/shared/fault"
)

const (
	// keepSums is how many markers' checksums are kept; pinMost how many are computed at once.
	keepSums, pinMost = 8, 2
)

type checksum struct {
	done chan struct{}
	sum  [32]byte
	rows int64
	err  error
}

// checksums of the last markers, by index.
type checksums struct {
	mu      sync.Mutex
	byIndex map[uint64]*checksum
	order   []uint64
	running int
}

func (cs *checksums) init() { cs.byIndex = map[uint64]*checksum{} }

// begin makes room for a marker's checksum; pin is false when too many are being computed.
func (cs *checksums) begin(index uint64) (c *checksum, pin bool) {
	cs.mu.Lock()
	defer cs.mu.Unlock()
	c = &checksum{done: make(chan struct{})}
	if _, again := cs.byIndex[index]; !again {
		cs.order = append(cs.order, index)
	}
	cs.byIndex[index] = c
	if len(cs.order) > keepSums {
		delete(cs.byIndex, cs.order[0])
		cs.order = cs.order[1:]
	}
	if cs.running >= pinMost {
		c.err = fault.New(fault.Exhausted, "checksum-busy", "%d checksums are being computed", cs.running).Do("verify again in a while")
		close(c.done)
		return c, false
	}
	cs.running++
	return c, true
}

func (cs *checksums) end(c *checksum) {
	cs.mu.Lock()
	cs.running--
	cs.mu.Unlock()
	close(c.done)
}

// startChecksum pins the state right after a marker's commit, before the next, and hashes it in the background.
func (s *Store) startChecksum(index uint64) {
	c, pin := s.sums.begin(index)
	if !pin {
		return
	}
	g := s.current
	r, _, err := g.pin(context.Background())
	if err != nil {
		c.err = fmt.Errorf("pin the state at %d: %w", index, err)
		s.sums.end(c)
		return
	}
	s.background.Add(1)
	go func() {
		defer s.background.Done()
		defer s.sums.end(c)
		defer g.unpin(r)
		ctx, cancel := context.WithCancel(s.life)
		defer cancel()
		defer context.AfterFunc(g.life, cancel)()
		c.sum, c.rows, c.err = hashState(ctx, r)
	}()
}

// Checksum waits for the checksum of the state as it was right after the marker at this index: SHA-256 over every table
// that is not local and not empty, in order of names, its rows in order of the primary key. A table that only a newer program
// has is empty as long as an older one is about, so both agree. NotFound when it is no longer kept.
func (s *Store) Checksum(ctx context.Context, markerIndex uint64) (sum [32]byte, rows int64, err error) {
	if err := s.WaitApplied(ctx, markerIndex); err != nil {
		return sum, 0, err
	}
	s.sums.mu.Lock()
	c := s.sums.byIndex[markerIndex]
	s.sums.mu.Unlock()
	if c == nil {
		return sum, 0, fault.New(fault.NotFound, "no-checksum", "this controller has no checksum at index %d", markerIndex).
			Do("verify again: it proposes a new marker")
	}
	select {
	case <-c.done:
		return c.sum, c.rows, c.err
	case <-ctx.Done():
		return sum, 0, fault.Wrap(ctx.Err(), fault.Unavailable, "checksum-running", "the checksum is still being computed").Do("verify again in a while")
	}
}

type hasher struct {
	hash.Hash
	scratch [9]byte
}

func (h *hasher) number(kind byte, n uint64) {
	h.scratch[0] = kind
	binary.BigEndian.PutUint64(h.scratch[1:], n)
	h.Write(h.scratch[:])
}

func (h *hasher) text(kind byte, s []byte) {
	h.number(kind, uint64(len(s)))
	h.Write(s)
}

// value writes a typed, self-delimiting encoding: no two different rows hash alike.
func (h *hasher) value(v any) error {
	switch v := v.(type) {
	case nil:
		h.number('n', 0)
	case int64:
		h.number('i', uint64(v))
	case float64:
		h.number('f', math.Float64bits(v))
	case string:
		h.text('t', []byte(v))
	case []byte:
		h.text('b', v)
	default:
		return fmt.Errorf("a column of type %T has no place in the state", v)
	}
	return nil
}

func hashState(ctx context.Context, q Querier) (sum [32]byte, total int64, err error) {
	tables, err := names(ctx, q, `SELECT name FROM sqlite_schema WHERE type = 'table' AND name NOT LIKE 'sqlite\_%' ESCAPE '\'
		AND name NOT LIKE 'local\_%' ESCAPE '\' AND name <> 'migrations' ORDER BY name`)
	if err != nil {
		return sum, 0, err
	}
	h := &hasher{Hash: sha256.New()}
	for _, t := range tables {
		n, err := hashTable(ctx, q, h, t)
		if err != nil {
			return sum, total, fmt.Errorf("table %s: %w", t, err)
		}
		total += n
	}
	h.Sum(sum[:0])
	return sum, total, nil
}

func hashTable(ctx context.Context, q Querier, h *hasher, table string) (int64, error) {
	columns, err := names(ctx, q, "SELECT name FROM pragma_table_info(?) ORDER BY cid", table)
	if err != nil {
		return 0, err
	}
	key, err := names(ctx, q, "SELECT name FROM pragma_table_info(?) WHERE pk > 0 ORDER BY pk", table)
	if err != nil {
		return 0, err
	}
	if len(key) == 0 {
		return 0, fmt.Errorf("has no primary key")
	}
	// The plus sign takes the declared type from the column: the driver would make a time or a bool of some.
	rows, err := q.QueryContext(ctx, "SELECT +"+quoteAll(columns, ", +")+" FROM "+quote(table)+" ORDER BY "+quoteAll(key, ", "))
	if err != nil {
		return 0, err
	}
	defer rows.Close()
	values := make([]any, len(columns))
	pointers := make([]any, len(columns))
	for i := range values {
		pointers[i] = &values[i]
	}
	var n int64
	for ; rows.Next(); n++ {
		if err := rows.Scan(pointers...); err != nil {
			return n, err
		}
		if n == 0 {
			h.text('T', []byte(table))
			for _, c := range columns {
				h.text('C', []byte(c))
			}
		}
		h.number('R', 0)
		for _, v := range values {
			if err := h.value(v); err != nil {
				return n, err
			}
		}
	}
	return n, rows.Err()
}

func names(ctx context.Context, q Querier, query string, args ...any) ([]string, error) {
	rows, err := q.QueryContext(ctx, query, args...)
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	var all []string
	for rows.Next() {
		var s string
		if err := rows.Scan(&s); err != nil {
			return nil, err
		}
		all = append(all, s)
	}
	return all, rows.Err()
}

func quote(name string) string { return `"` + strings.ReplaceAll(name, `"`, `""`) + `"` }

func quoteAll(names []string, between string) string {
	quoted := make([]string, len(names))
	for i, n := range names {
		quoted[i] = quote(n)
	}
	return strings.Join(quoted, between)
}
