package consensus

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"reflect"
	"sync"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/jonboulle/clockwork"

	"github.com/cassandra-security-manager/csm/controller/consensus/startup"
	"github.com/cassandra-security-manager/csm/controller/state"
	clusterv1 "github.com/cassandra-security-manager/csm/protocol/cluster/v1"
	"github.com/cassandra-security-manager/csm/shared/fault"
	"github.com/cassandra-security-manager/csm/shared/identity"
	"github.com/cassandra-security-manager/csm/shared/identity/identitytest"
	"github.com/cassandra-security-manager/csm/test/port"
)

const trustDomain = "0123456789abcdef.csm"

// world is a system in one process: real TCP, TLS, raft-wal and SQLite.
type world struct {
	t      testing.TB
	ca     *identitytest.Authority
	id     string
	boxes  []*box
	tune   tuning
	logger *slog.Logger
}

// box is one controller: its folder, key and address survive its Node.
type box struct {
	w                  *world
	name, nodeID, addr string
	dir                string
	key                *ecdsa.PrivateKey
	clock              clockwork.Clock
	from, to           time.Time
	tune               tuning
	ca                 *identitytest.Authority

	mu    sync.Mutex
	cert  *tls.Certificate
	fatal chan error
	store *state.Store
	node  *Node
}

func newWorld(t testing.TB) *world {
	w := &world{t: t, ca: identitytest.New(t, time.Now()), id: "testsystem", logger: slog.New(slog.DiscardHandler)}
	if os.Getenv("CSM_TEST_LOG") != "" {
		w.logger = slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelDebug}))
	}
	w.tune.joinWait = 200 * time.Millisecond
	t.Cleanup(func() {
		var wg sync.WaitGroup
		for _, b := range w.boxes {
			wg.Add(1)
			go func() { defer wg.Done(); b.kill() }()
		}
		wg.Wait()
	})
	return w
}

func (w *world) box(name string) *box {
	w.t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
	if err != nil {
		w.t.Fatal(err)
	}
	l, err := port.Listen()
	if err != nil {
		w.t.Fatal(err)
	}
	l.Close()
	b := &box{w: w, name: name, nodeID: uuid.NewString(), addr: l.Addr().String(), dir: filepath.Join(w.t.TempDir(), name), key: key, tune: w.tune,
		ca: w.ca, clock: clockwork.NewRealClock(), from: time.Now().Add(-time.Hour), to: time.Now().Add(time.Hour)}
	w.boxes = append(w.boxes, b)
	return b
}

func (b *box) fingerprint() [32]byte {
	der, _ := x509.MarshalPKIXPublicKey(b.key.Public())
	return sha256.Sum256(der)
}

func (b *box) certificate() (*tls.Certificate, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.cert == nil {
		b.cert = &tls.Certificate{Certificate: [][]byte{b.ca.SignFor(identity.ControllerID(trustDomain, b.name), b.key.Public(), b.from, b.to).Raw}, PrivateKey: b.key}
	}
	return b.cert, nil
}

func (b *box) config(l net.Listener) Config {
	b.fatal = make(chan error, 16)
	fatal := b.fatal
	return Config{DataDir: b.dir, ClusterID: b.w.id, NodeID: b.nodeID, Name: b.name, Region: "region-" + b.name, Advertise: b.addr, Listener: l,
		Identity: Identity{Certificate: b.certificate, Roots: func() []*x509.Certificate { return []*x509.Certificate{b.w.ca.Root} }, TrustDomain: trustDomain, Key: b.fingerprint()},
		SignMember: func(_ context.Context, name string, csr []byte) ([][]byte, [][]byte, error) {
			r, err := x509.ParseCertificateRequest(csr)
			if err != nil {
				return nil, nil, err
			}
			return [][]byte{b.w.ca.SignFor(identity.ControllerID(trustDomain, name), r.PublicKey, b.from, b.to).Raw}, [][]byte{b.w.ca.Root.Raw}, nil
		},
		Fatal: func(err error) { fatal <- err }, Version: "test", Clock: b.clock, Logger: b.w.logger.With("node", b.name), Profile: timers, Stabilization: 100 * time.Millisecond, tuning: b.tune}
}

