package fleet_test

import (
	"bytes"
	"fmt"
	"testing"
	"time"

	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/cassandra-security-manager/csm/controller/fleet"
	agentv1 "github.com/cassandra-security-manager/csm/protocol/agent/v1"
	"github.com/cassandra-security-manager/csm/shared/fault"
)

func client(last int, user, tls string) *agentv1.SeenClient {
	return &agentv1.SeenClient{Address: []byte{10, 9, byte(last >> 8), byte(last)}, User: user, Driver: "java-driver", DriverVersion: "4.17", Tls: tls, Protocol: 5, Connections: 2}
}

// noticed lets a node report the clients that it sees now.
func (m *member) noticed(f *agentv1.ClientFacts) {
	m.w.t.Helper()
	m.w.log.Clock.Advance(time.Minute)
	f.Time = timestamppb.New(m.w.log.Clock.Now())
	m.instance.Clients = f
	m.must(m.connect())
}

func (w *world) seen() fleet.SeenClients {
	w.t.Helper()
	s, err := w.Clients(ctx, cluster)
	if err != nil {
		w.t.Fatal(err)
	}
	return s
}

func TestAClientIsToldOnceWithTheNodesThatSawIt(t *testing.T) {
	w := newWorld(t)
	nodes := w.ring("n1", "n2", "n3")
	nodes["n1"].noticed(&agentv1.ClientFacts{Seen: []*agentv1.SeenClient{client(1, "app", "TLSv1.3"), client(2, "old", "")}, Encrypted: 2, Plaintext: 2})
	nodes["n2"].noticed(&agentv1.ClientFacts{Seen: []*agentv1.SeenClient{client(1, "app", "TLSv1.3")}, Truncated: true})
	s := w.seen()
	if len(s.Clients) != 2 || s.Clients[0].TLS != "" || s.Clients[0].Address != "10.9.0.2" || s.Clients[0].User != "old" {
		t.Fatalf("plaintext does not come first: %+v", s.Clients)
	}
	if c := s.Clients[1]; len(c.Nodes) != 2 || c.Connections != 4 || !c.Last.After(c.First) || c.Driver != "java-driver" || c.Protocol != 5 {
		t.Errorf("%+v", c)
	}
	if len(s.Looks) != 3 || !s.Looks[1].Truncated || s.Looks[2].Reason != "not-told" || !s.Looks[2].Time.IsZero() || s.Looks[0].Reason != "" {
		t.Errorf("looks %+v", s.Looks)
	}
	first := s.Clients[0].Last
	nodes["n1"].must(nodes["n1"].connect()) // the same facts again are no new sight
	if again := w.seen().Clients[0].Last; !again.Equal(first) {
		t.Errorf("an old sight was counted again: %s, %s", first, again)
	}
	nodes["n1"].noticed(&agentv1.ClientFacts{Unseen: "the role may not read it", Reason: "cql-not-granted"})
	if s = w.seen(); len(s.Clients) != 2 || s.Looks[0].Reason != "cql-not-granted" || s.Looks[0].Unseen == "" {
		t.Errorf("who cannot look forgets: %+v", s)
	}
	if n := nodes["n1"].view(); n.Instance.HostID != "" {
		t.Errorf("%+v", n.Instance)
	}
	if _, err := w.Clients(ctx, "tenants/default/clusters/none"); !fault.Is(err, fault.NotFound) {
		t.Errorf("a cluster that is not there: %v", err)
	}
}

func TestAConnectionSinceTheLeafIsRememberedByItsLeaf(t *testing.T) {
	w := newWorld(t)
	n := w.joined("n1")
	leaf := bytes.Repeat([]byte{7}, 32)
	sight := func() fleet.ClientSight {
		t.Helper()
		for _, c := range w.seen().Clients {
			if c.User == "app" {
				return c.Sights[0]
			}
		}
		t.Fatal("it is not seen")
		return fleet.ClientSight{}
	}
	app := client(1, "app", "TLSv1.3")
	n.noticed(&agentv1.ClientFacts{Seen: []*agentv1.SeenClient{app}, LeafSha256: leaf})
	if s := sight(); len(s.FreshLeaf) > 0 || s.Node != n.name {
		t.Errorf("a connection from before is new: %+v", s)
	}
	app.Fresh = 1
	n.noticed(&agentv1.ClientFacts{Seen: []*agentv1.SeenClient{app}, FreshUnseen: "no netlink"})
	if s := w.seen(); len(sight().FreshLeaf) > 0 || s.Looks[0].FreshUnseen != "no netlink" {
		t.Errorf("of no leaf: %+v", s)
	}
	n.noticed(&agentv1.ClientFacts{Seen: []*agentv1.SeenClient{app}, LeafSha256: leaf})
	app.Fresh = 0
	n.noticed(&agentv1.ClientFacts{Seen: []*agentv1.SeenClient{app, client(2, "other", "")}, LeafSha256: bytes.Repeat([]byte{8}, 32)})
	if s := sight(); !bytes.Equal(s.FreshLeaf, leaf) {
		t.Errorf("what was seen once is forgotten: %+v", s)
	}
}

func TestSeenClientsAreBounded(t *testing.T) {
	w := newWorld(t)
	n := w.joined("n1")
	for round := range 5 {
		f := &agentv1.ClientFacts{}
		for i := range 200 {
			f.Seen = append(f.Seen, client(round*200+i, fmt.Sprint("u", i), ""))
		}
		n.noticed(f)
	}
	if got := len(w.seen().Clients); got > 600 || got < 400 {
		t.Errorf("%d clients of one node are kept", got)
	}
	w.log.Clock.Advance(31 * 24 * time.Hour)
	n.noticed(&agentv1.ClientFacts{Seen: []*agentv1.SeenClient{client(1, "app", "TLSv1.3")}})
	if s := w.seen(); len(s.Clients) != 1 {
		t.Errorf("%d clients after a month", len(s.Clients))
	}
}
