package node

import (
	"bytes"
	"context"
	"crypto"
	"crypto/rand"
	"crypto/x509"
	"encoding/hex"
	"log/slog"
	"time"

	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/cassandra-security-manager/csm/agent/cassandra"
	"github.com/cassandra-security-manager/csm/agent/install"
	agentv1 "github.com/cassandra-security-manager/csm/protocol/agent/v1"
	"github.com/cassandra-security-manager/csm/shared/algorithm"
	"github.com/cassandra-security-manager/csm/shared/certificate"
	"github.com/cassandra-security-manager/csm/shared/fault"
)

// How long calls may take and are tried again while the outcome is not known or no quorum answers.
const (
	callFor = 15 * time.Second
	// defaultClaimFor is for claims, reports and questions for a neighbour.
	defaultClaimFor = 10 * time.Second
	issueFor        = 45 * time.Second
	// turnFor is how long a claim waits for its turn at a busy signer; what is left of the claim's life is for the install.
	turnFor = 8 * time.Minute
	// proofFor is how long one prober has; the controller then names another.
	proofFor = 25 * time.Second
)

// do does one thing. A nil error means that it is done, whatever the node then looks like.
func (n *Node) do(ctx context.Context, s *cassandra.Store, a Action) error {
	n.log.Info("begin", "store", s.Name, "do", a.Do, "reason", a.Reason, "why", a.Message)
	switch a.Do {
	case Settle:
		return n.settle(ctx, s)
	case Restore:
		o, err := n.installer.Restore(ctx, n.site(s))
		n.tellOutcome(s.Name, o)
		return err
	case Install:
		return n.install(ctx, s, a)
	case Prove:
		return n.prove(ctx, s, a)
	case Reprove:
		o, err := n.installer.Reprove(ctx, n.site(s))
		n.tellOutcome(s.Name, o)
		return err
	}
	return nil
}

// after remembers how a step went, so that a failing one is not repeated at once.
func (n *Node) after(store string, a Action, err error) {
	if n.o.Notify != nil {
		n.o.Notify(store, a, err)
	}
	if err == nil {
		delete(n.attempts, store)
		delete(n.failures, store)
		delete(n.rest, store)
		n.log.Info("done", "store", store, "do", a.Do)
		return
	}
	f := fault.From(err)
	level := slog.LevelError
	if claimed(a) && (f.Reason == "wave-busy" || unheard[f.Reason]) {
		level = slog.LevelInfo // its turn comes
	}
	n.log.Log(context.Background(), level, "not done", "store", store, "do", a.Do, "reason", f.Reason, "error", f.Error())
	now := n.o.Clock.Now()
	if a.Do == Reprove {
		n.rest[store] = now.Add(Pause(n.failures[store]))
		n.failures[store]++
		return
	}
	att := &Attempt{Do: a.Do, Reason: f.Reason, Message: f.Error(), Generation: n.targetGeneration(store)}
	switch {
	case unheard[f.Reason] && claimed(a):
		// The controllers have not taken our newest report yet (they take one a second), or we not their newest target.
		att.Again = now.Add(min(time.Second<<min(n.failures[store], 6), time.Minute))
		if n.failures[store]++; n.failures[store]%unheardFor == 0 {
			// Perhaps they hold something else for our newest word: a new stream begins with all of it.
			n.log.Warn("the controllers decide by other facts than this agent's; it tells them anew", "store", store, "reason", f.Reason)
			n.client.Reconnect()
		}
	case f.RetryAfter > 0:
		att.Again = now.Add(f.RetryAfter)
	case f.Reason == "wave-busy":
		att.Again = now.Add(2 * time.Minute) // the controllers say sooner when it is free; this is for a word that was lost
	case lacksProof(err) || f.Code == fault.Unavailable || f.Code == fault.Unknown || f.Code == fault.Stale:
		att.Again = now.Add(min(5*time.Second<<min(n.failures[store], 6), 5*time.Minute))
		n.failures[store]++
	default:
		att.Again = now.Add(Pause(n.failures[store]))
		n.failures[store]++
	}
	n.attempts[store] = att
}

// unheardFor is how many claims in a row are refused so until everything is told anew.
const unheardFor = 4

