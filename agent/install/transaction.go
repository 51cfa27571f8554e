package install

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/hex"
	"path/filepath"
	"time"

	"github.com/cassandra-security-manager/csm/agent/cassandra"
	"github.com/cassandra-security-manager/csm/agent/reload"
	agentv1 "github.com/cassandra-security-manager/csm/protocol/agent/v1"
	"github.com/cassandra-security-manager/csm/shared/fault"
	"github.com/cassandra-security-manager/csm/shared/keystore"
)

// pair is a keystore and truststore in memory, with what they hold.
type pair struct {
	keystore, truststore file
	key                  *keystore.KeyStore
	anchors              []*x509.Certificate
}

func (p pair) certificate() *tls.Certificate {
	if p.key == nil {
		return nil
	}
	c := &tls.Certificate{PrivateKey: p.key.Key, Leaf: p.key.Leaf()}
	for _, x := range p.key.Chain {
		c.Certificate = append(c.Certificate, x.Raw)
	}
	return c
}

func (p pair) leaf() (sum [32]byte) {
	if p.key == nil || p.key.Leaf() == nil {
		return sum
	}
	return fingerprint(p.key.Leaf())
}

func (p pair) snapshot(generation uint64) snapshot {
	s := snapshot{Generation: generation, Keystore: p.keystore.sum, Truststore: p.truststore.sum,
		KeystoreMeta: p.keystore.meta, TruststoreMeta: p.truststore.meta}
	if l := p.leaf(); l != ([32]byte{}) {
		s.Leaf = hex.EncodeToString(l[:])
	}
	return s
}

// transaction is one run over one store, forward or back.
type transaction struct {
	i     *Installer
	site  Site
	plan  Plan
	f     folder
	begun time.Time

	// stay ends when the agent does; nil where Cassandra's poll is not waited for.
	stay context.Context

	step   Step
	exempt bool // HOLD and freeze no longer stop effects: the way back, and the end after a reload
	rec    *record
	j      *journal

	old, new pair
	running  bool
	served   [32]byte
	changed  int // files renamed
	proofs   []*agentv1.Proof
	reload   *reload.Output
	note     string
}

func (i *Installer) begin(site Site) (*transaction, func(), error) {
	if site.Instance == nil || site.Store == nil {
		return nil, nil, fault.New(fault.Internal, "no-site", "a transaction needs an instance and a store")
	}
	i.turn <- struct{}{}
	t := &transaction{i: i, site: site, begun: i.o.Clock.Now()}
	t.f = folder{dir: filepath.Join(i.o.StateDir, site.Store.Name), d: disk{gate: t.gate}}
	if err := t.at(StepLock, true); err != nil {
		<-i.turn
		return nil, nil, err
	}
	unlock, taken, err := lockFolder(filepath.Dir(site.Store.KeystorePath))
	if err != nil {
		<-i.turn
		if taken {
			return nil, nil, fault.New(fault.Conflict, "store-locked", "another program is at work in %s", filepath.Dir(site.Store.KeystorePath)).
				Do("look for a second agent with the same store folder")
		}
		return nil, nil, fault.Wrap(err, fault.Unavailable, "store-folder", "the store folder cannot be opened").Do("check that it exists and belongs to the agent's user")
	}
	return t, func() { unlock(); <-i.turn }, nil
}

// at enters a step. Free steps read only and go on under HOLD and freeze.
func (t *transaction) at(s Step, free bool) error {
	t.step = s
	if !free && !t.exempt {
		if err := t.i.stopped(); err != nil {
			return err
		}
	}
	return t.i.o.Before(Op{Step: s, Do: "begin"})
}

// gate is asked before each effect.
func (t *transaction) gate(do, path string) error {
	if !t.exempt {
		if err := t.i.stopped(); err != nil {
			return err
		}
	}
	return t.i.o.Before(Op{Step: t.step, Do: do, Path: path})
}

