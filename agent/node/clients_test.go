package node

import (
	"errors"
	"net/netip"
	"path/filepath"
	"testing"
	"time"

	"github.com/jonboulle/clockwork"

	"github.com/cassandra-security-manager/csm/agent/cassandra"
	"github.com/cassandra-security-manager/csm/agent/links"
	agentv1 "github.com/cassandra-security-manager/csm/protocol/agent/v1"
)

// sockets are the connections that the kernel would tell.
type sockets struct {
	there []links.Link
	err   error
}

func (s *sockets) Links(links.Port) ([]links.Link, error) { return s.there, s.err }
func (s *sockets) Cuttable() error                        { return nil }
func (s *sockets) Cut(links.Link) error                   { return nil }

func (s *sockets) connect(port uint16, cookie uint64) netip.AddrPort {
	a := netip.AddrPortFrom(netip.MustParseAddr("10.9.0.1"), port)
	s.there = append(s.there, links.Link{Local: netip.MustParseAddrPort("10.0.0.1:9042"), Remote: a, Cookie: cookie})
	return a
}

func TestOnlyAConnectionThatIsCertainlyNewIsFresh(t *testing.T) {
	clock, kernel := clockwork.NewFakeClockAt(at), &sockets{}
	inst := &cassandra.Instance{NativeTransport: true, RPC: netip.MustParseAddr("10.0.0.1"), Listen: netip.MustParseAddr("10.0.0.1"), NativePort: 9042}
	inst.Client.Enabled = true
	n := &Node{inst: inst, o: Options{Clock: clock}, health: health{soon: make(chan struct{}, 1)}}
	n.links.clients = links.Open(filepath.Join(t.TempDir(), ClientsFile), kernel, clock)
	look := func(leaf string, a netip.AddrPort) (fresh, told bool) {
		t.Helper()
		c := &agentv1.ClientFacts{}
		is := n.freshClients(inst, []byte(leaf), c)
		if is == nil {
			if c.FreshUnseen == "" || len(c.LeafSha256) > 0 {
				t.Errorf("nothing is known, and nobody says why: %v", c)
			}
			return false, false
		}
		return is(a), len(c.LeafSha256) == 32 && c.FreshUnseen == ""
	}
	before := kernel.connect(40000, 1)
	if fresh, told := look("one", before); fresh || !told {
		t.Error("what was there when the agent began is fresh")
	}
	clock.Advance(time.Hour)
	if fresh, _ := look("one", kernel.connect(40001, 2)); !fresh {
		t.Error("a connection that came under this leaf is old")
	}
	n.noteClients() // a reload brings the second leaf
	after := kernel.connect(40002, 3)
	for a, want := range map[netip.AddrPort]bool{before: false, after: true} {
		if fresh, _ := look("two", a); fresh != want {
			t.Errorf("%s is fresh: %v, want %v", a, fresh, want)
		}
	}
	if got := n.everyHealth(time.Hour); got != clientsEvery {
		t.Errorf("looks again after %s while old connections live", got)
	}
	kernel.there = nil // the client goes, and comes back from the same port
	if again := kernel.connect(40000, 9); n.everyHealth(time.Second) != time.Second {
		t.Error("looks less often than it was told to")
	} else if fresh, _ := look("two", again); !fresh {
		t.Error("a new connection from an old port is old")
	}
	clock.Advance(time.Hour)
	if got := n.everyHealth(time.Hour); got != time.Hour {
		t.Errorf("looks again after %s an hour later", got)
	}
	if fresh, told := look("three", netip.AddrPortFrom(before.Addr(), 40000)); fresh || !told {
		t.Error("a leaf that came without a reload of ours: what is there may be older")
	}
	kernel.err = errors.New("no netlink")
	if _, told := look("three", before); told {
		t.Error("the kernel tells nothing, and it is known")
	}
	inst.Client.Enabled = false
	if _, told := look("three", before); told {
		t.Error("plaintext has no leaf")
	}
}
