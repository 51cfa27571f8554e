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

// moveTook is how long nodes have lately held their places in rollouts of this ring, one as a rule and the slowest: from being told
// until proved, those of the same kind of rollout before others. Where no rollout ran, its moves by themselves say it; zero when there were none.
func moveTook(ctx context.Context, q state.Querier, s Spec) (one, slowest time.Duration, err error) {
	took, err := collect(ctx, q, func(r scanner) (d time.Duration, err error) {
		var ms int64
		err = r.Scan(&ms)
		return time.Duration(ms) * time.Millisecond, err
	}, `SELECT max(s.since_ms) - min(s.told_ms) FROM rollout_stores s JOIN rollouts r ON r.name = s.rollout WHERE r.cluster = ?
		GROUP BY s.rollout, s.node HAVING min(s.state = ? AND s.told_ms > 0) = 1 ORDER BY r.kind <> ?, max(s.since_ms) DESC LIMIT ?`, s.Cluster, storeDone, s.Kind, recent)
	if err != nil {
		return 0, 0, err
	}
	if one, slowest = typical(took); one > 0 {
		return one, slowest, nil
	}
	one, err = fleet.Took(ctx, q, s.Cluster)
	return one, one, err
}

// typical is the mean and the longest of all but the outliers; zero of none.
func typical(took []time.Duration) (mean, longest time.Duration) {
	sorted := slices.Sorted(slices.Values(took))
	sorted = sorted[:len(sorted)-outliers*len(sorted)/recent]
	for _, d := range sorted {
		mean, longest = mean+d, d
	}
	return mean / time.Duration(cmp.Or(len(sorted), 1)), longest
}
