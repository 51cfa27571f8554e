package install_test

import (
	"context"
	"crypto/x509"
	"testing"

	"github.com/cassandra-security-manager/csm/agent/cassandra"
	"github.com/cassandra-security-manager/csm/agent/cassandra/cassandratest"
	"github.com/cassandra-security-manager/csm/agent/install"
	agentv1 "github.com/cassandra-security-manager/csm/protocol/agent/v1"
	"github.com/cassandra-security-manager/csm/shared/fault"
	"github.com/cassandra-security-manager/csm/shared/keystore"
)

func sums(cs ...*x509.Certificate) (out [][32]byte) {
	for _, c := range cs {
		out = append(out, leafSum([]*x509.Certificate{c}))
	}
	return out
}

// rotated is a running node that trusts its own CA and the next one, and serves a leaf of the next one.
func rotated(t *testing.T, f keystore.Format) (w *world, next *cassandratest.CA) {
	t.Helper()
	w, next = running(t, f), cassandratest.NewCA(t, "next")
	both := []*x509.Certificate{w.ca.Root, next.Root}
	if o, err := w.installer().Run(context.Background(), install.Plan{Site: w.site(), Generation: 2, Anchors: both}); err != nil || o.Result != proven {
		t.Fatalf("grow: %v %v", o.Result, err)
	}
	l := next.Leaf()
	if o, err := w.installer().Run(context.Background(), install.Plan{Site: w.site(), Generation: 3, Key: l.Key, Chain: l.Chain, Anchors: both}); err != nil || o.Result != proven {
		t.Fatalf("swap: %v %v", o.Result, err)
	}
	return w, next
}

func (w *world) trusts(n int) {
	w.t.Helper()
	if got := len(w.installer().Facts(w.site()).Anchors); got != n {
		w.t.Errorf("%d anchors are trusted, want %d", got, n)
	}
}

func TestTrustShrinksByExactlyTheNamedAnchors(t *testing.T) {
	for _, f := range []keystore.Format{keystore.PKCS12, keystore.JKS, keystore.PEM} {
		w, next := rotated(t, f)
		leaf := w.keystoreSum()
		// Wanting less is no reason to take something out: only a name is.
		if o, err := w.installer().Run(context.Background(), install.Plan{Site: w.site(), Generation: 4, Anchors: []*x509.Certificate{next.Root}}); err != nil || o.Result != proven {
			t.Fatalf("less: %v %v", o.Result, err)
		}
		w.trusts(2)
		o, err := w.installer().Run(context.Background(), install.Plan{Site: w.site(), Generation: 5, Anchors: []*x509.Certificate{next.Root}, Shrink: true, Withdraw: sums(w.ca.Root)})
		if err != nil || o.Result != proven || w.keystoreSum() != leaf {
			t.Fatalf("shrink: %v %v", o.Result, err)
		}
		w.trusts(1)
		if f := w.installer().Facts(w.site()); f.Generation != 5 {
			t.Errorf("generation %d", f.Generation)
		}
	}
}

func TestAnAnchorThatCSMDidNotPlaceStaysAlthoughItIsNamed(t *testing.T) {
	w := newWorld(t, keystore.PEM)
	theirs, next := cassandratest.NewCA(t, "theirs"), cassandratest.NewCA(t, "next")
	cassandratest.Write(t, w.store, theirs.Leaf(), theirs.Root, w.ca.Root) // ours was there before us: it is theirs
	if o, err := w.installer().Run(context.Background(), w.plan(1)); err != nil || o.Result != proven {
		t.Fatalf("%v %v", o.Result, err)
	}
	both := []*x509.Certificate{w.ca.Root, next.Root}
	if o, err := w.installer().Run(context.Background(), install.Plan{Site: w.site(), Generation: 2, Anchors: both}); err != nil || o.Result != proven {
		t.Fatalf("%v %v", o.Result, err)
	}
	w.trusts(3)
	l := next.Leaf()
	if o, err := w.installer().Run(context.Background(), install.Plan{Site: w.site(), Generation: 3, Key: l.Key, Chain: l.Chain, Anchors: both}); err != nil || o.Result != proven {
		t.Fatalf("%v %v", o.Result, err)
	}
	o, err := w.installer().Run(context.Background(), install.Plan{Site: w.site(), Generation: 4, Anchors: []*x509.Certificate{next.Root}, Shrink: true, Withdraw: sums(w.ca.Root, theirs.Root)})
	if err != nil || o.Result != proven {
		t.Fatalf("%v %v", o.Result, err)
	}
	w.trusts(3)
}

