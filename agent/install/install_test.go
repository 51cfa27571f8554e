package install_test

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jonboulle/clockwork"

	"github.com/cassandra-security-manager/csm/agent/cassandra"
	"github.com/cassandra-security-manager/csm/agent/cassandra/cassandratest"
	"github.com/cassandra-security-manager/csm/agent/install"
	"github.com/cassandra-security-manager/csm/agent/probe"
	"github.com/cassandra-security-manager/csm/agent/reload"
	agentv1 "github.com/cassandra-security-manager/csm/protocol/agent/v1"
	"github.com/cassandra-security-manager/csm/shared/algorithm"
	"github.com/cassandra-security-manager/csm/shared/fault"
	"github.com/cassandra-security-manager/csm/shared/keystore"
)

func TestARenewalIsWrittenReloadedAndProvedInEachFormat(t *testing.T) {
	for _, f := range []keystore.Format{keystore.PKCS12, keystore.JKS, keystore.PEM} {
		t.Run(string(f), func(t *testing.T) {
			w := running(t, f)
			before, trust := w.leafOnDisk(), w.sum(w.store.TruststorePath)
			os.Chmod(w.store.KeystorePath, 0o640)
			p := w.plan(2)
			o, err := w.installer().Run(context.Background(), p)
			if err != nil || o.Result != proven || o.State != agentv1.InstallState_INSTALL_STATE_PROVEN || o.Before != before || o.After != leafSum(p.Chain) {
				t.Fatalf("%+v %v", o, err)
			}
			if len(o.Proofs) != 2 || w.leafOnDisk() != leafSum(p.Chain) || w.sum(w.store.TruststorePath) != trust {
				t.Error("both ports must be proved, and a truststore that does not change must not be touched")
			}
			if st, _ := os.Stat(w.store.KeystorePath); st.Mode().Perm() != 0o640 {
				t.Errorf("mode became %v", st.Mode())
			}
			w.serves(leafSum(p.Chain))
			w.clean()
			if n := w.node.LoggedErrors(); n != 0 {
				t.Errorf("Cassandra would have logged %d ERRORs", n)
			}
			if f := w.installer().Facts(w.site()); f.Generation != 2 || f.State != agentv1.InstallState_INSTALL_STATE_PROVEN || len(f.Anchors) != 1 {
				t.Errorf("facts: %v", f)
			}
		})
	}
}

func TestWhatIsNotFitIsRefusedBeforeAnythingIsWritten(t *testing.T) {
	other := cassandratest.NewCA(t, "other")
	for name, c := range map[string]struct {
		change func(*world, *install.Plan)
		reason string
	}{
		"wrong SAN": {func(w *world, p *install.Plan) {
			l := w.ca.Leaf(func(c *x509.Certificate) { c.IPAddresses = nil; c.DNSNames = []string{"elsewhere.example"} })
			p.Key, p.Chain = l.Key, l.Chain
		}, "wrong-names"},
		"expired leaf": {func(w *world, p *install.Plan) {
			l := w.ca.Leaf(func(c *x509.Certificate) {
				c.NotBefore, c.NotAfter = time.Now().Add(-48*time.Hour), time.Now().Add(-time.Hour)
			})
			p.Key, p.Chain = l.Key, l.Chain
		}, "expired"},
		"one usage": {func(w *world, p *install.Plan) {
			l := w.ca.Leaf(func(c *x509.Certificate) { c.ExtKeyUsage = c.ExtKeyUsage[:1] })
			p.Key, p.Chain = l.Key, l.Chain
		}, "wrong-usage"},
		"key of another": {func(w *world, p *install.Plan) { p.Key = w.ca.Leaf().Key }, ""},
		"untrusted":      {func(w *world, p *install.Plan) { l := other.Leaf(); p.Key, p.Chain = l.Key, l.Chain }, "untrusted"},
		"old generation": {func(w *world, p *install.Plan) { p.Generation = 0 }, "old-generation"},
		"mixed move": {func(w *world, p *install.Plan) {
			p.Anchors, p.Shrink, p.Withdraw = []*x509.Certificate{other.Root}, true, [][32]byte{leafSum([]*x509.Certificate{w.ca.Root})}
		}, "mixed-move"},
		"trust not distributed": {func(w *world, p *install.Plan) {
			l := other.Leaf()
			p.Key, p.Chain, p.Anchors = l.Key, l.Chain, append(p.Anchors, other.Root)
		}, "trust-not-distributed"},
		"unmanageable": {func(w *world, p *install.Plan) {
			s := *p.Store
			s.Manageable = false
			p.Store = &s
		}, "unmanageable"},
		"held":         {func(w *world, p *install.Plan) { w.putHold() }, "held"},
		"joining node": {func(w *world, p *install.Plan) { w.node.StopPort(cql) }, "node-not-normal"},
		"silent port":  {func(w *world, p *install.Plan) { w.node.Set(internode, cassandratest.Stalled) }, "baseline-failed"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w := running(t, keystore.PEM)
			ks, ts := w.keystoreSum(), w.sum(w.store.TruststorePath)
			w.opts = append(w.opts, fastProbe)
			p := w.plan(2)
			c.change(w, &p)
			o, err := w.installer().Run(context.Background(), p)
			if o.Result != refused || err == nil || c.reason != "" && !fault.HasReason(err, c.reason) || fault.From(err).Remedy == "" && c.reason != "" {
				t.Fatalf("%v %v", o.Result, err)
			}
			if w.keystoreSum() != ks || w.sum(w.store.TruststorePath) != ts || w.node.Reloads() != 0 {
				t.Error("something was changed")
			}
			w.clean()
		})
	}
}

