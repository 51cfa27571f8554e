package install

import (
	"context"
	"slices"
	"time"

	agentv1 "github.com/cassandra-security-manager/csm/protocol/agent/v1"
	"github.com/cassandra-security-manager/csm/shared/fault"
)

// Restore looks whether the files are still as CSM left them. If not, the first time within ContestWindow it puts its own
// copy back, reloads and proves; the second time it stops and calls the store contested. The watch of the store folder
// calls it after each change, and at start. A nil outcome means that nothing was to be done.
func (i *Installer) Restore(ctx context.Context, site Site) (*Outcome, error) {
	t, end, err := i.begin(site)
	if err != nil {
		return nil, err
	}
	defer end()
	return t.restore(ctx)
}

func (t *transaction) restore(ctx context.Context) (*Outcome, error) {
	j, err := t.f.journal()
	if err != nil {
		return nil, err
	}
	if t.rec, err = t.f.record(); err != nil || t.rec == nil || t.rec.Theirs || len(t.rec.History) == 0 || j != nil {
		return nil, err // nothing of ours here, or Recover's business
	}
	disk, err := t.open()
	if fault.HasReason(err, "store-unreadable") {
		return nil, err
	}
	if t.rec.current().same(disk.snapshot(0)) {
		if t.rec.Restoring != nil {
			t.rec.Restoring = nil
			return nil, t.f.saveRecord(t.rec)
		}
		return nil, nil
	}
	path := t.site.Store.KeystorePath
	t.plan = Plan{Site: t.site, Claim: t.rec.Claim, Generation: t.rec.Generation}
	t.old = disk
	if t.rec.Contested {
		err := contested(path)
		o := t.outcome(agentv1.MoveOutcome_MOVE_OUTCOME_REFUSED, err)
		return &o, err
	}
	if err := t.i.stopped(); err != nil {
		o := t.outcome(agentv1.MoveOutcome_MOVE_OUTCOME_REFUSED, err)
		return &o, err
	}
	t.exempt = true
	if !t.rec.interrupted(disk) {
		t.rec.countForeign(t.i.o.Clock.Now())
		foreign := disk.snapshot(0)
		t.rec.Restoring = &foreign
		if err := t.f.saveRecord(t.rec); err != nil {
			return nil, unwritable(err, t.f.dir)
		}
	}
	if t.rec.Contested {
		t.i.o.Logger.Error("store contested: another tool puts its own files back", "store", t.site.Store.Name, "keystore", path)
		err := contested(path)
		o := t.outcome(agentv1.MoveOutcome_MOVE_OUTCOME_REFUSED, err)
		return &o, err
	}
	o, err := t.rewrite(context.WithoutCancel(ctx), disk)
	return &o, err
}

// interrupted says whether the files are what an unfinished restore of ours leaves: each one ours or as it was found.
func (r *record) interrupted(disk pair) bool {
	if r.Restoring == nil {
		return false
	}
	ours, found := r.current(), *r.Restoring
	return (disk.keystore.sum == ours.Keystore || disk.keystore.sum == found.Keystore) &&
		(disk.truststore.sum == ours.Truststore || disk.truststore.sum == found.Truststore)
}

// countForeign remembers a foreign change and decides whether the store is contested by it.
func (r *record) countForeign(now time.Time) {
	r.Foreign = slices.DeleteFunc(r.Foreign, func(at time.Time) bool { return now.Sub(at).Abs() >= ContestWindow })
	r.Foreign = append(r.Foreign, now)
	if len(r.Foreign) >= 2 {
		r.Contested, r.State = true, agentv1.InstallState_INSTALL_STATE_CONTESTED
	}
}

