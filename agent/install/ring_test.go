//go:build linux

package install_test

import (
	"context"
	"crypto"
	"crypto/rand"
	"crypto/x509"
	"errors"
	"io"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/cassandra-security-manager/csm/agent/cassandra"
	"github.com/cassandra-security-manager/csm/agent/cassandra/cassandratest"
	"github.com/cassandra-security-manager/csm/agent/install"
	"github.com/cassandra-security-manager/csm/agent/links"
	"github.com/cassandra-security-manager/csm/agent/probe"
	"github.com/cassandra-security-manager/csm/agent/reload"
	agentv1 "github.com/cassandra-security-manager/csm/protocol/agent/v1"
	"github.com/cassandra-security-manager/csm/shared/algorithm"
	"github.com/cassandra-security-manager/csm/shared/fault"
	"github.com/cassandra-security-manager/csm/shared/release"
	"github.com/cassandra-security-manager/csm/test/process"
	"github.com/cassandra-security-manager/csm/test/ring"
)

// realNode is one real Cassandra, started with a pair that the installer wrote before its first start.
type realNode struct {
	t       *testing.T
	node    *ring.Node
	ca      *cassandratest.CA
	site    install.Site
	options install.Options
	java    string // which runs the node
}

func (r *realNode) installer(change ...func(*install.Options)) *install.Installer {
	r.t.Helper()
	o := r.options
	for _, c := range change {
		c(&o)
	}
	i, err := install.New(o)
	if err != nil {
		r.t.Fatal(err)
	}
	return i
}

func (r *realNode) plan(generation uint64) install.Plan {
	l := r.ca.Leaf(func(c *x509.Certificate) { c.IPAddresses = append(c.IPAddresses, net.IP(r.node.Address.AsSlice())) })
	return install.Plan{Site: r.site, Generation: generation, Key: l.Key, Chain: l.Chain, Anchors: []*x509.Certificate{r.ca.Root}}
}

