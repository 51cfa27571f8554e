package fleet

import (
	"bytes"
	"context"
	"database/sql"
	"time"

	agentv1 "github.com/cassandra-security-manager/csm/protocol/agent/v1"
	clusterv1 "github.com/cassandra-security-manager/csm/protocol/cluster/v1"

	"github.com/cassandra-security-manager/csm/controller/state"
	"github.com/cassandra-security-manager/csm/shared/fault"
)

// States of a move. A lapsed one was never reported: it expired, or its agent restarted, was replaced or was revoked.
const (
	moveOpen   = "open"
	moveClosed = "closed"
	moveLapsed = "lapsed"
)

// Failures of one store within a day after which no further claim is granted until a person asks for a renewal.
const (
	maxFailures   = 5
	failureWindow = 24 * time.Hour
)

// Claim asks for the right to change a store. The fault's reason says which gate said no; "wave-busy" is answered
// with a signal on WaveSignal when it is worth asking again.
func (f *Fleet) Claim(ctx context.Context, uid string, r *agentv1.ClaimMoveRequest) (claim string, expires time.Time, err error) {
	if r.GetRequestId() == "" {
		return "", time.Time{}, fault.New(fault.Invalid, "no-request-id", "a claim needs a request id")
	}
	id, err := f.id()
	if err != nil {
		return "", time.Time{}, err
	}
	ttl, err := f.claimTTL(ctx, r.Node)
	if err != nil {
		return "", time.Time{}, err
	}
	out, err := reply[*clusterv1.ClaimMoveReply](f.propose(ctx, r.Node, agentActor(uid, r.Incarnation), "",
		&clusterv1.ClaimMove{Claim: id, Uid: uid, Request: r, TtlMs: ttl.Milliseconds()}))
	if err != nil {
		return "", time.Time{}, err
	}
	return out.Claim, at(out.ExpiresMs), nil
}

func (g gates) applyClaimMove(a *state.Apply, c *clusterv1.ClaimMove) (*clusterv1.ClaimMoveReply, error) {
	r := c.GetRequest()
	n, err := activeAgent(a, c.Uid, r.GetIncarnation())
	if err != nil {
		return nil, err
	}
	if n.name != r.GetNode() {
		return nil, fault.New(fault.Refused, "not-your-node", "this agent is that of %s, not of %.200q", short(n.name), r.GetNode())
	}
	if again, err := claimedBefore(a, n, r); again != nil || err != nil {
		return again, err
	}
	s, known, err := readStore(a, n.name, r.Store)
	if err != nil {
		return nil, err
	}
	if !known {
		return nil, fault.New(fault.NotFound, "no-store", "%s has no store %.63q", short(n.name), r.Store).Do("report the store first")
	}
	l, err := lifeOf(a.Context(), a.Querier(), n.cluster)
	if err != nil {
		return nil, err
	}
	for _, gate := range []func() error{
		func() error { return mayAct(a, n) },
		func() error { return trustFirst(n, s, l, r.Kind) },
		func() error { return requestFits(n, s, r) },
		func() error { return shrinks(a, n, r.Kind) },
		func() error { return budget(a, n, s) },
		func() error { return ownClaim(a, n) },
	} {
		if err := gate(); err != nil {
			return nil, err
		}
	}
	alone := !sideBySide(n, s, r)
	owned, err := g.mayMove(a, Moving{Cluster: n.cluster, Node: n.name, Incarnation: n.incarnation, Store: s.store, Kind: r.Kind, Generation: r.Generation, PlanHash: r.PlanHash})
	if err != nil {
		return nil, err
	}
	if alone && !owned {
		if err := waveFree(a.Context(), a.Querier(), n.name, n.cluster, a.Now.UnixMilli()); err != nil {
			return nil, err
		}
	}
	return grant(a, c, n, s, alone)
}

