package cli

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"os"
	"runtime/debug"
	"sync"

	"github.com/jonboulle/clockwork"
	"github.com/spf13/cobra"

	"github.com/cassandra-security-manager/csm/agent/config"
	"github.com/cassandra-security-manager/csm/agent/install"
	"github.com/cassandra-security-manager/csm/agent/links"
	"github.com/cassandra-security-manager/csm/agent/node"
	"github.com/cassandra-security-manager/csm/agent/reload"
	agentv1 "github.com/cassandra-security-manager/csm/protocol/agent/v1"
	"github.com/cassandra-security-manager/csm/shared/cli"
	shared "github.com/cassandra-security-manager/csm/shared/config"
	"github.com/cassandra-security-manager/csm/shared/fault"
)

// Memory that the Go heap may take before the collector works harder, in bytes. The whole process stays below 30 MB.
const softMemory = 14 << 20

func limitMemory() {
	if os.Getenv("GOMEMLIMIT") == "" {
		debug.SetMemoryLimit(softMemory)
	}
}

func runCommand() *cobra.Command {
	c := &cobra.Command{Use: "run", Short: "Join if need be, then look after the node until stopped", Args: cobra.NoArgs,
		Example: "  csm-agent run\n  csm-agent run --config ./agent.yaml --mode observe",
		RunE: func(cmd *cobra.Command, _ []string) error {
			conf, err := loadToRun(cmd)
			if err != nil {
				return err
			}
			log, err := logger(conf, cli.Of(cmd).Err)
			if err != nil {
				return err
			}
			limitMemory()
			path, _ := cmd.Flags().GetString("config")
			return run(cmd.Context(), conf, path, ceiling(cmd, conf, path), log)
		}}
	c.Flags().String("mode", "", "observe, stage or manage; goes before the file")
	c.Flags().String("state-dir", "", "state folder; goes before the file")
	return c
}

// ceiling follows the mode of the file while the agent runs, unless the mode came from elsewhere.
func ceiling(cmd *cobra.Command, conf config.Config, path string) func() agentv1.Mode {
	if _, set := os.LookupEnv(shared.EnvPrefix + "MODE"); set || cmd.Flags().Changed("mode") || path == "" {
		return nil
	}
	return config.Ceiling(path, conf.AgentMode())
}

// run runs one node for each Cassandra. A node that cannot work at all ends by itself; the others go on.
func run(ctx context.Context, conf config.Config, path string, mode func() agentv1.Mode, log *slog.Logger) error {
	self, err := os.Executable()
	if err != nil {
		return fault.Wrap(err, fault.Internal, "no-helper", "the agent does not know its own program")
	}
	var shared *reload.Helper
	defer func() {
		if shared != nil {
			shared.Close()
		}
	}()
	cutter := links.Spawn(self, "helper", "links", "--config", path)
	if conf.LinksSocket != "" {
		cutter = links.Dial(conf.LinksSocket)
	}
	defer cutter.Close()
	var nodes []*node.Node
	defer func() {
		for _, n := range nodes {
			n.Close()
		}
	}()
	for _, in := range conf.Cassandra {
		var r reload.Reloader
		switch socket := conf.Socket(in); {
		case socket != "":
			h := reload.Dial(socket)
			if err := h.Check(); err != nil {
				log.Warn("nothing can be reloaded as things are; changes would be rolled back", "socket", socket, "error", err.Error())
			}
			defer h.Close()
			r = h.Reloader(in.Config)
		default:
			if shared == nil {
				if shared, err = reload.Start(self, "helper", "--config", path); err != nil {
					return err
				}
			}
			r = shared.Reloader(in.Config)
		}
		n, err := node.Open(node.Options{Config: conf, Instance: in, Reloader: r, Cutter: cutter, Clock: clockwork.NewRealClock(), Logger: log, Mode: mode, Watched: path})
		if err != nil {
			return err
		}
		nodes = append(nodes, n)
	}
	cli.Ready(log)
	context.AfterFunc(ctx, func() { cli.Stopping(log) })
	log.Info("started", "mode", conf.Mode, "instances", len(nodes), "version", cli.Version)
	var wg sync.WaitGroup
	errs := make([]error, len(nodes))
	for i, n := range nodes {
		wg.Go(func() {
			if errs[i] = n.Run(ctx); errs[i] != nil {
				log.Error("this node is not looked after", "config", conf.Cassandra[i].Config, "error", errs[i].Error())
			}
		})
	}
	wg.Wait()
	log.Info("stopped")
	if len(errs) == 1 {
		return errs[0]
	}
	return errors.Join(errs...)
}

