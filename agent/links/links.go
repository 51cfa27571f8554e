// Package links knows the TCP connections of Cassandra's internode port by the kernel's own table, remembers which of them
// were there when the stores were last reloaded, and has those ended that live on old certificates. README.md says why it is so.
//
// A reload changes no connection that exists: it lives on with the certificates of its handshake (no nodetool or JMX
// operation reconnects it). Looking needs no right; ending one needs CAP_NET_ADMIN and is done by a helper, which
// takes the connections of one peer at a time and refuses whatever is not one of Cassandra's own port.
package links

import (
	"net/netip"
	"slices"

	"github.com/cassandra-security-manager/csm/shared/fault"
)

// Port is the internode port of one Cassandra.
type Port struct {
	// Address it listens on; connections that come in are told by it. Unspecified or invalid: every address.
	Address netip.Addr
	// Number is the storage port, of this node and of its peers.
	Number uint16
	// PID of the Cassandra, 0 where it is not known. With it outbound connections are told apart from those of another
	// Cassandra of the same user on this host.
	PID int
}

// Link is one established TCP connection.
type Link struct {
	Local  netip.AddrPort `json:"local"`
	Remote netip.AddrPort `json:"remote"`
	// Cookie is the kernel's name of the socket: no other one gets it until the host starts again (sock_diag(7)).
	Cookie uint64 `json:"cookie"`
	// Device is the index of the device that the socket is bound to, mostly 0.
	Device uint32 `json:"device,omitempty"`
	// Outbound: this node has opened it.
	Outbound bool `json:"outbound,omitempty"`
}

// Peer is the address at the other end.
func (l Link) Peer() netip.Addr { return l.Remote.Addr() }

func (l Link) same(o Link) bool {
	return l.Cookie == o.Cookie && l.Local == o.Local && l.Remote == o.Remote
}

func (l Link) String() string { return l.Local.String() + " - " + l.Remote.String() }

// Table is the kernel's table of TCP connections.
type Table interface {
	// Links are the connections of the port in both directions, sorted. A fault says why they cannot be told.
	Links(Port) ([]Link, error)
	// Cuttable is nil where this kernel can end a connection of another process: CONFIG_INET_DIAG_DESTROY. It needs no right and ends nothing.
	Cuttable() error
	// Cut ends one connection: both ends notice at once. One that is there no more is no error.
	Cut(Link) error
}

// socket is what the kernel says of one.
type socket struct {
	Link
	uid, inode uint32
	listening  bool
}

// pick selects those of the port. owned are the inodes of the Cassandra's process, nil where they are not known: then a
// connection that goes out counts when it belongs to the user whose socket listens on the port.
func pick(all []socket, p Port, owned map[uint32]bool) ([]Link, error) {
	user, listens := uint32(0), false
	for _, s := range all {
		if s.listening && s.Local.Port() == p.Number && (s.Local.Addr().IsUnspecified() || p.is(s.Local.Addr())) {
			user, listens = s.uid, true
		}
	}
	var out []Link
	for _, s := range all {
		l := s.Link
		l.Outbound = l.Remote.Port() == p.Number && !(l.Local.Port() == p.Number && p.is(l.Local.Addr()))
		inbound := l.Local.Port() == p.Number && p.is(l.Local.Addr())
		switch {
		case s.listening, !inbound && !l.Outbound, p.own(l.Remote.Addr()):
		case l.Outbound && owned != nil && !owned[s.inode]:
		case l.Outbound && owned == nil && (!listens || s.uid != user):
		default:
			out = append(out, l)
		}
	}
	slices.SortFunc(out, func(a, b Link) int {
		if c := a.Remote.Compare(b.Remote); c != 0 {
			return c
		}
		return a.Local.Compare(b.Local)
	})
	return out, nil
}

// is says whether a is an address that the port listens on.
func (p Port) is(a netip.Addr) bool {
	return !p.Address.IsValid() || p.Address.IsUnspecified() || p.Address.Unmap() == a
}

// own says whether a is certainly this node itself: the agent's own probe, for one.
func (p Port) own(a netip.Addr) bool {
	return p.Address.IsValid() && !p.Address.IsUnspecified() && p.Address.Unmap() == a
}

func (p Port) String() string {
	return netip.AddrPortFrom(p.Address, p.Number).String()
}

func unread(err error) error {
	return fault.Wrap(err, fault.Unavailable, "links-unread", "the kernel's table of connections cannot be read").
		Do("let the agent open netlink sockets: RestrictAddressFamilies of its unit must name AF_NETLINK")
}

// ErrUncuttable is what is said of a kernel that cannot end a connection of another process.
func ErrUncuttable(why string) error {
	return fault.New(fault.Refused, "kernel-cannot-cut", "this kernel cannot end a connection of another process: %s", why).
		Do("links on old certificates go when Cassandra is restarted, one node after the other, or when they break by themselves: a person decides; a kernel with CONFIG_INET_DIAG_DESTROY can do it without a restart")
}
