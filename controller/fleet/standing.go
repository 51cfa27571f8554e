package fleet

import (
	"bytes"
	"context"
	"database/sql"
	"time"

	"google.golang.org/protobuf/proto"

	agentv1 "github.com/cassandra-security-manager/csm/protocol/agent/v1"

	"github.com/cassandra-security-manager/csm/controller/state"
	"github.com/cassandra-security-manager/csm/shared/fault"
)

// Standing is how a node stands, for those who decide over many: it may be asked in Apply and by readers.
type Standing struct {
	Node        string
	Incarnation uint64
	// Agent is Active, Suspended, Revoked or Pending; Mode and Hold as it last reported.
	Agent, Mode, Hold string
	Connected         bool
	// Running is the agent's word about its Cassandra.
	Running          bool
	Datacenter, Rack string
	// Met: this incarnation has told of a ring that it is in, once at least.
	Met bool
	// Internode and CQL are the TLS sections of cassandra.yaml as the agent read them; nil when it told of none.
	Internode, CQL *agentv1.TLSSection
	// Waits is until when its move waits for Cassandra's own look at its files; zero where it waits for none.
	Waits  time.Time
	Stores []StoreStanding
	// Claim is its open move, nil without one.
	Claim *ClaimStanding
}

// StoreStanding is how a store stands.
type StoreStanding struct {
	Store                 string
	Generation, Installed uint64
	State                 agentv1.InstallState
	// Move is what the newest generation asks for while it is not installed; unspecified: the agent decides.
	Move agentv1.MoveKind
	// Theirs: the leaf is another CA's.
	Theirs bool
	// Unproved: it may serve what nobody has proved yet.
	Unproved bool
	// Proven: the leaf in the files is the one that was proved last.
	Proven bool
	// Authority signs its next leaf; Named is the one that a wish named, empty when that is the cluster's.
	Authority, Named string
	// Kept: a leaf of ours took the place of another CA's here, which may be wanted back.
	Kept bool
	// NotAfter is the end of the leaf in the files, zero when it is not known.
	NotAfter time.Time
}

// ClaimStanding is an open move.
type ClaimStanding struct {
	Store        string
	Since, Until time.Time
}

// Connected says whether the agent of a node, as this incarnation, is connected to a controller.
func Connected(ctx context.Context, q state.Querier, node string, incarnation uint64) (bool, error) {
	var n int
	err := q.QueryRowContext(ctx, `SELECT count(*) FROM nodes n JOIN agents g ON g.uid = n.uid AND g.incarnation = n.incarnation WHERE n.name = ? AND n.incarnation = ? AND g.connected = 1`, node, incarnation).Scan(&n)
	return n > 0, err
}

// Standings reads how the nodes of a cluster stand, by name.
func Standings(ctx context.Context, q state.Querier, cluster string, now time.Time) ([]Standing, error) {
	out, err := collect(ctx, q, scanStanding, `SELECT n.name, n.incarnation, n.running, n.instance, coalesce(g.state, ?), coalesce(g.mode, 0), coalesce(g.hold, ''), coalesce(g.connected, 0),
		EXISTS (SELECT 1 FROM ring_seen r WHERE r.node = n.name AND r.incarnation = n.incarnation) FROM nodes n LEFT JOIN agents g ON g.uid = n.uid AND g.incarnation = n.incarnation WHERE n.cluster = ? ORDER BY n.name`, Pending, cluster)
	if err != nil {
		return nil, err
	}
	byName := make(map[string]*Standing, len(out))
	for i := range out {
		byName[out[i].Node] = &out[i]
	}
	type storeOf struct {
		node string
		StoreStanding
	}
	stores, err := collect(ctx, q, func(r *sql.Rows) (s storeOf, err error) {
		row := storeRow{}
		var ends int64
		if err := r.Scan(&s.node, &row.store, &row.generation, &row.installed, &row.state, &row.wanted, &row.leaf, &row.proven, &row.unproved, &s.Authority, &s.Named, &row.kept, &row.keptDone, &ends, &row.move); err != nil {
			return s, err
		}
		s.Store, s.Generation, s.Installed, s.State, s.Theirs, s.Unproved = row.store, row.generation, row.installed, row.state, row.theirs(), row.unproved
		if s.Installed < s.Generation {
			s.Move = row.move
		}
		s.Kept = len(row.kept) > 0 && !row.keptDone && !s.Theirs
		if ends > 0 {
			s.NotAfter = at(ends)
		}
		s.Proven = len(row.leaf) > 0 && bytes.Equal(row.leaf, row.proven)
		return s, nil
	}, `SELECT s.node, s.store, s.generation, s.installed, s.state, s.wanted_sha256, s.leaf_sha256, s.proven_sha256, s.unproved, `+authorityOf+`, s.wish_authority, s.kept_sha256, s.kept_done, s.not_after_ms, s.wish_move
		FROM stores s JOIN nodes n ON n.name = s.node JOIN clusters c ON c.name = n.cluster WHERE n.cluster = ? ORDER BY s.node, s.store`, cluster)
	if err != nil {
		return nil, err
	}
	for _, s := range stores {
		n := byName[s.node]
		n.Stores = append(n.Stores, s.StoreStanding)
	}
	type claimOf struct {
		node string
		ClaimStanding
	}
	claims, err := collect(ctx, q, func(r *sql.Rows) (c claimOf, err error) {
		var since, until int64
		err = r.Scan(&c.node, &c.Store, &since, &until)
		c.Since, c.Until = at(since), at(until)
		return c, err
	}, `SELECT node, store, opened_ms, expires_ms FROM moves WHERE cluster = ? AND state = 'open' AND expires_ms > ? ORDER BY opened`, cluster, now.UnixMilli())
	for _, c := range claims {
		if n := byName[c.node]; n != nil {
			n.Claim = &c.ClaimStanding
		}
	}
	return out, err
}