// Run does one install from the first look to the proof. The outcome is complete whatever happens. The error is nil when the
// new pair is in place (proven, or unproven because Cassandra does not run); otherwise it is the fault behind the
// outcome: REFUSED (nothing changed), ROLLED_BACK or FAILED.
func (i *Installer) Run(ctx context.Context, p Plan) (Outcome, error) {
	t, end, err := i.begin(p.Site)
	if err != nil {
		return refused(p, err), err
	}
	defer end()
	t.plan, t.stay = p, ctx
	if err := t.prepare(ctx); err != nil {
		if t.j != nil { // else nothing was staged, and an open journal is another transaction's
			t.sweep()
		}
		return t.outcome(agentv1.MoveOutcome_MOVE_OUTCOME_REFUSED, err), err
	}
	// From the first rename on the transaction ends by itself: a caller that goes away must not leave it half done.
	work := context.WithoutCancel(ctx)
	switch err := t.within(work, HoldGrace, t.forward); {
	case Left(err):
		return t.left()
	case err != nil:
		return t.rollback(work, err)
	}
	return t.commit(work)
}

// within ends what is done some time after a HOLD file has appeared or the node was frozen.
func (t *transaction) within(ctx context.Context, grace time.Duration, do func(context.Context) error) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	go t.shortenWhenStopped(ctx, grace, cancel)
	return do(ctx)
}

// shortenWhenStopped cancels grace after HOLD or a freeze was seen: a running transaction ends or rolls back within 30 s.
func (t *transaction) shortenWhenStopped(ctx context.Context, grace time.Duration, cancel context.CancelFunc) {
	for t.i.stopped() == nil {
		if !t.wait(ctx, time.Second) {
			return
		}
	}
	if t.wait(ctx, grace) {
		cancel()
	}
}

// wait is false when the context ended before the time was over.
func (t *transaction) wait(ctx context.Context, d time.Duration) bool {
	timer := t.i.o.Clock.NewTimer(d)
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-timer.Chan():
		return true
	}
}

func refused(p Plan, err error) Outcome {
	f := fault.From(err)
	o := Outcome{Result: agentv1.MoveOutcome_MOVE_OUTCOME_REFUSED, Claim: p.Claim, Generation: p.Generation, Reason: f.Reason, Detail: f.Error()}
	if p.Store != nil {
		o.Store = p.Store.Name
	}
	return o
}

// prepare does everything before the first change to a store file.
func (t *transaction) prepare(ctx context.Context) error {
	for _, s := range []struct {
		step Step
		free bool
		do   func(context.Context) error
	}{
		{StepCompare, false, t.compare},
		{StepPreflightNew, true, t.preflightNew},
		{StepPreflightOld, true, t.preflightOld},
		{StepBaseline, true, t.baseline},
		{StepKeep, false, t.keep},
		{StepStage, false, t.stage},
		{StepJournal, false, t.writeJournal},
	} {
		if err := t.at(s.step, s.free); err != nil {
			return err
		}
		if err := s.do(ctx); err != nil {
			return err
		}
		if err := ctx.Err(); err != nil {
			return fault.From(err)
		}
	}
	return nil
}

// forward replaces the files, reloads and proves. An error means that the way back must be taken.
func (t *transaction) forward(ctx context.Context) error {
	if err := t.at(StepTruststore, false); err != nil {
		return err
	}
	if err := t.swap(t.site.Store.TruststorePath, t.old.truststore, t.new.truststore); err != nil {
		return err
	}
	if err := t.at(StepKeystore, false); err != nil {
		return err
	}
	if err := t.swap(t.site.Store.KeystorePath, t.old.keystore, t.new.keystore); err != nil {
		return err
	}
	if !t.running || t.old.keystore.sum == "" {
		return nil
	}
	if err := t.at(StepReload, false); err != nil {
		return err
	}
	t.exempt = true // files and reload are done: what follows looks, and ends the matter
	if err := t.doReload(ctx, t.new); err != nil && (t.trustOnly() || Left(err)) {
		return err
	}
	if err := t.at(StepProve, true); err != nil {
		return err
	}
	if err := t.prove(ctx, t.new); err != nil {
		return err
	}
	if err := t.at(StepNeighbour, true); err != nil {
		return err
	}
	return t.askNeighbour(ctx)
}

// theirs says whether the move only adds trust to files with somebody else's leaf, which stay somebody else's.
func (t *transaction) theirs() bool {
	return t.j != nil && t.j.TrustOnly && (t.rec == nil || t.rec.Theirs || len(t.rec.History) == 0)
}

func (t *transaction) trustOnly() bool { return t.old.keystore.sum == t.new.keystore.sum }

func stagedName(path, kind string) string {
	return filepath.Join(filepath.Dir(path), ".csm-"+filepath.Base(path)+"."+kind)
}

