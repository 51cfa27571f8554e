package ledger

import (
	"context"
	"time"

	"github.com/cassandra-security-manager/csm/controller/state"
)

// Unmanaged counts, by cluster and severity, the certificates with a private key that agents found on their nodes and CSM
// did not issue: "critical" has expired, "warning" ends within 30 days, "info" is good for longer.
func Unmanaged(ctx context.Context, r Reader, now time.Time) (map[[2]string]int, error) {
	out := map[[2]string]int{}
	err := r.View(ctx, func(ctx context.Context, q state.Querier) error {
		rows, err := q.QueryContext(ctx, `SELECT f.cluster, CASE WHEN f.not_after <= ? THEN 'critical' WHEN f.not_after <= ? THEN 'warning' ELSE 'info' END AS severity, count(DISTINCT f.sha256)
			FROM found_certificates f WHERE f.has_private_key <> 0 AND NOT EXISTS (SELECT 1 FROM certificates c WHERE c.sha256 = f.sha256) GROUP BY 1, 2`,
			now.UnixMilli(), now.Add(30*24*time.Hour).UnixMilli())
		if err != nil {
			return err
		}
		defer rows.Close()
		for rows.Next() {
			var cluster, severity string
			var n int
			if err := rows.Scan(&cluster, &severity, &n); err != nil {
				return err
			}
			out[[2]string{cluster, severity}] = n
		}
		return rows.Err()
	})
	return out, err
}
