//go:build linux

// Package install_test runs the agent's install transaction against a real Cassandra ring: no controller, no network
// protocol, only files, nodetool and handshakes.
package install_test

import (
	"context"
	"crypto/tls"
	"errors"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"github.com/cassandra-security-manager/csm/agent/cassandra"
	"github.com/cassandra-security-manager/csm/agent/install"
	"github.com/cassandra-security-manager/csm/agent/probe"
	"github.com/cassandra-security-manager/csm/agent/reload"
	agentv1 "github.com/cassandra-security-manager/csm/protocol/agent/v1"
	"github.com/cassandra-security-manager/csm/shared/certificate"
	"github.com/cassandra-security-manager/csm/shared/keystore"
	"github.com/cassandra-security-manager/csm/shared/workload"
	"github.com/cassandra-security-manager/csm/test/handmade"
	"github.com/cassandra-security-manager/csm/test/process"
	"github.com/cassandra-security-manager/csm/test/ring"
)

// host is a node with its installer, as an agent has it.
type host struct {
	t          *testing.T
	ca         *handmade.CA
	node       *ring.Node
	site       install.Site
	installer  *install.Installer
	generation uint64
	spoil      func() // runs before the next reload
	stall      func() // runs after the next reload
}

// Reload runs the node's real nodetool.
func (h *host) Reload(ctx context.Context) (reload.Output, error) {
	if f := h.spoil; f != nil {
		h.spoil = nil
		f()
	}
	began := time.Now()
	out, err := exec.CommandContext(ctx, h.node.Nodetool, "reloadssl").CombinedOutput()
	o := reload.Output{Stdout: string(out), Took: time.Since(began)}
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		o.ExitCode, err = exit.ExitCode(), nil
	}
	if f := h.stall; f != nil {
		h.stall = nil
		f()
	}
	return o, err
}

func newHost(t *testing.T, ca *handmade.CA, n *ring.Node) *host {
	t.Helper()
	h := &host{t: t, ca: ca, node: n}
	i, findings, err := cassandra.Options{Roots: []string{n.Stores}}.Read(n.Config)
	if err != nil || len(i.Stores) != 1 {
		t.Fatalf("%v %v", err, findings)
	}
	h.site = install.Site{Instance: i, Store: i.Stores[0]}
	h.installer, err = install.New(install.Options{StateDir: filepath.Join(n.Dir, "agent"), Hold: filepath.Join(n.Dir, "HOLD"), Reloader: h})
	if err != nil {
		t.Fatal(err)
	}
	return h
}

// move installs a new certificate. ips are its names besides the loopback address.
func (h *host) move(ips ...net.IP) (install.Outcome, error) {
	h.generation++
	key, leaf := h.ca.Leaf(h.node.Name, append(ips, net.IPv4(127, 0, 0, 1))...)
	chain, err := certificate.ParseChain([][]byte{leaf.Raw})
	if err != nil {
		h.t.Fatal(err)
	}
	anchors, err := certificate.ParseAll([][]byte{h.ca.Root().Raw})
	if err != nil {
		h.t.Fatal(err)
	}
	return h.installer.Run(h.t.Context(), install.Plan{Site: h.site, Claim: "test", Generation: h.generation, Key: key, Chain: chain, Anchors: anchors})
}

func (h *host) renew() (install.Outcome, error) { return h.move(net.IP(h.node.Address.AsSlice())) }

// neighbour proves this host's ports with another host's certificate, read from that host's own keystore.
func (h *host) neighbour(other *host) install.Neighbour {
	return func(ctx context.Context, leaf [32]byte, ports []cassandra.Port) ([]*agentv1.Proof, error) {
		s := other.site.Store
		data, err := os.ReadFile(s.KeystorePath)
		if err != nil {
			return nil, err
		}
		ks, err := keystore.DecodeKeyStore(s.Format, data, s.KeystorePassword)
		if err != nil {
			return nil, err
		}
		var out []*agentv1.Proof
		for _, p := range ports {
			r := probe.Probe(ctx, probe.Request{Kind: p.Kind, Address: p.Address.String(), Port: p.Port, Local: other.node.Address,
				Certificate: &tls.Certificate{PrivateKey: ks.Key, Certificate: certificate.Raw(ks.Chain)}, ExpectLeaf: leaf})
			out = append(out, &agentv1.Proof{Port: p.Proto(), Verdict: r.Verdict, ServedSha256: r.Served[:], Detail: r.Detail, Prober: other.node.Name})
		}
		return out, nil
	}
}