// swap renames a staged file over its target, if it changes and if the target is still what was compared.
func (t *transaction) swap(path string, old, new file) error {
	if old.sum == new.sum {
		return nil
	}
	now, err := read(path)
	if err != nil {
		return fault.Wrap(err, fault.Unavailable, "store-unreadable", "%s", path)
	}
	if now.sum != old.sum {
		return fault.New(fault.Conflict, "store-changed", "%s was changed by somebody else during the install", path).Do("find out who writes this file")
	}
	if err := t.f.d.place(stagedName(path, "new"), path, fresh(t.i.o.Clock.Now(), now.mtime)); err != nil {
		// The rename may have happened and only its fsync failed.
		if after, e := read(path); e == nil && after.sum == new.sum {
			t.changed++
		}
		return unwritable(err, path)
	}
	t.changed++
	return nil
}

func unwritable(err error, path string) error {
	if f := fault.From(err); f.Code != fault.Internal {
		return err
	}
	return fault.Wrap(err, fault.Unavailable, "store-unwritable", "%s cannot be written", filepath.Dir(path)).
		Do("free space on that disk and check that the folder belongs to the agent's user")
}

// keep copies both pairs into the state folder.
func (t *transaction) keep(context.Context) error {
	if err := t.f.d.mkdir(t.f.dir); err != nil {
		return unwritable(err, t.f.path("record.json"))
	}
	if err := t.keepOriginal(); err != nil {
		return err
	}
	oldGen := t.rec.current().Generation
	old, next := t.old.snapshot(oldGen), t.new.snapshot(t.plan.Generation)
	if t.old.keystore.sum != "" || t.old.truststore.sum != "" {
		if err := t.f.keep(&old, t.old.keystore.data, t.old.truststore.data); err != nil {
			return unwritable(err, t.f.path("generations"))
		}
	}
	if err := t.f.keep(&next, t.new.keystore.data, t.new.truststore.data); err != nil {
		return unwritable(err, t.f.path("generations"))
	}
	t.j = &journal{Claim: t.plan.Claim, Generation: t.plan.Generation, Old: old, New: next, Ours: t.ours(),
		NoWayBack: t.plan.NoWayBack && t.oldBroken() != nil, TrustOnly: t.trustOnly(), GiveBack: t.plan.givesBack(), Begun: t.begun}
	if t.served != ([32]byte{}) {
		t.j.Served = hex.EncodeToString(t.served[:])
	}
	return nil
}

// stage writes the new files and copies of the old ones beside their targets, so that neither way needs space later.
func (t *transaction) stage(context.Context) error {
	s := t.site.Store
	for _, f := range []struct {
		path     string
		old, new file
	}{{s.TruststorePath, t.old.truststore, t.new.truststore}, {s.KeystorePath, t.old.keystore, t.new.keystore}} {
		if f.old.sum == f.new.sum {
			continue
		}
		if err := t.f.d.stage(stagedName(f.path, "new"), f.new.data, f.new.meta); err != nil {
			return unwritable(err, f.path)
		}
		if f.old.exists {
			if err := t.f.d.stage(stagedName(f.path, "old"), f.old.data, f.old.meta); err != nil {
				return unwritable(err, f.path)
			}
		}
		back, err := read(stagedName(f.path, "new"))
		if err != nil || !bytes.Equal(back.data, f.new.data) {
			return fault.New(fault.Internal, "bad-disk", "what was written to %s does not read back", filepath.Dir(f.path)).Do("check the disk")
		}
	}
	if err := t.f.d.syncFolder(filepath.Dir(s.TruststorePath)); err != nil {
		return unwritable(err, s.TruststorePath)
	}
	if filepath.Dir(s.KeystorePath) != filepath.Dir(s.TruststorePath) {
		if err := t.f.d.syncFolder(filepath.Dir(s.KeystorePath)); err != nil {
			return unwritable(err, s.KeystorePath)
		}
	}
	return nil
}

func (t *transaction) writeJournal(context.Context) error {
	if err := unwritableOrNil(t.f.saveJournal(t.j), t.f.path("journal.json")); err != nil {
		return err
	}
	if t.running && t.old.keystore.exists && t.i.o.Budget != nil {
		return t.i.o.Budget.Take()
	}
	return nil
}

func unwritableOrNil(err error, path string) error {
	if err == nil {
		return nil
	}
	return unwritable(err, path)
}

