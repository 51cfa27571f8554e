package fleet

import (
	"bytes"
	"context"

	"google.golang.org/protobuf/proto"

	agentv1 "github.com/cassandra-security-manager/csm/protocol/agent/v1"
	clusterv1 "github.com/cassandra-security-manager/csm/protocol/cluster/v1"

	"github.com/cassandra-security-manager/csm/controller/state"
	"github.com/cassandra-security-manager/csm/shared/fault"
)

// Complete ends a claim with its outcome. Reported again with the same outcome it is answered again.
func (f *Fleet) Complete(ctx context.Context, uid string, incarnation uint64, r *agentv1.ReportMoveRequest) error {
	c := &clusterv1.CompleteMove{Uid: uid, Incarnation: incarnation, Claim: r.Claim, Outcome: r.Outcome, BeforeSha256: r.BeforeSha256, AfterSha256: r.AfterSha256,
		Proofs: r.Proofs, Detail: r.Detail, TookMs: r.Took.AsDuration().Milliseconds()}
	if r.Store != nil {
		b, err := proto.Marshal(r.Store)
		if err != nil {
			return fault.Wrap(err, fault.Invalid, "bad-facts", "the store's facts cannot be encoded")
		}
		c.Store = b
	}
	_, err := f.propose(ctx, "", agentActor(uid, incarnation), "", c)
	return err
}

type moveRow struct {
	claim, node, store, state string
	kind                      agentv1.MoveKind
	generation                uint64
	incarnation               uint64
	alone, unprovedBefore     bool
	opened                    uint64
	expires, issuedRenewAt    int64
	issued, plan              []byte
	issuer                    string // of what was issued under the claim, and the SHA-256 of its certificate
	issuerSum                 []byte
	outcome                   agentv1.MoveOutcome
}

func readMove(a *state.Apply, claim string) (m moveRow, err error) {
	ok, err := found(a.QueryRow(`SELECT claim, node, store, state, kind, generation, incarnation, alone, unproved_before, opened, expires_ms, issued_renew_at_ms, issued_sha256, outcome, plan_hash, issued_issuer, issued_issuer_sha256
		FROM moves WHERE claim = ?`, claim).Scan(&m.claim, &m.node, &m.store, &m.state, &m.kind, &m.generation, &m.incarnation, &m.alone, &m.unprovedBefore,
		&m.opened, &m.expires, &m.issuedRenewAt, &m.issued, &m.outcome, &m.plan, &m.issuer, &m.issuerSum))
	if err == nil && !ok {
		err = noClaim()
	}
	return m, err
}

func (g gates) applyCompleteMove(a *state.Apply, c *clusterv1.CompleteMove) (*clusterv1.Empty, error) {
	// A suspended agent may still say what became of its move: the truth is worth having.
	n, err := nodeOfAgent(a, c.Uid, c.Incarnation)
	if err != nil {
		return nil, err
	}
	m, err := readMove(a, c.Claim)
	if err != nil {
		return nil, err
	}
	if m.node != n.name || m.incarnation != n.incarnation {
		return nil, fault.New(fault.Refused, "not-your-claim", "this claim is not that of %s", short(n.name))
	}
	if m.state == moveClosed {
		if m.outcome == c.Outcome {
			return &clusterv1.Empty{}, nil
		}
		return nil, fault.New(fault.Conflict, "claim-closed", "this move was reported before as %s", outcomeName(m.outcome))
	}
	if err := notSuperseded(a, m); err != nil {
		return nil, err
	}
	s, known, err := readStore(a, n.name, m.store)
	if err != nil {
		return nil, err
	}
	if !known {
		return nil, fault.New(fault.NotFound, "no-store", "%s has no store %.63q any more", short(n.name), m.store)
	}
	facts, err := movedFacts(c, m)
	if err != nil {
		return nil, err
	}
	if c.Outcome == agentv1.MoveOutcome_MOVE_OUTCOME_PROVEN {
		if err := g.proved(a, n, c, m, s, facts); err != nil {
			return nil, err
		}
	}
	after, err := outcome(n, m, s, c)
	if err != nil {
		return nil, err
	}
	after.state = stillContested(after.state, s, facts)
	if err := closeMove(a, n, c, m, s, facts, after); err != nil {
		return nil, err
	}
	return &clusterv1.Empty{}, g.moved(a, Moving{Cluster: n.cluster, Node: n.name, Incarnation: n.incarnation, Store: m.store, Kind: m.kind, Generation: m.generation,
		PlanHash: m.plan, Outcome: c.Outcome, Detail: c.Detail})
}