// unheard are refusals of a claim by what we have already told otherwise.
var unheard = map[string]bool{"store-changed": true, "no-store": true, "generation-superseded": true, "generation-unknown": true,
	"plan-unknown": true, "plan-missing": true, "other-move": true, "held": true, "mode": true, "store-contested": true, "store-foreign": true, "not-first": true}

// reopened forgets refused claims when the controllers say that it is worth asking again.
func (n *Node) reopened() {
	n.mu.Lock()
	open := n.reopen
	n.reopen = false
	n.mu.Unlock()
	if !open {
		return
	}
	for s, a := range n.attempts {
		if a.Reason == "wave-busy" {
			delete(n.attempts, s)
		}
	}
}

func (n *Node) targetGeneration(store string) uint64 {
	if t := n.targetOf(store); t != nil {
		return t.Generation
	}
	return 0
}

func (n *Node) targetOf(store string) *agentv1.StoreTarget {
	n.mu.Lock()
	defer n.mu.Unlock()
	for _, t := range n.target.GetStores() {
		if t.Store == store {
			return t
		}
	}
	return nil
}

func (n *Node) anchors() ([]*x509.Certificate, error) {
	n.mu.Lock()
	ders := n.target.GetAnchors()
	n.mu.Unlock()
	return certificate.ParseAll(ders)
}

// withdrawn are the anchors that the controllers want to go.
func (n *Node) withdrawn() (out [][32]byte) {
	n.mu.Lock()
	defer n.mu.Unlock()
	for _, w := range n.target.GetWithdrawn() {
		if len(w) == 32 {
			out = append(out, [32]byte(w))
		}
	}
	return out
}

// call runs a call with its own deadline, and again while the outcome is unknown or nobody answers: every call is
// idempotent by its request id or claim.
func (n *Node) call(ctx context.Context, total time.Duration, f func(context.Context, agentv1.AgentServiceClient) error) error {
	ctx, cancel := context.WithTimeout(ctx, total)
	defer cancel()
	for pause := 200 * time.Millisecond; ; pause = min(2*pause, 3*time.Second) {
		one, stop := context.WithTimeout(ctx, callFor)
		err := n.client.Call(one, f)
		stop()
		if err == nil || !fault.Is(err, fault.Unavailable) && !fault.Is(err, fault.Unknown) || fault.From(err).RetryAfter > 0 {
			return err
		}
		select {
		case <-ctx.Done():
			return err
		case <-n.o.Clock.After(pause):
		}
	}
}

// inTurn asks again when the controllers say that the signer has time, until waiting is not worth the claim any more.
func (n *Node) inTurn(ctx context.Context, ask func() error) error {
	for end := n.now().Add(turnFor); ; {
		err := ask()
		after := time.Duration(0)
		if err != nil {
			after = fault.From(err).RetryAfter
		}
		if after <= 0 || n.now().Add(after).After(end) {
			return err
		}
		n.log.Info("the signer is busy", "back_in", after)
		select {
		case <-n.o.Clock.After(after):
		case <-ctx.Done():
			return err
		}
	}
}

func requestID() string {
	b := make([]byte, 16)
	_, _ = rand.Read(b)
	return hex.EncodeToString(b)
}

func (n *Node) claim(ctx context.Context, s *cassandra.Store, kind agentv1.MoveKind, t *agentv1.StoreTarget) (string, error) {
	f, id := n.factsOf(s.Name), n.folder.Identity()
	req := &agentv1.ClaimMoveRequest{Node: id.Node, Incarnation: id.Incarnation, Store: s.Name, Generation: t.Generation, Kind: kind, PlanHash: t.PlanHash,
		KeystoreSha256: f.KeystoreSha256, TruststoreSha256: f.TruststoreSha256}
	return n.unanswered.claim(req, func() (string, error) {
		var r *agentv1.ClaimMoveResponse
		err := n.call(ctx, n.o.ClaimFor, func(ctx context.Context, c agentv1.AgentServiceClient) (err error) {
			r, err = c.ClaimMove(ctx, req)
			return err
		})
		return r.GetClaim(), err
	})
}

// unansweredClaims are the requests for a claim whose answer was never heard, by store. The claim may be open: who asked under
// another id would stand before it until it lapses.
type unansweredClaims map[string]*agentv1.ClaimMoveRequest

