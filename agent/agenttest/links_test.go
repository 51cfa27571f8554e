package agenttest

import (
	"context"
	"io"
	"net"
	"net/netip"
	"os"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/cassandra-security-manager/csm/agent/cassandra/cassandratest"
	"github.com/cassandra-security-manager/csm/agent/links"
	"github.com/cassandra-security-manager/csm/controller/fleet"
)

// kernel is a table of connections in memory: one that is ended is dialled again at once.
type kernel struct {
	mu   sync.Mutex
	list []links.Link
	cut  []netip.Addr
}

func (k *kernel) Links(links.Port) ([]links.Link, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	return slices.Clone(k.list), nil
}

func (k *kernel) Cuttable() error { return nil }

func (k *kernel) Cut(l links.Link) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.cut = append(k.cut, l.Peer())
	k.list = slices.DeleteFunc(k.list, func(x links.Link) bool { return x == l })
	l.Cookie += 100
	k.list = append(k.list, l)
	return nil
}

func (k *kernel) ended() []netip.Addr {
	k.mu.Lock()
	defer k.mu.Unlock()
	return slices.Clone(k.cut)
}

// tool is nodetool: of the fake Cassandra for reloads, of the test for netstats.
type tool struct {
	*cassandratest.Node
	mu    sync.Mutex
	says  string
	asked int
}

func (n *tool) Netstats(context.Context) (string, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.asked++
	return n.says, nil
}

func (n *tool) say(s string) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.says = s
}

const (
	idleStats = "Mode: NORMAL\nNot sending any streams.\n"
	busyStats = "Mode: NORMAL\nRepair 5c1\n    /10.0.0.2\n        Receiving 2 files\n"
)

// fourLinks are one connection in each direction with each of two peers.
func fourLinks(p links.Port) (out []links.Link) {
	for i, peer := range []string{"10.0.0.2", "10.0.0.3"} {
		a := netip.MustParseAddr(peer)
		out = append(out, links.Link{Local: netip.AddrPortFrom(p.Address, p.Number), Remote: netip.AddrPortFrom(a, 40000), Cookie: uint64(2*i + 1)},
			links.Link{Local: netip.AddrPortFrom(p.Address, 40001), Remote: netip.AddrPortFrom(a, p.Number), Cookie: uint64(2*i + 2), Outbound: true})
	}
	return out
}

func TestOldLinksAreCycledWhenEveryGateIsOpen(t *testing.T) {
	t.Parallel()
	k, n := &kernel{}, &tool{says: busyStats}
	w, a, _ := ring(t, func(_ *world, h *host) {
		n.Node, h.reloader, h.table = h.cass, n, k
		p := links.PortOf(h.cass.Instance())
		k.list = fourLinks(p)
		site := links.Site{Port: func() (links.Port, error) { return p, nil }, Stopped: func() error { return nil }}
		var err error
		h.cutter, err = links.Over(func() (io.ReadWriteCloser, error) {
			mine, theirs := net.Pipe()
			go links.Serve(theirs, map[string]links.Site{h.conf.Cassandra[0].Config: site}, k)
			return mine, nil
		})
		must(t, err)
		t.Cleanup(func() { h.cutter.Close() })
	})
	seen := func(what string, is func(fleet.NodeLinks) bool) {
		t.Helper()
		w.await(what, func() bool { l := a.view().Links; return l != nil && is(*l) })
	}
	seen("nothing was reloaded", func(l fleet.NodeLinks) bool { return l.Old == 0 && l.Unseen == "" })
	_, err := w.fleet.RequestRenewal(t.Context(), cluster+"/nodes/n1", "", "test", ann)
	must(t, err)
	seen("a reload is outlived", func(l fleet.NodeLinks) bool {
		return l.Old == 4 && slices.Equal(l.Peers, []string{"10.0.0.2", "10.0.0.3"}) && !l.Since.IsZero()
	})

	must(t, os.WriteFile(a.conf.HoldFile, []byte("maintenance\n"), 0o600))
	wish, err := w.fleet.CycleLinks(t.Context(), cluster+"/nodes/n1", "test", ann)
	must(t, err)
	seen("HOLD is asked", func(l fleet.NodeLinks) bool { return l.Waits == "held" })
	must(t, os.Remove(a.conf.HoldFile))
	seen("Cassandra is asked whether it streams", func(l fleet.NodeLinks) bool { return l.Waits == "streaming" })
	must(t, w.fleet.Freeze(t.Context(), cluster, "incident", time.Time{}, ann))
	seen("the freeze is asked", func(l fleet.NodeLinks) bool { return l.Waits == "frozen" })
	n.say(idleStats)
	w.leap(time.Minute)
	if cut := k.ended(); len(cut) > 0 {
		t.Fatalf("%v were cut while a gate was closed", cut)
	}
	must(t, w.fleet.Unfreeze(t.Context(), cluster, "over", ann))
	seen("none is left", func(l fleet.NodeLinks) bool { return l.Cycled == wish && l.Result == links.ResultDone && l.Old == 0 })
	two, three := netip.MustParseAddr("10.0.0.2"), netip.MustParseAddr("10.0.0.3")
	if cut := k.ended(); !slices.Equal(cut, []netip.Addr{two, two, three, three}) {
		t.Errorf("one peer after the other, each connection once: %v", cut)
	}
	if n.asked < 3 {
		t.Errorf("Cassandra was asked %d times: once while it streamed, and before each peer", n.asked)
	}
	w.await("csm-agent status tells it", func() bool {
		s := a.status().Links
		return s != nil && s.Cycled == wish && s.Result == links.ResultDone
	})
}