// claimedBefore answers a repeat of the request.
func claimedBefore(a *state.Apply, n nodeRow, r *agentv1.ClaimMoveRequest) (*clusterv1.ClaimMoveReply, error) {
	var claim, st, store string
	var generation uint64
	var expires int64
	ok, err := found(a.QueryRow(`SELECT claim, state, store, generation, expires_ms FROM moves WHERE node = ? AND request_id = ?`, n.name, r.RequestId).
		Scan(&claim, &st, &store, &generation, &expires))
	switch {
	case err != nil || !ok:
		return nil, err
	case store != r.Store || generation != r.Generation:
		return nil, fault.New(fault.Invalid, "request-id-reused", "the request id was used for another claim").Do("make a new request id for each claim")
	case st != moveOpen || expires <= a.Now.UnixMilli():
		return nil, fault.New(fault.Stale, "claim-closed", "the claim of this request has ended").Do("ask again with a new request id")
	}
	return &clusterv1.ClaimMoveReply{Claim: claim, ExpiresMs: expires}, nil
}

// mayAct asks what stands above the request: the agent's own ceiling, its HOLD file, and freezes.
func mayAct(a *state.Apply, n nodeRow) error {
	switch {
	case n.agent.mode != agentv1.Mode_MODE_MANAGE:
		return fault.New(fault.Refused, "mode", "the agent of %s is in mode %s", short(n.name), modeName(n.agent.mode)).Do("set mode: manage in its agent.yaml when it may act")
	case n.agent.hold != "":
		return fault.New(fault.Refused, "held", "%s holds: %s", short(n.name), n.agent.hold).Do("remove the HOLD file on the node")
	}
	if l, err := lifeOf(a.Context(), a.Querier(), n.cluster); err != nil {
		return err
	} else if l.released > 0 {
		return l.refusal(n.cluster)
	}
	z, err := frozen(a.Context(), a.Querier(), n.name, a.Now.UnixMilli())
	if err != nil || z == nil {
		return err
	}
	return z.refusal()
}

// requestFits compares what the agent wants to do with what is wished and known of the store. Pure.
func requestFits(n nodeRow, s storeRow, r *agentv1.ClaimMoveRequest) error {
	switch {
	case r.Generation < s.generation:
		return fault.New(fault.Stale, "generation-superseded", "generation %d of store %s was replaced by %d", r.Generation, s.store, s.generation).Do("wait for the target of the new generation")
	case r.Generation > s.generation:
		return fault.New(fault.Stale, "generation-unknown", "generation %d of store %s is not known, %d is the newest", r.Generation, s.store, s.generation).
			Do("if this system was restored from a backup, see `csm node get %s`", short(n.name))
	case !bytes.Equal(r.KeystoreSha256, s.keystore) || !bytes.Equal(r.TruststoreSha256, s.truststore):
		return fault.New(fault.Stale, "store-changed", "the files of store %s are not those that were last reported", s.store).Do("report the store, then claim again")
	case s.state == agentv1.InstallState_INSTALL_STATE_CONTESTED:
		return fault.New(fault.Refused, "store-contested", "another tool writes store %s of %s", s.store, short(n.name)).Do("stop that tool, then restart the agent")
	}
	if err := wishFits(n, s, r); err != nil {
		return err
	}
	switch r.Kind {
	case agentv1.MoveKind_MOVE_KIND_FIRST:
		if s.state == agentv1.InstallState_INSTALL_STATE_PROVEN {
			return fault.New(fault.Refused, "not-first", "store %s of %s is in use: a change of it is a renewal", s.store, short(n.name))
		}
	case agentv1.MoveKind_MOVE_KIND_RENEW, agentv1.MoveKind_MOVE_KIND_TRUST, agentv1.MoveKind_MOVE_KIND_SHRINK, agentv1.MoveKind_MOVE_KIND_TAKE_OVER,
		agentv1.MoveKind_MOVE_KIND_GIVE_BACK:
	default:
		return fault.New(fault.Invalid, "bad-kind", "a claim is for a first install, a renewal or a change of trust")
	}
	return nil
}

// budget stops a store that fails again and again at the same wish. A move refused before anything was written is no
// failure of the node's: the cap on certificates bounds those.
func budget(a *state.Apply, n nodeRow, s storeRow) error {
	var failed int
	if err := a.QueryRow(`SELECT count(*) FROM moves WHERE node = ? AND store = ? AND generation = ? AND state = ? AND outcome IN (?,?) AND closed_ms > ?`,
		n.name, s.store, s.generation, moveClosed, agentv1.MoveOutcome_MOVE_OUTCOME_ROLLED_BACK, agentv1.MoveOutcome_MOVE_OUTCOME_FAILED, a.Now.Add(-failureWindow).UnixMilli()).Scan(&failed); err != nil {
		return err
	}
	if failed < maxFailures {
		return nil
	}
	return fault.New(fault.Exhausted, "gave-up", "store %s of %s failed %d times in a day at generation %d", s.store, short(n.name), failed, s.generation).
		Do("see why with `csm node get %s`, put it right, then `csm node renew %s`", short(n.name), short(n.name))
}