func TestAReloadThatDidNothingIsTakenBack(t *testing.T) {
	w := running(t, keystore.PEM)
	before := w.leafOnDisk()
	w.node.IgnoreReloads(true) // nodetool exits 0
	o, err := w.installer().Run(context.Background(), w.plan(2))
	if o.Result != rolledBack || !fault.HasReason(err, "proof-wrong-leaf") || o.After != before || w.leafOnDisk() != before {
		t.Fatalf("%+v %v", o, err)
	}
	w.serves(before)
	w.clean()
	w.node.IgnoreReloads(false)
	if o, err := w.installer().Run(context.Background(), w.plan(2)); err != nil || o.Result != proven {
		t.Errorf("the next try: %v %v", o.Result, err)
	}
}

func TestAJVMThatStallsAfterTheReloadIsNotAccepted(t *testing.T) {
	w := running(t, keystore.PEM)
	before := w.leafOnDisk()
	w.opts = append(w.opts, fastProbe)
	stall := func(o *install.Options) {
		o.Before = func(op install.Op) error {
			if op.Step == install.StepProve && op.Do == "begin" {
				w.node.Set(cql, cassandratest.Silent)
			}
			if op.Step == install.StepBackReload && op.Do == "begin" {
				w.node.Set(cql, cassandratest.Honest)
			}
			return nil
		}
	}
	o, err := w.installer(stall).Run(context.Background(), w.plan(2))
	if o.Result != rolledBack || !fault.HasReason(err, "proof-unknown") || w.leafOnDisk() != before {
		t.Fatalf("%v %v", o.Result, err)
	}
	w.serves(before)
}

func TestWhatTheNeighbourDoesNotProveIsTakenBack(t *testing.T) {
	for name, neighbour := range map[string]install.Neighbour{
		"refused": func(_ context.Context, leaf [32]byte, ports []cassandra.Port) ([]*agentv1.Proof, error) {
			return []*agentv1.Proof{{Verdict: agentv1.Verdict_VERDICT_REFUSED, ServedSha256: leaf[:], Port: ports[0].Proto()}}, nil
		},
		"other leaf": func(_ context.Context, _ [32]byte, ports []cassandra.Port) ([]*agentv1.Proof, error) {
			return []*agentv1.Proof{{Verdict: agentv1.Verdict_VERDICT_ACCEPTED, ServedSha256: make([]byte, 32), Port: ports[0].Proto()}}, nil
		},
		"no answer": func(context.Context, [32]byte, []cassandra.Port) ([]*agentv1.Proof, error) {
			return nil, errors.New("nobody answered")
		},
	} {
		t.Run(name, func(t *testing.T) {
			w := running(t, keystore.PEM)
			before := w.leafOnDisk()
			p := w.plan(2)
			p.Neighbour = neighbour
			o, err := w.installer().Run(context.Background(), p)
			if o.Result != rolledBack || err == nil || w.leafOnDisk() != before {
				t.Fatalf("%v %v", o.Result, err)
			}
			w.serves(before)
		})
	}
}

