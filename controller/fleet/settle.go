package fleet

import (
	"context"
	"database/sql"
	"time"

	"google.golang.org/protobuf/proto"

	agentv1 "github.com/cassandra-security-manager/csm/protocol/agent/v1"

	"github.com/cassandra-security-manager/csm/controller/state"
	"github.com/cassandra-security-manager/csm/shared/fault"
)

// MaxSettle bounds how long after a write a node may say that its files take to be in force: Cassandra looks at them each ten minutes.
const MaxSettle = 30 * time.Minute

// Reload is how a node's Cassandra is made to read its stores again.
type Reload struct {
	Way    string    `json:"way,omitempty" doc:"auto, nodetool, jmx, command, or poll: Cassandra is left to look at its files by itself"`
	Within float64   `json:"withinSeconds,omitempty" doc:"how long after a write the files may take to be in force, where no command loads them"`
	Waits  string    `json:"waits,omitempty" doc:"store of a move whose files are written and wait for Cassandra's own look at them"`
	Until  time.Time `json:"untilTime,omitzero" doc:"until when at most"`
}

func reloadOf(i *agentv1.InstanceFacts) *Reload {
	f := i.GetReload()
	if f == nil {
		return nil
	}
	r := &Reload{Way: f.Way, Within: settles(i).Seconds(), Waits: f.Waits}
	if f.Until != nil {
		r.Until = f.Until.AsTime()
	}
	return r
}

// settles is how long after a write the node's files may take to be in force; zero where a command loads them in seconds.
func settles(i *agentv1.InstanceFacts) time.Duration {
	return min(max(i.GetReload().GetWithin().AsDuration(), 0), MaxSettle)
}

// claimTTL is how long a claim of the node lives: where Cassandra's own look at its files has to be waited for, as long as that may take
// forth, and back.
func (f *Fleet) claimTTL(ctx context.Context, node string) (time.Duration, error) {
	var i agentv1.InstanceFacts
	b, err := view(ctx, f.read, func(ctx context.Context, q state.Querier) (b []byte, err error) {
		_, err = found(q.QueryRowContext(ctx, `SELECT instance FROM nodes WHERE name = ?`, node).Scan(&b))
		return b, err
	})
	if err == nil {
		err = proto.Unmarshal(b, &i)
	}
	return ClaimTTL + 2*settles(&i), err
}

// Settling are the nodes of a cluster that wait for Cassandra's own look at their files at each move, with how long it may take.
func Settling(ctx context.Context, q state.Querier, cluster string) (map[string]time.Duration, error) {
	out := map[string]time.Duration{}
	_, err := collect(ctx, q, func(r *sql.Rows) (struct{}, error) {
		var node string
		var b []byte
		if err := r.Scan(&node, &b); err != nil {
			return struct{}{}, err
		}
		var i agentv1.InstanceFacts
		if err := proto.Unmarshal(b, &i); err != nil {
			return struct{}{}, fault.Wrap(err, fault.Internal, "bad-row", "facts of %s cannot be read", node)
		}
		if d := settles(&i); d > 0 {
			out[node] = d
		}
		return struct{}{}, nil
	}, `SELECT name, instance FROM nodes WHERE cluster = ?`, cluster)
	return out, err
}
