package fleet

import (
	"context"
	"database/sql"
	"time"

	"github.com/cassandra-security-manager/csm/controller/state"
	agentv1 "github.com/cassandra-security-manager/csm/protocol/agent/v1"
)

// Tally counts a fleet for the metrics, by cluster and never by certificate: 600 nodes must not become 600 series.
type Tally struct {
	// Agents by state: "connected" and "disconnected" are active ones; "pending", "suspended" and "revoked" are what they say.
	Agents map[Counted]int
	// Expiring counts the stores whose leaf ends within a window: "expired", "24h", "7d", "21d". A store stands in the narrowest one.
	Expiring map[Counted]int
	// Alarms by kind.
	Alarms map[string]int
	// Freezes in force.
	Freezes []Freeze
}

// Counted is what is counted, of which cluster (empty for the whole system).
type Counted struct{ Cluster, What string }

// Windows of Tally.Expiring, the narrowest first.
var windows = []struct {
	name string
	d    time.Duration
}{{"expired", 0}, {"24h", 24 * time.Hour}, {"7d", 7 * 24 * time.Hour}, {"21d", 21 * 24 * time.Hour}}

// Tally counts what is there now.
func (f *Fleet) Tally(ctx context.Context) (Tally, error) {
	now := f.clock.Now()
	return view(ctx, f.read, func(ctx context.Context, q state.Querier) (t Tally, err error) {
		if t.Agents, err = counts(ctx, q, `SELECT n.cluster, CASE WHEN g.state IS NULL THEN 'pending' WHEN g.state <> 'active' THEN g.state
			WHEN g.connected = 1 THEN 'connected' ELSE 'disconnected' END AS what, count(*)
			FROM nodes n LEFT JOIN agents g ON g.uid = n.uid AND g.incarnation = n.incarnation GROUP BY 1, 2`); err != nil {
			return t, err
		}
		if t.Expiring, err = expiring(ctx, q, now); err != nil {
			return t, err
		}
		alarms, err := counts(ctx, q, `SELECT '', kind, count(*) FROM fleet_alarms GROUP BY 2`)
		if err != nil {
			return t, err
		}
		t.Alarms = map[string]int{}
		for k, n := range alarms {
			t.Alarms[k.What] = n
		}
		t.Freezes, err = collect(ctx, q, func(r *sql.Rows) (Freeze, error) { return scanFreeze(r) },
			freezeColumns+` WHERE active = 1 AND (until_ms = 0 OR until_ms > ?) ORDER BY scope`, now.UnixMilli())
		return t, err
	})
}

// counts reads rows of (cluster, what, number).
func counts(ctx context.Context, q state.Querier, query string) (map[Counted]int, error) {
	out := map[Counted]int{}
	_, err := collect(ctx, q, func(r *sql.Rows) (struct{}, error) {
		var k Counted
		var n int
		err := r.Scan(&k.Cluster, &k.What, &n)
		out[k] = n
		return struct{}{}, err
	}, query)
	return out, err
}

func expiring(ctx context.Context, q state.Querier, now time.Time) (map[Counted]int, error) {
	out := map[Counted]int{}
	last := windows[len(windows)-1]
	_, err := collect(ctx, q, func(r *sql.Rows) (struct{}, error) {
		var cluster string
		var end int64
		err := r.Scan(&cluster, &end)
		for _, w := range windows {
			if end <= now.Add(w.d).UnixMilli() {
				out[Counted{cluster, w.name}]++
				break
			}
		}
		return struct{}{}, err
	}, `SELECT n.cluster, s.not_after_ms FROM stores s JOIN nodes n ON n.name = s.node WHERE s.not_after_ms > 0 AND s.not_after_ms <= ?`, now.Add(last.d).UnixMilli())
	return out, err
}

// Failure is a proof that did not succeed (Port and Verdict), or a move that was rolled back (neither).
type Failure struct{ Cluster, Port, Verdict string }

// Mark says up to where failures were counted.
type Mark struct {
	recorded uint64
	closedMs int64
}

// Failures counts those after a mark, and gives the next mark. The zero Mark counts none: what happened before this controller
// started was counted by those that ran. What can fail in a cluster that has nodes is there with 0: who watches a counter sees no
// increase in one that appears with its first count.
func (f *Fleet) Failures(ctx context.Context, after Mark) (out map[Failure]int, next Mark, err error) {
	err = f.read.View(ctx, func(ctx context.Context, q state.Querier) error {
		if out, err = possible(ctx, q); err != nil {
			return err
		}
		if err := q.QueryRowContext(ctx, `SELECT (SELECT coalesce(max(recorded), 0) FROM proof_tasks), (SELECT coalesce(max(closed_ms), 0) FROM moves)`).
			Scan(&next.recorded, &next.closedMs); err != nil {
			return err
		}
		if next.recorded, next.closedMs = max(next.recorded, after.recorded, 1), max(next.closedMs, after.closedMs, 1); after == (Mark{}) {
			return nil
		}
		proofs, err := collect(ctx, q, func(r *sql.Rows) (Failure, error) {
			var cluster string
			var kind agentv1.PortKind
			var verdict agentv1.Verdict
			err := r.Scan(&cluster, &kind, &verdict)
			return Failure{cluster, portName(kind), verdictName(verdict)}, err
		}, `SELECT n.cluster, p.kind, p.verdict FROM proof_tasks p JOIN nodes n ON n.name = p.node WHERE p.recorded > ? AND p.verdict <> ?`, after.recorded, agentv1.Verdict_VERDICT_ACCEPTED)
		if err != nil {
			return err
		}
		moves, err := collect(ctx, q, func(r *sql.Rows) (f Failure, err error) { return f, r.Scan(&f.Cluster) },
			`SELECT cluster FROM moves WHERE closed_ms > ? AND outcome = ?`, after.closedMs, agentv1.MoveOutcome_MOVE_OUTCOME_ROLLED_BACK)
		for _, f := range append(proofs, moves...) {
			out[f]++
		}
		return err
	})
	return out, next, err
}

// possible is each failure that a cluster with nodes can have, with 0.
func possible(ctx context.Context, q state.Querier) (map[Failure]int, error) {
	clusters, err := collect(ctx, q, func(r *sql.Rows) (c string, err error) { return c, r.Scan(&c) }, `SELECT DISTINCT cluster FROM nodes`)
	out := map[Failure]int{}
	for _, c := range clusters {
		out[Failure{Cluster: c}] = 0
		for _, port := range []agentv1.PortKind{agentv1.PortKind_PORT_KIND_INTERNODE, agentv1.PortKind_PORT_KIND_CQL} {
			for _, v := range []agentv1.Verdict{agentv1.Verdict_VERDICT_REFUSED, agentv1.Verdict_VERDICT_UNKNOWN, agentv1.Verdict_VERDICT_WRONG_LEAF, agentv1.Verdict_VERDICT_DOWN} {
				out[Failure{c, portName(port), verdictName(v)}] = 0
			}
		}
	}
	return out, err
}
