package ledger

import (
	"context"
	"database/sql"
	"errors"
	"slices"
	"strings"
	"time"

	"github.com/cassandra-security-manager/csm/controller/state"
)

// IssuerOf finds who signed the certificate with this SHA-256, by full name; empty when the ledger does not have it. It may be
// asked in Apply.
func IssuerOf(ctx context.Context, q state.Querier, sha256 []byte) (issuer string, err error) {
	err = q.QueryRowContext(ctx, `SELECT issuer FROM certificates WHERE sha256 = ?`, sha256).Scan(&issuer)
	if errors.Is(err, sql.ErrNoRows) {
		err = nil
	}
	return issuer, err
}

// issuersAtOnce bounds the names of one query.
const issuersAtOnce = 200

// IssuersOf gives who signed each of these certificates, by its SHA-256; empty for those that the ledger does not have. It may be asked
// in Apply.
func IssuersOf(ctx context.Context, q state.Querier, sums [][]byte) (map[string]string, error) {
	out := make(map[string]string, len(sums))
	for some := range slices.Chunk(sums, issuersAtOnce) {
		args := make([]any, len(some))
		for i, s := range some {
			args[i], out[string(s)] = s, ""
		}
		rows, err := q.QueryContext(ctx, `SELECT sha256, issuer FROM certificates WHERE sha256 IN (?`+strings.Repeat(",?", len(some)-1)+`)`, args...)
		if err != nil {
			return nil, err
		}
		for rows.Next() {
			var sum []byte
			var issuer string
			if err := rows.Scan(&sum, &issuer); err != nil {
				rows.Close()
				return nil, err
			}
			out[string(sum)] = issuer
		}
		err = rows.Err()
		rows.Close()
		if err != nil {
			return nil, err
		}
	}
	return out, nil
}

// Living is a certificate of an application that can still be used.
type Living struct {
	SHA256   []byte
	Subject  string
	Cluster  string
	NotAfter time.Time
}

// LivingOf lists the certificates of an issuer that are neither revoked nor expired and belong to no node and to no identity of
// CSM, by subject. Those of a cluster and those of none are given; limit bounds them.
func LivingOf(ctx context.Context, q state.Querier, issuer, cluster string, now time.Time, limit int) ([]Living, error) {
	rows, err := q.QueryContext(ctx, `SELECT sha256, subject, cluster, not_after FROM certificates WHERE issuer = ? AND not_after > ? AND state = 'active'
		AND node = '' AND identity = '' AND template NOT IN ('root', 'issuer') AND cluster IN ('', ?) ORDER BY subject, sha256 LIMIT ?`, issuer, now.UnixMilli(), cluster, limit)
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	var out []Living
	for rows.Next() {
		var l Living
		var end int64
		if err := rows.Scan(&l.SHA256, &l.Subject, &l.Cluster, &end); err != nil {
			return nil, err
		}
		l.NotAfter = fromMilli(end)
		out = append(out, l)
	}
	return out, rows.Err()
}
