package cli

import (
	"github.com/spf13/cobra"

	"github.com/cassandra-security-manager/csm/agent/node"
	"github.com/cassandra-security-manager/csm/shared/cli"
	"github.com/cassandra-security-manager/csm/shared/fault"
)

func renewCommand() *cobra.Command {
	var noWayBack bool
	c := &cobra.Command{Use: "renew [INSTANCE]", Short: "Let a renewal go on although the expired pair in place could not be put back", Args: cobra.MaximumNArgs(1),
		Long: "An install keeps the old pair, to put it back when the new one is not proved. When the certificate in place has expired there is no way back, and the agent\n" +
			"refuses under a running Cassandra. With --no-way-back you say that it shall go forward all the same, for the next hour and only where the certificate\n" +
			"in place has expired. Then ask for the renewal: `csm node renew NODE --wait`. Do NOT restart Cassandra instead: no peer would take the node back.",
		Example: "  csm-agent renew --no-way-back",
		RunE: func(cmd *cobra.Command, args []string) error {
			conf, err := load(cmd)
			if err != nil {
				return err
			}
			if !noWayBack {
				return fault.New(fault.Invalid, "usage", "renewals are asked for on a controller: csm node renew").Do("here only --no-way-back is said")
			}
			list, err := instances(conf, args)
			if err != nil {
				return err
			}
			for _, in := range list {
				if err := node.AllowNoWayBack(conf.Folder(in)); err != nil {
					return err
				}
			}
			cli.Of(cmd).Say("for an hour an expired pair is no obstacle; next: csm node renew NODE --wait")
			return nil
		}}
	c.Flags().BoolVar(&noWayBack, "no-way-back", false, "an operator's word: go forward although there is no way back")
	return c
}
