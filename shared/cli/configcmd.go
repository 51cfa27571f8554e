package cli

import (
	"fmt"

	"github.com/spf13/cobra"

	"github.com/cassandra-security-manager/csm/shared/config"
	"github.com/cassandra-security-manager/csm/shared/fault"
)

// ConfigCommand makes `config check [FILE]` for a program with a configuration of type T. options gives where it comes
// from; the file named as an argument goes before options.Path. The exit code is 2 when something is wrong.
func ConfigCommand[T any](defaults func() T, options func(cmd *cobra.Command) config.Options) *cobra.Command {
	group := &cobra.Command{Use: "config", Short: "Check the configuration, list its keys"}
	check := &cobra.Command{
		Use: "check [FILE]", Short: "Say what is wrong with the configuration: line, key, remedy", Args: cobra.MaximumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			o := options(cmd)
			if len(args) == 1 {
				o.Path = args[0]
			}
			_, err := config.Load(defaults(), o)
			return Of(cmd).printCheck(o.Path, err)
		},
	}
	check.Example = "  " + "config check /etc/csm/file.yaml\n  config check -o json"
	group.AddCommand(check)
	return group
}

func (g *Global) printCheck(path string, err error) error {
	problems := config.Of(err)
	if err != nil && problems == nil {
		return err
	}
	type report struct {
		File     string           `json:"file"`
		OK       bool             `json:"ok"`
		Problems []config.Problem `json:"problems"`
	}
	r := report{File: path, OK: len(problems) == 0, Problems: append([]config.Problem{}, problems...)}
	text := fmt.Sprintf("%s: good\n", path)
	if !r.OK {
		text = ""
		for _, p := range problems {
			text += p.String() + "\n"
			if p.Remedy != "" {
				text += "  do:  " + p.Remedy + "\n"
			}
		}
	}
	if perr := g.Print(View{Object: r, Text: text, Name: func(any) string { return path }}); perr != nil {
		return perr
	}
	if r.OK {
		return nil
	}
	if len(problems) == 1 {
		return fault.New(fault.Invalid, "bad-config", "one problem in the configuration").Do("correct it and check again")
	}
	return fault.New(fault.Invalid, "bad-config", "%d problems in the configuration", len(problems)).Do("correct them and check again")
}
