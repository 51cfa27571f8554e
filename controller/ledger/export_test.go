package ledger

import (
	"context"

	"github.com/cassandra-security-manager/csm/controller/state"
)

// Plan is how SQLite would run a list.
func (l *Replicated) Plan(ctx context.Context, f Filter) (string, error) {
	w, err := l.where(f)
	if err != nil {
		return "", err
	}
	o, err := f.Order.sql()
	if err != nil {
		return "", err
	}
	plan := ""
	err = l.store.View(ctx, func(ctx context.Context, q state.Querier) error {
		rows, err := q.QueryContext(ctx, `EXPLAIN QUERY PLAN SELECT `+columns+` FROM certificates c`+w.String()+` ORDER BY `+o.by+` LIMIT 101`, w.args...)
		if err != nil {
			return err
		}
		defer rows.Close()
		for rows.Next() {
			var id, parent, unused int
			var line string
			if err := rows.Scan(&id, &parent, &unused, &line); err != nil {
				return err
			}
			plan += line + "; "
		}
		return rows.Err()
	})
	return plan, err
}
