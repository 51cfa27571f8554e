package cli

import (
	"errors"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strings"

	"github.com/spf13/cobra"

	"github.com/cassandra-security-manager/csm/agent/config"
	"github.com/cassandra-security-manager/csm/agent/install"
	agentv1 "github.com/cassandra-security-manager/csm/protocol/agent/v1"
	"github.com/cassandra-security-manager/csm/shared/cli"
	"github.com/cassandra-security-manager/csm/shared/fault"
)

func holdCommand() *cobra.Command {
	return &cobra.Command{Use: "hold REASON", Short: "Change nothing on this host until `release`", Args: cobra.ExactArgs(1),
		Long:    "hold writes the HOLD file, which the agent looks at before each effect. A running change ends or is rolled back within 30 s.",
		Example: "  csm-agent hold 'moving racks until 18:00'",
		RunE: func(cmd *cobra.Command, args []string) error {
			conf, err := load(cmd)
			if err != nil {
				return err
			}
			reason := strings.Join(strings.Fields(args[0]), " ")
			err = os.MkdirAll(filepath.Dir(conf.HoldFile), 0o755)
			if err == nil {
				err = os.WriteFile(conf.HoldFile, []byte(reason+"\n"), 0o644)
			}
			if err != nil {
				return fault.Wrap(err, fault.Internal, "hold", "%s could not be written; nothing is held", conf.HoldFile).Do("run this as root")
			}
			cli.Of(cmd).Say("held: %s", conf.HoldFile)
			return nil
		}}
}

func releaseCommand() *cobra.Command {
	return &cobra.Command{Use: "release [INSTANCE]", Short: "Remove the HOLD file, and take contested stores as they are", Args: cobra.MaximumNArgs(1),
		Long: "release removes the HOLD file. A store that another tool has changed is taken as it lies there now: stop that tool first.\n" +
			"What CSM did not write is then foreign, and only observed.",
		Example: "  csm-agent release",
		RunE: func(cmd *cobra.Command, args []string) error {
			conf, err := load(cmd)
			if err != nil {
				return err
			}
			g := cli.Of(cmd)
			switch err := os.Remove(conf.HoldFile); {
			case err == nil:
				g.Say("released: %s", conf.HoldFile)
			case !errors.Is(err, fs.ErrNotExist):
				return fault.Wrap(err, fault.Internal, "hold", "%s could not be removed", conf.HoldFile).Do("run this as root")
			}
			list := conf.Cassandra
			if len(args) > 0 {
				if list, err = instances(conf, args); err != nil {
					return err
				}
			}
			for _, in := range list {
				if err := releaseStores(cmd, g, conf, in); err != nil {
					return err
				}
			}
			return nil
		}}
}

func releaseStores(cmd *cobra.Command, g *cli.Global, conf config.Config, in config.Instance) error {
	dir := filepath.Join(conf.Folder(in), "install")
	if _, err := os.Stat(dir); err != nil {
		return nil // the agent has never written anything here
	}
	inst, _, err := in.ReadOptions().Read(in.Config)
	if err != nil {
		return err
	}
	installer, err := install.New(install.Options{StateDir: dir, Hold: conf.HoldFile, Reloader: noReload{}, Logger: slog.New(slog.DiscardHandler)})
	if err != nil {
		return err
	}
	for _, s := range inst.Stores {
		site := install.Site{Instance: inst, Store: s}
		f := installer.Facts(site)
		if f.State != agentv1.InstallState_INSTALL_STATE_CONTESTED && !strings.HasPrefix(f.Detail, "store-changed") {
			continue
		}
		if err := installer.Release(cmd.Context(), site); err != nil {
			return err
		}
		g.Say("store %s of %s is taken as it is", s.Name, in.Config)
	}
	return nil
}
