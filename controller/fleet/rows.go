package fleet

import (
	"context"
	"database/sql"
	"encoding/hex"
	"errors"
	"time"

	"github.com/cassandra-security-manager/csm/controller/state"
)

// at turns a column of unix milliseconds into a time; 0 is the zero time.
func at(ms int64) time.Time {
	if ms == 0 {
		return time.Time{}
	}
	return time.UnixMilli(ms).UTC()
}

func hexOf(b []byte) string { return hex.EncodeToString(b) }

func flag(b bool) int {
	if b {
		return 1
	}
	return 0
}

// found tells an absent row from an error.
func found(err error) (bool, error) {
	if errors.Is(err, sql.ErrNoRows) {
		return false, nil
	}
	return err == nil, err
}

// collect reads all rows by scan.
func collect[T any](ctx context.Context, q state.Querier, scan func(*sql.Rows) (T, error), query string, args ...any) ([]T, error) {
	rows, err := q.QueryContext(ctx, query, args...)
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	var out []T
	for rows.Next() {
		v, err := scan(rows)
		if err != nil {
			return nil, err
		}
		out = append(out, v)
	}
	return out, rows.Err()
}

func scanString(r *sql.Rows) (s string, err error) { return s, r.Scan(&s) }
func scanBytes(r *sql.Rows) (b []byte, err error)  { return b, r.Scan(&b) }

// size is the number of rows to ask for.
func (p Page) size() int {
	switch {
	case p.Size <= 0:
		return 100
	case p.Size > 1000:
		return 1000
	}
	return p.Size
}
