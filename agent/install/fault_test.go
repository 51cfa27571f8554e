package install_test

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/x509"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/cassandra-security-manager/csm/agent/cassandra"
	"github.com/cassandra-security-manager/csm/agent/cassandra/cassandratest"
	"github.com/cassandra-security-manager/csm/agent/install"
	"github.com/cassandra-security-manager/csm/agent/probe"
	agentv1 "github.com/cassandra-security-manager/csm/protocol/agent/v1"
	"github.com/cassandra-security-manager/csm/shared/keystore"
)

var errKilled = errors.New("killed")

func keyEqual(a, b crypto.Signer) bool {
	return a.Public().(*ecdsa.PublicKey).Equal(b.Public())
}

// fastProbe lets probes of silent ports give up soon.
func fastProbe(o *install.Options) {
	o.Probe = func(ctx context.Context, q probe.Request) probe.Result {
		q.Timeout = 200 * time.Millisecond
		return probe.Probe(ctx, q)
	}
}

// script is a hook that lets the first n operations pass, and none after the kill.
type script struct {
	n    int
	seen []install.Op
	dead bool
}

func (s *script) before(op install.Op) error {
	if s.dead {
		return errKilled
	}
	s.seen = append(s.seen, op)
	if len(s.seen) > s.n {
		s.dead = true
		return errKilled
	}
	return nil
}

// operations counts what a run does when nothing disturbs it.
func operations(t *testing.T, prepare func(*world), plan func(*world) install.Plan) []install.Op {
	t.Helper()
	w := installed(t)
	prepare(w)
	s := &script{n: 1 << 20}
	w.installer(func(o *install.Options) { o.Before = s.before }).Run(context.Background(), plan(w))
	return s.seen
}

// killEverywhere stops the program before each single operation, restarts Cassandra on what lies there, recovers with a
// new installer, and demands that the pair is the old or the new one.
func killEverywhere(t *testing.T, prepare func(*world), plan func(*world) install.Plan, restart bool, from install.Step) {
	ops := operations(t, prepare, plan)
	if len(ops) < 30 {
		t.Fatalf("only %d operations: %v", len(ops), ops)
	}
	first := slices.IndexFunc(ops, func(o install.Op) bool { return o.Step == from })
	for n := first; n < len(ops); n++ {
		t.Run(fmt.Sprintf("%03d-%s-%s", n, ops[n].Step, ops[n].Do), func(t *testing.T) {
			t.Parallel()
			w := installed(t)
			prepare(w)
			old, p := w.leafOnDisk(), plan(w)
			s := &script{n: n}
			w.installer(func(o *install.Options) { o.Before = s.before }).Run(context.Background(), p)
			if !s.dead {
				t.Fatal("the kill did not happen: the operations are not the same each time")
			}
			w.leafOnDisk() // whatever loads the files now gets a valid pair
			w.node.IgnoreReloads(false)
			if restart {
				w.node.Restart(t)
			}
			w.installer().Recover(context.Background(), w.site())
			now := w.leafOnDisk()
			if now != old && now != wanted(p) {
				t.Fatalf("neither old nor new: %x", now[:4])
			}
			w.serves(now)
			w.clean()
			if o, err := w.installer().Recover(context.Background(), w.site()); o != nil || err != nil {
				t.Errorf("a second recovery found work: %+v %v", o, err)
			}
		})
	}
}

// wanted is the leaf that a plan wants to be served.
func wanted(p install.Plan) [32]byte {
	if len(p.Chain) == 0 {
		return p.GiveBack
	}
	return leafSum(p.Chain)
}

func TestAKillAtEachOperationLeavesOldOrNew(t *testing.T) {
	killEverywhere(t, func(*world) {}, growing, false, install.StepLock)
}

func TestAKillOnceFilesChangeAndARestartOfCassandraLeavesOldOrNew(t *testing.T) {
	killEverywhere(t, func(*world) {}, growing, true, install.StepTruststore)
}

func TestAKillAtEachOperationOfARollbackLeavesOldOrNew(t *testing.T) {
	killEverywhere(t, func(w *world) { w.node.IgnoreReloads(true) }, growing, false, install.StepBack)
}

// nobody is a neighbour callback of a cluster of one node.
func nobody(context.Context, [32]byte, []cassandra.Port) ([]*agentv1.Proof, error) { return nil, nil }

// nextRoot is some anchor that the world does not have yet.
func nextRoot(w *world) *x509.Certificate { return cassandratest.NewCA(w.t, "next").Root }

// growing adds an anchor and swaps the leaf: both files change.
func growing(w *world) install.Plan {
	p := w.plan(2)
	p.Anchors = append(p.Anchors, nextRoot(w))
	return p
}

