package node

import (
	"context"

	"github.com/cassandra-security-manager/csm/agent/cassandra"
	"github.com/cassandra-security-manager/csm/agent/links"
)

// Detect says which ports of the instance listen, by the kernel's table of sockets: unlike a connection it costs Cassandra nothing and
// leaves no line in its log. Where the kernel is not to be asked it connects.
func Detect(ctx context.Context, i *cassandra.Instance) cassandra.Presence {
	p := cassandra.Presence{CQLExpected: i.NativeTransport}
	var err error
	for port, to := range map[cassandra.Port]*bool{i.InternodePort(): &p.Internode, i.CQLPort(): &p.CQL} {
		if !port.Address.IsValid() {
			continue
		}
		if *to, err = links.Listens(port.Address, port.Port); err != nil {
			return i.Detect(ctx)
		}
	}
	return p
}
