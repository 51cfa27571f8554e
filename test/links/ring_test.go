//go:build linux

package links_test

import (
	"context"
	"crypto/tls"
	"io"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"testing"
	"time"

	"github.com/jonboulle/clockwork"

	"github.com/cassandra-security-manager/csm/agent/links"
	"github.com/cassandra-security-manager/csm/agent/reload"
	"github.com/cassandra-security-manager/csm/shared/workload"
	"github.com/cassandra-security-manager/csm/test/handmade"
	"github.com/cassandra-security-manager/csm/test/ring"
)

// member is a node with the parts of its agent that are under test.
type member struct {
	t      *testing.T
	node   *ring.Node
	port   links.Port
	table  links.Table
	book   *links.Book
	cutter *links.Cutter
	tool   reload.Reloader
}

func newMember(t *testing.T, n *ring.Node, namespace string) *member {
	t.Helper()
	ns, err := os.Open("/run/netns/" + namespace)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { ns.Close() })
	m := &member{t: t, node: n, port: links.Port{Address: n.Address, Number: ring.StoragePort}, table: links.KernelOf(ns)}
	m.book = links.Open(filepath.Join(t.TempDir(), "links.json"), m.table, clockwork.NewRealClock())
	m.cutter, err = links.Over(func() (io.ReadWriteCloser, error) {
		mine, theirs := net.Pipe()
		site := links.Site{Port: func() (links.Port, error) { return m.port, nil }, Stopped: func() error { return nil }}
		go links.Serve(theirs, map[string]links.Site{n.Config: site}, m.table)
		return mine, nil
	})
	if err != nil {
		t.Fatal(err)
	}
	h, err := reload.Over(func() (io.ReadWriteCloser, error) {
		mine, theirs := net.Pipe()
		c := reload.Command{Path: n.Enter[0], Args: append(slices.Clone(n.Enter[1:]), n.Nodetool, "reloadssl"), Timeout: time.Minute}
		go reload.Serve(context.Background(), theirs, map[string]reload.Command{n.Config: c})
		return mine, nil
	})
	if err != nil {
		t.Fatal(err)
	}
	m.tool = h.Reloader(n.Config)
	t.Cleanup(func() { m.cutter.Close(); h.Close() })
	return m
}

// renew puts a new leaf under the running Cassandra, as the agent does, and notes what it does not reach.
func (m *member) renew(ca *handmade.CA) {
	m.t.Helper()
	ca.Equip(m.node)
	if err := m.book.Record(m.port); err != nil {
		m.t.Fatal(err)
	}
	if out, err := m.tool.Reload(m.t.Context()); err != nil || out.ExitCode != 0 {
		m.t.Fatal(out, err)
	}
	if err := m.book.Record(m.port); err != nil {
		m.t.Fatal(err)
	}
}

// cycle goes on until the wish has come to its end, as the agent's goroutine does.
func (m *member) cycle() (cut int) {
	m.t.Helper()
	for m.t.Context().Err() == nil {
		v := links.View{Now: time.Now(), Wish: 1, Until: time.Now().Add(time.Hour), Memory: m.book.Memory(), Uncuttable: m.table.Cuttable()}
		v.Present, v.Unread = m.book.Look(m.port, v.Memory.Cut != nil)
		v.Memory = m.book.Memory()
		var err error
		switch a := links.Decide(v); a.Do {
		case links.End:
			var out string
			if out, err = m.tool.(reload.Streamer).Netstats(m.t.Context()); err != nil {
				break
			}
			if busy, serr := links.Streaming(out); serr != nil || busy.Code != "" {
				m.t.Fatalf("%+v %v", busy, serr)
			}
			if err = m.book.Begin(links.Cut{Wish: 1, Peer: a.Peer, Links: a.Links, At: time.Now()}); err != nil {
				break
			}
			var n int
			n, err = m.cutter.End(m.t.Context(), m.node.Config, a.Peer, a.Links)
			cut += n
		case links.Return:
			m.t.Logf("%s: %s after %s", m.node.Name, a.Message, time.Since(v.Memory.Cut.At).Round(10*time.Millisecond))
			err = m.book.Back()
		case links.Finish:
			if a.Code != links.ResultDone {
				m.t.Fatalf("%s: %s: %s", m.node.Name, a.Code, a.Message)
			}
			return cut
		default:
			time.Sleep(50 * time.Millisecond) // the kernel tells nobody that a connection was opened
		}
		if err != nil {
			m.t.Fatal(err)
		}
	}
	m.t.Fatal("out of time")
	return 0
}

