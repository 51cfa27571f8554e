// Command csm is the command line of administrators.
package main

import (
	"os"

	"github.com/cassandra-security-manager/csm/controller/cli"
	ui "github.com/cassandra-security-manager/csm/shared/cli"
)

func main() { os.Exit(ui.Main(cli.Root())) }
