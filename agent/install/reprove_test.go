package install_test

import (
	"context"
	"crypto/x509"
	"errors"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/jonboulle/clockwork"

	"github.com/cassandra-security-manager/csm/agent/cassandra/cassandratest"
	"github.com/cassandra-security-manager/csm/agent/install"
	agentv1 "github.com/cassandra-security-manager/csm/protocol/agent/v1"
	"github.com/cassandra-security-manager/csm/shared/fault"
	"github.com/cassandra-security-manager/csm/shared/keystore"
)

func TestAPairThatAPollBreaksIsFollowedByTheGenerationBefore(t *testing.T) {
	w := running(t, keystore.PEM)
	before := w.leafOnDisk()
	if o, err := w.installer().Run(context.Background(), w.plan(2)); err != nil {
		t.Fatalf("%v %v", o.Result, err)
	}
	// From now on the node serves something else than the files, whatever is reloaded, until the old pair is back.
	w.node.ServeOther(cassandratest.NewCA(t, "x").Leaf().TLS())
	w.node.Set(internode, cassandratest.Other)
	heal := func(o *install.Options) {
		o.Before = func(op install.Op) error {
			if op.Step == install.StepBackReload {
				w.node.Set(internode, cassandratest.Honest)
			}
			return nil
		}
	}
	o, err := w.installer(heal).Reprove(context.Background(), w.site())
	if o == nil || o.Result != rolledBack || err == nil || w.leafOnDisk() != before {
		t.Fatalf("%+v %v", o, err)
	}
	w.serves(before)
	w.clean()
	if f := w.installer().Facts(w.site()); f.Generation != 1 {
		t.Errorf("generation %d", f.Generation)
	}
}

// What changed trust or the CA is not given up without a word of the ring, which may have gone on by it.
func TestAPairThatChangedTrustOrTheCAIsNotTurnedBackUnasked(t *testing.T) {
	for name, plan := range map[string]func(w *world, next *cassandratest.CA) install.Plan{
		"an anchor came": func(w *world, next *cassandratest.CA) install.Plan {
			return install.Plan{Site: w.site(), Claim: "c", Generation: 2, Anchors: []*x509.Certificate{w.ca.Root, next.Root}}
		},
		"the leaf is of another CA": func(w *world, next *cassandratest.CA) install.Plan {
			grow := install.Plan{Site: w.site(), Claim: "c", Generation: 2, Anchors: []*x509.Certificate{w.ca.Root, next.Root}}
			if o, err := w.installer().Run(context.Background(), grow); err != nil {
				t.Fatalf("%v %v", o.Result, err)
			}
			leaf := next.Leaf()
			return install.Plan{Site: w.site(), Claim: "d", Generation: 3, Key: leaf.Key, Chain: leaf.Chain, Anchors: grow.Anchors}
		},
	} {
		t.Run(name, func(t *testing.T) {
			w := running(t, keystore.PEM)
			p := plan(w, cassandratest.NewCA(t, "next"))
			if o, err := w.installer().Run(context.Background(), p); err != nil {
				t.Fatalf("%v %v", o.Result, err)
			}
			now := w.leafOnDisk()
			w.node.ServeOther(cassandratest.NewCA(t, "x").Leaf().TLS())
			w.node.Set(internode, cassandratest.Other)
			o, err := w.installer().Reprove(context.Background(), w.site())
			if o == nil || o.Result != failed || !fault.HasReason(err, "retreat-unasked") || w.leafOnDisk() != now {
				t.Fatalf("%+v %v", o, err)
			}
			if f := w.installer().Facts(w.site()); f.Generation != p.Generation || f.State != agentv1.InstallState_INSTALL_STATE_FAILED {
				t.Errorf("%+v", f)
			}
			w.node.Set(internode, cassandratest.Honest)
			w.serves(now)
			w.clean()
		})
	}
}