// inNamespaces is a ring of three, each node in a network namespace of its own whose name begins with prefix; nothing is started.
func inNamespaces(t *testing.T, cluster, prefix string) *ring.Ring {
	t.Helper()
	dist, err := ring.Prepare(t.Context(), "../../build/cassandra/"+ring.Version, false, func(s string) { t.Log(s) })
	if err != nil {
		t.Fatal(err)
	}
	var addresses []netip.Addr
	for i := range 3 {
		networks++
		a := netip.AddrFrom4([4]byte{10, 77, 0, byte(networks)})
		if err := host(prefix+strconv.Itoa(i+1), a); err != nil {
			t.Fatal(err)
		}
		addresses = append(addresses, a)
	}
	r, err := ring.New(dist, ring.Options{Dir: t.TempDir(), Cluster: cluster, Addresses: addresses})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(r.Kill)
	for i, n := range r.Nodes {
		n.Enter = []string{"nsenter", "--net=/run/netns/" + prefix + strconv.Itoa(i+1)}
	}
	return r
}

// networks counts the namespaces that were made: each has an address of its own on the bridge.
var networks int

func startRing(t *testing.T, ca *handmade.CA) (*ring.Ring, []*member) {
	t.Helper()
	r := inNamespaces(t, "links-test", "cn")
	var members []*member
	for i, n := range r.Nodes {
		ca.Equip(n)
		members = append(members, newMember(t, n, "cn"+strconv.Itoa(i+1)))
	}
	if err := r.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := r.WaitUp(t.Context()); err != nil {
		t.Fatal(err)
	}
	return r, members
}

func TestOldLinksOfARealRingAreCycledAndNoQueryFails(t *testing.T) {
	if os.Getenv("CSM_TEST_FULL") == "" {
		t.Skip("three real Cassandras in network namespaces; runs with make test-full")
	}
	ca := handmade.New(t)
	r, members := startRing(t, ca)
	cert, roots := ca.Client("load")
	load, err := workload.Start(t.Context(), workload.Options{Hosts: r.Hosts(), TLS: func() *tls.Config {
		return &tls.Config{Certificates: []tls.Certificate{cert}, RootCAs: roots, MinVersion: tls.VersionTLS12}
	}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(load.Stop)

	before := map[*member][]links.Link{}
	for _, m := range members {
		if before[m], err = m.table.Links(m.port); err != nil {
			t.Fatal(err)
		}
		m.renew(ca)
	}
	for _, m := range members {
		if _, err := m.book.Look(m.port, true); err != nil {
			t.Fatal(err)
		}
		old := m.book.Memory().Old
		out := slices.ContainsFunc(old, func(o links.Old) bool { return o.Outbound })
		in := slices.ContainsFunc(old, func(o links.Old) bool { return !o.Outbound })
		if peers := links.Peers(old); len(peers) != 2 || !out || !in {
			t.Fatalf("%s: a reload is outlived by connections with both peers in both directions, not by %v", m.node.Name, old)
		}
		t.Logf("%s: %d connections live on the old leaf", m.node.Name, len(old))
	}
	for _, m := range members {
		t.Logf("%s: %d ended", m.node.Name, m.cycle())
	}
	for _, m := range members {
		now, err := m.table.Links(m.port)
		if err != nil {
			t.Fatal(err)
		}
		for _, l := range before[m] {
			if slices.Contains(now, l) {
				t.Errorf("%s: %s of before the reload is left", m.node.Name, l)
			}
		}
		if len(now) == 0 {
			t.Errorf("%s has no link", m.node.Name)
		}
	}
	if err := r.WaitUp(t.Context()); err != nil {
		t.Error(err)
	}
	report := load.Since(load.Begin())
	t.Logf("%d queries in %s, %d failed, %d wrong, p99 %s, max %s", report.Queries, report.Took.Round(time.Millisecond), report.Failed, report.Wrong, report.P99, report.Max)
	if report.Failed > 0 || report.Wrong > 0 || report.Queries < 500 {
		t.Errorf("%+v", report)
	}
}