// open starts the controller as the server does: rules, state, quorum.
func (b *box) open(bootstrap bool) error {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	var l net.Listener
	var err error
	for range 50 {
		if l, err = net.Listen("tcp", b.addr); err == nil {
			break
		}
		time.Sleep(20 * time.Millisecond)
	}
	if err != nil {
		return err
	}
	cfg := b.config(l)
	if _, err := Prepare(ctx, cfg); err != nil {
		l.Close()
		return err
	}
	if b.store, err = b.openStore(ctx); err != nil {
		l.Close()
		return err
	}
	if bootstrap {
		b.node, err = BootstrapSingle(ctx, cfg, b.store)
	} else {
		b.node, err = Open(ctx, cfg, b.store)
	}
	return err
}

func (b *box) openStore(ctx context.Context) (*state.Store, error) {
	return state.Open(ctx, state.Options{Dir: startup.StateDir(b.dir), ClusterID: b.w.id, NodeID: b.nodeID, Modules: []state.Module{Module()},
		Checked: true, Fatal: func(err error) { b.w.t.Errorf("%s: %v", b.name, err) }})
}

func (b *box) start() {
	b.w.t.Helper()
	if err := b.open(false); err != nil {
		b.w.t.Fatalf("start %s: %v", b.name, err)
	}
}

// kill stops without a word to the others.
func (b *box) kill() { b.end((*Node).stop) }
func (b *box) end(how func(*Node) error) {
	if b.node != nil {
		how(b.node)
		b.node = nil
	}
	if b.store != nil {
		b.store.Close()
		b.store = nil
	}
}

func (b *box) csr() []byte {
	der, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{}, b.key)
	if err != nil {
		panic(err)
	}
	return der
}

func (b *box) joinOptions(token string, via ...*box) JoinOptions {
	o := JoinOptions{Pin: identity.Pin(b.w.ca.Root), Token: token, Name: b.name, NodeID: b.nodeID, Region: "region-" + b.name, Advertise: b.addr,
		CSR: b.csr(), KEKPublic: []byte("kek of " + b.name), Version: "test", Clock: b.clock}
	for _, v := range via {
		o.Addresses = append(o.Addresses, v.addr)
	}
	return o
}

// cluster makes names[0] the first controller and lets the others join until all vote.
func (w *world) cluster(names ...string) []*box {
	w.t.Helper()
	var out []*box
	for _, n := range names {
		out = append(out, w.box(n))
	}
	if err := out[0].open(true); err != nil {
		w.t.Fatal(err)
	}
	for _, b := range out[1:] {
		b.join(out[0])
	}
	for _, b := range out {
		w.eventually("every controller votes, as "+b.name+" sees it", func() bool {
			s, err := b.node.Status(context.Background())
			voters := 0
			for _, m := range s.Members {
				if m.Voter {
					voters++
				}
			}
			return err == nil && voters == len(out) && s.Quorum && b.node.Age() != AgeUnknown
		})
	}
	return out
}

// join takes the whole way: token, approval by fingerprint, certificate, start, unsealed.
func (b *box) join(first *box) {
	t := b.w.t
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	token, _, err := first.node.CreateJoinToken(ctx, TokenSpec{Name: b.name}, "tester")
	if err != nil {
		t.Fatal(err)
	}
	o := b.joinOptions(token, first)
	approved := false
	o.Waiting = func(fingerprint string) {
		if !approved {
			if _, err := first.node.Approve(ctx, b.name, fingerprint, "tester"); err != nil {
				t.Errorf("approve %s: %v", b.name, err)
			}
			approved = true
		}
	}
	a, err := Join(ctx, o)
	if err != nil {
		t.Fatalf("%s joins: %v", b.name, err)
	}
	if !approved || a.ClusterID != b.w.id || a.TrustDomain != trustDomain || len(a.Members) < 2 {
		t.Fatalf("%s was admitted with %+v, approved %v", b.name, a, approved)
	}
	b.mu.Lock()
	b.cert = &tls.Certificate{Certificate: [][]byte{a.Chain[0].Raw}, PrivateKey: b.key}
	b.mu.Unlock()
	b.start()
	b.w.eventually(b.name+" reports that it is unsealed", func() bool { err = b.node.ReportUnsealed(ctx); return err == nil })
}

// patience bounds every wait for what will come however slow the machine is: it tells a test that hangs, never one that
// is slow.
const patience = 3 * time.Minute

