// Command csm-controller is a member of the control plane.
package main

import (
	"os"

	"github.com/spf13/cobra"

	"github.com/cassandra-security-manager/csm/controller/server"
	"github.com/cassandra-security-manager/csm/shared/cli"
	"github.com/cassandra-security-manager/csm/shared/config"
)

const defaultConfig = "/etc/csm/controller.yaml"

func main() {
	os.Exit(cli.Main(root()))
}

func root() *cobra.Command {
	r := cli.Root("csm-controller", "A member of the control plane of Cassandra Security Manager",
		"csm-controller holds the certificate authorities and the state of the fleet, together with the other controllers:\n"+
			"they form one Raft quorum, and every one of them serves every request.",
		"  csm-controller init --config /etc/csm/controller.yaml     # the first controller of a new system\n"+
			"  csm-controller join --token-file token --pin sha256:…     # every further one\n"+
			"  csm-controller run                                        # serve until stopped")
	r.PersistentFlags().String("config", defaultConfig, "configuration file")
	r.AddCommand(initCommand(), joinCommand(), runCommand(), adminCommand(), snapshotCommand(), recoverCommand(), resetCommand(),
		cli.ConfigCommand(server.DefaultConfig, options))
	return r
}

func options(cmd *cobra.Command) config.Options {
	path, _ := cmd.Flags().GetString("config")
	return config.Options{Path: path, Flags: cmd.Flags()}
}

func load(cmd *cobra.Command) (server.Config, error) {
	return config.Load(server.DefaultConfig(), options(cmd))
}
