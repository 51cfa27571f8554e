package main

import (
	"bytes"
	"context"
	"os"

	"github.com/spf13/cobra"

	"github.com/cassandra-security-manager/csm/controller/server"
	"github.com/cassandra-security-manager/csm/shared/cli"
	"github.com/cassandra-security-manager/csm/shared/fault"
)

func initCommand() *cobra.Command {
	var opt server.InitOptions
	c := &cobra.Command{
		Use: "init", Short: "Make a new system with this controller as its first member", Args: cobra.NoArgs,
		Long: "init makes the system CA, the data key, a recovery share and the first administrator, and (unless --root none) a root\n" +
			"and an issuing CA for this region. It writes nothing into a folder that already holds a controller.",
		Example: "  csm-controller init --admin alice --admin-out alice.pem --recovery-out recovery.key",
		RunE: func(cmd *cobra.Command, _ []string) error {
			cfg, err := load(cmd)
			if err != nil {
				return err
			}
			g := cli.Of(cmd)
			log, err := quiet(cfg.Log).Logger(g.Err)
			if err != nil {
				return err
			}
			ctx, cancel := g.Context(cmd.Context())
			defer cancel()
			res, err := server.Init(ctx, cfg, opt, log)
			if err != nil {
				return err
			}
			var p cli.Pairs
			p.Add("system", "%s", res.SystemID)
			p.Add("pin of the system CA", "%s", res.Pin)
			p.Add("controller", "%s, key %s", res.Controller, res.Fingerprint)
			p.Add("administrator", "%s, key and certificate in %s", res.Admin, res.AdminFile)
			p.Add("recovery share", "%s: carry it away from this machine now", res.Recovery)
			if res.Request != "" {
				p.Add("request", "%s: have it signed as a CA, then csm ca install root --chain FILE", res.Request)
			}
			if res.Root != "" {
				p.Add("root", "%s", res.Root)
				p.Add("issuer", "%s", res.Issuer)
			}
			g.Say("next: csm-controller run, then csm context set … --server https://%s", res.APIAddress)
			return g.Print(cli.View{Object: res, Pairs: p})
		},
	}
	f := c.Flags()
	f.StringVar(&opt.Admin, "admin", "admin", "name of the first administrator")
	f.StringVar(&opt.AdminOut, "admin-out", "admin.pem", "file for his key and certificate")
	f.StringVar(&opt.RecoveryOut, "recovery-out", "csm-recovery.key", "file for the recovery share")
	f.StringVar(&opt.Root, "root", "lab", "lab: a root whose key is sealed in the state, and an issuer for this region; subordinate: a request for an issuer under\n"+
		"your own CA; offline: no CA yet, issuers are signed elsewhere (csm ca csr, csm ca install); none: no CA yet")
	f.StringVar(&opt.CSROut, "csr-out", "csm-issuer.csr", "file for the request of --root subordinate")
	return c
}

// quiet keeps what a short command logs to what matters.
func quiet(l cli.Log) cli.Log {
	if l.Level == "info" {
		l.Level = "error"
	}
	return l
}

