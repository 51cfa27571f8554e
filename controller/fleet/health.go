package fleet

import (
	"bytes"
	"context"
	"database/sql"
	"time"

	"google.golang.org/protobuf/proto"

	agentv1 "github.com/cassandra-security-manager/csm/protocol/agent/v1"
	clusterv1 "github.com/cassandra-security-manager/csm/protocol/cluster/v1"

	"github.com/cassandra-security-manager/csm/controller/state"
	"github.com/cassandra-security-manager/csm/shared/fault"
)

// healthSchema: what each node last read of its ring, and the clients that it saw. "look" is the question that was answered:
// the index of the entry that asked it, so that whoever asks needs no clock to know a fresh answer. "seen_ms" is when the
// answer was recorded. "fresh_leaf" is the leaf of the node when a connection of the client was last seen that was made since that leaf
// is served, at "fresh_ms".
const healthSchema = `
CREATE TABLE ring_health (
	node TEXT PRIMARY KEY,
	cluster TEXT NOT NULL,
	incarnation INTEGER NOT NULL,
	look INTEGER NOT NULL,
	health BLOB NOT NULL,
	seen_ms INTEGER NOT NULL
) STRICT, WITHOUT ROWID;
CREATE INDEX ring_health_cluster ON ring_health (cluster, node);
CREATE TABLE ring_looks (
	cluster TEXT PRIMARY KEY,
	look INTEGER NOT NULL,
	actor TEXT NOT NULL,
	asked_ms INTEGER NOT NULL
) STRICT, WITHOUT ROWID;
CREATE TABLE clients_seen (
	cluster TEXT NOT NULL,
	node TEXT NOT NULL,
	address TEXT NOT NULL,
	user TEXT NOT NULL,
	driver TEXT NOT NULL,
	driver_version TEXT NOT NULL,
	tls TEXT NOT NULL,
	protocol INTEGER NOT NULL,
	connections INTEGER NOT NULL,
	first_ms INTEGER NOT NULL,
	last_ms INTEGER NOT NULL,
	fresh_leaf BLOB NOT NULL,
	fresh_ms INTEGER NOT NULL,
	PRIMARY KEY (cluster, node, address, user, driver, driver_version, tls, protocol)
) STRICT, WITHOUT ROWID;
CREATE INDEX clients_seen_last ON clients_seen (node, last_ms);
CREATE TABLE clients_looked (
	node TEXT PRIMARY KEY,
	cluster TEXT NOT NULL,
	facts BLOB NOT NULL,
	looked_ms INTEGER NOT NULL,
	reason TEXT NOT NULL,
	unseen TEXT NOT NULL,
	truncated INTEGER NOT NULL,
	fresh_unseen TEXT NOT NULL,
	seen_ms INTEGER NOT NULL
) STRICT, WITHOUT ROWID;
`

// takeHealth moves what changes with each look out of the facts that are kept with the node.
func takeHealth(c *clusterv1.AgentReported, i *agentv1.InstanceFacts) (err error) {
	if i.GetHealth() != nil {
		if c.Health, err = (proto.MarshalOptions{Deterministic: true}).Marshal(i.Health); err != nil {
			return fault.Wrap(err, fault.Invalid, "bad-facts", "the health of the ring cannot be encoded")
		}
	}
	if i.GetClients() != nil {
		if c.Clients, err = (proto.MarshalOptions{Deterministic: true}).Marshal(i.Clients); err != nil {
			return fault.Wrap(err, fault.Invalid, "bad-facts", "the clients cannot be encoded")
		}
	}
	return nil
}

// reportHealth writes down what a node reads of its ring. What was told before is not written again, so that its time stays.
func reportHealth(a *state.Apply, n nodeRow, c *clusterv1.AgentReported) error {
	if len(c.Health) == 0 {
		return nil
	}
	var was []byte
	ok, err := found(a.QueryRow(`SELECT health FROM ring_health WHERE node = ? AND incarnation = ?`, n.name, n.incarnation).Scan(&was))
	if err != nil || ok && bytes.Equal(was, c.Health) {
		return err
	}
	var h agentv1.HealthFacts
	if err := proto.Unmarshal(c.Health, &h); err != nil {
		return fault.Wrap(err, fault.Invalid, "bad-facts", "the health of the ring cannot be read")
	}
	// An agent cannot answer a question that was not asked yet.
	asked, err := lookOf(a.Context(), a.Querier(), n.cluster)
	if err != nil {
		return err
	}
	_, err = a.Exec(`INSERT INTO ring_health (node, cluster, incarnation, look, health, seen_ms) VALUES (?,?,?,?,?,?) ON CONFLICT (node) DO UPDATE SET
		cluster = excluded.cluster, incarnation = excluded.incarnation, look = excluded.look, health = excluded.health, seen_ms = excluded.seen_ms`,
		n.name, n.cluster, n.incarnation, min(h.Look, asked), c.Health, a.Now.UnixMilli())
	return err
}

