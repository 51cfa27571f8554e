package install_test

import (
	"bytes"
	"context"
	"crypto/x509"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/jonboulle/clockwork"

	"github.com/cassandra-security-manager/csm/agent/cassandra"
	"github.com/cassandra-security-manager/csm/agent/cassandra/cassandratest"
	"github.com/cassandra-security-manager/csm/agent/install"
	agentv1 "github.com/cassandra-security-manager/csm/protocol/agent/v1"
	"github.com/cassandra-security-manager/csm/shared/keystore"
)

const foreign = agentv1.InstallState_INSTALL_STATE_FOREIGN

// adopt makes the world one that lives by another CA and trusts ours beside it. It gives the leaf in service.
func (w *world) adopt() [32]byte {
	w.t.Helper()
	theirs := cassandratest.NewCA(w.t, "theirs")
	l := theirs.Leaf()
	w.state = filepath.Join(w.t.TempDir(), "install")
	cassandratest.Write(w.t, w.store, l, theirs.Root)
	w.node.IgnoreReloads(false)
	w.node.Restart(w.t)
	p := w.plan(1)
	p.Key, p.Chain = nil, nil
	if o, err := w.installer().Run(context.Background(), p); err != nil || o.State != foreign {
		w.t.Fatalf("trust first: %+v %v", o, err)
	}
	return leafSum(l.Chain)
}

// takeOver adopts the world, then replaces the leaf. It gives the leaf of before, and the keystore as it was.
func (w *world) takeOver() (before [32]byte, data []byte) {
	w.t.Helper()
	before = w.adopt()
	data, err := os.ReadFile(w.store.KeystorePath)
	if err != nil {
		w.t.Fatal(err)
	}
	if o, err := w.installer().Run(context.Background(), w.plan(2)); err != nil || o.Result != proven {
		w.t.Fatalf("take-over: %+v %v", o, err)
	}
	return before, data
}

// giving plans to put a leaf back.
func (w *world) giving(leaf [32]byte) install.Plan {
	return install.Plan{Site: w.site(), Claim: "back", Generation: 3, GiveBack: leaf, Given: true, Anchors: []*x509.Certificate{w.ca.Root}}
}

// kept finds what is kept.
func (w *world) kept() install.Kept {
	w.t.Helper()
	k, ok := w.installer().Kept(w.site())
	if !ok {
		w.t.Fatal("nothing is kept")
	}
	return k
}

func TestWhatOursTookThePlaceOfIsKeptAndPutBackByteForByte(t *testing.T) {
	for _, f := range []keystore.Format{keystore.PEM, keystore.PKCS12, keystore.JKS} {
		t.Run(string(f), func(t *testing.T) {
			w := newWorld(t, f)
			before, data := w.takeOver()
			k := w.kept()
			held, err := os.ReadFile(filepath.Join(k.Path, "keystore"))
			if err != nil || k.Leaf != before || !bytes.Equal(held, data) {
				t.Fatalf("kept: %x, %v", k.Leaf[:4], err)
			}
			if st, err := os.Stat(filepath.Join(k.Path, "keystore")); err != nil || st.Mode().Perm() != 0o600 {
				t.Errorf("mode %v %v", st.Mode(), err)
			}
			facts := w.installer().Facts(w.site())
			if !bytes.Equal(facts.KeptSha256, before[:]) || len(facts.KeptAnchorSha256) != 32 || !facts.KeptUntil.AsTime().Before(k.NotAfter) {
				t.Errorf("facts: %+v", facts)
			}
			// Renewals of ours change nothing of it.
			for g := range uint64(3) {
				if o, err := w.installer().Run(context.Background(), w.plan(3+g)); err != nil || o.Result != proven {
					t.Fatalf("renewal: %+v %v", o, err)
				}
			}
			p := w.giving(before)
			p.Generation = 9
			o, err := w.installer().Run(context.Background(), p)
			if err != nil || o.Result != proven || o.State != foreign || o.After != before {
				t.Fatalf("back: %+v %v", o, err)
			}
			now, err := os.ReadFile(w.store.KeystorePath)
			if err != nil || !bytes.Equal(now, data) {
				t.Errorf("the keystore is not the one of before: %v", err)
			}
			w.serves(before)
			facts = w.installer().Facts(w.site())
			if facts.State != foreign || len(facts.Anchors) != 2 || facts.Generation != 9 {
				t.Errorf("facts: %+v", facts)
			}
			w.clean()
			if err := w.installer().Forget(context.Background(), w.site(), [32]byte{1}); err != nil || w.kept().Leaf != before {
				t.Errorf("another leaf was forgotten: %v", err)
			}
			if err := w.installer().Forget(context.Background(), w.site(), before); err != nil {
				t.Fatal(err)
			}
			if left, _ := filepath.Glob(filepath.Join(w.state, w.store.Name, "original*")); len(left) > 0 {
				t.Errorf("left: %v", left)
			}
			// Taken over once more, it is kept once more.
			if o, err := w.installer().Run(context.Background(), w.plan(10)); err != nil || o.Result != proven || w.kept().Leaf != before {
				t.Errorf("again: %+v %v", o, err)
			}
		})
	}
}

