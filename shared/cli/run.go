package cli

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/signal"
	"strings"
	"syscall"

	"github.com/spf13/cobra"

	"github.com/cassandra-security-manager/csm/shared/fault"
)

// ExitInterrupted is the exit code after Ctrl-C; what was asked of a controller goes on there.
const ExitInterrupted = 130

// Exit ends a command with an exit code of its own and without a word: it has said what there was to say. Only what
// speaks another program's language (Nagios) needs it.
type Exit int

func (e Exit) Error() string { return fmt.Sprintf("exit code %d", int(e)) }

// Main runs a program with the arguments of the process and gives its exit code. SIGINT and SIGTERM end the
// context of the command; a second one ends the process at once.
func Main(root *cobra.Command) int {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	go func() { <-ctx.Done(); stop() }()
	return Run(ctx, root, os.Args[1:])
}

// Run runs a program made by Root and gives its exit code. Streams are those of Of(root).
func Run(ctx context.Context, root *cobra.Command, args []string) int {
	g := Of(root)
	root.SetArgs(args)
	root.SetIn(g.In)
	root.SetOut(g.Out)
	root.SetErr(g.Err)
	root.SetFlagErrorFunc(func(c *cobra.Command, err error) error { return usage(c, err.Error()) })
	entered := false
	prepare(root, g, &entered)
	asked, err := root.ExecuteContextC(context.WithValue(ctx, globalKey{}, g))
	if err == nil {
		return 0
	}
	if ctx.Err() != nil && errors.Is(err, context.Canceled) {
		fmt.Fprintln(g.Err, "interrupted; what was asked for goes on where it runs")
		return ExitInterrupted
	}
	var own Exit
	if errors.As(err, &own) {
		return int(own)
	}
	var f *fault.Error
	if !entered && !errors.As(err, &f) {
		err = usage(asked, err.Error())
	}
	g.Fail(err)
	return fault.ExitCode(err)
}

// prepare makes groups of commands refuse unknown verbs, and notes when a command itself begins: an error before that is
// a usage error.
func prepare(c *cobra.Command, g *Global, entered *bool) {
	if run := c.RunE; run != nil {
		c.RunE = func(cmd *cobra.Command, args []string) error {
			if err := g.check(); err != nil {
				return err
			}
			*entered = true
			return run(cmd, args)
		}
	} else if c.Run == nil && c.HasSubCommands() {
		c.Args = cobra.ArbitraryArgs
		c.RunE = func(cmd *cobra.Command, args []string) error {
			if len(args) == 0 {
				return cmd.Help()
			}
			msg := fmt.Sprintf("there is no command %q", cmd.CommandPath()+" "+args[0])
			if s := near(cmd, args[0]); len(s) > 0 {
				return fault.New(fault.Invalid, "usage", "%s", msg).Do("did you mean %q?", cmd.CommandPath()+" "+s[0])
			}
			return usage(cmd, msg)
		}
	}
	for _, sub := range c.Commands() {
		prepare(sub, g, entered)
	}
}

func near(c *cobra.Command, arg string) []string {
	if c.SuggestionsMinimumDistance <= 0 {
		c.SuggestionsMinimumDistance = 2
	}
	return c.SuggestionsFor(arg)
}

func usage(c *cobra.Command, msg string) error {
	msg, _, _ = strings.Cut(msg, "\n")
	return fault.New(fault.Invalid, "usage", "%s", msg).Do("see `%s --help`", c.CommandPath())
}

// Problem is an error as -o json tells it (RFC 9457).
type Problem struct {
	Type   string `json:"type"`
	Title  string `json:"title"`
	Status int    `json:"status"`
	Detail string `json:"detail"`
	Reason string `json:"reason,omitempty"`
	Remedy string `json:"remedy,omitempty"`
}

// Fail tells an error on stderr: "error: …" and "  do: …", or a problem document where the output is JSON.
func (g *Global) Fail(err error) { fail(g.Err, err, g.Machine(), g.Color(g.Err)) }

func fail(w io.Writer, err error, machine, color bool) {
	f := fault.From(err)
	if f.Code == fault.Differs && f.Message == "" {
		return
	}
	if machine {
		b, _ := json.Marshal(Problem{Type: "urn:csm:problem:" + f.Reason, Title: http.StatusText(f.Code.HTTPStatus()),
			Status: f.Code.HTTPStatus(), Detail: f.Message, Reason: f.Reason, Remedy: f.Remedy})
		fmt.Fprintf(w, "%s\n", b)
		return
	}
	label := "error:"
	if color {
		label = "\x1b[31;1merror:\x1b[0m"
	}
	msg := f.Message
	if f.Code == fault.Internal && f.Unwrap() != nil {
		// The words around a cause that is no fault of ours are in the chain.
		msg = err.Error()
	}
	fmt.Fprintf(w, "%s %s\n", label, strings.ReplaceAll(cleanText(strings.TrimSpace(msg)), "\n", "\n       "))
	if f.Remedy != "" {
		fmt.Fprintf(w, "  do:  %s\n", cleanText(f.Remedy))
	}
}

// Say prints a line of progress on stderr, unless -q.
func (g *Global) Say(format string, args ...any) {
	if !g.Quiet {
		fmt.Fprintf(g.Err, format+"\n", args...)
	}
}

// Detail prints a line on stderr with -v only.
func (g *Global) Detail(format string, args ...any) {
	if g.Verbose && !g.Quiet {
		fmt.Fprintf(g.Err, format+"\n", args...)
	}
}