// notSuperseded refuses the late report of a claim after which the node has claimed again: it would overwrite newer truth.
func notSuperseded(a *state.Apply, m moveRow) error {
	var newer int
	if err := a.QueryRow(`SELECT count(*) FROM moves WHERE node = ? AND store = ? AND opened > ?`, m.node, m.store, m.opened).Scan(&newer); err != nil {
		return err
	}
	if newer > 0 {
		return fault.New(fault.Stale, "claim-superseded", "the node has claimed store %s again since", m.store).Do("report the outcome of the newer claim")
	}
	return nil
}

func movedFacts(c *clusterv1.CompleteMove, m moveRow) (*agentv1.StoreFacts, error) {
	if len(c.Store) == 0 {
		return nil, nil
	}
	var s agentv1.StoreFacts
	if err := proto.Unmarshal(c.Store, &s); err != nil {
		return nil, fault.Wrap(err, fault.Invalid, "bad-facts", "the store's facts cannot be read")
	}
	if s.Store != m.store {
		return nil, fault.New(fault.Invalid, "wrong-store", "the claim is for store %s, the report of %.63q", m.store, s.Store)
	}
	return &s, nil
}

// settled is what an outcome makes of a store.
type settled struct {
	state     agentv1.InstallState
	installed uint64
	wanted    []byte
	proven    []byte
	renewAt   int64
	newRenew  bool
	unproved  bool
	keptDone  bool
}

// outcome decides what a report makes of the store. Pure.
func outcome(n nodeRow, m moveRow, s storeRow, c *clusterv1.CompleteMove) (settled, error) {
	t := settled{state: s.state, installed: s.installed, wanted: s.wanted, proven: s.proven, unproved: m.unprovedBefore, keptDone: s.keptDone}
	if m.kind == agentv1.MoveKind_MOVE_KIND_GIVE_BACK || s.back() && trustAlone(m.kind) {
		return givenBack(n, m, s, c, t)
	}
	if trustAlone(m.kind) && len(s.wanted) == 0 { // CSM never gave this store a leaf
		return trusted(n, m, s, c, t)
	}
	switch c.Outcome {
	case agentv1.MoveOutcome_MOVE_OUTCOME_PROVEN, agentv1.MoveOutcome_MOVE_OUTCOME_UNPROVEN:
		switch {
		case len(c.AfterSha256) == 0:
			return t, fault.New(fault.Invalid, "no-leaf", "a written store has a leaf; say which")
		case bytes.Equal(c.AfterSha256, m.issued):
			t.wanted, t.renewAt, t.newRenew = m.issued, m.issuedRenewAt, true
		case !bytes.Equal(c.AfterSha256, s.wanted):
			return t, fault.New(fault.Refused, "leaf-not-issued", "the leaf in place was not issued for store %s", m.store).
				Do("install only what IssueCertificate answered under this claim")
		}
		t.installed = max(m.generation, s.installed)
		if c.Outcome == agentv1.MoveOutcome_MOVE_OUTCOME_PROVEN {
			t.state, t.proven, t.unproved = agentv1.InstallState_INSTALL_STATE_PROVEN, c.AfterSha256, false
			return t, nil
		}
		t.state = agentv1.InstallState_INSTALL_STATE_INSTALLED_UNPROVEN
		t.unproved = m.alone && m.kind != agentv1.MoveKind_MOVE_KIND_FIRST && (len(s.proven) > 0 || n.running)
	case agentv1.MoveOutcome_MOVE_OUTCOME_ROLLED_BACK:
		t.state = agentv1.InstallState_INSTALL_STATE_ROLLED_BACK
	case agentv1.MoveOutcome_MOVE_OUTCOME_REFUSED:
	case agentv1.MoveOutcome_MOVE_OUTCOME_FAILED:
		t.state, t.unproved = agentv1.InstallState_INSTALL_STATE_FAILED, m.alone
	default:
		return t, fault.New(fault.Invalid, "no-outcome", "a report of a move needs an outcome")
	}
	return t, nil
}