// eventually asks again and again what nothing tells of: gossip, raft's own log, another controller's answer.
func (w *world) eventually(what string, ok func() bool) {
	w.t.Helper()
	for end := time.Now().Add(patience); time.Now().Before(end); time.Sleep(20 * time.Millisecond) {
		if ok() {
			return
		}
	}
	w.never(what)
}

// led waits for something about who leads: it asks when any controller has heard of a change.
func (w *world) led(what string, ok func() bool) {
	w.t.Helper()
	late := time.After(patience)
	for {
		wake := []reflect.SelectCase{{Dir: reflect.SelectRecv, Chan: reflect.ValueOf(late)}}
		for _, b := range w.boxes {
			if b.node != nil {
				wake = append(wake, reflect.SelectCase{Dir: reflect.SelectRecv, Chan: reflect.ValueOf(b.node.leaders.wait())})
			}
		}
		if ok() {
			return
		}
		if which, _, _ := reflect.Select(wake); which == 0 {
			w.never(what)
		}
	}
}

func (w *world) never(what string) {
	w.t.Helper()
	for _, b := range w.boxes {
		if b.node != nil {
			s, err := b.node.Status(context.Background())
			w.t.Logf("%s: %+v %v", b.name, s, err)
		}
	}
	w.t.Fatalf("never came true: %s", what)
}

func (w *world) leader() *box {
	w.t.Helper()
	var found *box
	w.led("there is a leader", func() bool {
		for _, b := range w.boxes {
			if b.node != nil && b.node.IsLeader() && b.node.leaders.ready.Load() == b.node.raft.CurrentTerm() {
				found = b
				return true
			}
		}
		return false
	})
	return found
}

func (w *world) follower() *box {
	w.t.Helper()
	l := w.leader()
	for _, b := range w.boxes {
		if b.node != nil && b != l {
			return b
		}
	}
	w.t.Fatal("no follower")
	return nil
}

// write proposes a harmless command with a name of its own.
func (b *box) write(id string, timeout time.Duration) error {
	hash := sha256.Sum256([]byte(id))
	_, err := b.node.Propose(context.Background(), state.Proposal{Actor: "tester", Timeout: timeout,
		Command: &clusterv1.CreateControllerToken{Id: id, Hash: hash[:], TtlMs: 3600_000, Uses: 1}})
	return err
}

func (b *box) mustWrite(id string) {
	b.w.t.Helper()
	if err := b.write(id, patience); err != nil {
		b.w.t.Fatalf("%s writes %s: %v", b.name, id, err)
	}
}

// written is the set of names that were written, read linearizably.
func (b *box) written() map[string]bool {
	b.w.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	if err := b.node.Linearize(ctx); err != nil {
		b.w.t.Fatalf("linearizable read at %s: %v", b.name, err)
	}
	list, err := b.node.JoinTokens(ctx)
	if err != nil {
		b.w.t.Fatal(err)
	}
	out := map[string]bool{}
	for _, k := range list {
		out[k.ID] = true
	}
	return out
}

// reads waits until this controller has applied what another one has by now.
func (b *box) reads(of *box) {
	b.w.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	if err := b.store.WaitApplied(ctx, of.store.Applied()); err != nil {
		b.w.t.Fatalf("%s does not catch up with %s: %v", b.name, of.name, err)
	}
}

func wantReason(t testing.TB, err error, code fault.Code, reason string) {
	t.Helper()
	if !fault.Is(err, code) || !fault.HasReason(err, reason) {
		t.Fatalf("got %v (%+v), want %v %s", err, fault.From(err), code, reason)
	}
	if f := fault.From(err); f.Remedy == "" {
		t.Errorf("%s does not say what to do", f.Message)
	}
}

// identical fails unless all controllers hold the same state.
func (w *world) identical(b *box, want int) {
	w.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	sums, err := b.node.Verify(ctx, "tester")
	if err != nil {
		w.t.Fatal(err)
	}
	if len(sums) != want {
		w.t.Fatalf("%d checksums, want %d", len(sums), want)
	}
	for _, s := range sums {
		if s.Err != nil || s.Sum != sums[0].Sum || s.Rows != sums[0].Rows || s.Rows == 0 {
			w.t.Fatalf("checksums differ: %s", fmt.Sprint(sums))
		}
	}
}

var _ io.Closer = (*Node)(nil)
