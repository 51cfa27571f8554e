package cli

import (
	"context"
	"io"
	"os"
	"path/filepath"
	"runtime"

	"github.com/spf13/cobra"

	"github.com/cassandra-security-manager/csm/agent/service"
	"github.com/cassandra-security-manager/csm/shared/cli"
	"github.com/cassandra-security-manager/csm/shared/fault"
)

func serviceCommand() *cobra.Command {
	user := "cassandra"
	if runtime.GOOS == "windows" {
		user = ""
	}
	install := serviceVerb("install", "Register the service; it is not started yet", &user, installService)
	install.Flags().StringVar(&user, "user", user, "who runs it: the user that Cassandra runs as")
	var dry bool
	uninstall := serviceVerb("uninstall", "Stop the service and forget it; state and stores stay", &user, func(g *cli.Global, o service.Options, m service.Manager) error {
		return uninstallService(g, o, m, dry)
	})
	uninstall.Flags().BoolVar(&dry, "dry-run", false, "say what would be done, change nothing")
	c := &cobra.Command{Use: "service", Short: "Have the host start the agent, where there is no package of it"}
	c.AddCommand(install, uninstall,
		serviceVerb("start", "Start it, once the agent has joined", &user, func(_ *cli.Global, o service.Options, m service.Manager) error {
			if err := service.Joined(o.Config); err != nil {
				return err
			}
			return m.Start()
		}),
		serviceVerb("stop", "Stop it; what it is doing ends or is rolled back first", &user, func(_ *cli.Global, _ service.Options, m service.Manager) error { return m.Stop() }),
		serviceVerb("status", "Say whether it runs: exit code 0 if so, 10 when stopped, 4 when not installed", &user, serviceStatus),
		&cobra.Command{Use: "run", Short: "What the service manager starts", Args: cobra.NoArgs, Example: "  csm-agent service run --config /etc/csm/agent.yaml", RunE: runService})
	return c
}

// serviceVerb is a command that speaks to the service manager about the service of this program and configuration.
func serviceVerb(use, short string, user *string, do func(*cli.Global, service.Options, service.Manager) error) *cobra.Command {
	return &cobra.Command{Use: use, Short: short, Args: cobra.NoArgs, Example: "  csm-agent service " + use,
		RunE: func(cmd *cobra.Command, _ []string) error {
			conf, err := load(cmd)
			if err != nil {
				return err
			}
			o := service.Options{User: *user, Config: conf}
			if o.Program, err = os.Executable(); err == nil {
				o.ConfigPath, err = filepath.Abs(options(cmd).Path)
			}
			if err != nil {
				return fault.Wrap(err, fault.Internal, "no-path", "the agent does not know its own paths")
			}
			m, err := service.New(o)
			if err != nil {
				return err
			}
			return do(cli.Of(cmd), o, m)
		}}
}

func installService(g *cli.Global, _ service.Options, m service.Manager) error {
	if err := m.Install(); err != nil {
		return err
	}
	g.Say("installed; next: csm-agent join, then csm-agent service start")
	return nil
}

func uninstallService(g *cli.Global, o service.Options, m service.Manager, dry bool) error {
	if dry {
		s, err := m.State()
		g.Say("the service is %s; it would be stopped and forgotten; %s and Cassandra's stores would stay", s, o.Config.StateDir)
		return err
	}
	if err := m.Uninstall(); err != nil {
		return err
	}
	g.Say("the service is gone; %s and Cassandra's stores stay", o.Config.StateDir)
	return nil
}

func serviceStatus(g *cli.Global, _ service.Options, m service.Manager) error {
	s, err := m.State()
	if err != nil {
		return err
	}
	var p cli.Pairs
	p.Add("service", "%s", s)
	object := map[string]any{"name": service.Name, "state": s}
	if err := g.Print(cli.View{Object: object, Pairs: p, Name: func(any) string { return string(s) }}); err != nil {
		return err
	}
	switch s {
	case service.Running:
		return nil
	case service.NotThere:
		return service.ErrNotInstalled()
	}
	return fault.New(fault.Differs, "stopped", "")
}

func runService(cmd *cobra.Command, _ []string) error {
	return service.Run(cmd.Context(), func(ctx context.Context, w io.Writer) error {
		conf, err := loadToRun(cmd)
		if err != nil {
			return err
		}
		log, err := logger(conf, w)
		if err != nil {
			return err
		}
		limitMemory()
		path := options(cmd).Path
		return run(ctx, conf, path, ceiling(cmd, conf, path), log)
	})
}
