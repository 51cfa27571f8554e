package rollout

import (
	"cmp"
	"context"
	"slices"
	"time"

	"github.com/cassandra-security-manager/csm/controller/fleet"
	"github.com/cassandra-security-manager/csm/controller/state"
)

// recent is how many nodes say how long the next one will take, outliers how many of them do not count, the slowest: a node
// that was frozen or held when its turn came says nothing of the others.
const (
	recent   = 20
	outliers = 2
)

// moveTook is how long a node has lately held its place in a rollout of this ring: from being told until it was proved, those of the
// same kind of rollout before others. Where no rollout ran, its moves by themselves say it; zero when there were none.
func moveTook(ctx context.Context, q state.Querier, s Spec) (time.Duration, error) {
	took, err := collect(ctx, q, func(r scanner) (d time.Duration, err error) {
		var ms int64
		err = r.Scan(&ms)
		return time.Duration(ms) * time.Millisecond, err
	}, `SELECT max(s.since_ms) - min(s.told_ms) FROM rollout_stores s JOIN rollouts r ON r.name = s.rollout WHERE r.cluster = ?
		GROUP BY s.rollout, s.node HAVING min(s.state = ? AND s.told_ms > 0) = 1 ORDER BY r.kind <> ?, max(s.since_ms) DESC LIMIT ?`, s.Cluster, storeDone, s.Kind, recent)
	if err != nil {
		return 0, err
	}
	if d := typical(took); d > 0 {
		return d, nil
	}
	return fleet.Took(ctx, q, s.Cluster)
}

// typical is the mean of all but the slowest; zero of none.
func typical(took []time.Duration) time.Duration {
	sorted := slices.Sorted(slices.Values(took))
	sorted = sorted[:len(sorted)-outliers*len(sorted)/recent]
	var sum time.Duration
	for _, d := range sorted {
		sum += d
	}
	return sum / time.Duration(cmp.Or(len(sorted), 1))
}
