package cli_test

import (
	"bytes"
	"context"
	"encoding/json"
	"strings"
	"testing"
	"time"

	"github.com/spf13/cobra"

	"github.com/cassandra-security-manager/csm/shared/cli"
	"github.com/cassandra-security-manager/csm/shared/config"
	"github.com/cassandra-security-manager/csm/shared/fault"
)

type result struct {
	code     int
	out, err string
}

func run(t *testing.T, env map[string]string, args ...string) result {
	t.Helper()
	root := cli.Root("prog", "short", "long", "  prog do")
	g := cli.Of(root)
	var out, errs bytes.Buffer
	g.Out, g.Err, g.Env = &out, &errs, func(k string) string { return env[k] }
	group := &cobra.Command{Use: "thing"}
	group.AddCommand(&cobra.Command{Use: "get NAME", Args: cobra.ExactArgs(1), RunE: func(cmd *cobra.Command, args []string) error {
		tab := &cli.Table{Columns: []cli.Column{{Name: "NAME"}, {Name: "N", Right: true}, {Name: "MORE", Wide: true}}}
		tab.Add(args[0], "7", "x")
		tab.Add("longer-name", "1234", "")
		return cli.Of(cmd).Print(cli.View{Object: json.RawMessage(`{"name":"a/b","n":"7","ok":true}`), Table: tab})
	}})
	group.AddCommand(&cobra.Command{Use: "fail", RunE: func(*cobra.Command, []string) error {
		return fault.New(fault.Stale, "etag", "it changed meanwhile").Do("read it again")
	}})
	root.AddCommand(group, cli.ConfigCommand(func() struct {
		Name string `yaml:"name"`
	} {
		return struct {
			Name string `yaml:"name"`
		}{}
	}, func(*cobra.Command) config.Options { return config.Options{Environ: []string{}} }))
	code := cli.Run(context.Background(), root, args)
	return result{code, out.String(), errs.String()}
}

func TestAnErrorSaysWhatToDoAndSetsTheExitCode(t *testing.T) {
	r := run(t, nil, "thing", "fail")
	if r.code != 6 || r.out != "" || r.err != "error: it changed meanwhile\n  do:  read it again\n" {
		t.Fatalf("%+v", r)
	}
	r = run(t, nil, "thing", "fail", "-o", "json")
	var p cli.Problem
	if err := json.Unmarshal([]byte(r.err), &p); err != nil || p.Status != 412 || p.Reason != "etag" || p.Remedy != "read it again" {
		t.Fatalf("%+v: %v", r, err)
	}
}

func TestUsageErrorsExitWithTwo(t *testing.T) {
	for _, args := range [][]string{{"nothing"}, {"thing", "gett"}, {"thing", "get"}, {"thing", "get", "--nope", "x"},
		{"thing", "get", "x", "-o", "xml"}, {"version", "extra"}, {"thing", "get", "x", "--timeout", "0s"}} {
		if r := run(t, nil, args...); r.code != 2 || r.out != "" || !strings.Contains(r.err, "do:") {
			t.Errorf("%v: %+v", args, r)
		}
	}
	if r := run(t, nil, "thing", "gett"); !strings.Contains(r.err, `did you mean "prog thing get"?`) {
		t.Errorf("no suggestion: %+v", r)
	}
	if r := run(t, nil, "thing"); r.code != 0 || !strings.Contains(r.out, "Available Commands") {
		t.Errorf("a group alone shows its help: %+v", r)
	}
}

func TestEachFormatShowsTheSameThing(t *testing.T) {
	for format, want := range map[string]string{
		"table": "NAME            N\nx               7\nlonger-name  1234\n",
		"wide":  "NAME            N  MORE\nx               7  x\nlonger-name  1234  -\n",
		"json":  "{\n  \"name\": \"a/b\",\n  \"n\": \"7\",\n  \"ok\": true\n}\n",
		"jsonl": "{\"name\":\"a/b\",\"n\":\"7\",\"ok\":true}\n",
		"yaml":  "name: a/b\nn: \"7\"\nok: true\n",
		"name":  "a/b\n",
	} {
		if r := run(t, nil, "thing", "get", "x", "-o", format); r.code != 0 || r.out != want {
			t.Errorf("%s: got\n%s", format, r.out)
		}
		if r := run(t, map[string]string{"CSM_OUTPUT": format}, "thing", "get", "x"); r.out != want {
			t.Errorf("CSM_OUTPUT=%s: got\n%s", format, r.out)
		}
	}
}

func TestACellCannotMoveTheCursor(t *testing.T) {
	if r := run(t, nil, "thing", "get", "a\x1b[2Jb\nc"); strings.ContainsAny(r.out, "\x1b") || !strings.Contains(r.out, "a[2Jb c") {
		t.Fatalf("%q", r.out)
	}
}

func TestVersionSaysWhatItIs(t *testing.T) {
	r := run(t, nil, "version", "-o", "json")
	var b cli.Build
	if err := json.Unmarshal([]byte(r.out), &b); err != nil || b.Version == "" || b.Go == "" {
		t.Fatalf("%+v %v", r, err)
	}
}

func TestTimesAreToldAsPeopleSayThem(t *testing.T) {
	now := time.Unix(1_000_000, 0)
	for d, want := range map[time.Duration]string{0: "now", 90 * time.Second: "90s ago", 3 * time.Hour: "3h ago",
		-62 * 24 * time.Hour: "in 62d", 47 * time.Minute: "47m ago"} {
		if got := cli.Ago(now, now.Add(-d)); got != want {
			t.Errorf("%v: %q", d, got)
		}
	}
	if cli.Ago(now, time.Time{}) != "" {
		t.Error("no time must be empty")
	}
}