func TestAStoreAtRestThatIsNotServedIsReloadedAndNeverTurnedBack(t *testing.T) {
	w := running(t, keystore.PEM)
	clock := clockwork.NewFakeClockAt(time.Now())
	w.clock = clock
	if _, err := w.installer().Run(context.Background(), w.plan(2)); err != nil {
		t.Fatal(err)
	}
	now := w.leafOnDisk()
	for range 3 {
		clock.Advance(install.AtRest)
		w.serves(now)
	}
	clock.Advance(install.AtRest)
	w.node.ServeOther(cassandratest.NewCA(t, "x").Leaf().TLS())
	w.node.Set(cql, cassandratest.Other)
	stepping := func(o *install.Options) { o.Clock = steppingClock{clock} }
	if o, err := w.installer(stepping).Reprove(context.Background(), w.site()); o.Result != failed || err == nil || w.leafOnDisk() != now {
		t.Fatalf("%+v %v", o, err)
	}
	w.node.Set(cql, cassandratest.Honest)
	if o, err := w.installer().Reprove(context.Background(), w.site()); err != nil || o.State != agentv1.InstallState_INSTALL_STATE_PROVEN {
		t.Errorf("once healed: %+v %v", o, err)
	}
}

// steppingClock does not wait: it moves.
type steppingClock struct{ *clockwork.FakeClock }

func (c steppingClock) NewTimer(d time.Duration) clockwork.Timer {
	t := c.FakeClock.NewTimer(d)
	c.Advance(d)
	return t
}

func TestASilentNodeIsUnknownAndNothingIsDoneToIt(t *testing.T) {
	w := running(t, keystore.PEM)
	w.opts = append(w.opts, fastProbe)
	w.node.Set(internode, cassandratest.Silent)
	o, err := w.installer().Reprove(context.Background(), w.site())
	if o == nil || o.Result != unproven || !fault.HasReason(err, "proof-unknown") || w.node.Reloads() != 0 {
		t.Errorf("%+v %v, %d reloads", o, err, w.node.Reloads())
	}
	w.node.Stop()
	if o, err := w.installer().Reprove(context.Background(), w.site()); o != nil || err != nil {
		t.Errorf("a stopped node: %+v %v", o, err)
	}
}

func TestTheNextProofIsDueAfterEachPollAndNeverInATightLoop(t *testing.T) {
	w := running(t, keystore.PEM)
	clock := clockwork.NewFakeClockAt(time.Now())
	w.clock = clock
	i := w.installer()
	if _, err := i.Run(context.Background(), w.plan(2)); err != nil {
		t.Fatal(err)
	}
	due, err := i.NextProof(w.site())
	if d := due.Sub(clock.Now()); err != nil || d < install.Poll || d > install.Poll+time.Minute {
		t.Fatalf("due in %v, %v", d, err)
	}
	clock.Advance(due.Sub(clock.Now()))
	w.node.Stop()
	i.Reprove(context.Background(), w.site())
	if due, _ := i.NextProof(w.site()); !due.After(clock.Now()) {
		t.Error("a stopped node would be asked without pause")
	}
	if due, err := w.installer().NextProof(install.Site{Instance: w.node.Instance(), Store: cassandratest.NewStore(t, keystore.PEM)}); err != nil || due.IsZero() {
		// The same store name has a record: only its files differ.
		t.Errorf("%v %v", due, err)
	}
}

func TestAForeignWriteDuringAKilledInstallIsLeftIfItIsGoodAndReplacedIfItIsBroken(t *testing.T) {
	kill := func(o *install.Options) {
		dead := false
		o.Before = func(op install.Op) error {
			if dead = dead || op.Step == install.StepKeystore; dead {
				return errKilled
			}
			return nil
		}
	}
	w := running(t, keystore.PEM)
	w.installer(kill).Run(context.Background(), growing(w))
	theirs := w.ca.Leaf()
	cassandratest.Write(t, w.store, theirs, w.ca.Root)
	o, err := w.installer().Recover(context.Background(), w.site())
	if o == nil || !fault.HasReason(err, "store-changed") || w.leafOnDisk() != leafSum(theirs.Chain) {
		t.Errorf("a good foreign pair: %+v %v", o, err)
	}
	w.clean()

	w = running(t, keystore.PEM)
	before := w.leafOnDisk()
	w.installer(kill).Run(context.Background(), growing(w))
	os.Truncate(w.store.KeystorePath, 50)
	if o, err := w.installer().Recover(context.Background(), w.site()); o == nil || o.Result != rolledBack || w.leafOnDisk() != before {
		t.Errorf("a broken foreign pair: %+v %v", o, err)
	}
	w.serves(before)
	w.clean()
}

