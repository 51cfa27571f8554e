package install_test

import (
	"context"
	"crypto/sha256"
	"crypto/x509"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/jonboulle/clockwork"

	"github.com/cassandra-security-manager/csm/agent/cassandra"
	"github.com/cassandra-security-manager/csm/agent/cassandra/cassandratest"
	"github.com/cassandra-security-manager/csm/agent/install"
	agentv1 "github.com/cassandra-security-manager/csm/protocol/agent/v1"
	"github.com/cassandra-security-manager/csm/shared/certificate"
	"github.com/cassandra-security-manager/csm/shared/keystore"
)

const (
	internode = agentv1.PortKind_PORT_KIND_INTERNODE
	cql       = agentv1.PortKind_PORT_KIND_CQL

	proven     = agentv1.MoveOutcome_MOVE_OUTCOME_PROVEN
	unproven   = agentv1.MoveOutcome_MOVE_OUTCOME_UNPROVEN
	rolledBack = agentv1.MoveOutcome_MOVE_OUTCOME_ROLLED_BACK
	refused    = agentv1.MoveOutcome_MOVE_OUTCOME_REFUSED
	failed     = agentv1.MoveOutcome_MOVE_OUTCOME_FAILED
)

// world is one node with its store, and the CA that issues for it.
type world struct {
	t     *testing.T
	ca    *cassandratest.CA
	store *cassandra.Store
	node  *cassandratest.Node
	state string
	hold  string
	clock clockwork.Clock
	opts  []func(*install.Options)
}

func newWorld(t *testing.T, f keystore.Format) *world {
	t.Helper()
	return worldIn(t, f, t.TempDir(), t.TempDir())
}

func worldIn(t *testing.T, f keystore.Format, stores, state string) *world {
	t.Helper()
	w := &world{t: t, ca: cassandratest.NewCA(t, "csm"), store: cassandratest.NewStore(t, f), state: filepath.Join(state, "install"),
		hold: filepath.Join(t.TempDir(), "HOLD"), clock: clockwork.NewRealClock()}
	w.store.KeystorePath, w.store.TruststorePath = filepath.Join(stores, "keystore"), filepath.Join(stores, "truststore")
	w.node = cassandratest.Start(t, w.store)
	return w
}

// running gives the world a ring member whose pair CSM has installed before: the state from which renewals start.
func running(t *testing.T, f keystore.Format) *world {
	t.Helper()
	w := newWorld(t, f)
	w.firstInstall()
	if o, err := w.installer().Reprove(context.Background(), w.site()); err != nil || o.State != agentv1.InstallState_INSTALL_STATE_PROVEN {
		t.Fatalf("first proof: %+v %v", o, err)
	}
	return w
}

// installed is running without the first proof, for the tests that make hundreds of worlds.
func installed(t *testing.T) *world {
	t.Helper()
	w := newWorld(t, keystore.PEM)
	w.firstInstall()
	return w
}

func (w *world) firstInstall() {
	w.t.Helper()
	w.node.Stop()
	if o, err := w.installer().Run(context.Background(), w.plan(1)); err != nil || o.Result != unproven {
		w.t.Fatalf("first install: %v %v", o.Result, err)
	}
	w.node.Restart(w.t)
}

func (w *world) installer(more ...func(*install.Options)) *install.Installer {
	w.t.Helper()
	o := install.Options{StateDir: w.state, Hold: w.hold, Reloader: w.node, Clock: w.clock, ProveFor: time.Nanosecond, ProveEvery: time.Nanosecond,
		Logger: slog.New(slog.NewTextHandler(io.Discard, nil))}
	for _, m := range append(w.opts, more...) {
		m(&o)
	}
	i, err := install.New(o)
	if err != nil {
		w.t.Fatal(err)
	}
	return i
}

func (w *world) site() install.Site {
	return install.Site{Instance: w.node.Instance(), Store: w.store}
}

// plan is a renewal under the world's CA.
func (w *world) plan(generation uint64) install.Plan {
	l := w.ca.Leaf()
	return install.Plan{Site: w.site(), Claim: "claim", Generation: generation, Key: l.Key, Chain: l.Chain, Anchors: []*x509.Certificate{w.ca.Root}, Names: certificate.Names{}}
}

func (w *world) keystoreSum() [32]byte { return w.sum(w.store.KeystorePath) }

func (w *world) sum(path string) [32]byte {
	w.t.Helper()
	data, err := os.ReadFile(path)
	if err != nil {
		return [32]byte{}
	}
	return sha256.Sum256(data)
}

// leafOnDisk decodes the pair on disk and fails unless it is valid and trusted.
func (w *world) leafOnDisk() [32]byte {
	w.t.Helper()
	kd, err1 := os.ReadFile(w.store.KeystorePath)
	td, err2 := os.ReadFile(w.store.TruststorePath)
	if err1 != nil || err2 != nil {
		w.t.Fatalf("no pair on disk: %v %v", err1, err2)
	}
	ks, err := keystore.DecodeKeyStore(w.store.Format, kd, w.store.KeystorePassword)
	if err != nil {
		w.t.Fatalf("keystore on disk: %v", err)
	}
	anchors, err := keystore.DecodeTrustStore(w.store.Format, td, w.store.TruststorePassword)
	if err != nil {
		w.t.Fatalf("truststore on disk: %v", err)
	}
	for _, p := range keystore.Check(ks, anchors, keystore.Expect{Now: time.Now()}) {
		if p.Fatal {
			w.t.Fatalf("the pair on disk is a mixture: %v", p)
		}
	}
	return leafSum(ks.Chain)
}

func leafSum(chain []*x509.Certificate) [32]byte { return sha256.Sum256(chain[0].Raw) }

// clean fails when anything temporary is left.
func (w *world) clean() {
	w.t.Helper()
	for _, dir := range []string{filepath.Dir(w.store.KeystorePath), filepath.Join(w.state, w.store.Name)} {
		entries, _ := os.ReadDir(dir)
		for _, e := range entries {
			if strings.HasPrefix(e.Name(), ".csm-") || e.Name() == "journal.json" {
				w.t.Errorf("left behind: %s", filepath.Join(dir, e.Name()))
			}
		}
	}
}

func (w *world) putHold() {
	w.t.Helper()
	if err := os.WriteFile(w.hold, []byte("migration under way\n"), 0o600); err != nil {
		w.t.Fatal(err)
	}
}

// serves fails unless both ports serve this leaf and accept the pair on disk.
func (w *world) serves(leaf [32]byte) {
	w.t.Helper()
	o, err := w.installer().Reprove(context.Background(), w.site())
	if err != nil {
		w.t.Fatalf("the ports do not serve what lies on disk: %v", err)
	}
	for _, p := range o.Proofs {
		if string(p.ServedSha256) != string(leaf[:]) {
			w.t.Fatalf("port %d serves %x, expected %x", p.Port.Port, p.ServedSha256[:4], leaf[:4])
		}
	}
}