// claim asks under the id of the request that was not answered, if it was for the same, and remembers one that is not answered now.
func (u unansweredClaims) claim(r *agentv1.ClaimMoveRequest, ask func() (string, error)) (string, error) {
	r.RequestId = requestID()
	if before := u[r.Store]; before != nil && before.Generation == r.Generation && before.Incarnation == r.Incarnation && before.Kind == r.Kind {
		r.RequestId = before.RequestId
	}
	claim, err := ask()
	if fault.Is(err, fault.Unavailable) || fault.Is(err, fault.Unknown) {
		u[r.Store] = r
	} else {
		delete(u, r.Store)
	}
	return claim, err
}

// install moves one store: claim, key, certificate, transaction, report.
func (n *Node) install(ctx context.Context, s *cassandra.Store, a Action) error {
	t := n.targetOf(s.Name)
	if t == nil {
		return fault.New(fault.Stale, "no-target", "the target went away")
	}
	claim, err := n.claim(ctx, s, a.Move, t)
	if err != nil {
		return err
	}
	began := n.o.Clock.Now()
	p, err := n.plan(ctx, s, t, claim, a.Move)
	if err != nil {
		return n.reportRefused(ctx, s, claim, err, n.o.Clock.Since(began))
	}
	o, err := n.installer.Run(ctx, p)
	if install.Left(err) {
		return err // the claim is reported when the move is settled
	}
	if rerr := n.report(ctx, s, claim, &o); rerr != nil && !lacksProof(rerr) {
		n.log.Warn("the outcome of a move is kept until a controller takes it", "claim", claim, "error", rerr)
	}
	return err
}

// plan makes key and certificate, or takes only the anchors.
func (n *Node) plan(ctx context.Context, s *cassandra.Store, t *agentv1.StoreTarget, claim string, kind agentv1.MoveKind) (install.Plan, error) {
	f := n.factsOf(s.Name)
	p := install.Plan{Site: n.site(s), Claim: claim, Generation: t.Generation, Given: len(f.LeafSha256) > 0 && bytes.Equal(f.LeafSha256, t.LeafSha256)}
	if f.GetNotAfter() != nil {
		p.NoWayBack = noWayBack(n.o.Config.Folder(n.o.Instance), f.NotAfter.AsTime(), n.now())
	}
	p.Neighbour = n.neighbour(claim, s.Name)
	var err error
	if p.Anchors, err = n.anchors(); err != nil {
		return p, err
	}
	if p.Names, err = certificate.ParseNames(t.GetNames().GetDns(), t.GetNames().GetIps(), t.GetNames().GetUris()); err != nil {
		return p, err
	}
	switch kind {
	case agentv1.MoveKind_MOVE_KIND_TRUST:
		return p, nil
	case agentv1.MoveKind_MOVE_KIND_SHRINK:
		p.Shrink, p.Withdraw = true, n.withdrawn()
		return p, nil
	case agentv1.MoveKind_MOVE_KIND_GIVE_BACK:
		if len(t.KeptSha256) != len(p.GiveBack) {
			return p, fault.New(fault.Stale, "no-target", "the target does not say which certificate is to come back")
		}
		copy(p.GiveBack[:], t.KeptSha256)
		return p, nil
	}
	p.Key, p.Chain, err = n.issue(ctx, s, t, claim, p.Names)
	return p, err
}

func (n *Node) issue(ctx context.Context, s *cassandra.Store, t *agentv1.StoreTarget, claim string, names certificate.Names) (crypto.Signer, []*x509.Certificate, error) {
	key, err := algorithm.Generate(algorithm.Key(t.KeyAlgorithm), rand.Reader)
	if err != nil {
		return nil, nil, err
	}
	csr, err := certificate.NewRequest(key, names)
	if err != nil {
		return nil, nil, err
	}
	req := &agentv1.IssueCertificateRequest{Claim: claim, RequestId: requestID(), Store: s.Name, Csr: csr}
	var r *agentv1.IssueCertificateResponse
	if err := n.inTurn(ctx, func() error {
		return n.call(ctx, issueFor, func(ctx context.Context, c agentv1.AgentServiceClient) (err error) {
			r, err = c.IssueCertificate(ctx, req)
			return err
		})
	}); err != nil {
		return nil, nil, err
	}
	chain, err := certificate.ParseChain(r.Chain)
	if err != nil {
		return nil, nil, err
	}
	n.log.Info("certificate issued", "store", s.Name, "certificate", r.Certificate, "names", names.String())
	return key, chain, nil
}