func TestAKilledInstallWaitsWhileHeldAndBlocksTheNext(t *testing.T) {
	w := running(t, keystore.PEM)
	dead := false
	w.installer(func(o *install.Options) {
		o.Before = func(op install.Op) error {
			if dead = dead || op.Step == install.StepReload; dead {
				return errKilled
			}
			return nil
		}
	}).Run(context.Background(), growing(w))
	now := w.leafOnDisk()
	w.putHold()
	if o, err := w.installer().Recover(context.Background(), w.site()); o != nil || !fault.HasReason(err, "held") || w.leafOnDisk() != now {
		t.Fatalf("%+v %v", o, err)
	}
	os.Remove(w.hold)
	if o, err := w.installer().Run(context.Background(), w.plan(3)); o.Result != refused || !fault.HasReason(err, "unfinished-move") {
		t.Fatalf("%v %v", o.Result, err)
	}
	if o, err := w.installer().Recover(context.Background(), w.site()); err != nil || o.Result != proven || o.Claim != "claim" || o.Generation != 2 {
		t.Fatalf("%+v %v", o, err)
	}
	if last, err := w.installer().Last(w.site()); err != nil || last.Result != proven || last.Claim != "claim" {
		t.Errorf("the lost report: %+v %v", last, err)
	}
}

func TestTwoAgentsDoNotWorkInOneFolder(t *testing.T) {
	w := running(t, keystore.PEM)
	inner := func(o *install.Options) {
		o.Before = func(op install.Op) error {
			if op.Step == install.StepBaseline && op.Do == "begin" {
				second := &world{t: t, ca: w.ca, store: w.store, node: w.node, state: filepath.Join(t.TempDir(), "other"), hold: w.hold, clock: w.clock}
				if o, err := second.installer().Run(context.Background(), second.plan(7)); o.Result != refused || !fault.HasReason(err, "store-locked") {
					t.Errorf("%v %v", o.Result, err)
				}
			}
			return nil
		}
	}
	if o, err := w.installer(inner).Run(context.Background(), w.plan(2)); err != nil {
		t.Errorf("%v %v", o.Result, err)
	}
}

func TestATrustOnlyMoveKilledBeforeItsReloadIsReloadedByTheRecovery(t *testing.T) {
	w := running(t, keystore.PEM)
	next := cassandratest.NewCA(t, "next")
	dead := false
	p := install.Plan{Site: w.site(), Claim: "c", Generation: 2, Anchors: []*x509.Certificate{w.ca.Root, next.Root}}
	w.installer(func(o *install.Options) {
		o.Before = func(op install.Op) error {
			if dead = dead || op.Step == install.StepReload; dead {
				return errKilled
			}
			return nil
		}
	}).Run(context.Background(), p)
	n := w.node.Reloads()
	if o, err := w.installer().Recover(context.Background(), w.site()); err != nil || o.Result != proven || w.node.Reloads() != n+1 {
		t.Errorf("%+v %v, %d reloads", o, err, w.node.Reloads()-n)
	}
}

// theirs is a node whose pair is another CA's, to which our anchor was added; it gives that anchor and their CA.
func theirs(t *testing.T) (*world, *cassandratest.CA, *x509.Certificate) {
	t.Helper()
	w := newWorld(t, keystore.PEM)
	ca := cassandratest.NewCA(t, "theirs")
	cassandratest.Write(t, w.store, ca.Leaf(), ca.Root)
	w.node.Restart(t)
	p := install.Plan{Site: w.site(), Claim: "trust", Generation: 5, Anchors: []*x509.Certificate{w.ca.Root}}
	if o, err := w.installer().Run(context.Background(), p); err != nil || o.State != agentv1.InstallState_INSTALL_STATE_FOREIGN {
		t.Fatalf("trust first: %+v %v", o, err)
	}
	return w, ca, w.ca.Root
}

