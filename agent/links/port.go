package links

import "github.com/cassandra-security-manager/csm/agent/cassandra"

// PortOf is the internode port of an instance.
func PortOf(i *cassandra.Instance) Port {
	return Port{Address: i.Listen, Number: i.StoragePort, PID: i.Process.PID}
}