// prove brings an installed store from unproven to proven: own proof, then neighbours', under a claim.
func (n *Node) prove(ctx context.Context, s *cassandra.Store, a Action) error {
	t, f := n.targetOf(s.Name), n.factsOf(s.Name)
	if t == nil {
		return fault.New(fault.Stale, "no-target", "the target went away")
	}
	claim, err := n.claim(ctx, s, a.Move, t)
	if err != nil {
		return err
	}
	began := n.o.Clock.Now()
	o, err := n.installer.Reprove(ctx, n.site(s))
	if err == nil && o == nil {
		err = fault.New(fault.Unavailable, "cassandra-down", "Cassandra went away before it could be proved").Do("it is tried again when it is up")
	}
	out := install.Outcome{Result: agentv1.MoveOutcome_MOVE_OUTCOME_PROVEN, Claim: claim, Store: s.Name, Generation: f.Generation}
	copy(out.After[:], f.LeafSha256)
	copy(out.Before[:], f.LeafSha256)
	if o != nil {
		out.Proofs = o.Proofs
	}
	if err == nil {
		var leaf [32]byte
		copy(leaf[:], f.LeafSha256)
		var proofs []*agentv1.Proof
		if proofs, err = n.neighbour(claim, s.Name)(ctx, leaf, s.Ports); err == nil {
			out.Proofs = append(out.Proofs, proofs...)
			err = accepted(proofs, leaf)
		}
	}
	out.Took = n.o.Clock.Since(began)
	if err != nil {
		// The files stay as they are: they are no worse than before, and the next try is a claim of its own.
		f := fault.From(err)
		out.Result, out.Reason, out.Detail = agentv1.MoveOutcome_MOVE_OUTCOME_UNPROVEN, f.Reason, f.Error()
	}
	if rerr := n.report(ctx, s, claim, &out); rerr != nil && err == nil {
		err = rerr
	}
	return err
}

func accepted(proofs []*agentv1.Proof, leaf [32]byte) error {
	for _, p := range proofs {
		if p.Verdict != agentv1.Verdict_VERDICT_ACCEPTED || !bytes.Equal(p.ServedSha256, leaf[:]) {
			return fault.New(fault.Unavailable, "neighbour-not-proved", "%s says %s of port %d: %s", p.Prober, p.Verdict, p.GetPort().GetPort(), p.Detail).
				Do("compare the truststores of both nodes")
		}
	}
	return nil
}

// settle brings an interrupted install to its end and reports it.
func (n *Node) settle(ctx context.Context, s *cassandra.Store) error {
	// No neighbour is asked: the claim may have lapsed. What is proved by ourselves alone is reported as such, and the
	// proof by others follows under a claim of its own.
	o, err := n.installer.Recover(ctx, n.site(s))
	if o != nil && o.Claim != "" {
		if kerr := n.keep(s, o.Claim, o); kerr != nil {
			n.log.Error("the outcome of a move could not be kept", "error", kerr)
		}
	}
	n.tellOutcome(s.Name, o)
	return err
}

func (n *Node) settleAll(ctx context.Context) error {
	var first error
	for _, s := range n.storesNow() {
		if n.factsOf(s.Name).State != agentv1.InstallState_INSTALL_STATE_MOVING || n.mode() != agentv1.Mode_MODE_MANAGE || n.folder.Copied() {
			continue
		}
		if err := n.settle(ctx, s); err != nil && first == nil {
			first = err
		}
	}
	return first
}

func (n *Node) tellOutcome(store string, o *install.Outcome) {
	if o == nil {
		return
	}
	n.metrics.outcome(o)
	n.log.Info("outcome", "store", store, "result", o.Result.String(), "state", o.State.String(), "reason", o.Reason, "detail", o.Detail, "took", o.Took)
}

// reportRefused ends a claim under which nothing was written.
func (n *Node) reportRefused(ctx context.Context, s *cassandra.Store, claim string, cause error, took time.Duration) error {
	f := fault.From(cause)
	o := &install.Outcome{Result: agentv1.MoveOutcome_MOVE_OUTCOME_REFUSED, Claim: claim, Store: s.Name, Reason: f.Reason, Detail: f.Error(), Took: took}
	if err := n.report(ctx, s, claim, o); err != nil {
		n.log.Warn("the outcome of a move is kept until a controller takes it", "claim", claim, "error", err)
	}
	return cause
}

