package main

import (
	"bufio"
	"fmt"
	"io"
	"os"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/cassandra-security-manager/csm/controller/server"
	"github.com/cassandra-security-manager/csm/shared/cli"
	"github.com/cassandra-security-manager/csm/shared/fault"
)

func recoverCommand() *cobra.Command {
	var dryRun bool
	var plan string
	c := &cobra.Command{
		Use: "recover", Short: "Go on with this controller alone, when the majority is gone for good", Args: cobra.NoArgs,
		Long: "Use it when so many controllers are lost for good that the rest has no majority. It says first what may be lost. This\n" +
			"controller then goes on alone with the state it has, under new data keys; all others are shut out and come back only by\n" +
			"joining. Do not start any of them again with its old folder: two that still know each other could go on beside this one.\n" +
			"Interrupted before its end it has changed nothing; run it again.",
		Example: "  csm-controller recover --dry-run\n  csm-controller recover --plan 3f0c5a1be2d7c604",
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
			if plan == "" || dryRun {
				p, err := server.PlanRecover(cmd.Context(), cfg, log)
				if err != nil {
					return err
				}
				if err := g.Print(cli.View{Object: p, Pairs: recoverPairs(p, time.Now())}); err != nil || dryRun {
					return err
				}
				if err := typed(g, p.Controller, "--plan HASH"); err != nil {
					return err
				}
				plan = p.Hash
			}
			res, err := server.Recover(cmd.Context(), cfg, plan, log)
			if err != nil {
				return err
			}
			g.Say("%s goes on alone, era %d. Next: csm-controller run; then reset-identity on the others and let them join", res.Controller, res.Era)
			return g.Print(cli.View{Object: res, Pairs: recoverPairs(res.RecoverPlan, time.Now())})
		},
	}
	c.Flags().BoolVar(&dryRun, "dry-run", false, "say what would be done and what may be lost, change nothing")
	c.Flags().StringVar(&plan, "plan", "", "hash of the plan that --dry-run showed")
	return c
}

func recoverPairs(p server.RecoverPlan, now time.Time) cli.Pairs {
	var out cli.Pairs
	out.Add("system", "%s", p.SystemID)
	out.Add("goes on alone", "%s, with all entries up to %d", p.Controller, p.Last)
	out.Add("newest entry", "%s (%s)", p.Newest.Format(time.RFC3339), cli.Ago(now, p.Newest))
	out.Add("may be lost", "what the others acknowledged after entry %d: certificates, revocations, approvals since then", p.Last)
	out.Add("shut out", "%s", strings.Join(p.ShutOut, ", "))
	if len(p.Answering) > 0 {
		out.Add("still answering", "%s: stop them first", strings.Join(p.Answering, ", "))
	}
	out.Add("plan", "%s", p.Hash)
	return out
}

// typed lets a person at a terminal confirm by typing a name; otherwise says what to do without one.
func typed(g *cli.Global, name, otherwise string) error {
	if f, ok := g.In.(*os.File); !ok || !cli.Terminal(f) || !cli.Terminal(g.Err) {
		return fault.New(fault.Refused, "not-confirmed", "nobody confirmed it; nothing was changed").Do("look at it with --dry-run, then run it with %s", otherwise)
	}
	fmt.Fprintf(g.Err, "type %q to go on: ", name)
	line, err := bufio.NewReader(io.LimitReader(g.In, 4096)).ReadString('\n')
	if err != nil && line == "" || strings.TrimSpace(line) != name {
		return fault.New(fault.Refused, "not-confirmed", "%q was typed; nothing was changed", strings.TrimSpace(line))
	}
	return nil
}

func resetCommand() *cobra.Command {
	var dryRun, yes bool
	c := &cobra.Command{
		Use: "reset-identity", Short: "Set this controller's folder aside, so that it can join or be restored anew", Args: cobra.NoArgs,
		Long: "For a controller that was removed or shut out, or whose folder was copied from another one: keys, log and state are moved\n" +
			"into a folder aside-… beside them; nothing is deleted. Afterwards `join` works here under the same name.",
		Example: "  csm-controller reset-identity --dry-run\n  csm-controller reset-identity --yes",
		RunE: func(cmd *cobra.Command, _ []string) error {
			cfg, err := load(cmd)
			if err != nil {
				return err
			}
			g := cli.Of(cmd)
			now := time.Now()
			p, err := server.Reset(cfg, now, true)
			if err != nil {
				return err
			}
			if !dryRun && !yes {
				if err := typed(g, p.Controller, "--yes"); err != nil {
					return err
				}
			}
			if !dryRun {
				if p, err = server.Reset(cfg, now, false); err != nil {
					return err
				}
			}
			var out cli.Pairs
			out.Add("controller", "%s", p.Controller)
			out.Add("moved", "%s", strings.Join(p.Moves, ", "))
			out.Add("to", "%s", p.Aside)
			return g.Print(cli.View{Object: p, Pairs: out})
		},
	}
	c.Flags().BoolVar(&dryRun, "dry-run", false, "say what would be moved, move nothing")
	c.Flags().BoolVar(&yes, "yes", false, "do not ask back")
	return c
}