func TestAKillAtEachOperationOfATakeOverLeavesTheKeyOfBefore(t *testing.T) {
	killEverywhere(t, func(w *world) { w.adopt() }, func(w *world) install.Plan { return w.plan(2) }, false, install.StepKeep)
}

func TestAKillAtEachOperationOfTheWayBackLeavesOldOrNew(t *testing.T) {
	killEverywhere(t, func(w *world) { w.takeOver() }, func(w *world) install.Plan { return w.giving(w.kept().Leaf) }, false, install.StepKeep)
}

func TestAKillAtEachOperationOfAWayBackThatFailsLeavesOurs(t *testing.T) {
	killEverywhere(t, func(w *world) { w.takeOver(); w.node.IgnoreReloads(true) }, func(w *world) install.Plan { return w.giving(w.kept().Leaf) }, false, install.StepBack)
}

// The key of before lies on the disk, synced, before anything of the store is touched.
func TestTheOriginalIsOnTheDiskBeforeTheFirstRename(t *testing.T) {
	w := newWorld(t, keystore.PEM)
	w.adopt()
	var ops []install.Op
	if _, err := w.installer(func(o *install.Options) {
		o.Before = func(op install.Op) error { ops = append(ops, op); return nil }
	}).Run(context.Background(), w.plan(2)); err != nil {
		t.Fatal(err)
	}
	k := w.kept()
	at := func(do, path string) int {
		return slices.IndexFunc(ops, func(o install.Op) bool { return o.Do == do && o.Path == path })
	}
	first := slices.IndexFunc(ops, func(o install.Op) bool {
		return o.Do == "rename" && filepath.Dir(o.Path) == filepath.Dir(w.store.KeystorePath)
	})
	for _, i := range []int{at("sync", filepath.Join(k.Path, "keystore.tmp")), at("rename", filepath.Join(k.Path, "keystore")), at("sync-folder", k.Path),
		at("rename", filepath.Join(filepath.Dir(k.Path), "original.json"))} {
		if i < 0 || first < 0 || i > first {
			t.Fatalf("operation %d, first rename in the store %d: %v", i, first, ops)
		}
	}
}