func clip(s string, max int) string {
	if len(s) > max {
		return s[:max]
	}
	return s
}

func (n *Node) message(s *cassandra.Store, claim string, o *install.Outcome) *agentv1.ReportMoveRequest {
	n.outcomes++
	r := &agentv1.ReportMoveRequest{Claim: claim, Outcome: o.Result, Store: n.facts(s), Proofs: o.Proofs, Took: durationpb.New(o.Took)}
	if len(r.Proofs) > 32 {
		r.Proofs = r.Proofs[len(r.Proofs)-32:]
	}
	if o.Before != ([32]byte{}) {
		r.BeforeSha256 = o.Before[:]
	}
	if o.After != ([32]byte{}) {
		r.AfterSha256 = o.After[:]
	}
	if o.Reason != "" {
		r.Detail = clip(o.Reason+": "+o.Detail, 2048)
	}
	return r
}

func (n *Node) keep(s *cassandra.Store, claim string, o *install.Outcome) error {
	return n.folder.KeepReport(n.message(s, claim, o))
}

// report keeps the outcome and sends it.
func (n *Node) report(ctx context.Context, s *cassandra.Store, claim string, o *install.Outcome) error {
	r := n.message(s, claim, o)
	if err := n.folder.KeepReport(r); err != nil {
		n.log.Error("the outcome of a move could not be kept", "error", err)
	}
	return n.send(context.WithoutCancel(ctx), r, n.o.ClaimFor)
}

// send reports one outcome. What a controller will never take is dropped: the store's facts tell the rest. A fault with
// reason "not-proved" says that the move was taken, but as unproven.
func (n *Node) send(ctx context.Context, r *agentv1.ReportMoveRequest, total time.Duration) error {
	post := func() error {
		return n.call(ctx, total, func(ctx context.Context, c agentv1.AgentServiceClient) error {
			_, err := c.ReportMove(ctx, r)
			return err
		})
	}
	err := post()
	var lacking error
	if lacksProof(err) {
		// The controllers want more proof than we have: the move is done, its proof comes later by a claim of its own.
		n.log.Warn("the controllers do not take the move for proven yet", "claim", r.Claim, "error", err)
		lacking = err
		r.Outcome, r.Detail = agentv1.MoveOutcome_MOVE_OUTCOME_UNPROVEN, clip(fault.From(err).Reason+": "+fault.From(err).Error(), 2048)
		if kerr := n.folder.KeepReport(r); kerr != nil {
			return kerr
		}
		err = post()
	}
	switch {
	case err == nil:
		if r.Outcome == agentv1.MoveOutcome_MOVE_OUTCOME_PROVEN && len(r.AfterSha256) > 0 {
			if aerr := n.folder.Acknowledge(r.GetStore().GetStore(), r.AfterSha256); aerr != nil {
				return aerr
			}
		}
	case fault.Is(err, fault.Unavailable), fault.Is(err, fault.Unknown), fault.Is(err, fault.Internal), fault.Is(err, fault.Unauthenticated):
		return err
	default:
		n.log.Warn("a report was refused and is dropped", "claim", r.Claim, "error", err)
	}
	if err := n.folder.DropReport(r.Claim); err != nil {
		return err
	}
	return lacking
}

// lacksProof says whether the controllers want more proof than was reported.
func lacksProof(err error) bool {
	return fault.HasReason(err, "not-proved") || fault.HasReason(err, "nothing-to-prove")
}

// flush sends reports that were not acknowledged.
func (n *Node) flush(ctx context.Context) {
	n.reopened()
	now := n.o.Clock.Now()
	n.mu.Lock()
	connected := n.online.Connected
	n.mu.Unlock()
	if !connected || now.Before(n.flushAt) {
		return
	}
	for _, r := range n.folder.Reports() {
		if err := n.send(ctx, r, callFor); err != nil && !lacksProof(err) {
			n.log.Warn("a report was not taken", "claim", r.Claim, "error", err)
			n.flushAt = now.Add(5 * time.Second)
			return
		}
	}
	n.flushAt = now.Add(time.Second)
}
