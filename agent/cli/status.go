package cli

import (
	"crypto/x509"
	"errors"
	"fmt"
	"io/fs"
	"strings"

	"github.com/spf13/cobra"

	"github.com/cassandra-security-manager/csm/agent/config"
	"github.com/cassandra-security-manager/csm/agent/node"
	"github.com/cassandra-security-manager/csm/shared/cli"
	"github.com/cassandra-security-manager/csm/shared/fault"
)

type certs = []*x509.Certificate

type health struct {
	Level  string `json:"level"`
	Agent  bool   `json:"agentRuns"`
	Notes  []node.Note
	Status node.Status `json:"status"`
}

func statusCommand() *cobra.Command {
	return &cobra.Command{Use: "status [INSTANCE]", Short: "Say how the node stands; asks nobody", Args: cobra.MaximumNArgs(1),
		Long: "status reads what the agent last wrote down. It needs neither a controller nor a running agent.\n" +
			"Exit code 0: as it should be. 10: something to look at. 1: red, a person is needed.",
		Example: "  csm-agent status\n  csm-agent status -o json",
		RunE: func(cmd *cobra.Command, args []string) error {
			g := cli.Of(cmd)
			all, err := readAll(cmd, args)
			if err != nil {
				return err
			}
			worst := node.Green
			t := &cli.Table{Columns: []cli.Column{{Name: "NODE"}, {Name: "MODE"}, {Name: "CONTROLLER"}, {Name: "STORE"}, {Name: "STATE", Style: stateStyle}, {Name: "LEAF"},
				{Name: "GOOD UNTIL"}, {Name: "NEXT"}, {Name: "GENERATION", Right: true, Wide: true}, {Name: "KEYSTORE", Wide: true}}}
			var items []any
			var notes strings.Builder
			for _, s := range all {
				running := s.Agent
				level, list := node.Health(s.Status, running, g.Now())
				worst = max(worst, level)
				s.Level, s.Notes = level.String(), list
				items = append(items, s)
				rows(t, s.Status)
				for _, n := range list {
					fmt.Fprintf(&notes, "%s: %s\n", n.Level, n.Message)
					if n.Remedy != "" {
						fmt.Fprintf(&notes, "  do: %s\n", n.Remedy)
					}
				}
			}
			var object any = items
			if len(items) == 1 {
				object = items[0]
			}
			if err := g.Print(cli.View{Object: object, Items: items, Table: t, Name: func(i any) string { return i.(health).Status.Node }, Note: strings.TrimSpace(notes.String())}); err != nil {
				return err
			}
			switch worst {
			case node.Red:
				return fault.New(fault.Internal, "red", "a person is needed").Do("see above, and `csm-agent doctor`")
			case node.Yellow:
				return fault.New(fault.Differs, "yellow", "not everything is as it should be").Do("see above")
			}
			return nil
		}}
}

func stateStyle(cell string) cli.Style {
	switch cell {
	case "proven":
		return cli.Good
	case "failed", "contested":
		return cli.Bad
	}
	return cli.Warn
}

func rows(t *cli.Table, s node.Status) {
	who, link := s.Node, s.Link.Controller
	if who == "" {
		who = "(not joined) " + s.Config
	}
	if !s.Link.Connected {
		link = "none"
	}
	if len(s.Stores) == 0 {
		t.Add(who, s.Mode, link, "-", "-", "-", "-", s.Problem, "", "")
	}
	for _, x := range s.Stores {
		until, leaf := "-", "-"
		if !x.NotAfter.IsZero() {
			until = x.NotAfter.UTC().Format("2006-01-02 15:04")
		}
		if len(x.Leaf) > 16 {
			leaf = x.Leaf[:16]
		}
		t.Add(who, s.Mode, link, x.Name, x.State, leaf, until, next(x.Next), itoa(x.Generation), x.Keystore)
	}
}

func next(a node.Action) string {
	if a.Do == node.Wait {
		return fmt.Sprintf("%s, waits: %s", a.Wants, a.Reason)
	}
	if a.Do == node.Rest {
		return a.Reason
	}
	return string(a.Do)
}

func readAll(cmd *cobra.Command, args []string) ([]health, error) {
	conf, err := load(cmd)
	if err != nil {
		return nil, err
	}
	list, err := instances(conf, args)
	if err != nil {
		return nil, err
	}
	var out []health
	for _, in := range list {
		h, err := readOne(conf, in)
		if err != nil {
			return nil, err
		}
		out = append(out, h)
	}
	return out, nil
}

func readOne(conf config.Config, in config.Instance) (health, error) {
	s, running, err := node.ReadStatus(conf.Folder(in))
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return health{}, fault.New(fault.NotFound, "no-status", "the agent has never run for %s", in.Config).Do("start it: csm-agent run")
	case err != nil:
		return health{}, fault.Wrap(err, fault.Internal, "no-status", "the status in %s cannot be read", conf.Folder(in)).Do("run this as the agent's user")
	}
	return health{Agent: running, Status: s}, nil
}

func planCommand() *cobra.Command {
	return &cobra.Command{Use: "plan [INSTANCE]", Short: "Say what the agent would do next with each store, and what it waits for", Args: cobra.MaximumNArgs(1),
		Long:    "plan shows the decision of the running agent, in its own words. Exit code 10: something is to be done.",
		Example: "  csm-agent plan\n  csm-agent plan -o json",
		RunE: func(cmd *cobra.Command, args []string) error {
			g := cli.Of(cmd)
			all, err := readAll(cmd, args)
			if err != nil {
				return err
			}
			t := &cli.Table{Columns: []cli.Column{{Name: "STORE"}, {Name: "WANTED", Right: true}, {Name: "INSTALLED", Right: true}, {Name: "WOULD DO"}, {Name: "NOW"}, {Name: "WHY"}}}
			var items []any
			todo := 0
			for _, s := range all {
				for _, x := range s.Status.Stores {
					if x.Next.Wants != node.Rest {
						todo++
					}
					t.Add(x.Name, itoa(x.Wanted), itoa(x.Generation), string(x.Next.Wants), string(x.Next.Do), x.Next.Message)
					items = append(items, map[string]any{"node": s.Status.Node, "store": x.Name, "wanted": x.Wanted, "installed": x.Generation, "keystore": x.Keystore, "truststore": x.Truststore, "next": x.Next})
				}
			}
			if err := g.Print(cli.View{Object: items, Items: items, Table: t, Name: func(i any) string { return i.(map[string]any)["store"].(string) }}); err != nil {
				return err
			}
			if todo > 0 {
				return fault.New(fault.Differs, "to-do", "%d stores are to be changed or proved", todo).Do("mode: manage lets the agent act")
			}
			return nil
		}}
}
