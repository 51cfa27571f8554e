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
}

// IdentityLeaf finds the certificate of an identity (a SPIFFE ID) by its SHA-256 in hex; the newest one when that is empty. One of
// another identity is not found.
func IdentityLeaf(ctx context.Context, q state.Querier, identity, sha256Hex string) (Leaf, error) {
	query, args := `SELECT issuer, not_after FROM certificates WHERE identity = ? ORDER BY seq DESC LIMIT 1`, []any{identity}
	if sha256Hex != "" {
		sum, err := hex.DecodeString(sha256Hex)
		if err != nil {
			return Leaf{}, err
		}
		query, args = `SELECT issuer, not_after FROM certificates WHERE sha256 = ? AND identity = ?`, []any{sum, identity}
	}
	var l Leaf
	var end int64
	err := q.QueryRowContext(ctx, query, args...).Scan(&l.Issuer, &end)
	if errors.Is(err, sql.ErrNoRows) {
		return Leaf{}, nil
	}
	l.NotAfter = time.UnixMilli(end).UTC()
	return l, err
}

// NewestOf gives the identities whose newest certificate is of an issuer and has not ended, each with the end of that certificate: what
// was signed last is what they use, or are about to.
func NewestOf(ctx context.Context, q state.Querier, issuer string, now time.Time) (map[string]time.Time, error) {
	rows, err := q.QueryContext(ctx, `SELECT c.identity, c.not_after FROM certificates c WHERE c.issuer = ? AND c.identity <> '' AND c.not_after > ?
		AND NOT EXISTS (SELECT 1 FROM certificates n WHERE n.identity = c.identity AND n.identity <> '' AND n.seq > c.seq)`, issuer, now.UnixMilli())
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	out := map[string]time.Time{}
	for rows.Next() {
		var id string
		var end int64
		if err := rows.Scan(&id, &end); err != nil {
			return nil, err
		}
		out[id] = time.UnixMilli(end).UTC()
	}
	return out, rows.Err()
}