func TestAnAnchorThatIsStillNeededIsNotTakenOut(t *testing.T) {
	w, next := rotated(t, keystore.PKCS12)
	shrink := install.Plan{Site: w.site(), Generation: 4, Anchors: []*x509.Certificate{w.ca.Root}, Shrink: true, Withdraw: sums(next.Root)}
	if o, err := w.installer().Run(context.Background(), shrink); o.Result != refused || !fault.HasReason(err, "anchor-needed") {
		t.Fatalf("the leaf in place needs it: %v %v", o.Result, err)
	}
	shrink.Anchors, shrink.Withdraw = []*x509.Certificate{w.ca.Root, next.Root}, sums(w.ca.Root)
	if o, err := w.installer().Run(context.Background(), shrink); o.Result != refused || !fault.HasReason(err, "bad-plan") {
		t.Fatalf("wanted and withdrawn: %v %v", o.Result, err)
	}
	w.trusts(2)
}

func TestWhatIsServedCountsWhereItIsOlderThanTheFile(t *testing.T) {
	w := running(t, keystore.PEM)
	next := cassandratest.NewCA(t, "next")
	both := []*x509.Certificate{w.ca.Root, next.Root}
	if o, err := w.installer().Run(context.Background(), install.Plan{Site: w.site(), Generation: 2, Anchors: both}); err != nil || o.Result != proven {
		t.Fatalf("%v %v", o.Result, err)
	}
	// An operator writes a leaf of the next CA and adopts it; Cassandra has not read it.
	cassandratest.Write(t, w.store, next.Leaf(), both...)
	if err := w.installer().Release(context.Background(), w.site()); err != nil {
		t.Fatal(err)
	}
	o, err := w.installer().Run(context.Background(), install.Plan{Site: w.site(), Generation: 3, Anchors: []*x509.Certificate{next.Root}, Shrink: true, Withdraw: sums(w.ca.Root)})
	if o.Result != refused || !fault.HasReason(err, "anchor-needed") {
		t.Fatalf("%v %v", o.Result, err)
	}
	w.trusts(2)
}

func TestAShrinkingThatANeighbourDoesNotProveIsTakenBack(t *testing.T) {
	w, next := rotated(t, keystore.JKS)
	site := w.site()
	site.Neighbour = func(_ context.Context, leaf [32]byte, ports []cassandra.Port) ([]*agentv1.Proof, error) {
		return []*agentv1.Proof{{Port: ports[0].Proto(), Verdict: agentv1.Verdict_VERDICT_REFUSED, ServedSha256: leaf[:]}}, nil
	}
	o, err := w.installer().Run(context.Background(), install.Plan{Site: site, Generation: 4, Anchors: []*x509.Certificate{next.Root}, Shrink: true, Withdraw: sums(w.ca.Root)})
	if o.Result != rolledBack || err == nil {
		t.Fatalf("%v %v", o.Result, err)
	}
	w.trusts(2)
	if o, err := w.installer().Run(context.Background(), install.Plan{Site: w.site(), Generation: 4, Anchors: []*x509.Certificate{next.Root}, Shrink: true, Withdraw: sums(w.ca.Root)}); err != nil || o.Result != proven {
		t.Fatalf("again, with a good neighbour: %v %v", o.Result, err)
	}
	w.trusts(1)
}

func TestTheSameAnchorsUnderANewGenerationAreProvedAndTaken(t *testing.T) {
	w := running(t, keystore.PEM)
	before := w.sum(w.store.TruststorePath)
	for _, shrink := range []bool{false, true} {
		generation := w.installer().Facts(w.site()).Generation + 1
		o, err := w.installer().Run(context.Background(), install.Plan{Site: w.site(), Generation: generation, Anchors: []*x509.Certificate{w.ca.Root}, Shrink: shrink})
		if err != nil || o.Result != proven || len(o.Proofs) == 0 || w.sum(w.store.TruststorePath) != before {
			t.Fatalf("%v %v", o.Result, err)
		}
		if f := w.installer().Facts(w.site()); f.Generation != generation {
			t.Errorf("generation %d, want %d", f.Generation, generation)
		}
		if o, err := w.installer().Run(context.Background(), install.Plan{Site: w.site(), Generation: generation, Anchors: []*x509.Certificate{w.ca.Root}, Shrink: shrink}); !fault.HasReason(err, "nothing-to-do") {
			t.Errorf("again: %v %v", o.Result, err)
		}
	}
}