func TestAHoldOrAFreezeThatAppearsInTheMiddleEndsOrTurnsBack(t *testing.T) {
	for _, s := range install.Steps() {
		for _, by := range []string{"HOLD", "freeze"} { // suspension and a lowered mode come by the way of a freeze
			t.Run(by+" at "+string(s), func(t *testing.T) {
				t.Parallel()
				w := installed(t)
				before, p := w.leafOnDisk(), w.plan(2)
				o, err := w.installer(w.stopAt(s, by == "freeze")).Run(context.Background(), p)
				want := before
				if o.Result == proven {
					want = leafSum(p.Chain)
				} else if reason := map[string]string{"HOLD": "held", "freeze": "frozen"}[by]; !fault.HasReason(err, reason) {
					t.Errorf("%v: %v, want %s", o.Result, err, reason)
				}
				if w.leafOnDisk() != want {
					t.Fatalf("%v, but the disk says otherwise", o.Result)
				}
				if o.Result == failed {
					t.Fatalf("%+v", o)
				}
				w.serves(want)
				w.clean()
			})
		}
	}
}

// stopAt lets a HOLD file, or a freeze, appear as a step begins.
func (w *world) stopAt(s install.Step, freeze bool) func(*install.Options) {
	var frozen atomic.Bool
	return func(o *install.Options) {
		o.Frozen = func() error {
			if frozen.Load() {
				return fault.New(fault.Refused, "frozen", "the cluster is frozen")
			}
			return nil
		}
		o.Before = func(op install.Op) error {
			switch {
			case op.Step != s || op.Do != "begin":
			case freeze:
				frozen.Store(true)
			default:
				w.putHold()
			}
			return nil
		}
	}
}

func TestAStoppedTransactionIsOverWithinThirtySeconds(t *testing.T) {
	for name, c := range map[string]struct {
		step install.Step
		port cassandratest.Mode
	}{
		"a neighbour that says nothing": {install.StepNeighbour, cassandratest.Honest},
		"a port that says nothing":      {install.StepProve, cassandratest.Silent},
	} {
		for _, freeze := range []bool{false, true} {
			t.Run(fmt.Sprint(name, " freeze=", freeze), func(t *testing.T) {
				t.Parallel()
				w := installed(t)
				clock := clockwork.NewFakeClockAt(time.Now())
				var mute atomic.Bool
				w.clock, w.opts = clock, append(w.opts, func(o *install.Options) {
					o.Probe = func(ctx context.Context, q probe.Request) probe.Result {
						if q.Kind == cql && mute.Load() {
							q.Timeout = 50 * time.Millisecond // some twenty are made to a port that says nothing
						}
						return probe.Probe(ctx, q)
					}
				})
				ctx, stop := context.WithCancel(context.Background())
				defer stop()
				go func() { // time passes only while the transaction waits too, not the watch over HOLD alone
					for ctx.Err() == nil {
						both, enough := context.WithTimeout(ctx, 5*time.Second) // before the first rename nobody watches yet
						_ = clock.BlockUntilContext(both, 2)
						enough()
						clock.Advance(time.Second)
					}
				}()
				before, p := w.leafOnDisk(), w.plan(2)
				p.Neighbour = func(ctx context.Context, _ [32]byte, _ []cassandra.Port) ([]*agentv1.Proof, error) {
					timer := clock.NewTimer(time.Hour)
					defer timer.Stop()
					<-ctx.Done()
					return nil, ctx.Err()
				}
				slow := func(o *install.Options) {
					o.ProveFor, o.ProveEvery, o.NeighbourFor = 15*time.Second, time.Second, time.Minute
					stop := o.Before
					o.Before = func(op install.Op) error {
						if op.Step == c.step && op.Do == "begin" {
							w.node.Set(cql, c.port)
							mute.Store(c.port == cassandratest.Silent)
						}
						return stop(op)
					}
				}
				began := clock.Now()
				o, err := w.installer(w.stopAt(c.step, freeze), slow).Run(ctx, p)
				if took := clock.Since(began); took > 30*time.Second {
					t.Errorf("it took %s", took)
				}
				if err == nil || w.leafOnDisk() != before {
					t.Errorf("%v, %v: the old pair is not back", o.Result, err)
				}
			})
		}
	}
}