// ownClaim ends a claim that the agent can no longer know of, because it has started again or the claim expired, and
// refuses a second one beside a living one.
func ownClaim(a *state.Apply, n nodeRow) error {
	var claim string
	var counter uint64
	var expires int64
	ok, err := found(a.QueryRow(`SELECT claim, counter, expires_ms FROM moves WHERE node = ? AND state = ?`, n.name, moveOpen).Scan(&claim, &counter, &expires))
	if err != nil || !ok {
		return err
	}
	why := "the claim expired without a report"
	if expires > a.Now.UnixMilli() {
		if counter >= n.agent.counter {
			return fault.New(fault.Conflict, "claim-open", "%s has an open claim until %s", short(n.name), at(expires).Format(time.RFC3339)).Do("report its outcome first")
		}
		why = "the agent started again without a report"
	}
	return lapse(a, claim, why)
}

func lapse(a *state.Apply, claim, why string) error {
	_, err := a.Exec(`UPDATE moves SET state = ?, closed_ms = ?, detail = ? WHERE claim = ?`, moveLapsed, a.Now.UnixMilli(), why, claim)
	return err
}

// sideBySide: a store written before Cassandra's first start endangers no running ring, so such installs need no wave.
func sideBySide(n nodeRow, s storeRow, r *agentv1.ClaimMoveRequest) bool {
	return r.Kind == agentv1.MoveKind_MOVE_KIND_FIRST && !n.running && len(s.proven) == 0
}

// waveFree refuses while another node of the cluster is on the move, or has moved and is not proved. A lapsed claim
// under which a certificate was handed out counts as not proved: nobody knows what that node serves.
func waveFree(ctx context.Context, q state.Querier, node, cluster string, now int64) error {
	b, err := blocker(ctx, q, node, cluster, now)
	if err != nil || b == nil {
		return err
	}
	return b.refusal()
}

// WaveFree says whether a claim of the node would find the wave free. When it would not, retry is when that changes by
// time alone; zero when only an event can change it.
func (f *Fleet) WaveFree(ctx context.Context, node, cluster string) (free bool, retry time.Time, err error) {
	free, err = view(ctx, f.read, func(ctx context.Context, q state.Querier) (bool, error) {
		b, err := blocker(ctx, q, node, cluster, f.clock.Now().UnixMilli())
		if b != nil {
			retry = b.until
		}
		return b == nil, err
	})
	return free, retry, err
}

// blocking says which node the others wait for.
type blocking struct {
	node     string
	since    time.Time
	until    time.Time
	unproved string
}

func (b *blocking) refusal() error {
	if b.unproved != "" {
		return fault.New(fault.Refused, "wave-busy", "%s has moved and is not proved: store %s", short(b.node), b.unproved).
			Do("a node moves only when the one before it is proved: see `csm node get %s`; if that host is gone for good, revoke its agent", short(b.node))
	}
	return fault.New(fault.Refused, "wave-busy", "%s is on the move since %s, at most until %s", short(b.node), b.since.Format(time.RFC3339), b.until.Format(time.RFC3339)).
		Do("wait: the controller says when it is worth asking again")
}

func blocker(ctx context.Context, q state.Querier, node, cluster string, now int64) (*blocking, error) {
	var b blocking
	var since, until int64
	ok, err := found(q.QueryRowContext(ctx, `SELECT node, opened_ms, expires_ms FROM moves WHERE cluster = ? AND state = 'open' AND alone = 1 AND node <> ? AND expires_ms > ?
		ORDER BY opened LIMIT 1`, cluster, node, now).Scan(&b.node, &since, &until))
	if err != nil {
		return nil, err
	}
	if ok {
		b.since, b.until = at(since), at(until)
		return &b, nil
	}
	ok, err = found(q.QueryRowContext(ctx, `SELECT n.name, s.store FROM nodes n JOIN stores s ON s.node = n.name JOIN agents g ON g.uid = n.uid AND g.incarnation = n.incarnation
		WHERE n.cluster = ? AND n.name <> ? AND s.unproved = 1 AND g.state <> ? ORDER BY n.name, s.store LIMIT 1`, cluster, node, Revoked).Scan(&b.node, &b.unproved))
	if err != nil || !ok {
		return nil, err
	}
	return &b, nil
}