func (h *host) want(o install.Outcome, err error, result agentv1.MoveOutcome) {
	h.t.Helper()
	if o.Result != result {
		h.t.Fatalf("%s (%s): the move ended as %v: %s; %v", h.node.Name, h.node.Format, o.Result, o.Detail, err)
	}
}

const (
	proven     = agentv1.MoveOutcome_MOVE_OUTCOME_PROVEN
	unproven   = agentv1.MoveOutcome_MOVE_OUTCOME_UNPROVEN
	refused    = agentv1.MoveOutcome_MOVE_OUTCOME_REFUSED
	rolledBack = agentv1.MoveOutcome_MOVE_OUTCOME_ROLLED_BACK
)

// estate is a real ring whose stores the installer wrote before the first start, under load.
type estate struct {
	hosts []*host
	marks []ring.Mark // place in each node's log when it was up
	load  *workload.Load
}

// TestInstallsOnARealRing is one ring and one story, because starting a ring is most of the time.
func TestInstallsOnARealRing(t *testing.T) {
	e := start(t)
	t.Run("each node is renewed and proved by its neighbour", e.renewEach)
	t.Run("a wrong name is refused before anything is written", e.refuseAWrongName)
	e.noErrors(t)
	t.Run("a reload that fails while nodetool exits 0 is rolled back", e.rollBackABadReload)
	t.Run("a store cut off after a good reload is restored and proved", e.restoreATruncatedStore)
	t.Run("HOLD refuses, and nothing changes", e.refuseWhileHeld)
	e.noQueryFailed(t)
	t.Run("a JVM that stalls during the proof proves nothing", e.provesNothingWhileStalled)
}

