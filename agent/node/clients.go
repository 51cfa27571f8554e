package node

import (
	"bytes"
	"crypto/sha256"
	"net/netip"
	"time"

	"github.com/cassandra-security-manager/csm/agent/cassandra"
	"github.com/cassandra-security-manager/csm/agent/links"
	agentv1 "github.com/cassandra-security-manager/csm/protocol/agent/v1"
	"github.com/cassandra-security-manager/csm/shared/fault"
)

// ClientsFile is the record of applications' connections within the node's state folder.
const ClientsFile = "clients.json"

// Applications that still live on connections from before a reload are looked for more often, for a while: a rotation waits for
// them to come back.
const (
	clientsFor   = time.Hour
	clientsEvery = time.Minute
	// swapWithin is how long after a reload the leaf that it brought is first seen by a look; a leaf that is new later came by
	// Cassandra's own poll or by its start.
	swapWithin = 10 * time.Minute
)

// clientPort is the CQL port on every address, when it speaks TLS: an application may run on the node itself.
func clientPort(inst *cassandra.Instance) (links.Port, bool) {
	if inst == nil || !inst.NativeTransport || !inst.Client.Active() {
		return links.Port{}, false
	}
	return links.Port{Number: inst.NativePort, PID: inst.Process.PID}, true
}

// noteClients notes the connections of applications that a reload does not reach.
func (n *Node) noteClients() {
	p, ok := clientPort(n.inst)
	if !ok {
		return
	}
	if err := n.links.clients.Record(p); err != nil {
		n.log.Debug("connections of applications could not be noted", "error", err)
	}
	n.mu.Lock()
	n.health.reloaded = n.o.Clock.Now()
	n.mu.Unlock()
	n.healthSoon()
}

// everyHealth is how long to rest before the next look.
func (n *Node) everyHealth(every time.Duration) time.Duration {
	n.mu.Lock()
	since := n.o.Clock.Since(n.health.reloaded)
	n.mu.Unlock()
	if since < clientsFor && len(n.links.clients.Memory().Old) > 0 {
		return min(every, clientsEvery)
	}
	return every
}

// freshClients tells connections made since the leaf of now is served from older ones; nil, and why in the facts, where it
// cannot. A connection is fresh only when it certainly is.
func (n *Node) freshClients(inst *cassandra.Instance, leaf []byte, c *agentv1.ClientFacts) func(netip.AddrPort) bool {
	p, ok := clientPort(inst)
	if !ok || len(leaf) == 0 {
		c.FreshUnseen = "the CQL port speaks no TLS"
		return nil
	}
	book := n.links.clients
	n.mu.Lock()
	changed := !bytes.Equal(n.health.leaf, leaf)
	n.health.leaf = leaf
	n.mu.Unlock()
	if m := book.Memory(); changed && n.o.Clock.Since(m.Recorded) > swapWithin {
		if err := book.Record(p); err != nil { // nobody knows when it came: all that is there now counts as older
			c.FreshUnseen = clip(fault.From(err).Error(), 500)
			return nil
		}
	}
	_, err := book.Look(p, false)
	m := book.Memory()
	switch {
	case err != nil:
		c.FreshUnseen = clip(fault.From(err).Error(), 500)
		return nil
	case m.Unseen != "":
		c.FreshUnseen = clip(m.Unseen, 500)
		return nil
	}
	old := map[netip.AddrPort]bool{}
	for _, o := range m.Old {
		old[netip.AddrPortFrom(o.Remote.Addr().Unmap(), o.Remote.Port())] = true
	}
	sum := sha256.Sum256(leaf)
	c.LeafSha256 = sum[:]
	return func(a netip.AddrPort) bool { return !old[a] }
}