func grant(a *state.Apply, c *clusterv1.ClaimMove, n nodeRow, s storeRow, alone bool) (*clusterv1.ClaimMoveReply, error) {
	now := a.Now.UnixMilli()
	expires := now + c.TtlMs
	r := c.Request
	if _, err := a.Exec(`INSERT INTO moves (claim, node, cluster, uid, incarnation, counter, store, kind, generation, request_id, state, alone, unproved_before,
		opened, opened_ms, expires_ms, closed_ms, issued_renew_at_ms, outcome, before_sha256, detail, took_ms, plan_hash)
		VALUES (?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,0,0,0,?,'',0,?)`,
		c.Claim, n.name, n.cluster, n.uid, n.incarnation, n.agent.counter, s.store, int(r.Kind), r.Generation, r.RequestId, moveOpen, flag(alone), flag(s.unproved),
		a.Index, now, expires, s.leaf, nullable(r.PlanHash)); err != nil {
		return nil, err
	}
	if r.Kind == agentv1.MoveKind_MOVE_KIND_TAKE_OVER {
		if err := keepLeaf(a, s); err != nil {
			return nil, err
		}
	}
	// What needs no certificate of us may take effect as soon as it is claimed.
	if trustAlone(r.Kind) || r.Kind == agentv1.MoveKind_MOVE_KIND_GIVE_BACK {
		if _, err := a.Exec(`UPDATE stores SET unproved = 1 WHERE name = ?`, s.name); err != nil {
			return nil, err
		}
	}
	a.Touch(state.Updated, n.name)
	return &clusterv1.ClaimMoveReply{Claim: c.Claim, ExpiresMs: expires}, nil
}

// OpenClaim is what a certificate may be issued under.
type OpenClaim struct {
	Claim       string
	Node        string
	UID         string
	Incarnation uint64
	Store       string
	Kind        agentv1.MoveKind
	Expires     time.Time
	Names       Names
	Cluster     string
	Authority   string
	Region      string
	TrustDomain string
	// Due is when the leaf in place ends; zero: there is none of ours to last until then.
	Due time.Time
}

// OpenClaim reads a claim that is open at this controller's state; NotFound when it is not, or not yet.
func (f *Fleet) OpenClaim(ctx context.Context, claim string) (OpenClaim, error) {
	return view(ctx, f.read, func(ctx context.Context, q state.Querier) (OpenClaim, error) {
		o := OpenClaim{Claim: claim}
		var names string
		var expires, due int64
		err := q.QueryRowContext(ctx, `SELECT m.node, m.uid, m.incarnation, m.store, m.kind, m.expires_ms, n.names, c.name, `+authorityOf+`, c.region, c.trust_domain, coalesce(s.not_after_ms, 0)
			FROM moves m JOIN nodes n ON n.name = m.node JOIN clusters c ON c.name = m.cluster LEFT JOIN stores s ON s.node = m.node AND s.store = m.store WHERE m.claim = ? AND m.state = 'open'`, claim).
			Scan(&o.Node, &o.UID, &o.Incarnation, &o.Store, &o.Kind, &expires, &names, &o.Cluster, &o.Authority, &o.Region, &o.TrustDomain, &due)
		if err == sql.ErrNoRows {
			return o, noClaim()
		}
		if err != nil {
			return o, err
		}
		o.Expires = at(expires)
		if o.Kind == agentv1.MoveKind_MOVE_KIND_RENEW && due > 0 {
			o.Due = at(due)
		}
		o.Names, err = namesFrom(names)
		return o, err
	})
}

func noClaim() error {
	return fault.New(fault.NotFound, "no-claim", "there is no such open claim").Do("claim the move first")
}
