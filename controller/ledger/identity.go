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
