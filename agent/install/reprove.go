package install

import (
	"context"
	"crypto/x509"
	"slices"
	"time"

	agentv1 "github.com/cassandra-security-manager/csm/protocol/agent/v1"
	"github.com/cassandra-security-manager/csm/shared/fault"
)

// pollSlack is how long after a poll its effect is looked for: the poll itself builds contexts and may be late.
const pollSlack = 15 * time.Second

// Again is how soon a proof that could not be had is tried again.
const Again = time.Minute

// AtRest is how often a store is proved when nothing happens.
const AtRest = time.Hour

// Schedule is when a store must be proved again after files were written at installed: once after each of the polls by
// which Cassandra drops its caches and reads the files again. It handles one changed file a poll, so (files + 1) polls
// pass until all is quiet. Poll n falls somewhere within the n-th interval after the write.
func Schedule(installed time.Time, files int) []time.Time {
	var out []time.Time
	for n := 1; n <= files+1; n++ {
		out = append(out, installed.Add(time.Duration(n)*Poll+pollSlack))
	}
	return out
}

// Next is when the next proof is due at now: the first of the schedule that no proof has followed, else an hour after the
// last. A time ahead of now was written by a clock that was set back since: the polls after that install are not awaited, and
// a proof of then counts for none.
func Next(installed, proved, now time.Time, files int) time.Time {
	if proved.After(now) {
		return now
	}
	if installed.After(now) {
		return proved.Add(AtRest)
	}
	for _, at := range Schedule(installed, files) {
		if proved.Before(at) {
			return at
		}
	}
	return proved.Add(AtRest)
}

// Settled says at now whether all polls have passed and been followed by a proof: only then is a reload really over. An install
// ahead of now is as old as nobody knows: nothing is turned back for it.
func Settled(installed, proved, now time.Time, files int) bool {
	s := Schedule(installed, files)
	return installed.After(now) || !proved.Before(s[len(s)-1])
}

// trusts says whether files that are somebody else's hold anchors that CSM put beside theirs.
func (r *record) trusts() bool { return r.Theirs && r.Generation > 0 && len(r.Ours) > 0 }

// NextProof is when Reprove should be called for this store; zero when CSM wrote nothing there. A store that waits for its
// first proof is due at once.
func (i *Installer) NextProof(site Site) (time.Time, error) {
	r, err := i.folder(site).record()
	if err != nil || r == nil || len(r.History) == 0 || r.Contested || r.State == agentv1.InstallState_INSTALL_STATE_FOREIGN && !r.trusts() {
		return time.Time{}, err
	}
	i.mu.Lock()
	tried := i.tried[site.Store.Name]
	i.mu.Unlock()
	due := Next(r.Installed, r.Proved, i.o.Clock.Now(), r.Files)
	switch r.State {
	case agentv1.InstallState_INSTALL_STATE_FAILED:
		due = tried.Add(AtRest) // each refused probe writes an ERROR into Cassandra's log
		if i.o.Poll {
			due = tried.Add(Poll + pollSlack) // what was put back may be in force by then
		}
		if r.Restoring != nil {
			due = tried.Add(Again) // a broken file lies under a running node
		}
	case agentv1.InstallState_INSTALL_STATE_INSTALLED_UNPROVEN:
		due = tried.Add(Again)
	}
	if least := tried.Add(Again); due.Before(least) {
		due = least
	}
	return due, nil
}

// Reprove proves what CSM wrote once more. Files that somebody changed are restored. A pair that is no longer served is
// reloaded; if that does not help and its polls have not all passed, the generation before it is put back, where both are of one
// CA and trust the same: the ring, which nobody asks here, may have gone on by the change between them. Files of somebody
// else are proved as they are while they hold our anchors, and never turned back. A nil outcome means that there is nothing of
// ours or that Cassandra does not run.
func (i *Installer) Reprove(ctx context.Context, site Site) (*Outcome, error) {
	t, end, err := i.begin(site)
	if err != nil {
		return nil, err
	}
	defer end()
	i.mu.Lock()
	i.tried[site.Store.Name] = i.o.Clock.Now()
	i.mu.Unlock()
	if o, err := t.restore(ctx); o != nil || err != nil {
		return o, err
	}
	j, err := t.f.journal()
	if err != nil || j != nil || t.rec == nil || len(t.rec.History) == 0 {
		return nil, err
	}
	p := i.o.Detect(ctx, site.Instance)
	if !p.Normal() {
		return nil, nil
	}
	t.plan = Plan{Site: site, Claim: t.rec.Claim, Generation: t.rec.Generation}
	t.running = true
	if t.new, err = t.open(); err != nil {
		return nil, err
	}
	t.old = t.new
	if !t.rec.current().same(t.new.snapshot(0)) {
		if !t.rec.trusts() || t.untrusted(t.new) {
			return nil, nil // changed by them, and our anchors are gone: that is a move's business
		}
		if err := t.follow(t.new); err != nil {
			return nil, err
		}
	}
	err = t.again(ctx)
	o := t.outcome(agentv1.MoveOutcome_MOVE_OUTCOME_PROVEN, nil)
	switch reason := fault.From(err); {
	case err == nil:
		return t.proved(o)
	case reason.Reason == "proof-unknown" || reason.Reason == "proof-down" || stops[reason.Reason] || t.pending(err, t.rec.Installed):
		o.Result, o.Reason, o.Detail = agentv1.MoveOutcome_MOVE_OUTCOME_UNPROVEN, reason.Reason, reason.Error()
		return &o, err
	}
	r := t.rec
	if r.Theirs || len(r.History) < 2 || Settled(r.Installed, r.Proved, t.i.o.Clock.Now(), r.Files) {
		o, err := t.failedRestore(err)
		return &o, err
	}
	o, err = t.retreat(context.WithoutCancel(ctx), err)
	return &o, err
}

