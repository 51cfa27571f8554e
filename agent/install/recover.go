package install

import (
	"context"
	"path/filepath"

	agentv1 "github.com/cassandra-security-manager/csm/protocol/agent/v1"
	"github.com/cassandra-security-manager/csm/shared/fault"
	"github.com/cassandra-security-manager/csm/shared/keystore"
)

// course is what Recover does with an open transaction.
type course string

const (
	settled course = "settled" // committed, only the cleaning is left
	forth   course = "forth"   // both files are new: prove, then commit
	back    course = "back"    // some file is old, or a rollback had begun
	alien   course = "alien"   // somebody else wrote meanwhile
)

// decide chooses by the files on disk and the record; the journal says only what old and new are, and whether the way back
// had begun.
func decide(j *journal, rec *record, keystoreSum, truststoreSum string) course {
	on := func(sum, old, new string) bool { return sum == old || sum == new }
	switch {
	case !on(keystoreSum, j.Old.Keystore, j.New.Keystore) || !on(truststoreSum, j.Old.Truststore, j.New.Truststore):
		return alien
	case rec != nil && rec.Claim == j.Claim && rec.Generation == j.Generation && j.Back == "" && rec.current().same(j.New) &&
		keystoreSum == j.New.Keystore && truststoreSum == j.New.Truststore:
		return settled
	case j.Back == "" && keystoreSum == j.New.Keystore && truststoreSum == j.New.Truststore:
		return forth
	}
	return back
}

// Recover settles a transaction that a kill, a crash or a full disk has left open: by file hashes and by what is served,
// never by the journal alone. It is called at each start before anything else, and again while it fails. A nil outcome
// means that there was nothing to settle.
func (i *Installer) Recover(ctx context.Context, site Site) (*Outcome, error) {
	t, end, err := i.begin(site)
	if err != nil {
		return nil, err
	}
	defer end()
	if t.j, err = t.f.journal(); err != nil {
		return nil, err
	}
	if t.rec, err = t.f.record(); err != nil {
		return nil, err
	}
	if t.j == nil {
		t.sweep()
		return nil, nil
	}
	t.plan = Plan{Site: site, Claim: t.j.Claim, Generation: t.j.Generation}
	disk, _ := t.open()
	c := decide(t.j, t.rec, disk.keystore.sum, disk.truststore.sum)
	i.o.Logger.Info("settling an interrupted install", "store", site.Store.Name, "course", string(c), "begun", t.j.Begun)
	if c == settled {
		t.exempt = true
		t.sweep()
		t.f.prune(t.rec)
		return t.rec.Last, nil
	}
	if err := i.held(); err != nil {
		return nil, err // each pair that a transaction leaves on disk is valid, so it may wait
	}
	if t.old, err = t.fromKept(t.j.Old); err == nil {
		t.new, err = t.fromKept(t.j.New)
	}
	if err != nil {
		return nil, err
	}
	p := i.o.Detect(ctx, site.Instance)
	t.running = !p.Down()
	o, err := t.resume(context.WithoutCancel(ctx), c, disk, p.Normal())
	return &o, err
}