func scanStanding(r *sql.Rows) (s Standing, err error) {
	var b []byte
	var mode agentv1.Mode
	if err := r.Scan(&s.Node, &s.Incarnation, &s.Running, &b, &s.Agent, &mode, &s.Hold, &s.Connected, &s.Met); err != nil {
		return s, err
	}
	var i agentv1.InstanceFacts
	if err := proto.Unmarshal(b, &i); err != nil {
		return s, fault.Wrap(err, fault.Internal, "bad-row", "facts of %s cannot be read", s.Node)
	}
	if r := i.GetReload(); r.GetWaits() != "" && r.Until != nil {
		s.Waits = r.Until.AsTime()
	}
	s.Mode, s.Datacenter, s.Rack, s.Internode, s.CQL = modeName(mode), i.Datacenter, i.Rack, i.Internode, i.Client
	return s, nil
}

// FrozenAt finds the freeze in force on a node or cluster, nil when there is none.
func FrozenAt(ctx context.Context, q state.Querier, name string, now time.Time) (*Freeze, error) {
	return frozen(ctx, q, name, now.UnixMilli())
}

// Words are the freeze in one sentence.
func (z *Freeze) Words() string { return fault.From(z.refusal()).Message }

// Remedy says how to lift it.
func (z *Freeze) Remedy() string { return fault.From(z.refusal()).Remedy }

// Took is how long a move of this cluster has taken from claim to proof lately: the mean of the newest twenty that were proved, first installs left out; zero without any.
func Took(ctx context.Context, q state.Querier, cluster string) (time.Duration, error) {
	var ms float64
	err := q.QueryRowContext(ctx, `SELECT coalesce(avg(ms), 0) FROM (SELECT closed_ms - opened_ms AS ms FROM moves WHERE cluster = ? AND closed_ms > 0 AND outcome = ? AND kind <> ? ORDER BY closed_ms DESC LIMIT 20)`,
		cluster, int(agentv1.MoveOutcome_MOVE_OUTCOME_PROVEN), int(agentv1.MoveKind_MOVE_KIND_FIRST)).Scan(&ms)
	return time.Duration(ms) * time.Millisecond, err
}

// ClusterExists refuses the name of a cluster that there is not.
func ClusterExists(a *state.Apply, cluster string) error { return scopeExists(a, cluster) }

// Short is how people name a node or cluster: "prod-eu/n7".
func Short(name string) string { return short(name) }

// SignalWave wakes the nodes of a cluster whose claims were refused.
func SignalWave(a *state.Apply, cluster string) { signalWave(a, cluster) }

// Trust is what a cluster's nodes are to trust and who signs for them.
type Trust struct {
	TrustDomain, Authority, Region string
	// Anchors are the SHA-256 of those of ours.
	Anchors [][]byte
	// Released: the cluster was let go.
	Released bool
}

// TrustOf reads the trust of a cluster.
func TrustOf(ctx context.Context, q state.Querier, cluster string) (t Trust, err error) {
	ok, err := found(q.QueryRowContext(ctx, `SELECT trust_domain, authority, region FROM clusters WHERE name = ?`, cluster).Scan(&t.TrustDomain, &t.Authority, &t.Region))
	switch {
	case err != nil:
		return t, err
	case !ok:
		return t, noCluster(cluster)
	}
	l, err := lifeOf(ctx, q, cluster)
	if err != nil {
		return t, err
	}
	t.Released = l.released > 0
	t.Anchors, err = collect(ctx, q, scanBytes, `SELECT sha256 FROM trust_anchors WHERE trust_domain = ? ORDER BY sha256`, t.TrustDomain)
	return t, err
}

// SetClusterAuthority says who signs for stores of which no wish says otherwise. No store moves by it.
func SetClusterAuthority(a *state.Apply, cluster, authority string) error {
	_, err := a.Exec(`UPDATE clusters SET authority = ?, updated_ms = ?, revision = ? WHERE name = ?`, authority, a.Now.UnixMilli(), a.Index, cluster)
	a.Touch(state.Updated, cluster)
	return err
}