// sweep removes staged files and an empty journal after a refusal. What it cannot remove is removed by the next Recover.
func (t *transaction) sweep() {
	t.exempt = true
	for _, p := range []string{t.site.Store.TruststorePath, t.site.Store.KeystorePath} {
		t.f.d.remove(stagedName(p, "new"))
		t.f.d.remove(stagedName(p, "old"))
	}
	t.f.closeJournal()
}

// commit records the new pair as ours and removes what was needed to go back at once.
func (t *transaction) commit(context.Context) (Outcome, error) {
	t.exempt = true
	proved := t.running && t.old.keystore.sum != ""
	result, state := agentv1.MoveOutcome_MOVE_OUTCOME_UNPROVEN, agentv1.InstallState_INSTALL_STATE_INSTALLED_UNPROVEN
	if proved {
		result, state = agentv1.MoveOutcome_MOVE_OUTCOME_PROVEN, agentv1.InstallState_INSTALL_STATE_PROVEN
	}
	now := t.i.o.Clock.Now()
	r := t.recordFor(state, now)
	r.Generation, r.Claim, r.Ours, r.Theirs, r.Restoring = t.j.Generation, t.j.Claim, t.j.Ours, t.theirs() || t.j.GiveBack, nil
	if r.Theirs {
		r.State = agentv1.InstallState_INSTALL_STATE_FOREIGN
		state = r.State
	}
	if t.j.Old.Dir != "" && !r.current().same(t.j.Old) {
		r.succeed(t.j.Old, false)
	}
	r.succeed(t.j.New, proved)
	if proved {
		r.Proved = now
	}
	o := t.outcome(result, nil)
	o.State = state
	r.Last = &o
	err := t.at(StepCommit, true)
	if err == nil {
		err = t.f.saveRecord(r)
	}
	if err != nil {
		// Served and proved, but not recorded: the journal stays, and Recover decides by what is served.
		f := fault.Wrap(err, fault.Unavailable, "state-unwritable", "the new pair is in place, but the state folder cannot record it").Do("free space in %s", t.f.dir)
		o.Result, o.State, o.Reason, o.Detail = agentv1.MoveOutcome_MOVE_OUTCOME_FAILED, agentv1.InstallState_INSTALL_STATE_MOVING, f.Reason, f.Error()
		return o, f
	}
	t.rec = r
	if t.at(StepClean, true) == nil {
		t.sweep()
		t.f.prune(r)
		t.f.dropPending(r, proved)
	}
	t.i.o.Logger.Info("store installed", "store", o.Store, "state", state.String(), "generation", r.Generation, "after", hex.EncodeToString(o.After[:6]))
	return o, nil
}

// recordFor begins the next record from the one in force.
func (t *transaction) recordFor(state agentv1.InstallState, now time.Time) *record {
	r := &record{}
	if t.rec != nil {
		*r = *t.rec
	}
	r.State, r.Installed, r.Files, r.Detail = state, now, max(t.changed, 1), t.note
	return r
}

func (t *transaction) outcome(result agentv1.MoveOutcome, err error) Outcome {
	o := Outcome{Result: result, Claim: t.plan.Claim, Store: t.site.Store.Name, Generation: t.plan.Generation,
		Before: t.served, Proofs: t.proofs, Took: t.i.o.Clock.Now().Sub(t.begun), Reload: t.reload, Detail: t.note}
	if o.Before == ([32]byte{}) {
		o.Before = t.old.leaf()
	}
	switch result {
	case agentv1.MoveOutcome_MOVE_OUTCOME_PROVEN, agentv1.MoveOutcome_MOVE_OUTCOME_UNPROVEN:
		o.After = t.new.leaf()
	default:
		o.After = t.old.leaf()
	}
	if t.j != nil && o.Claim == "" {
		o.Claim, o.Generation = t.j.Claim, t.j.Generation
	}
	if t.rec != nil {
		o.State = t.rec.State
	} else if t.old.keystore.exists {
		o.State = agentv1.InstallState_INSTALL_STATE_FOREIGN
	} else {
		o.State = agentv1.InstallState_INSTALL_STATE_ABSENT
	}
	if err != nil {
		f := fault.From(err)
		o.Reason, o.Detail = f.Reason, f.Error()
	}
	return o
}

func (t *transaction) ports() []cassandra.Port { return t.site.Store.Ports }