func (t *transaction) resume(ctx context.Context, c course, disk pair, normal bool) (Outcome, error) {
	t.exempt = true
	interrupted := fault.New(fault.Unavailable, "interrupted", "the agent was stopped in the middle of the install").Do("it is tried again with the next claim")
	switch c {
	case forth:
		t.changed = 1
		t.running = t.running && normal // a node that is still starting proves nothing; the files are good, later proofs follow
		if t.running && t.old.keystore.exists {
			switch err := t.within(ctx, HoldGrace, t.resumeForth); {
			case t.pending(err, t.i.o.Clock.Now()):
				t.running = false // nothing is proved yet, and later proofs follow
			case err != nil:
				return t.rollback(ctx, err)
			}
		}
		return t.commit(ctx)
	case alien:
		if t.rec != nil {
			t.rec.countForeign(t.i.o.Clock.Now())
		}
		if disk.key != nil && len(disk.anchors) > 0 && !keystore.Fatal(keystore.Check(disk.key, disk.anchors, keystore.Expect{Now: t.i.o.Now()})) {
			return t.adopt(disk, fault.New(fault.Conflict, "store-changed", "somebody else wrote the files of store %s during an install", t.site.Store.Name).
				Do("find out who writes them"))
		}
		return t.back(ctx, fault.New(fault.Conflict, "store-changed", "the files of store %s were broken by somebody else during an install", t.site.Store.Name).
			Do("find out who writes them"), true)
	}
	if disk.snapshot(0).same(t.j.Old) && t.j.Back == "" && t.servedIsOld(ctx) {
		t.sweep()
		return t.outcome(agentv1.MoveOutcome_MOVE_OUTCOME_REFUSED, interrupted), interrupted
	}
	return t.back(ctx, interrupted, false)
}

// servedIsOld says whether nothing but the old leaf is in force: then there is nothing to undo.
func (t *transaction) servedIsOld(ctx context.Context) bool {
	if !t.running || !t.old.keystore.exists {
		return true
	}
	t.step = StepProve
	return t.prove(ctx, t.old) == nil
}

// resumeForth proves the new pair as it is served; a reload that was lost is made up for once.
func (t *transaction) resumeForth(ctx context.Context) error {
	t.step = StepProve
	err := error(nil)
	if !t.trustOnly() { // where the leaf stays, what is served tells nothing: reload in any case
		err = t.prove(ctx, t.new)
	}
	if err != nil || t.trustOnly() {
		t.proofs = nil
		t.step = StepReload
		if err := t.doReload(ctx, t.new); err != nil && (t.trustOnly() || t.i.o.Poll) {
			return err
		}
		t.step = StepProve
		if err := t.prove(ctx, t.new); err != nil {
			return err
		}
	}
	t.step = StepNeighbour
	return t.askNeighbour(ctx)
}

// fromKept reads a pair back from the state folder.
func (t *transaction) fromKept(s snapshot) (p pair, err error) {
	st := t.site.Store
	if s.Keystore != "" {
		p.keystore = file{sum: s.Keystore, meta: s.KeystoreMeta, exists: true}
		if p.keystore.data, err = t.f.kept(s, "keystore", s.Keystore); err != nil {
			return p, err
		}
		p.key, _ = keystore.DecodeKeyStore(st.Format, p.keystore.data, st.KeystorePassword)
	}
	if s.Truststore != "" {
		p.truststore = file{sum: s.Truststore, meta: s.TruststoreMeta, exists: true}
		if p.truststore.data, err = t.f.kept(s, "truststore", s.Truststore); err != nil {
			return p, err
		}
		p.anchors, _ = keystore.DecodeTrustStore(st.Format, p.truststore.data, st.TruststorePassword)
	}
	return p, nil
}

// adopt takes a foreign pair as it is: observed, no longer ours.
func (t *transaction) adopt(disk pair, cause error) (Outcome, error) {
	s := disk.snapshot(0)
	if err := t.f.keep(&s, disk.keystore.data, disk.truststore.data); err != nil {
		return t.failed(unwritable(err, filepath.Join(t.f.dir, "generations")), false)
	}
	r := t.recordFor(agentv1.InstallState_INSTALL_STATE_FOREIGN, t.i.o.Clock.Now())
	r.Generation, r.Detail, r.Theirs = 0, clip(cause.Error()), true
	r.succeed(s, false)
	o := t.outcome(agentv1.MoveOutcome_MOVE_OUTCOME_FAILED, cause)
	o.State, o.After = r.State, disk.leaf()
	r.Last = &o
	if err := t.f.saveRecord(r); err != nil {
		return t.failed(unwritable(err, t.f.dir), false)
	}
	t.rec = r
	t.sweep()
	return o, cause
}
