// Command csm-agent looks after the certificates of the Cassandra on this host.
package main

import (
	"os"

	"github.com/cassandra-security-manager/csm/agent/cli"
	shared "github.com/cassandra-security-manager/csm/shared/cli"
)

func main() { os.Exit(shared.Main(cli.Root())) }
