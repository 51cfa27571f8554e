// Package cli is what the three programs have in common on the command line: global flags, output formats, exit codes,
// how an error is told, version, completion, logs.
//
// It keeps these promises: data goes to stdout and everything else to stderr; an error says what went wrong and what to
// do next; the exit code follows one table (shared/fault); nothing is coloured when it is piped.
package cli

import (
	"context"
	"io"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/term"

	"github.com/cassandra-security-manager/csm/shared/fault"
)

// Formats of -o.
var Formats = []string{"table", "wide", "json", "yaml", "jsonl", "name"}

// Global are the flags that every command has, and where it reads and writes.
type Global struct {
	Output  string
	Timeout time.Duration
	Quiet   bool
	Verbose bool
	NoColor bool

	In       io.Reader
	Out, Err io.Writer
	// Now is the clock of relative times.
	Now func() time.Time
	// Env looks up an environment variable.
	Env func(string) string
}

// DefaultTimeout of a command that asks somebody else.
const DefaultTimeout = 30 * time.Second

// Root makes the root command of a program with the global flags, version and completion. example is shown by --help.
func Root(use, short, long, example string) *cobra.Command {
	g := &Global{}
	root := &cobra.Command{Use: use, Short: short, Long: long, Example: example, SilenceErrors: true, SilenceUsage: true}
	root.SetContext(context.WithValue(context.Background(), globalKey{}, g))
	f := root.PersistentFlags()
	f.StringVarP(&g.Output, "output", "o", "", "output: "+strings.Join(Formats, "|")+" (default table, or CSM_OUTPUT)")
	f.DurationVar(&g.Timeout, "timeout", DefaultTimeout, "give up after this time")
	f.BoolVarP(&g.Quiet, "quiet", "q", false, "no progress on stderr")
	f.BoolVarP(&g.Verbose, "verbose", "v", false, "say more on stderr")
	f.BoolVar(&g.NoColor, "no-color", false, "no colours (also NO_COLOR, or when piped)")
	_ = root.RegisterFlagCompletionFunc("output", func(*cobra.Command, []string, string) ([]string, cobra.ShellCompDirective) {
		return Formats, cobra.ShellCompDirectiveNoFileComp
	})
	root.AddCommand(versionCommand(), manualCommand())
	root.CompletionOptions.HiddenDefaultCmd = false
	return root
}

type globalKey struct{}

// Of gives the global flags of a command that Root made.
func Of(cmd *cobra.Command) *Global {
	for _, c := range []*cobra.Command{cmd, cmd.Root()} {
		if c.Context() == nil {
			continue
		}
		if g, ok := c.Context().Value(globalKey{}).(*Global); ok {
			return g.fill()
		}
	}
	return (&Global{Timeout: DefaultTimeout}).fill()
}

func (g *Global) fill() *Global {
	if g.In == nil {
		g.In = os.Stdin
	}
	if g.Out == nil {
		g.Out = os.Stdout
	}
	if g.Err == nil {
		g.Err = os.Stderr
	}
	if g.Now == nil {
		g.Now = time.Now
	}
	if g.Env == nil {
		g.Env = os.Getenv
	}
	return g
}

// Format is the chosen output format: the flag, else CSM_OUTPUT, else table.
func (g *Global) Format() string {
	if g.Output != "" {
		return g.Output
	}
	if o := g.Env("CSM_OUTPUT"); o != "" {
		return o
	}
	return "table"
}

func (g *Global) check() error {
	if !slices.Contains(Formats, g.Format()) {
		return fault.New(fault.Invalid, "bad-output", "there is no output format %.40q", g.Format()).Do("use -o %s", strings.Join(Formats, "|"))
	}
	if g.Timeout <= 0 {
		return fault.New(fault.Invalid, "bad-timeout", "--timeout must be longer than nothing").Do("write --timeout 30s")
	}
	return nil
}

// Machine reports whether the output is for a program.
func (g *Global) Machine() bool { f := g.Format(); return f == "json" || f == "yaml" || f == "jsonl" }

// Context ends after --timeout.
func (g *Global) Context(ctx context.Context) (context.Context, context.CancelFunc) {
	return context.WithTimeout(ctx, g.Timeout)
}

// Terminal reports whether a stream is a terminal.
func Terminal(w any) bool {
	f, ok := w.(*os.File)
	return ok && term.IsTerminal(int(f.Fd()))
}

// Color reports whether a stream may be coloured (no-color.org).
func (g *Global) Color(w io.Writer) bool {
	return !g.NoColor && g.Env("NO_COLOR") == "" && g.Env("TERM") != "dumb" && Terminal(w)
}
