//go:build linux

package ring_test

import (
	"context"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/cassandra-security-manager/csm/agent/cassandra"
	"github.com/cassandra-security-manager/csm/agent/probe"
	agentv1 "github.com/cassandra-security-manager/csm/protocol/agent/v1"
	"github.com/cassandra-security-manager/csm/shared/workload"
	"github.com/cassandra-security-manager/csm/test/handmade"
	"github.com/cassandra-security-manager/csm/test/process"
	"github.com/cassandra-security-manager/csm/test/ring"
)

func startRing(t *testing.T, ca *handmade.CA) (*ring.Ring, [][32]byte) {
	t.Helper()
	if testing.Short() {
		t.Skip("a real Cassandra ring is left out of -short runs")
	}
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute)
	t.Cleanup(cancel)
	dist, err := ring.Prepare(ctx, "../../build/cassandra/"+ring.Version, false, func(s string) { t.Log(s) })
	if err != nil {
		t.Fatal(err)
	}
	loopback, err := process.Claim(20, 3, ring.StoragePort, ring.NativePort)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(loopback.Release)
	r, err := ring.New(dist, ring.Options{Dir: t.TempDir(), Cluster: "ring-test", Addresses: []netip.Addr{loopback.Host(1), loopback.Host(2), loopback.Host(3)}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(r.Kill)
	var leaves [][32]byte
	for _, n := range r.Nodes {
		leaves = append(leaves, ca.Equip(n))
	}
	began := time.Now()
	if err := r.Start(ctx); err != nil {
		t.Fatal(err)
	}
	t.Logf("ring is up after %s", time.Since(began).Round(100*time.Millisecond))
	return r, leaves
}

// prober knocks on a node's ports with a certificate of its own, as an agent of a neighbour does.
type prober struct {
	cert  *tls.Certificate
	roots []*x509.Certificate
}

func (p prober) knock(t *testing.T, n *ring.Node, leaf [32]byte) []probe.Result {
	t.Helper()
	i, findings, err := cassandra.Read(n.Config)
	if err != nil {
		t.Fatalf("%v %v", err, findings)
	}
	var out []probe.Result
	for _, port := range []cassandra.Port{i.InternodePort(), i.CQLPort()} {
		out = append(out, probe.Probe(t.Context(), probe.Request{
			Kind: port.Kind, Address: port.Address.String(), Port: port.Port, Certificate: p.cert, Roots: p.roots, ExpectLeaf: leaf,
		}))
	}
	return out
}

func (p prober) wants(t *testing.T, n *ring.Node, leaf [32]byte, verdict agentv1.Verdict) {
	t.Helper()
	for i, r := range p.knock(t, n, leaf) {
		if r.Verdict != verdict || r.Untrusted != "" {
			t.Errorf("%s (%s), port %d of 2: %v %s %s, want %v", n.Name, n.Format, i+1, r.Verdict, r.Detail, r.Untrusted, verdict)
		}
	}
}

// world is one ring, what its stores hold, and a load on it.
type world struct {
	ca     *handmade.CA
	ring   *ring.Ring
	leaves [][32]byte
	ours   prober
	load   *workload.Load
}

// TestRealRing is one ring and one story, because starting a ring is most of the time.
func TestRealRing(t *testing.T) {
	w := &world{ca: handmade.New(t)}
	w.ring, w.leaves = startRing(t, w.ca)
	w.ours = newProber(w.ca)
	t.Run("serves what its stores hold and takes a neighbour's certificate, without an ERROR", w.servesWhatItHolds)
	t.Run("is read by the agent as it is", w.isReadAsItIs)
	w.startLoad(t)
	t.Run("leaf swaps under load fail no query", w.swapsUnderLoad)
	t.Run("a certificate of another CA is refused, and that is an ERROR in the log", w.refusesAStranger)
	t.Run("a stalled JVM proves nothing", w.provesNothingWhileStalled)
	t.Run("a broken store is only logged, and nodetool exits 0", w.onlyLogsABrokenStore)
	t.Run("the load counts a lost quorum", w.failsWithoutAQuorum)
}

func (w *world) startLoad(t *testing.T) {
	t.Helper()
	cert, roots := w.ca.Client("load")
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	t.Cleanup(cancel)
	var err error
	w.load, err = workload.Start(ctx, workload.Options{Hosts: w.ring.Hosts(), TLS: func() *tls.Config {
		return &tls.Config{Certificates: []tls.Certificate{cert}, RootCAs: roots}
	}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { w.load.Stop() })
}

func (w *world) servesWhatItHolds(t *testing.T) {
	for i, n := range w.ring.Nodes {
		mark := n.Mark()
		w.ours.wants(t, n, w.leaves[i], agentv1.Verdict_VERDICT_ACCEPTED)
		w.ours.wants(t, n, sha256.Sum256(nil), agentv1.Verdict_VERDICT_WRONG_LEAF)
		if e := n.Errors(mark); len(e) > 0 {
			t.Errorf("passing probes made %s log %q", n.Name, e)
		}
	}
	if err := w.ring.WaitUp(t.Context()); err != nil {
		t.Error(err)
	}
}

func (w *world) isReadAsItIs(t *testing.T) {
	for _, n := range w.ring.Nodes {
		i, findings, err := cassandra.Options{Roots: []string{n.Stores}}.Read(n.Config)
		if err != nil {
			t.Fatalf("%v %v", err, findings)
		}
		if len(i.Stores) != 1 || !i.Stores[0].Manageable || i.Stores[0].KeystorePath != n.Keystore || i.Rack != n.Rack || i.Datacenter != n.Datacenter || i.Listen != n.Address {
			t.Errorf("%s is read as %+v with stores %+v", n.Name, i.Findings, i.Stores)
		}
	}
}

func (w *world) swapsUnderLoad(t *testing.T) {
	for i, n := range w.ring.Nodes {
		mark := n.Mark()
		w.leaves[i] = w.ca.Equip(n)
		began := time.Now()
		if _, err := n.RunNodetool(t.Context(), "reloadssl"); err != nil {
			t.Fatal(err)
		}
		t.Logf("%s (%s) reloaded in %s", n.Name, n.Format, time.Since(began).Round(10*time.Millisecond))
		w.ours.wants(t, n, w.leaves[i], agentv1.Verdict_VERDICT_ACCEPTED)
		if len(n.Lines(mark, "SSL certificates have been updated")) == 0 {
			t.Errorf("%s logged no reload", n.Name)
		}
	}
	swaps := w.load.Since(w.load.Begin())
	t.Logf("%+v", swaps)
	if swaps.Failed != 0 || swaps.Wrong != 0 || swaps.Queries == 0 || swaps.Connections == 0 {
		t.Errorf("%+v", swaps)
	}
}

func (w *world) refusesAStranger(t *testing.T) {
	n := w.ring.Nodes[0]
	mark := n.Mark()
	stranger := newProber(handmade.New(t))
	stranger.roots = w.ours.roots
	stranger.wants(t, n, w.leaves[0], agentv1.Verdict_VERDICT_REFUSED)
	logsAnError(t, n, mark, "a refused probe of the internode port")
}

func (w *world) provesNothingWhileStalled(t *testing.T) {
	n := w.ring.Nodes[1]
	if err := n.Stall(); err != nil {
		t.Fatal(err)
	}
	defer n.Resume()
	for _, p := range w.ours.knock(t, n, w.leaves[1]) {
		if p.Verdict != agentv1.Verdict_VERDICT_UNKNOWN {
			t.Errorf("a stalled JVM gives the verdict %v (%s)", p.Verdict, p.Detail)
		}
	}
}

func (w *world) onlyLogsABrokenStore(t *testing.T) {
	n := w.ring.Nodes[0]
	mark := n.Mark()
	if err := os.Truncate(n.Keystore, 100); err != nil {
		t.Fatal(err)
	}
	if out, err := n.RunNodetool(t.Context(), "reloadssl"); err != nil {
		t.Fatalf("%v %s", err, out)
	}
	logsAnError(t, n, mark, "reloading a truncated store")
}

func (w *world) failsWithoutAQuorum(t *testing.T) {
	mark := w.load.Mark()
	w.ring.Nodes[1].Kill()
	w.ring.Nodes[2].Kill()
	deadline := time.Now().Add(20 * time.Second)
	for w.load.Since(mark).Failed == 0 && time.Now().Before(deadline) {
		time.Sleep(50 * time.Millisecond)
	}
	if w.load.Since(mark).Failed == 0 {
		t.Error("two of three nodes are dead and the load noticed nothing")
	}
}

// logsAnError waits for an ERROR: Cassandra writes it in a thread of its own, after the answer.
func logsAnError(t *testing.T, n *ring.Node, since ring.Mark, after string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	if err := n.Process().Settle(ctx, 50*time.Millisecond, func() bool { return len(n.Errors(since)) > 0 }); err != nil {
		t.Errorf("no ERROR in the log after %s: %v", after, err)
	}
}

func TestHalfADownloadIsNoticed(t *testing.T) {
	tools, err := ring.Setup(t.Context(), false, func(string) {})
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	if err := os.MkdirAll(filepath.Join(dir, "lib"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "lib", "cassandra-all-"+ring.Version+".jar"), []byte("half"), 0o644); err != nil {
		t.Fatal(err)
	}
	tools.Maven = "/bin/false"
	if _, err := ring.Fetch(t.Context(), tools, dir, func(string) {}); err == nil {
		t.Fatal("a folder without its list of files was taken for a whole Cassandra")
	}
}

func newProber(ca *handmade.CA) prober {
	key, cert := ca.Leaf("prober", net.IPv4(127, 0, 0, 1))
	return prober{cert: &tls.Certificate{Certificate: [][]byte{cert.Raw}, PrivateKey: key}, roots: []*x509.Certificate{ca.Root()}}
}