func TestForeignAnchorsAreKeptAndTrustGrowsBeforeTheLeafChanges(t *testing.T) {
	w := newWorld(t, keystore.PEM)
	theirs := cassandratest.NewCA(t, "theirs")
	l := theirs.Leaf()
	cassandratest.Write(t, w.store, l, theirs.Root)
	var order []string
	hook := func(o *install.Options) {
		o.Before = func(op install.Op) error {
			if op.Do == "rename" && (op.Step == install.StepTruststore || op.Step == install.StepKeystore) {
				order = append(order, filepath.Base(op.Path))
			}
			return nil
		}
	}
	o, err := w.installer(hook).Run(context.Background(), w.plan(1))
	if err != nil || o.Result != proven || o.Before != leafSum(l.Chain) {
		t.Fatalf("taking over a foreign pair: %+v %v", o, err)
	}
	if len(order) != 2 || order[0] != "truststore" {
		t.Errorf("order = %v", order)
	}
	if f := w.installer().Facts(w.site()); len(f.Anchors) != 2 {
		t.Errorf("%d anchors", len(f.Anchors))
	}
}

func TestAReloadThatCannotRunFailsATrustMove(t *testing.T) {
	w := running(t, keystore.PEM)
	before := w.sum(w.store.TruststorePath)
	w.node.BreakReloads(errors.New("no nodetool"))
	p := install.Plan{Site: w.site(), Generation: 2, Anchors: []*x509.Certificate{w.ca.Root, cassandratest.NewCA(t, "next").Root}}
	if o, err := w.installer().Run(context.Background(), p); o.Result != rolledBack || err == nil || w.sum(w.store.TruststorePath) != before {
		t.Fatalf("%v %v", o.Result, err)
	}
}

func TestAnExpiredOldPairIsNoWayBackUnlessAnOperatorSaysSo(t *testing.T) {
	w := newWorld(t, keystore.PEM)
	old := w.ca.Leaf(func(c *x509.Certificate) {
		c.NotBefore, c.NotAfter = time.Now().Add(-48*time.Hour), time.Now().Add(-time.Hour)
	})
	cassandratest.Write(t, w.store, old, w.ca.Root)
	o, err := w.installer().Run(context.Background(), w.plan(1))
	if o.Result != refused || !fault.HasReason(err, "no-way-back") {
		t.Fatalf("%v %v", o.Result, err)
	}
	p := w.plan(1)
	p.NoWayBack = true
	if o, err := w.installer().Run(context.Background(), p); err != nil || o.Result != proven {
		t.Fatalf("%v %v", o.Result, err)
	}
}

func TestATruncatedStoreIsRestoredAndASecondChangeIsContested(t *testing.T) {
	w := running(t, keystore.PKCS12)
	clock := clockwork.NewFakeClockAt(time.Now())
	w.clock = clock
	good := w.keystoreSum()
	os.Truncate(w.store.KeystorePath, 100)
	o, err := w.installer().Restore(context.Background(), w.site())
	if err != nil || o == nil || o.Result != proven || w.keystoreSum() != good {
		t.Fatalf("%+v %v", o, err)
	}
	w.serves(o.After)
	if o, err := w.installer().Restore(context.Background(), w.site()); o != nil || err != nil {
		t.Fatalf("nothing to do, but %+v %v", o, err)
	}
	clock.Advance(23 * time.Hour)
	os.Truncate(w.store.KeystorePath, 100)
	if o, err := w.installer().Restore(context.Background(), w.site()); o.Result != refused || !fault.HasReason(err, "store-contested") || w.keystoreSum() == good {
		t.Fatalf("second change within a day: %+v %v", o, err)
	}
	if _, err := w.installer().Run(context.Background(), w.plan(2)); !fault.HasReason(err, "store-contested") {
		t.Errorf("a contested store was written: %v", err)
	}
	if f := w.installer().Facts(w.site()); f.State != agentv1.InstallState_INSTALL_STATE_CONTESTED {
		t.Errorf("state %v", f.State)
	}
}