// helper is the reload helper over a pipe, with one fixed command.
func helper(t *testing.T, c reload.Command) reload.Reloader {
	t.Helper()
	h, err := reload.Over(func() (io.ReadWriteCloser, error) {
		agent, child := net.Pipe()
		go reload.Serve(context.Background(), child, map[string]reload.Command{"node": c})
		return agent, nil
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { h.Close() })
	return h.Reloader("node")
}

func startReal(t *testing.T, which ring.Release) *realNode {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute)
	t.Cleanup(cancel)
	dist, err := which.Prepare(ctx, "../../build/cassandra", false, func(s string) { t.Log(s) })
	if err != nil {
		t.Fatal(err)
	}
	addresses, err := process.Claim(90, 1, ring.StoragePort, ring.NativePort)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(addresses.Release)
	r, err := ring.New(dist, ring.Options{Dir: t.TempDir(), Cluster: "install-test", Addresses: []netip.Addr{addresses.Host(1)}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(r.Kill)
	n := r.Nodes[0]
	inst, findings, err := cassandra.Options{Roots: []string{n.Stores}}.Read(n.Config)
	if err != nil || inst.Store(cassandra.StoreNode) == nil || !inst.Store(cassandra.StoreNode).Manageable {
		t.Fatalf("%+v %v", findings, err)
	}
	real := &realNode{t: t, node: n, java: dist.Runtime(), ca: cassandratest.NewCA(t, "csm"), site: install.Site{Instance: inst, Store: inst.Store(cassandra.StoreNode)},
		options: install.Options{StateDir: filepath.Join(t.TempDir(), "state"), Hold: filepath.Join(t.TempDir(), "HOLD"),
			Reloader: helper(t, reload.Command{Path: n.Nodetool, Args: []string{"reloadssl"}})}}
	o, err := real.installer().Run(ctx, real.plan(1))
	if err != nil || o.Result != unproven {
		t.Fatalf("before the first start: %v %v", o.Result, err)
	}
	if err := r.Start(ctx); err != nil {
		t.Fatal(err)
	}
	if o, err := real.installer().Reprove(ctx, real.site); err != nil || o.State != agentv1.InstallState_INSTALL_STATE_PROVEN {
		t.Fatalf("after the first start: %+v %v", o, err)
	}
	return real
}

func TestOnARealCassandra(t *testing.T) {
	if testing.Short() {
		t.Skip("a real Cassandra is left out of -short runs")
	}
	onReal(t, ring.Release{Version: ring.Version})
}

// Releases differ in when and how they read stores again (shared/release); what an install promises is the same on each.
func TestOnEachRelease(t *testing.T) {
	if os.Getenv("CSM_TEST_FULL") == "" {
		t.Skip("takes minutes; runs with make test-full")
	}
	for _, which := range ring.Releases {
		if which.Version != ring.Version {
			t.Run(which.Version, func(t *testing.T) { onReal(t, which) })
		}
	}
}

func onReal(t *testing.T, which ring.Release) {
	r := startReal(t, which)
	ctx := t.Context()
	mark := r.node.Mark()

	t.Run("a renewal is proved and writes no ERROR", func(t *testing.T) {
		p := r.plan(2)
		o, err := r.installer().Run(ctx, p)
		if err != nil || o.Result != proven || o.After != leafSum(p.Chain) {
			t.Fatalf("%+v %v", o, err)
		}
		t.Logf("renewal in %s; lines at WARN: %v", o.Took, r.node.Lines(mark, "WARN"))
		if lines := r.node.Errors(mark); len(lines) > 0 {
			t.Errorf("our probes wrote %d ERRORs: %v", len(lines), lines)
		}
	})

	t.Run("a reload that does nothing and exits 0 is taken back", func(t *testing.T) {
		before := leafOf(t, r.site.Store)
		nothing := func(o *install.Options) { o.Reloader = helper(t, reload.Command{Path: "true"}) }
		o, err := r.installer(nothing).Run(ctx, r.plan(3))
		if o.Result != rolledBack || !fault.HasReason(err, "proof-wrong-leaf") || leafOf(t, r.site.Store) != before {
			t.Fatalf("%+v %v", o, err)
		}
	})

	t.Run("a store truncated right after a good reload is restored", func(t *testing.T) {
		if o, err := r.installer().Run(ctx, r.plan(4)); err != nil {
			t.Fatalf("%v %v", o.Result, err)
		}
		os.Truncate(r.site.Store.KeystorePath, 200)
		o, err := r.installer().Restore(ctx, r.site)
		if err != nil || o.Result != proven {
			t.Fatalf("%+v %v", o, err)
		}
	})

	t.Run("reloadssl says of a store that cannot be read what the table of releases says", func(t *testing.T) {
		good, err := os.ReadFile(r.site.Store.KeystorePath)
		if err != nil {
			t.Fatal(err)
		}
		behaves, known := release.Parse(which.Version)
		if !known {
			t.Fatal(which.Version)
		}
		put := func(b []byte, at time.Duration) {
			t.Helper()
			later := time.Now().Add(at)
			if err := errors.Join(os.WriteFile(r.site.Store.KeystorePath, b, 0o640), os.Chtimes(r.site.Store.KeystorePath, later, later)); err != nil {
				t.Fatal(err)
			}
		}
		put(good[:100], 2*time.Second)
		_, told := r.node.RunNodetool(ctx, "reloadssl")
		if tells := behaves.Reload().Tells(); tells != (told != nil) {
			t.Errorf("%s: reloadssl says %v, the table says that it tells: %v", which.Version, told, tells)
		}
		put(good, 4*time.Second)
		if out, err := r.node.RunNodetool(ctx, "reloadssl"); err != nil {
			t.Errorf("%v: %s", err, out)
		}
		if o, err := r.installer().Reprove(ctx, r.site); err != nil || o.State != agentv1.InstallState_INSTALL_STATE_PROVEN {
			t.Errorf("%+v %v", o, err)
		}
	})

	t.Run("without nodetool our own client reloads, lists the ring and the streams, and is left when the JVM hangs", func(t *testing.T) {
		c := reload.ByNodetool("127.0.0.1", uint16(r.node.JMX))
		c.Path, c.Way, c.Java, c.Timeout = "nodetool-that-is-nowhere", reload.Auto, r.java, 30*time.Second
		own := helper(t, c)
		o, err := r.installer(func(o *install.Options) { o.Reloader = own }).Run(ctx, r.plan(5))
		if err != nil || o.Result != proven || o.Reload.ExitCode != 0 {
			t.Fatalf("%+v %v", o, err)
		}
		t.Logf("our own client reloads in %s", o.Reload.Took)
		listed, err := own.(reload.Lister).Ring(ctx)
		if err != nil {
			t.Fatal(err)
		}
		mine, err := cassandra.ParseRing(listed)
		if err != nil {
			t.Fatal(err)
		}
		status, err := r.node.RunNodetool(ctx, "status")
		if err != nil {
			t.Fatal(err)
		}
		if theirs, err := cassandra.ParseRing(status); err != nil || !proto.Equal(mine, theirs) {
			t.Errorf("our own client lists %v, nodetool %v, %v", mine, theirs, err)
		}
		streams, err := own.(reload.Streamer).Netstats(ctx)
		if err != nil {
			t.Fatal(err)
		}
		if busy, err := links.Streaming(streams); err != nil || busy.Code != "" {
			t.Errorf("%v %v", busy, err)
		}
		if err := r.node.Stall(); err != nil {
			t.Fatal(err)
		}
		defer r.node.Resume()
		c.Timeout = 3 * time.Second
		if _, err := helper(t, c).Reload(ctx); !fault.HasReason(err, "reload-timeout") {
			t.Error(err)
		}
	})

	// Cassandra verifies client certificates by BoringSSL, which verifies no signature of a P-521 key: such a leaf would be served and
	// taken by no peer. It is refused before anything is written.
	t.Run("a leaf of each kind of key that Cassandra's TLS library takes is served and proved", func(t *testing.T) {
		mark := r.node.Mark()
		generation := uint64(5)
		for _, kind := range algorithm.All() {
			key, err := algorithm.Generate(kind, rand.Reader)
			if err != nil {
				t.Fatal(err)
			}
			generation++
			p := r.plan(generation)
			l := r.ca.LeafOf(key, func(c *x509.Certificate) { c.IPAddresses = append(c.IPAddresses, net.IP(r.node.Address.AsSlice())) })
			p.Key, p.Chain = l.Key, l.Chain
			o, err := r.installer().Run(ctx, p)
			if kind == algorithm.P521 {
				if o.Result != refused || !fault.HasReason(err, "key-unsupported") {
					t.Errorf("%s: %+v %v", kind, o, err)
				}
				continue
			}
			if err != nil || o.Result != proven || o.After != leafSum(p.Chain) {
				t.Errorf("%s: %+v %v", kind, o, err)
				continue
			}
			t.Logf("%s in %s", kind, o.Took)
		}
		if lines := r.node.Errors(mark); len(lines) > 0 {
			t.Errorf("it wrote %d ERRORs: %v", len(lines), lines)
		}
	})

	t.Run("a CA of each kind of key of the catalogue is trusted and signs", func(t *testing.T) {
		if os.Getenv("CSM_TEST_FULL") == "" {
			t.Skip("RSA-4096 keys take seconds; runs with make test-full")
		}
		generation := uint64(8)
		anchors := []*x509.Certificate{r.ca.Root}
		for _, kind := range []algorithm.Key{algorithm.P521, algorithm.RSA4096} {
			var keys [2]crypto.Signer
			for i := range keys {
				k, err := algorithm.Generate(kind, rand.Reader)
				if err != nil {
					t.Fatal(err)
				}
				keys[i] = k
			}
			ca := cassandratest.NewCAOf(t, string(kind), keys[0], keys[1])
			anchors = append(anchors, ca.Root)
			l := ca.Leaf(func(c *x509.Certificate) { c.IPAddresses = append(c.IPAddresses, net.IP(r.node.Address.AsSlice())) })
			for _, p := range []install.Plan{{Anchors: anchors}, {Key: l.Key, Chain: l.Chain, Anchors: anchors}} {
				generation++
				p.Site, p.Generation = r.site, generation
				if o, err := r.installer().Run(ctx, p); err != nil || o.Result != proven {
					t.Fatalf("%s: %+v %v", kind, o, err)
				}
			}
			t.Logf("a leaf of a CA with %s keys is served and taken", kind)
		}
		if o, err := r.installer().Run(ctx, r.plan(13)); err != nil || o.Result != proven {
			t.Fatalf("back under the first CA: %+v %v", o, err)
		}
	})

	t.Run("a stalled JVM is unknown, never accepted, and nothing is begun under it", func(t *testing.T) {
		before := leafOf(t, r.site.Store)
		if err := r.node.Stall(); err != nil {
			t.Fatal(err)
		}
		defer r.node.Resume()
		cert, err := install.Certificate(r.site.Store)
		if err != nil {
			t.Fatal(err)
		}
		for _, port := range r.site.Store.Ports {
			q := probe.Request{Kind: port.Kind, Address: port.Address.String(), Port: port.Port, Certificate: cert, Timeout: 500 * time.Millisecond}
			if v := probe.Probe(ctx, q).Verdict; v != agentv1.Verdict_VERDICT_UNKNOWN {
				t.Errorf("%v: %v", port, v)
			}
		}
		quick := func(o *install.Options) { fastProbe(o); o.ProveFor = time.Nanosecond }
		if o, err := r.installer(quick).Run(ctx, r.plan(14)); o.Result != refused || err == nil || leafOf(t, r.site.Store) != before {
			t.Errorf("%v %v", o.Result, err)
		}
	})

	t.Run("a certificate of a second CA is accepted once the truststore has it, and one of the first no longer once it is withdrawn", func(t *testing.T) {
		next := cassandratest.NewCA(t, "next")
		of := func(ca *cassandratest.CA) cassandratest.Leaf {
			return ca.Leaf(func(c *x509.Certificate) { c.IPAddresses = append(c.IPAddresses, net.IP(r.node.Address.AsSlice())) })
		}
		both := []*x509.Certificate{r.ca.Root, next.Root}
		takes := func(ca *cassandratest.CA, want agentv1.Verdict) {
			t.Helper()
			offered := of(ca).TLS()
			for _, port := range r.site.Store.Ports {
				res := probe.Probe(ctx, probe.Request{Kind: port.Kind, Address: port.Address.String(), Port: port.Port, Local: r.node.Address, Certificate: offered, Roots: both})
				if res.Verdict != want || !res.Asked || res.Anchor == nil || res.Untrusted != "" {
					t.Errorf("%v takes %s: %+v, want %s", port, ca.Root.Subject.CommonName, res, want)
				}
			}
		}
		move := func(p install.Plan) {
			t.Helper()
			p.Site = r.site
			if o, err := r.installer().Run(ctx, p); err != nil || o.Result != proven {
				t.Fatalf("%+v %v", o, err)
			}
		}
		takes(r.ca, agentv1.Verdict_VERDICT_ACCEPTED)
		takes(next, agentv1.Verdict_VERDICT_REFUSED)
		move(install.Plan{Generation: 20, Anchors: both})
		takes(next, agentv1.Verdict_VERDICT_ACCEPTED)
		takes(r.ca, agentv1.Verdict_VERDICT_ACCEPTED)
		l := of(next)
		move(install.Plan{Generation: 21, Key: l.Key, Chain: l.Chain, Anchors: both})
		move(install.Plan{Generation: 22, Anchors: []*x509.Certificate{next.Root}, Shrink: true, Withdraw: sums(r.ca.Root)})
		takes(next, agentv1.Verdict_VERDICT_ACCEPTED)
		takes(r.ca, agentv1.Verdict_VERDICT_REFUSED)
	})

	t.Run("a certificate of another CA is refused", func(t *testing.T) {
		stranger := cassandratest.NewCA(t, "other").Leaf().TLS()
		for _, port := range r.site.Store.Ports {
			res := probe.Probe(ctx, probe.Request{Kind: port.Kind, Address: port.Address.String(), Port: port.Port, Certificate: stranger})
			if res.Verdict != agentv1.Verdict_VERDICT_REFUSED {
				t.Errorf("%v: %+v", port, res)
			}
		}
	})
}

// TestCassandrasOwnPoll changes both files under a real Cassandra and lets nobody reload: its poll comes ten minutes after its start.
func TestCassandrasOwnPoll(t *testing.T) {
	if os.Getenv("CSM_TEST_FULL") == "" {
		t.Skip("waits for ten minutes; runs with make test-full")
	}
	r := startReal(t, ring.Release{Version: ring.Version})
	mark := r.node.Mark()
	p := r.plan(2)
	p.Anchors = append(p.Anchors, cassandratest.NewCA(t, "next").Root)
	looks := 0
	o, err := r.installer(func(o *install.Options) {
		o.Poll, o.Reloader, o.Waiting = true, &told{}, func(string, time.Time) { looks++ }
	}).Run(t.Context(), p)
	if err != nil || o.Result != proven || o.After != leafSum(p.Chain) || o.Took > install.PollBound {
		t.Fatalf("%+v %v", o, err)
	}
	t.Logf("proved after %s and %d looks; Cassandra says %v", o.Took, looks, r.node.Lines(mark, "SSL certificates have been updated"))
	if lines := r.node.Errors(mark); len(lines) > 0 {
		t.Errorf("looking wrote %d ERRORs: %v", len(lines), lines)
	}
}

func leafOf(t *testing.T, s *cassandra.Store) [32]byte {
	t.Helper()
	c, err := install.Certificate(s)
	if err != nil {
		t.Fatal(err)
	}
	return leafSum([]*x509.Certificate{c.Leaf})
}
