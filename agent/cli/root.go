// Package cli is the command line of csm-agent. It reads the configuration, calls the packages that do the work, and
// prints; it decides nothing.
package cli

import (
	"io"
	"log/slog"
	"os"

	"github.com/spf13/cobra"

	"github.com/cassandra-security-manager/csm/agent/config"
	"github.com/cassandra-security-manager/csm/shared/cli"
	shared "github.com/cassandra-security-manager/csm/shared/config"
	"github.com/cassandra-security-manager/csm/shared/fault"
)

// Root is the whole command tree.
func Root() *cobra.Command {
	r := cli.Root("csm-agent", "Looks after the certificates of the Cassandra on this host",
		"csm-agent makes keys here, gets certificates for them, writes Cassandra's keystore and truststore, has them\n"+
			"reloaded, and proves by handshakes that they are in force. Keys never leave the host.\n\n"+
			"mode in agent.yaml is a ceiling that no controller can raise: observe changes nothing, stage shows what\n"+
			"would be done, manage acts.",
		"  csm-agent inspect                 # what it understands of cassandra.yaml; needs no controller\n"+
			"  csm-agent run                     # join if need be, then look after the node\n"+
			"  csm-agent status                  # how it stands, also when no controller can be reached\n"+
			"  csm-agent hold 'switch swap'      # change nothing until `csm-agent release`")
	r.PersistentFlags().String("config", config.DefaultPath, "configuration file")
	r.AddCommand(runCommand(), joinCommand(), inspectCommand(), planCommand(), doctorCommand(), probeCommand(), statusCommand(), ensureCommand(), sealCommand(),
		holdCommand(), releaseCommand(), helperCommand(), serviceCommand(), cli.ConfigCommand(config.Defaults, options))
	r.AddCommand(renewCommand())
	return r
}

func options(cmd *cobra.Command) shared.Options {
	f := cmd.Flags().Lookup("config")
	return shared.Options{Path: f.Value.String(), Optional: !f.Changed, Flags: cmd.Flags()}
}

func load(cmd *cobra.Command) (config.Config, error) {
	return shared.Load(config.Defaults(), options(cmd))
}

// loadToRun also demands what running needs.
func loadToRun(cmd *cobra.Command) (config.Config, error) {
	c, err := load(cmd)
	if err != nil {
		return c, err
	}
	p := &shared.Problems{Path: options(cmd).Path}
	c.ForRun(p)
	return c, p.Err()
}

func logger(c config.Config, w io.Writer) (*slog.Logger, error) {
	l, err := c.Log.Logger(w)
	if err != nil {
		return nil, err
	}
	return l.With("program", "csm-agent"), nil
}

// instances are those of the configuration, or the one that the argument names.
func instances(c config.Config, args []string) ([]config.Instance, error) {
	if len(args) == 0 {
		if len(c.Cassandra) == 0 {
			return nil, fault.New(fault.Invalid, "no-instance", "no Cassandra is configured").Do("name a cassandra.yaml: csm-agent inspect /etc/cassandra/cassandra.yaml")
		}
		return c.Cassandra, nil
	}
	for _, in := range c.Cassandra {
		if in.Config == args[0] || in.StateName() == args[0] {
			return []config.Instance{in}, nil
		}
	}
	if _, err := os.Stat(args[0]); err != nil {
		return nil, fault.New(fault.NotFound, "no-instance", "%q is neither an instance in agent.yaml nor a file", args[0]).Do("name a cassandra.yaml")
	}
	return []config.Instance{{Config: args[0]}}, nil
}