func joinCommand() *cobra.Command {
	return &cobra.Command{Use: "join [INSTANCE]", Short: "Get an identity by the token, and nothing more", Args: cobra.MaximumNArgs(1),
		Long:    "join asks the controllers for the identity that `csm-agent run` would ask for, and ends. It changes nothing outside the state folder.",
		Example: "  csm-agent join\n  csm-agent join --timeout 20s",
		RunE: func(cmd *cobra.Command, args []string) error {
			conf, err := loadToRun(cmd)
			if err != nil {
				return err
			}
			list, err := instances(conf, args)
			if err != nil {
				return err
			}
			g := cli.Of(cmd)
			ctx, cancel := g.Context(cmd.Context())
			defer cancel()
			t := &cli.Table{Columns: []cli.Column{{Name: "NODE"}, {Name: "UID"}, {Name: "INCARNATION", Right: true}, {Name: "UNTIL"}}}
			var items []any
			for _, in := range list {
				n, err := node.Open(node.Options{Config: conf, Instance: in, Reloader: noReload{}, Clock: clockwork.NewRealClock(), Logger: slog.New(slog.DiscardHandler)})
				if err != nil {
					return err
				}
				id, err := n.Join(ctx)
				n.Close()
				if err != nil {
					return err
				}
				until := id.Chain[0].NotAfter.UTC().Format("2006-01-02")
				t.Add(id.Node, id.UID, itoa(id.Incarnation), until)
				items = append(items, map[string]any{"name": id.Node, "uid": id.UID, "incarnation": id.Incarnation, "notAfter": id.Chain[0].NotAfter.UTC()})
			}
			return g.Print(cli.View{Object: items, Items: items, Table: t, Name: func(i any) string { return i.(map[string]any)["name"].(string) },
				Note: "`csm-agent run` looks after the node from here"})
		}}
}

// noReload is the reloader of commands that never install anything.
type noReload struct{}

func (noReload) Reload(context.Context) (reload.Output, error) {
	return reload.Output{}, fault.New(fault.Internal, "no-reload", "this command reloads nothing")
}

func helperCommand() *cobra.Command {
	return &cobra.Command{Use: "helper [links]", Short: "Do for the agent the one thing that it may not (started by it)", Args: cobra.MaximumNArgs(1), ValidArgs: []string{"links"}, Hidden: true,
		Long: "helper reads requests from standard input and runs nothing but the reload commands in its own agent.yaml. The agent starts it\n" +
			"once, so that the agent itself never starts a program. `helper links` starts nothing at all: it ends connections of the\n" +
			"internode port of the Cassandras in its own agent.yaml, and needs CAP_NET_ADMIN.",
		RunE: func(cmd *cobra.Command, args []string) error {
			conf, err := load(cmd)
			if err != nil {
				return err
			}
			rw := pipe{cli.Of(cmd).In, cli.Of(cmd).Out}
			switch {
			case len(args) == 0:
				return reload.Serve(cmd.Context(), rw, conf.Commands())
			case args[0] == "links":
				return links.Serve(rw, linkSites(conf), links.Kernel())
			}
			return fault.New(fault.Invalid, "no-such-helper", "there is no helper %.40q", args[0]).Do("csm-agent helper, or csm-agent helper links")
		}}
}

// linkSites are the Cassandras whose connections a helper may end, as the local files tell.
func linkSites(conf config.Config) map[string]links.Site {
	out := map[string]links.Site{}
	for _, in := range conf.Cassandra {
		out[in.Config] = links.Site{
			Port: func() (links.Port, error) {
				inst, _, err := in.ReadOptions().Read(in.Config)
				if err != nil {
					return links.Port{}, err
				}
				return links.PortOf(inst), nil
			},
			Stopped: func() error {
				if why, held := install.Held(conf.HoldFile); held {
					return fault.New(fault.Refused, "held", "held by the HOLD file: %s", why).Do("`csm-agent release` when it may act again")
				}
				if conf.Mode != "manage" {
					return fault.New(fault.Refused, "mode", "mode in agent.yaml is %s", conf.Mode).Do("write mode: manage")
				}
				return nil
			}}
	}
	return out
}

type pipe struct {
	io.Reader
	io.Writer
}