func TestTwoForeignChangesFarApartAreBothRestored(t *testing.T) {
	w := running(t, keystore.PEM)
	clock := clockwork.NewFakeClockAt(time.Now())
	w.clock = clock
	for range 3 {
		os.Truncate(w.store.TruststorePath, 10)
		if o, err := w.installer().Restore(context.Background(), w.site()); err != nil || o.Result != proven {
			t.Fatalf("%+v %v", o, err)
		}
		clock.Advance(25 * time.Hour)
	}
}

func TestReleaseAdoptsWhatAnotherToolWroteAndNeverFightsIt(t *testing.T) {
	w := running(t, keystore.PEM)
	theirs := w.ca.Leaf()
	for range 2 {
		cassandratest.Write(t, w.store, theirs, w.ca.Root)
		w.installer().Restore(context.Background(), w.site())
	}
	if err := w.installer().Release(context.Background(), w.site()); err != nil {
		t.Fatal(err)
	}
	cassandratest.Write(t, w.store, w.ca.Leaf(), w.ca.Root)
	if o, err := w.installer().Restore(context.Background(), w.site()); o != nil || err != nil {
		t.Errorf("an adopted store was fought over: %+v %v", o, err)
	}
	w.node.Restart(t)
	if o, err := w.installer().Run(context.Background(), w.plan(9)); err != nil || o.Result != proven {
		t.Errorf("a move over an adopted store: %v %v", o.Result, err)
	}
}

func TestReloadsAreLimitedAndRefusedBeforeAnythingIsWritten(t *testing.T) {
	w := running(t, keystore.PEM)
	budget := reload.NewBudget(filepath.Join(t.TempDir(), "budget.json"), w.clock)
	w.opts = append(w.opts, func(o *install.Options) { o.Budget = budget })
	for g := uint64(2); g < 2+reload.BudgetReloads; g++ {
		if o, err := w.installer().Run(context.Background(), w.plan(g)); err != nil {
			t.Fatalf("%v %v", o.Result, err)
		}
	}
	before := w.keystoreSum()
	if o, err := w.installer().Run(context.Background(), w.plan(99)); o.Result != refused || !fault.HasReason(err, "reload-budget") || fault.From(err).RetryAfter <= 0 || w.keystoreSum() != before {
		t.Errorf("%v %v", o.Result, err)
	}
	w.clean()
}

func TestOldGenerationsAreKeptAndTheirKeysGoLast(t *testing.T) {
	w := running(t, keystore.PEM)
	for g := uint64(2); g <= 6; g++ {
		if _, err := w.installer().PendingKey(w.site(), g, algorithm.P384); err != nil {
			t.Fatal(err)
		}
		if _, err := w.installer().Run(context.Background(), w.plan(g)); err != nil {
			t.Fatal(err)
		}
	}
	kept, _ := os.ReadDir(filepath.Join(w.state, w.store.Name, "generations"))
	if len(kept) != install.KeepGenerations+1 {
		t.Errorf("%d generations kept", len(kept))
	}
	if pending, _ := filepath.Glob(filepath.Join(w.state, w.store.Name, "pending-*")); len(pending) != 0 {
		t.Errorf("keys left: %v", pending)
	}
}

func TestAPendingKeyIsTheSameUntilItsStoreIsProved(t *testing.T) {
	w := running(t, keystore.PEM)
	a, err1 := w.installer().PendingKey(w.site(), 7, algorithm.P384)
	b, err2 := w.installer().PendingKey(w.site(), 7, algorithm.P384)
	c, err3 := w.installer().PendingKey(w.site(), 8, algorithm.P384)
	if err := errors.Join(err1, err2, err3); err != nil {
		t.Fatal(err)
	}
	if !keyEqual(a, b) || keyEqual(a, c) {
		t.Error("the key of a generation must be the same each time, and its own")
	}
}