// lookOf is the newest question about a cluster's ring; 0 if none was asked.
func lookOf(ctx context.Context, q state.Querier, cluster string) (look uint64, err error) {
	_, err = found(q.QueryRowContext(ctx, `SELECT look FROM ring_looks WHERE cluster = ?`, cluster).Scan(&look))
	return look, err
}

// LookAgain is how old the newest question must be before something that waits for the ring asks again: what agents tell by
// themselves is up to ten minutes old, and a member that is back must not be waited for that long.
const LookAgain = time.Minute

// MayLookAgain says whether the last question about a cluster's ring is that old.
func MayLookAgain(ctx context.Context, q state.Querier, cluster string, now time.Time) (bool, error) {
	var asked int64
	_, err := found(q.QueryRowContext(ctx, `SELECT asked_ms FROM ring_looks WHERE cluster = ?`, cluster).Scan(&asked))
	return now.Sub(at(asked)).Abs() >= LookAgain, err
}

// LookTook is how long the agents of a cluster took to answer the newest question about their ring; zero: nobody was asked, or
// it cannot be told any more.
func LookTook(ctx context.Context, q state.Querier, cluster string) (time.Duration, error) {
	var ms int64
	_, err := found(q.QueryRowContext(ctx, `SELECT coalesce(max(h.seen_ms) - l.asked_ms, 0) FROM ring_looks l JOIN ring_health h ON h.cluster = l.cluster AND h.look = l.look WHERE l.cluster = ?
		GROUP BY l.cluster`, cluster).Scan(&ms))
	if d := time.Duration(ms) * time.Millisecond; d > 0 && d < LookAgain {
		return d, err
	}
	return 0, err // a later, unasked answer carries the same number
}

// AskHealth has every agent of a cluster look at its ring now. An answer to this question, or a newer one, carries at least
// the number that is returned.
func AskHealth(a *state.Apply, cluster string) (look uint64, err error) {
	if err := scopeExists(a, cluster); err != nil {
		return 0, err
	}
	if _, err := a.Exec(`INSERT INTO ring_looks (cluster, look, actor, asked_ms) VALUES (?,?,?,?) ON CONFLICT (cluster) DO UPDATE SET
		look = excluded.look, actor = excluded.actor, asked_ms = excluded.asked_ms`, cluster, a.Index, a.Envelope.GetActor(), a.Now.UnixMilli()); err != nil {
		return 0, err
	}
	signalTarget(a, cluster)
	return a.Index, nil
}

// AskHealth asks as the function of this name does, by a command of its own.
func (f *Fleet) AskHealth(ctx context.Context, cluster, actor string) (look uint64, err error) {
	r, err := reply[*clusterv1.AskedHealth](f.propose(ctx, cluster, actor, "", &clusterv1.AskHealth{Cluster: cluster}))
	return r.GetLook(), err
}

func applyAskHealth(a *state.Apply, c *clusterv1.AskHealth) (*clusterv1.AskedHealth, error) {
	look, err := AskHealth(a, c.Cluster)
	return &clusterv1.AskedHealth{Look: look}, err
}

// told is what one node last said of its ring's health.
type told struct {
	node string
	look uint64
	seen time.Time
	// counts: it is of the present incarnation, and of an agent that is active and connected now.
	counts bool
	facts  *agentv1.HealthFacts
}

func toldOf(ctx context.Context, q state.Querier, cluster string) (map[string]told, error) {
	rows, err := collect(ctx, q, func(r *sql.Rows) (t told, err error) {
		var body []byte
		var seen int64
		if err := r.Scan(&t.node, &t.look, &body, &seen, &t.counts); err != nil {
			return t, err
		}
		t.seen, t.facts = at(seen), &agentv1.HealthFacts{}
		if err := proto.Unmarshal(body, t.facts); err != nil {
			return t, fault.Wrap(err, fault.Internal, "bad-row", "what %s says of its ring cannot be read", t.node)
		}
		return t, nil
	}, `SELECT h.node, h.look, h.health, h.seen_ms, h.incarnation = n.incarnation AND n.running = 1 AND g.state = 'active' AND g.connected = 1
		FROM ring_health h JOIN nodes n ON n.name = h.node JOIN agents g ON g.uid = n.uid AND g.incarnation = n.incarnation WHERE h.cluster = ? ORDER BY h.node`, cluster)
	if err != nil {
		return nil, err
	}
	out := make(map[string]told, len(rows))
	for _, t := range rows {
		out[t.node] = t
	}
	return out, nil
}