// Each step has a name of its own, and a run goes through them in the order that Steps and RollbackSteps say.
func TestTheStepsAreWhatTheCodeDoes(t *testing.T) {
	var got []install.Step
	for _, op := range operations(t, func(*world) {}, func(w *world) install.Plan { p := growing(w); p.Neighbour = nobody; return p }) {
		if op.Do == "begin" {
			got = append(got, op.Step)
		}
	}
	if fmt.Sprint(got) != fmt.Sprint(install.Steps()) {
		t.Errorf("steps = %v", got)
	}
	got = nil
	for _, op := range operations(t, func(w *world) { w.node.IgnoreReloads(true) }, growing) {
		if op.Do == "begin" && strings.HasPrefix(string(op.Step), "rollback") {
			got = append(got, op.Step)
		}
	}
	if fmt.Sprint(got) != fmt.Sprint(install.RollbackSteps()) {
		t.Errorf("rollback = %v", got)
	}
}

// A failing operation, unlike a kill, lets the program put things right at once.
func TestAFailureOfEachOperationLeavesOldOrNew(t *testing.T) {
	ops := operations(t, func(*world) {}, growing)
	for n := range ops {
		t.Run(fmt.Sprintf("%03d-%s-%s", n, ops[n].Step, ops[n].Do), func(t *testing.T) {
			t.Parallel()
			w := installed(t)
			old, p := w.leafOnDisk(), growing(w)
			seen := 0
			o, err := w.installer(func(o *install.Options) {
				o.Before = func(install.Op) error {
					if seen++; seen == n+1 {
						return errors.New("input/output error")
					}
					return nil
				}
			}).Run(context.Background(), p)
			if now := w.leafOnDisk(); now != old && now != leafSum(p.Chain) {
				t.Fatalf("neither old nor new after %v %v", o.Result, err)
			}
			w.installer().Recover(context.Background(), w.site())
			now := w.leafOnDisk()
			if o.Result == proven && now != leafSum(p.Chain) || (o.Result == refused || o.Result == rolledBack) && now != old {
				t.Errorf("outcome %v does not fit the disk", o.Result)
			}
			w.serves(now)
			w.clean()
		})
	}
}

func TestAKillBeforeCassandrasFirstStartLeavesNothingOrAWholePair(t *testing.T) {
	ops := func() []install.Op {
		w := newWorld(t, keystore.PEM)
		w.node.Stop()
		s := &script{n: 1 << 20}
		w.installer(func(o *install.Options) { o.Before = s.before }).Run(context.Background(), w.plan(1))
		return s.seen
	}()
	for n := range ops {
		t.Run(fmt.Sprintf("%03d-%s-%s", n, ops[n].Step, ops[n].Do), func(t *testing.T) {
			t.Parallel()
			w := newWorld(t, keystore.PEM)
			w.node.Stop()
			s := &script{n: n}
			w.installer(func(o *install.Options) { o.Before = s.before }).Run(context.Background(), w.plan(1))
			w.installer().Recover(context.Background(), w.site())
			_, kerr := os.Stat(w.store.KeystorePath)
			_, terr := os.Stat(w.store.TruststorePath)
			if (kerr == nil) != (terr == nil) {
				t.Fatal("half a pair is left")
			}
			if kerr == nil {
				w.leafOnDisk()
			} else if o, err := w.installer().Run(context.Background(), w.plan(1)); err != nil || o.Result != unproven {
				t.Fatalf("the next try says %v %v", o.Result, err)
			}
			w.clean()
		})
	}
}

func TestAKillAtEachOperationOfARestoreIsNotASecondForeignChange(t *testing.T) {
	broken := func(t *testing.T, s *script) *world {
		w := installed(t)
		os.Truncate(w.store.KeystorePath, 40)
		os.Truncate(w.store.TruststorePath, 40)
		w.installer(func(o *install.Options) { o.Before = s.before }).Restore(context.Background(), w.site())
		return w
	}
	whole := &script{n: 1 << 20}
	broken(t, whole)
	for n, op := range whole.seen {
		t.Run(fmt.Sprintf("%03d-%s-%s", n, op.Step, op.Do), func(t *testing.T) {
			t.Parallel()
			w := broken(t, &script{n: n})
			if _, err := w.installer().Restore(context.Background(), w.site()); err != nil {
				t.Fatal(err)
			}
			w.serves(w.leafOnDisk())
			w.installer().Recover(context.Background(), w.site())
			w.clean()
		})
	}
}

func TestAStateFolderOfANewerAgentIsNotTouched(t *testing.T) {
	w := running(t, keystore.PEM)
	path := filepath.Join(w.state, w.store.Name, "record.json")
	data, _ := os.ReadFile(path)
	os.WriteFile(path, []byte(strings.Replace(string(data), `"format": 1`, `"format": 2`, 1)), 0o600)
	if o, err := w.installer().Run(context.Background(), w.plan(2)); o.Result != refused || err == nil {
		t.Errorf("%v %v", o.Result, err)
	}
}
