//go:build !linux

package links

import "github.com/cassandra-security-manager/csm/shared/fault"

// Kernel is a table that can tell nothing: connections are only looked at on Linux.
func Kernel() Table { return kernel{} }

type kernel struct{}

// Links is of Table.
func (kernel) Links(Port) ([]Link, error) {
	return nil, fault.New(fault.Unavailable, "links-unread", "connections of another process are only told on Linux").
		Do("links on old certificates go when Cassandra is restarted")
}

// Cuttable is of Table.
func (kernel) Cuttable() error { return ErrUncuttable("it is not Linux") }

// Cut is of Table.
func (kernel) Cut(Link) error { return ErrUncuttable("it is not Linux") }
