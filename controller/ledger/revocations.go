package ledger

import (
	"context"
	"math/big"
	"time"

	"github.com/cassandra-security-manager/csm/controller/state"
)

// Revocation is one entry of a revocation list.
type Revocation struct {
	Serial *big.Int
	Time   time.Time
	Reason Reason
}

// RevocationRevision is the raft index of an issuer's newest revocation, 0 when it has none.
func RevocationRevision(ctx context.Context, q state.Querier, issuer string) (uint64, error) {
	var rev uint64
	err := q.QueryRowContext(ctx, `SELECT coalesce(max(revision), 0) FROM revocations WHERE issuer = ?`, issuer).Scan(&rev)
	return rev, err
}

// Revocations lists what one shard of an issuer's list must hold: every revoked certificate whose serial mod shards is
// shard and whose validity did not end before since. shards is a power of two.
func Revocations(ctx context.Context, q state.Querier, issuer string, shard, shards int, since time.Time) ([]Revocation, error) {
	rows, err := q.QueryContext(ctx, `SELECT serial, revoke_time, reason FROM revocations
		WHERE issuer = ? AND serial_low % ? = ? AND not_after >= ? ORDER BY serial`, issuer, shards, shard, since.UnixMilli())
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	var out []Revocation
	for rows.Next() {
		var (
			serial []byte
			at     int64
			r      Revocation
		)
		if err := rows.Scan(&serial, &at, &r.Reason); err != nil {
			return nil, err
		}
		r.Serial, r.Time = new(big.Int).SetBytes(serial), fromMilli(at)
		out = append(out, r)
	}
	return out, rows.Err()
}
