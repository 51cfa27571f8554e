package cassandra

import (
	"context"
	"net"
	"net/netip"
	"strconv"
	"time"

	agentv1 "github.com/cassandra-security-manager/csm/protocol/agent/v1"
)

// Presence says which ports of an instance take connections.
type Presence struct {
	Internode, CQL bool
	// Expected says whether CQL is started with the node.
	CQLExpected bool
}

// Down means that nothing of the node listens.
func (p Presence) Down() bool { return !p.Internode && !p.CQL }

// Normal means that everything that should listen does. A node that is joining, draining or decommissioned listens on
// its internode port alone: nothing is changed under it.
func (p Presence) Normal() bool { return p.Internode && (p.CQL || !p.CQLExpected) }

// Detect connects to the ports and closes at once. A port that answers neither way within a second counts as closed.
func (i *Instance) Detect(ctx context.Context) Presence {
	p := Presence{CQLExpected: i.NativeTransport}
	p.Internode = open(ctx, i.InternodePort())
	p.CQL = open(ctx, i.CQLPort())
	return p
}

// InternodePort is the storage port as a probe on this host reaches it.
func (i *Instance) InternodePort() Port {
	return Port{agentv1.PortKind_PORT_KIND_INTERNODE, i.Listen, i.StoragePort}
}

// CQLPort is the native transport port as a probe on this host reaches it.
func (i *Instance) CQLPort() Port {
	a := i.RPC
	if !a.IsValid() || a.IsUnspecified() {
		a = i.Listen
	}
	return Port{agentv1.PortKind_PORT_KIND_CQL, a, i.NativePort}
}

func open(ctx context.Context, p Port) bool {
	if !p.Address.IsValid() || p.Address == (netip.Addr{}) {
		return false
	}
	d := net.Dialer{Timeout: time.Second}
	c, err := d.DialContext(ctx, "tcp", net.JoinHostPort(p.Address.String(), strconv.Itoa(int(p.Port))))
	if err != nil {
		return false
	}
	c.Close()
	return true
}
