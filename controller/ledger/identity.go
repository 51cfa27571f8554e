package ledger

import (
	"context"
	"database/sql"
	"encoding/hex"
	"errors"
	"time"

	"github.com/cassandra-security-manager/csm/controller/state"
)

// Leaf is what the ledger knows of a certificate of a system identity.
type Leaf struct {
	// Issuer that signed it; empty when there is no such certificate.
	Issuer   string
	NotAfter time.Time
	// Seq is its place in the order in which certificates were recorded.
	Seq int64
}

// IdentityLeaf finds the certificate of an identity (a SPIFFE ID) by its SHA-256 in hex; the newest one when that is empty. One of
// another identity is not found.
func IdentityLeaf(ctx context.Context, q state.Querier, identity, sha256Hex string) (Leaf, error) {
	query, args := `SELECT issuer, not_after, seq FROM certificates WHERE identity = ? ORDER BY seq DESC LIMIT 1`, []any{identity}
	if sha256Hex != "" {
		sum, err := hex.DecodeString(sha256Hex)
		if err != nil {
			return Leaf{}, err
		}
		query, args = `SELECT issuer, not_after, seq FROM certificates WHERE sha256 = ? AND identity = ?`, []any{sum, identity}
	}
	var l Leaf
	var end int64
	err := q.QueryRowContext(ctx, query, args...).Scan(&l.Issuer, &end, &l.Seq)
	if errors.Is(err, sql.ErrNoRows) {
		return Leaf{}, nil
	}
	l.NotAfter = time.UnixMilli(end).UTC()
	return l, err
}

// LastOf gives, by identity, the last certificate of an issuer that has not ended.
func LastOf(ctx context.Context, q state.Querier, issuer string, now time.Time) (map[string]Leaf, error) {
	// not_after is that of the row with the highest seq: https://sqlite.org/lang_select.html#bareagg
	rows, err := q.QueryContext(ctx, `SELECT identity, max(seq), not_after FROM certificates WHERE issuer = ? AND identity <> '' AND not_after > ? GROUP BY identity`, issuer, now.UnixMilli())
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	out := map[string]Leaf{}
	for rows.Next() {
		l := Leaf{Issuer: issuer}
		var id string
		var end int64
		if err := rows.Scan(&id, &l.Seq, &end); err != nil {
			return nil, err
		}
		l.NotAfter = time.UnixMilli(end).UTC()
		out[id] = l
	}
	return out, rows.Err()
}