// rewrite puts the recorded pair over what is there: truststore first, since more trust never hurts.
func (t *transaction) rewrite(ctx context.Context, disk pair) (Outcome, error) {
	ours, err := t.fromKept(t.rec.current())
	if err != nil {
		return t.failedRestore(err)
	}
	t.i.o.Logger.Warn("the store was changed by somebody else; restoring it", "store", t.site.Store.Name, "keystore", t.site.Store.KeystorePath)
	t.running = t.i.o.Detect(ctx, t.site.Instance).Normal()
	t.new = ours
	s := t.site.Store
	for _, f := range []struct {
		step      Step
		path      string
		now, ours file
	}{{StepTruststore, s.TruststorePath, disk.truststore, ours.truststore}, {StepKeystore, s.KeystorePath, disk.keystore, ours.keystore}} {
		if err := t.at(f.step, true); err != nil {
			return t.failedRestore(err)
		}
		if f.now.sum == f.ours.sum || !f.ours.exists {
			continue
		}
		if err := t.f.d.stage(stagedName(f.path, "new"), f.ours.data, f.ours.meta); err != nil {
			return t.failedRestore(unwritable(err, f.path))
		}
		if err := t.swap(f.path, f.now, f.ours); err != nil {
			return t.failedRestore(err)
		}
	}
	result, state := agentv1.MoveOutcome_MOVE_OUTCOME_UNPROVEN, agentv1.InstallState_INSTALL_STATE_INSTALLED_UNPROVEN
	if t.running {
		if err := t.at(StepReload, true); err != nil {
			return t.failedRestore(err)
		}
		t.doReload(ctx, ours)
		if err := t.at(StepProve, true); err != nil {
			return t.failedRestore(err)
		}
		switch err := t.prove(ctx, ours); {
		case err == nil:
			result, state = agentv1.MoveOutcome_MOVE_OUTCOME_PROVEN, agentv1.InstallState_INSTALL_STATE_PROVEN
		case !t.pending(err, t.i.o.Clock.Now()):
			return t.failedRestore(err)
		}
	}
	now := t.i.o.Clock.Now()
	r := t.recordFor(state, now)
	if result == agentv1.MoveOutcome_MOVE_OUTCOME_PROVEN {
		r.Proved = now
	}
	o := t.outcome(result, nil)
	o.State, o.Reason, o.Detail = state, "store-restored", "the files were changed by somebody else and are restored"
	r.Last, r.Detail, r.Restoring = &o, o.Detail, nil
	if err := t.f.saveRecord(r); err != nil {
		return o, unwritable(err, t.f.dir)
	}
	t.rec = r
	return o, nil
}

func (t *transaction) failedRestore(err error) (Outcome, error) {
	o := t.outcome(agentv1.MoveOutcome_MOVE_OUTCOME_FAILED, err)
	o.State = agentv1.InstallState_INSTALL_STATE_FAILED
	t.rec.State, t.rec.Detail, t.rec.Last = o.State, clip(err.Error()), &o
	t.f.saveRecord(t.rec)
	return o, err
}

// Release is an operator's word that a contested or changed store is as it should be: what lies there is adopted as
// foreign and may be replaced by the next move.
func (i *Installer) Release(ctx context.Context, site Site) error {
	t, end, err := i.begin(site)
	if err != nil {
		return err
	}
	defer end()
	if t.rec, err = t.f.record(); err != nil || t.rec == nil {
		return err
	}
	if j, err := t.f.journal(); err != nil || j != nil {
		return fault.New(fault.Conflict, "unfinished-move", "an install was interrupted and is not settled").Do("start the agent, which settles it")
	}
	disk, err := t.open()
	if err != nil {
		return err
	}
	t.rec.Contested, t.rec.Foreign = false, nil
	if t.rec.current().same(disk.snapshot(0)) {
		t.rec.State = agentv1.InstallState_INSTALL_STATE_INSTALLED_UNPROVEN
		return t.f.saveRecord(t.rec)
	}
	_, err = t.adopt(disk, fault.New(fault.Conflict, "adopted", "an operator adopted the files as they are"))
	if fault.HasReason(err, "adopted") {
		return nil
	}
	return err
}