func TestNoWayBackIsBegunWithWhatIsNotTheOriginal(t *testing.T) {
	for _, x := range []struct {
		reason string
		spoil  func(w *world, k install.Kept, p *install.Plan)
	}{
		{"kept-missing", func(_ *world, k install.Kept, _ *install.Plan) { os.RemoveAll(k.Path) }},
		{"kept-missing", func(w *world, k install.Kept, _ *install.Plan) {
			w.installer().Forget(context.Background(), w.site(), k.Leaf)
		}},
		{"kept-changed", func(_ *world, k install.Kept, _ *install.Plan) {
			os.WriteFile(filepath.Join(k.Path, "keystore"), []byte("something else"), 0o600)
		}},
		{"kept-other", func(_ *world, _ install.Kept, p *install.Plan) { p.GiveBack[0]++ }},
		{"kept-ends", func(w *world, k install.Kept, _ *install.Plan) { w.clock = clockwork.NewFakeClockAt(k.Until) }},
		{"kept-ends", func(w *world, k install.Kept, _ *install.Plan) {
			w.clock = clockwork.NewFakeClockAt(k.NotAfter.Add(time.Hour))
		}},
		{"bad-plan", func(w *world, _ install.Kept, p *install.Plan) { p.Key, p.Chain = w.plan(3).Key, w.plan(3).Chain }},
	} {
		t.Run(x.reason, func(t *testing.T) {
			w := newWorld(t, keystore.PEM)
			before, _ := w.takeOver()
			p := w.giving(before)
			sum := w.keystoreSum()
			x.spoil(w, w.kept(), &p)
			o, err := w.installer().Run(context.Background(), p)
			if o.Result != refused || o.Reason != x.reason || err == nil {
				t.Errorf("%+v %v", o, err)
			}
			if w.keystoreSum() != sum {
				t.Error("the store was written")
			}
			w.clean()
		})
	}
}

// The CA of before must still be in the truststore of the node itself: where somebody took it out here, it may be out elsewhere.
func TestALeafGoesBackOnlyWhereItsCAIsStillTrusted(t *testing.T) {
	w := newWorld(t, keystore.PEM)
	before, _ := w.takeOver()
	data, err := keystore.EncodeTrustStore(w.store.Format, []*x509.Certificate{w.ca.Root}, w.store.TruststorePassword)
	if err == nil {
		err = os.WriteFile(w.store.TruststorePath, data, 0o644)
	}
	if err != nil {
		t.Fatal(err)
	}
	if err := w.installer().Release(context.Background(), w.site()); err != nil {
		t.Fatal(err)
	}
	if facts := w.installer().Facts(w.site()); len(facts.KeptSha256) == 0 || len(facts.KeptAnchorSha256) > 0 {
		t.Errorf("facts: %+v", facts)
	}
	if o, err := w.installer().Run(context.Background(), w.giving(before)); o.Result != refused || err == nil {
		t.Errorf("%+v %v", o, err)
	}
}

func TestWhatANeighbourDoesNotProveIsTakenBackToOurs(t *testing.T) {
	w := newWorld(t, keystore.PEM)
	before, _ := w.takeOver()
	ours := w.leafOnDisk()
	p := w.giving(before)
	p.Neighbour = func(context.Context, [32]byte, []cassandra.Port) ([]*agentv1.Proof, error) {
		return nil, errors.New("nobody answers")
	}
	o, err := w.installer().Run(context.Background(), p)
	if o.Result != rolledBack || err == nil || o.State != agentv1.InstallState_INSTALL_STATE_ROLLED_BACK {
		t.Errorf("%+v %v", o, err)
	}
	w.serves(ours)
	if k := w.kept(); k.Leaf != before {
		t.Error("what is kept went with it")
	}
}

// A full or broken state folder stops a take-over before anything is changed.
func TestWithoutAPlaceToKeepItNothingIsTakenOver(t *testing.T) {
	w := newWorld(t, keystore.PEM)
	before := w.adopt()
	o, err := w.installer(func(o *install.Options) {
		o.Before = func(op install.Op) error {
			if op.Do == "write" && filepath.Base(filepath.Dir(filepath.Dir(op.Path))) == w.store.Name && strings.HasPrefix(filepath.Base(filepath.Dir(op.Path)), "original-") {
				return errors.New("no space left on device")
			}
			return nil
		}
	}).Run(context.Background(), w.plan(2))
	if o.Result != refused || err == nil || w.leafOnDisk() != before {
		t.Errorf("%+v %v", o, err)
	}
	w.clean()
}