func joinCommand() *cobra.Command {
	var opt server.JoinOptions
	var tokenFile string
	c := &cobra.Command{
		Use: "join", Short: "Make this controller a member of an existing system", Args: cobra.NoArgs,
		Long: "join shows a one-time token to one of join_peers and waits until an administrator has compared the fingerprint printed\n" +
			"here and approved it (csm system approve NAME --fingerprint …), for as long as that takes unless --timeout is given. When it\n" +
			"was interrupted, the same command goes on. Afterwards start the controller with `csm-controller run`.",
		Example: "  csm-controller join --pin sha256:9f2c… --token-file /etc/csm/controller.token --timeout 10m",
		RunE: func(cmd *cobra.Command, _ []string) error {
			cfg, err := load(cmd)
			if err != nil {
				return err
			}
			token, err := os.ReadFile(tokenFile)
			if err != nil {
				return fault.Wrap(err, fault.Invalid, "no-token", "the token cannot be read").Do("make one with `csm system join-token` and name its file with --token-file")
			}
			opt.Token = string(bytes.TrimSpace(token))
			g := cli.Of(cmd)
			opt.Key = func(fingerprint string) { g.Say("key of this controller: %s", fingerprint) }
			shown := false
			opt.Waiting = func(fingerprint string) {
				if !shown {
					g.Say("waiting for approval: csm system approve %s --fingerprint %s", cfg.Name, fingerprint)
					shown = true
				}
			}
			opt.Trouble = func(address string, err error) { g.Detail("%s: %v", address, err) }
			ctx := cmd.Context()
			if cmd.Flags().Changed("timeout") { // a person compares and approves: without the flag there is no hurry
				var cancel context.CancelFunc
				ctx, cancel = g.Context(ctx)
				defer cancel()
			}
			res, err := server.Join(ctx, cfg, opt)
			if err != nil {
				return err
			}
			var p cli.Pairs
			p.Add("system", "%s", res.SystemID)
			p.Add("controller", "%s, key %s", res.Controller, res.Fingerprint)
			g.Say("next: csm-controller run")
			return g.Print(cli.View{Object: res, Pairs: p})
		},
	}
	c.Flags().StringVar(&opt.Pin, "pin", "", "fingerprint of the system CA (sha256:…), printed by init and by csm status")
	c.Flags().StringVar(&tokenFile, "token-file", "", "file that holds the one-time token")
	_ = c.MarkFlagRequired("pin")
	_ = c.MarkFlagRequired("token-file")
	return c
}

func runCommand() *cobra.Command {
	return &cobra.Command{
		Use: "run", Short: "Serve until stopped", Args: cobra.NoArgs,
		Example: "  csm-controller run --config /etc/csm/controller.yaml",
		RunE: func(cmd *cobra.Command, _ []string) error {
			cfg, err := load(cmd)
			if err != nil {
				return err
			}
			log, err := cfg.Log.Logger(cli.Of(cmd).Err)
			if err != nil {
				return err
			}
			context.AfterFunc(cmd.Context(), func() { cli.Stopping(log) })
			if err := server.Run(cmd.Context(), cfg, log, func() { cli.Ready(log) }); err != nil && cmd.Context().Err() == nil {
				return err
			}
			log.Info("stopped")
			return nil
		},
	}
}

func adminCommand() *cobra.Command {
	group := &cobra.Command{Use: "admin", Short: "Make or revoke administrators, on the machine of a running controller"}
	var out, reason string
	add := &cobra.Command{
		Use: "add NAME", Short: "Make an administrator: key and client certificate in one file", Args: cobra.ExactArgs(1),
		Example: "  csm-controller admin add alice --out alice.pem",
		RunE: func(cmd *cobra.Command, args []string) error {
			return withConfig(cmd, func(ctx context.Context, g *cli.Global, cfg server.Config) error {
				if out == "" {
					out = args[0] + ".pem"
				}
				res, err := server.AddAdmin(ctx, cfg, args[0], out)
				if err != nil {
					return err
				}
				var p cli.Pairs
				p.Add("administrator", "%s", res.Name)
				p.Add("key and certificate", "%s", res.File)
				p.Add("pin of the system CA", "%s", res.Pin)
				return g.Print(cli.View{Object: res, Pairs: p})
			})
		},
	}
	add.Flags().StringVar(&out, "out", "", "file to write (default NAME.pem)")
	revoke := &cobra.Command{
		Use: "revoke NAME", Short: "Close every door to an administrator, at once", Args: cobra.ExactArgs(1),
		Example: "  csm-controller admin revoke alice --reason 'left the team'",
		RunE: func(cmd *cobra.Command, args []string) error {
			return withConfig(cmd, func(ctx context.Context, g *cli.Global, cfg server.Config) error {
				if err := server.RevokeAdmin(ctx, cfg, args[0], reason); err != nil {
					return err
				}
				g.Say("%s is revoked", args[0])
				return nil
			})
		},
	}
	revoke.Flags().StringVar(&reason, "reason", "", "why, for the audit log")
	group.AddCommand(add, revoke)
	return group
}

func withConfig(cmd *cobra.Command, do func(context.Context, *cli.Global, server.Config) error) error {
	cfg, err := load(cmd)
	if err != nil {
		return err
	}
	g := cli.Of(cmd)
	ctx, cancel := g.Context(cmd.Context())
	defer cancel()
	return do(ctx, g, cfg)
}
