//go:build linux

package ring_test

import (
	"context"
	"crypto/sha256"
	"crypto/tls"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/cassandra-security-manager/csm/test/process"
	"github.com/cassandra-security-manager/csm/test/ring"
	"github.com/cassandra-security-manager/csm/test/workload"
)

// served is the fingerprint of the leaf that a port serves, seen without a certificate of our own: under TLS 1.3 the
// server's comes first.
func served(t *testing.T, at netip.AddrPort) (sum [32]byte) {
	t.Helper()
	conf := &tls.Config{InsecureSkipVerify: true, VerifyConnection: func(s tls.ConnectionState) error {
		sum = sha256.Sum256(s.PeerCertificates[0].Raw)
		return nil
	}}
	d := tls.Dialer{NetDialer: &net.Dialer{Timeout: 5 * time.Second}, Config: conf}
	if c, err := d.DialContext(t.Context(), "tcp", at.String()); err == nil {
		c.Close()
	}
	return sum
}

func startRing(t *testing.T, ca *authority) (*ring.Ring, [][32]byte) {
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
		leaves = append(leaves, ca.equip(n))
	}
	began := time.Now()
	if err := r.Start(ctx); err != nil {
		t.Fatal(err)
	}
	t.Logf("ring is up after %s", time.Since(began).Round(100*time.Millisecond))
	return r, leaves
}

func TestRingServesWhatItsStoresHoldAndReloadsThem(t *testing.T) {
	ca := newAuthority(t)
	r, leaves := startRing(t, ca)
	for i, n := range r.Nodes {
		for _, port := range []uint16{ring.StoragePort, ring.NativePort} {
			if got := served(t, netip.AddrPortFrom(n.Address, port)); got != leaves[i] {
				t.Errorf("%s (%s) serves %x on %d, its store holds %x", n.Name, n.Format, got[:4], port, leaves[i][:4])
			}
		}
	}
	if err := r.WaitUp(t.Context()); err != nil {
		t.Fatal(err)
	}
	for _, n := range r.Nodes {
		mark := n.Mark()
		leaf := ca.equip(n)
		began := time.Now()
		if _, err := n.RunNodetool(t.Context(), "reloadssl"); err != nil {
			t.Fatal(err)
		}
		t.Logf("%s reloaded in %s", n.Name, time.Since(began).Round(10*time.Millisecond))
		for _, port := range []uint16{ring.StoragePort, ring.NativePort} {
			if got := served(t, netip.AddrPortFrom(n.Address, port)); got != leaf {
				t.Errorf("%s serves %x on %d after the reload, not %x", n.Name, got[:4], port, leaf[:4])
			}
		}
		if len(n.Lines(mark, "SSL certificates have been updated")) == 0 {
			t.Errorf("%s logged no reload", n.Name)
		}
	}
	t.Run("a broken store is only logged, and nodetool exits 0", func(t *testing.T) {
		n := r.Nodes[0]
		mark := n.Mark()
		if err := os.Truncate(n.Keystore, 100); err != nil {
			t.Fatal(err)
		}
		if out, err := n.RunNodetool(t.Context(), "reloadssl"); err != nil {
			t.Fatalf("%v %s", err, out)
		}
		if len(n.Errors(mark)) == 0 {
			t.Error("no ERROR in the log after reloading a truncated store")
		}
	})
	t.Run("a stalled JVM keeps its port and says nothing", func(t *testing.T) {
		n := r.Nodes[1]
		if err := n.Stall(); err != nil {
			t.Fatal(err)
		}
		defer n.Resume()
		c, err := net.DialTimeout("tcp", netip.AddrPortFrom(n.Address, ring.StoragePort).String(), time.Second)
		if err != nil {
			t.Fatal(err)
		}
		c.Close()
	})
}

func TestHalfADownloadIsNoticed(t *testing.T) {
	tools, err := ring.Setup(t.Context(), false, func(string) {})
	if err != nil {
		t.Skip(err)
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

func TestLeafSwapsUnderLoadFailNoQuery(t *testing.T) {
	ca := newAuthority(t)
	r, _ := startRing(t, ca)
	cert, roots := ca.client("load")
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	load, err := workload.Start(ctx, workload.Options{Hosts: r.Hosts(), TLS: func() *tls.Config {
		return &tls.Config{Certificates: []tls.Certificate{cert}, RootCAs: roots}
	}})
	if err != nil {
		t.Fatal(err)
	}
	defer load.Stop()
	for _, n := range r.Nodes {
		ca.equip(n)
		if _, err := n.RunNodetool(ctx, "reloadssl"); err != nil {
			t.Fatal(err)
		}
	}
	swaps := load.Since(load.Begin())
	t.Logf("%+v", swaps)
	if swaps.Failed != 0 || swaps.Wrong != 0 || swaps.Queries == 0 || swaps.Connections == 0 {
		t.Errorf("%+v", swaps)
	}
	t.Run("and a lost quorum is counted", func(t *testing.T) {
		mark := load.Mark()
		r.Nodes[1].Kill()
		r.Nodes[2].Kill()
		deadline := time.Now().Add(20 * time.Second)
		for load.Since(mark).Failed == 0 && time.Now().Before(deadline) {
			time.Sleep(50 * time.Millisecond)
		}
		if load.Since(mark).Failed == 0 {
			t.Error("two of three nodes are dead and the load noticed nothing")
		}
	})
}
