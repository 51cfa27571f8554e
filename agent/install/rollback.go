package install

import (
	"context"
	"path/filepath"

	agentv1 "github.com/cassandra-security-manager/csm/protocol/agent/v1"
	"github.com/cassandra-security-manager/csm/shared/fault"
)

// rollback puts the old pair back, in reverse order, and proves it. It always returns the fault that caused it.
func (t *transaction) rollback(ctx context.Context, cause error) (Outcome, error) {
	t.exempt = true
	t.i.o.Logger.Warn("install turns back", "store", t.site.Store.Name, "step", string(t.step), "error", cause)
	if t.changed == 0 {
		t.sweep()
		return t.outcome(agentv1.MoveOutcome_MOVE_OUTCOME_REFUSED, cause), cause
	}
	if t.j.NoWayBack {
		return t.failed(fault.Wrap(cause, fault.Internal, "no-way-back", "the new pair is not proved and the old one was broken already").
			Do("look into Cassandra's log; the new pair stays"), true)
	}
	// A good file that somebody else put there meanwhile is left to the watch; one that cannot be loaded is not worth keeping.
	_, broken := t.open()
	return t.back(ctx, cause, broken != nil)
}

// back is the way back itself. force also replaces files that are neither old nor new.
func (t *transaction) back(ctx context.Context, cause error, force bool) (Outcome, error) {
	t.exempt = true
	err := t.at(StepBack, true)
	if err == nil {
		t.j.Back = fault.From(cause).Reason
		// A state folder that cannot be written must not keep a bad pair in place: without this mark Recover decides by what
		// is served.
		if e := t.f.saveJournal(t.j); e != nil {
			t.i.o.Logger.Error("the journal cannot be written; going back all the same", "error", e)
		}
		err = t.putBackBoth(force)
	}
	if err != nil {
		return t.failed(fault.Wrap(cause, fault.Internal, "rollback-failed", "the old pair could not be put back (%s) after", fault.From(err).Message).
			Do("free space in %s and look at the node; the agent tries again", filepath.Dir(t.site.Store.KeystorePath)), false)
	}
	if t.running && t.old.keystore.exists {
		if err := t.at(StepBackReload, true); err != nil {
			return t.failed(err, false)
		}
		var gate error
		err := t.within(ctx, BackGrace, func(ctx context.Context) error {
			if err := t.doReload(ctx, t.old); Left(err) {
				return err
			}
			if gate = t.at(StepBackProve, true); gate != nil {
				return gate
			}
			return t.prove(ctx, t.old)
		})
		if gate != nil {
			return t.failed(gate, false)
		}
		if Left(err) {
			return t.left()
		}
		if err != nil {
			return t.settleBack(fault.Wrap(cause, fault.Internal, "rollback-not-proved", "the old pair is back on disk, but not proved (%s), after", fault.From(err).Message).
				Do("look at the node now"), agentv1.MoveOutcome_MOVE_OUTCOME_FAILED, agentv1.InstallState_INSTALL_STATE_FAILED)
		}
	}
	return t.settleBack(cause, agentv1.MoveOutcome_MOVE_OUTCOME_ROLLED_BACK, agentv1.InstallState_INSTALL_STATE_ROLLED_BACK)
}

func (t *transaction) putBackBoth(force bool) error {
	s := t.site.Store
	if err := t.at(StepBackKeystore, true); err != nil {
		return err
	}
	if err := t.putBack(s.KeystorePath, t.old.keystore, t.new.keystore, force); err != nil {
		return err
	}
	if err := t.at(StepBackTruststore, true); err != nil {
		return err
	}
	return t.putBack(s.TruststorePath, t.old.truststore, t.new.truststore, force)
}

// putBack rewrites one file with a fresh time of change: 4.0 to 4.1.3 never load an older one.
func (t *transaction) putBack(path string, old, new file, force bool) error {
	now, err := read(path)
	if err != nil {
		return err
	}
	if now.sum == old.sum || now.sum != new.sum && !force {
		return nil
	}
	t.changed++
	if !old.exists {
		if err := t.f.d.remove(path); err != nil {
			return err
		}
		return t.f.d.syncFolder(filepath.Dir(path))
	}
	staged := stagedName(path, "old")
	if have, err := read(staged); err != nil || have.sum != old.sum {
		if err := t.f.d.stage(staged, old.data, old.meta); err != nil {
			return err
		}
	}
	return t.f.d.place(staged, path, fresh(t.i.o.Clock.Now(), now.mtime))
}

// settleBack records that the old pair is in force again.
func (t *transaction) settleBack(cause error, result agentv1.MoveOutcome, state agentv1.InstallState) (Outcome, error) {
	now := t.i.o.Clock.Now()
	r := t.recordFor(state, now)
	r.Detail = clip(fault.From(cause).Error())
	if t.rec == nil || len(t.rec.History) == 0 {
		r.Theirs = true
	}
	if (t.theirs() || t.rec != nil && t.rec.Theirs) && state == agentv1.InstallState_INSTALL_STATE_ROLLED_BACK {
		r.State = agentv1.InstallState_INSTALL_STATE_FOREIGN
	}
	if t.j.Old.absent() {
		r.Theirs = false
		r.History = nil
		if state == agentv1.InstallState_INSTALL_STATE_ROLLED_BACK {
			r.State = agentv1.InstallState_INSTALL_STATE_ABSENT
		}
	} else {
		r.succeed(t.j.Old, false)
		r.Generation = min(r.Generation, t.j.Old.Generation)
	}
	if t.running && result == agentv1.MoveOutcome_MOVE_OUTCOME_ROLLED_BACK {
		r.Proved = now
	}
	o := t.outcome(result, cause)
	o.State = r.State
	r.Last = &o
	err := t.at(StepBackCommit, true)
	if err == nil {
		err = t.f.saveRecord(r)
	}
	if err != nil {
		return t.failed(fault.Wrap(cause, fault.Unavailable, "state-unwritable", "the old pair is back, but the state folder cannot record it (%v), after", err).
			Do("free space in %s", t.f.dir), false)
	}
	t.rec = r
	if t.at(StepBackClean, true) == nil {
		t.sweep()
		t.f.prune(r)
	}
	return o, cause
}

// failed ends a transaction that a person must look at. The journal stays open for Recover unless settled.
func (t *transaction) failed(err error, settled bool) (Outcome, error) {
	o := t.outcome(agentv1.MoveOutcome_MOVE_OUTCOME_FAILED, err)
	o.State = agentv1.InstallState_INSTALL_STATE_FAILED
	if disk, e := t.open(); e == nil {
		o.After = disk.leaf()
	}
	if settled {
		r := t.recordFor(o.State, t.i.o.Clock.Now())
		r.Generation, r.Claim, r.Ours, r.Detail, r.Theirs = t.j.Generation, t.j.Claim, t.j.Ours, clip(err.Error()), t.theirs() || t.j.GiveBack
		r.succeed(t.j.New, false)
		r.Last = &o
		if t.f.saveRecord(r) == nil {
			t.rec = r
			t.sweep()
		}
	}
	t.i.o.Logger.Error("install failed", "store", o.Store, "error", err)
	return o, err
}
