//go:build !linux

package node

import (
	"context"

	"github.com/cassandra-security-manager/csm/agent/cassandra"
)

// Detect says which ports of the instance listen, by connecting to them.
func Detect(ctx context.Context, i *cassandra.Instance) cassandra.Presence { return i.Detect(ctx) }