func TestFilesOfAnotherCAWithOurAnchorAreProvedAfterEachPollAndNeverTurnedBack(t *testing.T) {
	w, ca, ours := theirs(t)
	clock := clockwork.NewFakeClockAt(time.Now())
	w.clock = clock
	due := func() time.Time {
		t.Helper()
		at, err := w.installer().NextProof(w.site())
		if err != nil || at.IsZero() {
			t.Fatalf("due %v %v", at, err)
		}
		return at
	}
	if d := due().Sub(clock.Now()); d < install.Poll || d > install.Poll+time.Minute {
		t.Fatalf("after the first poll: %s", d)
	}
	foreign := func(what string) {
		t.Helper()
		if o, err := w.installer().Reprove(context.Background(), w.site()); err != nil || o == nil || o.State != agentv1.InstallState_INSTALL_STATE_FOREIGN {
			t.Fatalf("%s: %+v %v", what, o, err)
		}
		if f := w.installer().Facts(w.site()); f.State != agentv1.InstallState_INSTALL_STATE_FOREIGN || f.Generation != 5 {
			t.Errorf("%s: %v, generation %d", what, f.State, f.Generation)
		}
	}
	for range 3 {
		clock.Advance(due().Sub(clock.Now()))
		foreign("after a poll")
	}
	if d := due().Sub(clock.Now()); d != install.AtRest {
		t.Errorf("at rest: %s", d)
	}

	// Their own renewal keeps our anchor: it is proved as it is, and its polls are awaited.
	renewed := ca.Leaf()
	cassandratest.Write(t, w.store, renewed, ca.Root, ours)
	w.node.Restart(t)
	foreign("their renewal")
	if d := due().Sub(clock.Now()); d < install.Poll-time.Minute || d > install.Poll+time.Minute {
		t.Errorf("after their renewal: %s", d)
	}

	// A poll breaks it: nothing of theirs is turned back, and it is well again when it is served again.
	w.node.ServeOther(cassandratest.NewCA(t, "x").Leaf().TLS())
	w.node.Set(cql, cassandratest.Other)
	stepping := func(o *install.Options) { o.Clock = steppingClock{clock} }
	if o, err := w.installer(stepping).Reprove(context.Background(), w.site()); o == nil || o.Result != failed || err == nil || w.leafOnDisk() != leafSum(renewed.Chain) {
		t.Fatalf("%+v %v", o, err)
	}
	w.node.Set(cql, cassandratest.Honest)
	foreign("healed")

	// Without our anchor there is nothing of ours to prove.
	cassandratest.Write(t, w.store, renewed, ca.Root)
	if o, err := w.installer().Reprove(context.Background(), w.site()); o != nil || err != nil {
		t.Errorf("our anchor is gone: %+v %v", o, err)
	}
}

func TestAMoveThatFailsTwiceOverTheSameFilesCountsOneChange(t *testing.T) {
	w, ca, _ := theirs(t)
	l := ca.Leaf()
	cassandratest.Write(t, w.store, l, ca.Root)
	w.node.Restart(t)
	p := install.Plan{Site: w.site(), Claim: "again", Generation: 6, Anchors: []*x509.Certificate{w.ca.Root}}
	w.node.BreakReloads(errors.New("no nodetool"))
	for range 3 {
		if o, err := w.installer().Run(context.Background(), p); o.Result != rolledBack || err == nil {
			t.Fatalf("%v %v", o.Result, err)
		}
	}
	w.node.BreakReloads(nil)
	if o, err := w.installer().Run(context.Background(), p); err != nil || o.Result != proven {
		t.Fatalf("%v %v", o.Result, err)
	}
	cassandratest.Write(t, w.store, l, ca.Root)
	if _, err := w.installer().Run(context.Background(), p); !fault.HasReason(err, "store-contested") {
		t.Errorf("taken out twice within a day: %v", err)
	}
}