// again proves, and reloads once where the leaf in place is not what is served.
func (t *transaction) again(ctx context.Context) error {
	t.step = StepProve
	err := t.prove(ctx, t.new)
	if err == nil || t.i.o.Poll || !fault.HasReason(err, "proof-wrong-leaf") && !fault.HasReason(err, "proof-refused") {
		return err
	}
	if err := t.i.stopped(); err != nil {
		return err
	}
	if t.i.o.Budget != nil {
		if err := t.i.o.Budget.Take(); err != nil {
			return err
		}
	}
	t.proofs = nil
	t.step = StepReload
	t.doReload(ctx, t.new)
	t.step = StepProve
	return t.prove(ctx, t.new)
}

func (t *transaction) proved(o Outcome) (*Outcome, error) {
	r := t.rec
	r.Proved = t.i.o.Clock.Now()
	switch r.State {
	case agentv1.InstallState_INSTALL_STATE_INSTALLED_UNPROVEN, agentv1.InstallState_INSTALL_STATE_FAILED:
		r.State, r.Detail = agentv1.InstallState_INSTALL_STATE_PROVEN, ""
	}
	if r.Theirs {
		r.State = agentv1.InstallState_INSTALL_STATE_FOREIGN
	}
	o.State = r.State
	t.exempt = true
	if err := t.f.saveRecord(r); err != nil {
		return &o, unwritable(err, t.f.dir)
	}
	t.f.prune(r)
	t.f.dropPending(r, true)
	return &o, nil
}

// retreat puts the generation before the current one back, as a rollback of its own. It has no claim: so it only exchanges leaves
// of one CA, which every member trusts or mistrusts alike. What changed anchors or the CA stays, failed, and the ring decides.
func (t *transaction) retreat(ctx context.Context, cause error) (Outcome, error) {
	if err := t.i.stopped(); err != nil {
		return t.failedRestore(err)
	}
	previous, err := t.fromKept(t.rec.History[1])
	if err == nil {
		t.old = previous
		err = fatal("old", checkNow(previous, t.i.o.Now()))
	}
	if err != nil {
		return t.failedRestore(cause)
	}
	if !alike(t.new, previous) {
		return t.failedRestore(fault.Wrap(cause, fault.Refused, "retreat-unasked",
			"a later proof failed, and the generation before has other anchors or another CA: the ring may have gone on, so it is not put back unasked").
			Do("see what holds the port; a rotation or rollout under way turns this node round: `csm rotation rollback`, `csm rollout abort`"))
	}
	t.j = &journal{Claim: t.rec.Claim, Generation: t.rec.Generation, Old: t.rec.History[1], New: t.rec.History[0],
		Ours: t.rec.Ours, Back: fault.From(cause).Reason, Begun: t.begun}
	t.proofs = nil
	return t.back(ctx, cause, false)
}

// alike says whether two pairs trust the same anchors and show leaves that chain to the same one of them: whoever trusts one pair,
// and is trusted by it, is as well off with the other.
func alike(a, b pair) bool {
	ids := func(p pair) (out []string) {
		for _, c := range p.anchors {
			out = append(out, anchorID(c))
		}
		slices.Sort(out)
		return slices.Compact(out)
	}
	root := a.root()
	return root != "" && root == b.root() && slices.Equal(ids(a), ids(b))
}

// root is the anchor in its own truststore that signed the last certificate of the chain; empty when none did.
func (p pair) root() string {
	if p.key == nil || len(p.key.Chain) == 0 {
		return ""
	}
	last := p.key.Chain[len(p.key.Chain)-1]
	for _, c := range p.anchors {
		if last.Equal(c) || last.CheckSignatureFrom(c) == nil {
			return anchorID(c)
		}
	}
	return ""
}

// untrusted says whether none of our anchors is in a truststore.
func (t *transaction) untrusted(p pair) bool {
	return !slices.ContainsFunc(p.anchors, func(c *x509.Certificate) bool { return slices.Contains(t.rec.Ours, anchorID(c)) })
}

// follow takes files that their owner has changed for the pair in place, our anchors being in them still: Cassandra's polls
// come for them as for ours.
func (t *transaction) follow(disk pair) error {
	s := disk.snapshot(t.rec.Generation)
	if err := t.f.keep(&s, disk.keystore.data, disk.truststore.data); err != nil {
		return unwritable(err, t.f.path("generations"))
	}
	t.changed = 2
	r := t.recordFor(agentv1.InstallState_INSTALL_STATE_FOREIGN, t.i.o.Clock.Now())
	r.succeed(s, true)
	if err := t.f.saveRecord(r); err != nil {
		return unwritable(err, t.f.dir)
	}
	t.rec = r
	return t.f.prune(r)
}