func start(t *testing.T) *estate {
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
	r, err := ring.New(dist, ring.Options{Dir: t.TempDir(), Cluster: "install-test", Addresses: []netip.Addr{loopback.Host(1), loopback.Host(2), loopback.Host(3)}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(r.Kill)
	e := &estate{}
	ca := handmade.New(t)
	e.installFirst(t, ca, r)
	if err := r.Start(ctx); err != nil {
		t.Fatal(err)
	}
	e.proveFirst(t)
	cert, roots := ca.Client("load")
	e.load, err = workload.Start(ctx, workload.Options{Hosts: r.Hosts(), TLS: func() *tls.Config {
		return &tls.Config{Certificates: []tls.Certificate{cert}, RootCAs: roots}
	}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { e.load.Stop() })
	return e
}

// installFirst writes the stores while Cassandra has never run.
func (e *estate) installFirst(t *testing.T, ca *handmade.CA, r *ring.Ring) {
	t.Helper()
	for _, n := range r.Nodes {
		h := newHost(t, ca, n)
		o, err := h.renew()
		h.want(o, err, unproven)
		e.hosts = append(e.hosts, h)
	}
}

// proveFirst proves what the nodes started with.
func (e *estate) proveFirst(t *testing.T) {
	t.Helper()
	for _, h := range e.hosts {
		e.marks = append(e.marks, h.node.Mark())
		o, err := h.installer.Reprove(t.Context(), h.site)
		if err != nil || o == nil || o.Result != proven {
			t.Fatalf("%s: the stores written before the first start are not proved: %+v %v", h.node.Name, o, err)
		}
	}
}

// spoiled is how many stores are cut off: each takes long, so all of them only where there is time.
func spoiled(all int) int {
	if os.Getenv("CSM_TEST_FULL") != "" {
		return all
	}
	return 1
}

// noErrors says that nothing until now made Cassandra log an ERROR.
func (e *estate) noErrors(t *testing.T) {
	t.Helper()
	for i, h := range e.hosts {
		if lines := h.node.Errors(e.marks[i]); len(lines) > 0 {
			t.Errorf("good installs made %s log %q", h.node.Name, lines)
		}
	}
}

func (e *estate) noQueryFailed(t *testing.T) {
	t.Helper()
	if all := e.load.Since(e.load.Begin()); all.Failed+all.Wrong > 0 || all.Queries == 0 {
		t.Errorf("the load saw it: %+v", all)
	}
}

func (e *estate) renewEach(t *testing.T) {
	for i, h := range e.hosts {
		h.t = t
		h.site.Neighbour = h.neighbour(e.hosts[(i+1)%len(e.hosts)])
		o, err := h.renew()
		h.want(o, err, proven)
		if len(o.Proofs) != 4 || o.Before == o.After {
			t.Errorf("%s: %d proofs, before %x, after %x", h.node.Name, len(o.Proofs), o.Before[:4], o.After[:4])
		}
		t.Logf("%s (%s): %s", h.node.Name, h.node.Format, o.Took.Round(10*time.Millisecond))
	}
}

func (e *estate) refuseAWrongName(t *testing.T) {
	h := e.hosts[0]
	h.t = t
	before := h.installer.Facts(h.site)
	o, err := h.move(net.IPv4(127, 9, 9, 9))
	h.want(o, err, refused)
	if after := h.installer.Facts(h.site); string(after.KeystoreSha256) != string(before.KeystoreSha256) {
		t.Error("the keystore changed")
	}
}

func (e *estate) rollBackABadReload(t *testing.T) {
	for _, h := range e.hosts[:spoiled(len(e.hosts))] {
		h.t = t
		before := h.installer.Facts(h.site)
		h.spoil = func() {
			if err := os.Truncate(h.node.Keystore, 100); err != nil {
				t.Error(err)
			}
		}
		o, err := h.renew()
		h.want(o, err, rolledBack)
		t.Logf("%s (%s): %s in %s", h.node.Name, h.node.Format, o.Detail, o.Took.Round(10*time.Millisecond))
		if after := h.installer.Facts(h.site); string(after.LeafSha256) != string(before.LeafSha256) {
			t.Errorf("%s holds %x, not %x from before", h.node.Name, after.LeafSha256, before.LeafSha256)
		}
		o, err = h.renew()
		h.want(o, err, proven)
	}
}

func (e *estate) restoreATruncatedStore(t *testing.T) {
	for _, h := range e.hosts[len(e.hosts)-spoiled(len(e.hosts)):] {
		h.t = t
		before, err := os.ReadFile(h.node.Keystore)
		if err != nil {
			t.Fatal(err)
		}
		if err := os.Truncate(h.node.Keystore, 100); err != nil {
			t.Fatal(err)
		}
		o, err := h.installer.Restore(t.Context(), h.site)
		if err != nil || o == nil || o.Result != proven {
			t.Fatalf("%s: %+v %v", h.node.Name, o, err)
		}
		if after, _ := os.ReadFile(h.node.Keystore); string(after) != string(before) {
			t.Errorf("%s: other bytes than before", h.node.Name)
		}
	}
}

func (e *estate) refuseWhileHeld(t *testing.T) {
	h := e.hosts[2]
	h.t = t
	hold := filepath.Join(h.node.Dir, "HOLD")
	if err := os.WriteFile(hold, []byte("not now\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	o, err := h.renew()
	h.want(o, err, refused)
	if err := os.Remove(hold); err != nil {
		t.Fatal(err)
	}
}

func (e *estate) provesNothingWhileStalled(t *testing.T) {
	if os.Getenv("CSM_TEST_FULL") == "" {
		t.Skip("takes a minute; runs with make test-full")
	}
	h := e.hosts[1]
	h.t = t
	before := h.installer.Facts(h.site)
	h.stall = func() {
		if err := h.node.Stall(); err != nil {
			t.Error(err)
		}
		// Longer than a proof is tried; the way back waits for its reload until then.
		time.AfterFunc(40*time.Second, func() { h.node.Resume() })
	}
	o, err := h.renew()
	h.want(o, err, rolledBack)
	if after := h.installer.Facts(h.site); string(after.LeafSha256) != string(before.LeafSha256) {
		t.Errorf("%x is in place, not %x from before", after.LeafSha256, before.LeafSha256)
	}
}