// stillContested keeps a store contested that the agent calls so, whether before the late report of a move or with it: a
// contested store gets no claim, so the move is one from before. What went wrong for good outranks it.
func stillContested(to agentv1.InstallState, s storeRow, facts *agentv1.StoreFacts) agentv1.InstallState {
	const contested = agentv1.InstallState_INSTALL_STATE_CONTESTED
	if to != agentv1.InstallState_INSTALL_STATE_FAILED && (s.state == contested || facts.GetState() == contested) {
		return contested
	}
	return to
}

func closeMove(a *state.Apply, n nodeRow, c *clusterv1.CompleteMove, m moveRow, s storeRow, facts *agentv1.StoreFacts, t settled) error {
	now := a.Now.UnixMilli()
	if facts != nil && facts.Age >= s.age() { // a report that was kept over a restart comes after newer facts
		if c.Outcome == agentv1.MoveOutcome_MOVE_OUTCOME_REFUSED {
			t.state = stillContested(believable(facts, s), s, facts) // nothing was written: the files are what the agent says they are
		}
		if err := writeFacts(a, n, facts, c.Store, t.state); err != nil {
			return err
		}
	}
	if _, err := a.Exec(`UPDATE stores SET state = ?, installed = ?, wanted_sha256 = ?, proven_sha256 = ?, unproved = ?, renew_at_ms = CASE WHEN ?6 THEN ?7 ELSE renew_at_ms END,
		issuer = CASE WHEN ?6 THEN ?8 ELSE issuer END, kept_done = ?9 WHERE name = ?10`,
		int(t.state), t.installed, nullable(t.wanted), t.proven, flag(t.unproved), t.newRenew, t.renewAt, m.issuer, flag(t.keptDone), s.name); err != nil {
		return err
	}
	if _, err := a.Exec(`UPDATE moves SET state = ?, closed_ms = ?, outcome = ?, before_sha256 = coalesce(?, before_sha256), after_sha256 = ?, detail = ?, took_ms = ? WHERE claim = ?`,
		moveClosed, now, int(c.Outcome), nullable(c.BeforeSha256), c.AfterSha256, c.Detail, c.TookMs, m.claim); err != nil {
		return err
	}
	for i, p := range c.Proofs {
		if p.GetProber() != "" && p.GetProber() != n.name {
			continue // what others saw they have told themselves
		}
		if err := recordOwn(a, n, m, i, p, c.AfterSha256); err != nil {
			return err
		}
	}
	if err := keepProofs(a, n, c, m); err != nil {
		return err
	}
	if _, err := a.Exec(`UPDATE nodes SET changed = ?, updated_ms = ?, revision = ? WHERE name = ?`, a.Index, now, a.Index, n.name); err != nil {
		return err
	}
	if err := forgetMoves(a, n.cluster); err != nil {
		return err
	}
	a.Touch(state.Updated, n.name)
	signalTarget(a, n.name)
	signalWave(a, n.cluster)
	return nil
}

// forgetMoves prunes what ended long ago, a few at a time.
func forgetMoves(a *state.Apply, cluster string) error {
	old := a.Now.Add(-keep).UnixMilli()
	const which = `SELECT claim FROM moves WHERE cluster = ? AND closed_ms > 0 AND closed_ms < ? ORDER BY closed_ms, claim LIMIT 10`
	if _, err := a.Exec(`DELETE FROM proof_tasks WHERE claim IN (`+which+`)`, cluster, old); err != nil {
		return err
	}
	_, err := a.Exec(`DELETE FROM moves WHERE claim IN (`+which+`)`, cluster, old)
	return err
}

func nullable(b []byte) any {
	if len(b) == 0 {
		return nil
	}
	return b
}
