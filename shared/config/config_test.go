package config_test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/spf13/pflag"

	"github.com/cassandra-security-manager/csm/shared/config"
	"github.com/cassandra-security-manager/csm/shared/fault"
)

type sample struct {
	Name   string           `yaml:"name"`
	Dir    string           `yaml:"data_dir"`
	Pass   config.Reference `yaml:"pass"`
	Peers  []string         `yaml:"join_peers"`
	Listen struct {
		API   string        `yaml:"api"`
		Every time.Duration `yaml:"every"`
		Limit int           `yaml:"limit"`
		On    bool          `yaml:"on"`
	} `yaml:"listen"`
	Cassandra []struct {
		Config string `yaml:"config"`
	} `yaml:"cassandra"`
}

func (s *sample) Check(p *config.Problems) {
	if s.Listen.API == "bad" {
		p.Add("listen.api", "not an address", "write :9640")
	}
	for _, c := range s.Cassandra {
		if c.Config == "" {
			p.Add("cassandra[0].config", "missing", "name cassandra.yaml")
		}
	}
}

func write(t *testing.T, body string) string {
	t.Helper()
	p := filepath.Join(t.TempDir(), "c.yaml")
	if err := os.WriteFile(p, []byte(body), 0o600); err != nil {
		t.Fatal(err)
	}
	return p
}

func load(t *testing.T, body string, env ...string) (sample, error) {
	t.Helper()
	d := sample{Name: "default", Peers: []string{"x", "y", "z"}}
	d.Listen.Limit = 9
	return config.Load(d, config.Options{Path: write(t, body), Environ: env})
}

func TestEachSourceGoesOverTheOneBefore(t *testing.T) {
	flags := pflag.NewFlagSet("f", pflag.ContinueOnError)
	flags.String("data-dir", "/unset", "")
	flags.Int("max", 3, "")
	flags.Bool("unrelated", false, "")
	if err := flags.Parse([]string{"--max", "77", "--unrelated"}); err != nil {
		t.Fatal(err)
	}
	d := sample{Name: "default", Dir: "/default"}
	got, err := config.Load(d, config.Options{
		Path:    write(t, "name: file\njoin_peers: [a, b]\nlisten: {api: ':1', every: 6h, limit: 1}\ncassandra: [{config: /c}]\n"),
		Environ: []string{"CSM_LISTEN_API=:2", "CSM_JOIN_PEERS=c, d,", "CSM_LISTEN_LIMIT=5", "CSM_CONTEXT=other", "HOME=/"},
		Flags:   flags, FlagKeys: map[string]string{"max": "listen.limit"},
	})
	if err != nil {
		t.Fatal(err)
	}
	if got.Name != "file" || got.Dir != "/default" || got.Listen.API != ":2" || got.Listen.Every != 6*time.Hour ||
		got.Listen.Limit != 77 || strings.Join(got.Peers, "+") != "c+d" || got.Cassandra[0].Config != "/c" {
		t.Fatalf("%+v", got)
	}
}

func TestWhatIsWrongNamesLineKeyAndRemedy(t *testing.T) {
	for name, c := range map[string]struct {
		body, want, remedy string
		line               int
	}{
		"misspelt key":        {"name: a\nlisten:\n  api: x\n  evry: 5s\n", "listen.evry: unknown key", `did you mean "every"?`, 4},
		"foreign key":         {"name: a\nzookeeper: b\n", "zookeeper: unknown key", "known here", 2},
		"key in a list":       {"cassandra:\n- config: /a\n- confg: /b\n", "cassandra[1].confg: unknown key", `did you mean "config"?`, 3},
		"double key":          {"name: a\nname: b\n", "name: this key stands in line 1 already", "keep one", 2},
		"bad time span":       {"listen: {every: 5 parsecs}\n", "not a time span", "correct", 1},
		"bad number":          {"listen:\n  limit: many\n", "not a number", "correct", 2},
		"bad bool":            {"listen:\n  on: perhaps\n", "neither true nor false", "correct", 2},
		"scalar for group":    {"listen: here\n", "a group of keys is wanted", "indented", 1},
		"group for scalar":    {"name: {a: b}\n", "one value is wanted", "name: value", 1},
		"scalar for list":     {"join_peers: a\n", "a list is wanted", "[a, b]", 1},
		"not YAML":            {"name: a\n\tx: 1\n", "line 2", "spaces not tabs", 2},
		"no mapping":          {"- a\n", "not a list of", "first column", 1},
		"refused by the type": {"name: a\nlisten:\n  api: bad\n", "listen.api: not an address", ":9640", 3},
		"line of the parent":  {"name: a\ncassandra:\n- {}\n", "cassandra[0].config: missing", "name cassandra.yaml", 3},
	} {
		_, err := load(t, c.body)
		ps := config.Of(err)
		if len(ps) != 1 || !fault.HasReason(err, "bad-config") || fault.ExitCode(err) != 2 {
			t.Errorf("%s: %v", name, err)
			continue
		}
		if p := ps[0]; p.Line != c.line || !strings.Contains(p.String(), c.want) || !strings.Contains(p.Remedy, c.remedy) {
			t.Errorf("%s: line %d %q, do %q", name, p.Line, p, p.Remedy)
		}
	}
}

func TestAllProblemsAreToldAtOnce(t *testing.T) {
	_, err := load(t, "nam: a\nlisten: {limit: x}\n", "CSM_LISTEN_ON=maybe")
	if len(config.Of(err)) != 3 || strings.Count(err.Error(), "\n") != 2 {
		t.Fatalf("%v", err)
	}
}

func TestASecretInTheFileIsRefusedAndNotRepeated(t *testing.T) {
	_, err := load(t, "pass: hunter2\n")
	if err == nil || strings.Contains(err.Error(), "hunter2") || !strings.Contains(err.Error(), "file:/path") {
		t.Fatalf("%v", err)
	}
	s := write(t, "pw\n")
	got, err := load(t, "pass: file:"+s+"\n")
	if err != nil {
		t.Fatal(err)
	}
	if b, err := got.Pass.Resolve(); err != nil || string(b) != "pw" {
		t.Fatalf("%q %v", b, err)
	}
	t.Setenv("SOME_PW", "pw2")
	if b, err := config.Reference("env:SOME_PW").Resolve(); err != nil || string(b) != "pw2" {
		t.Fatalf("%q %v", b, err)
	}
	t.Setenv("CREDENTIALS_DIRECTORY", filepath.Dir(s))
	if b, err := config.Reference("credential:c.yaml").Resolve(); err != nil || string(b) != "pw" {
		t.Fatalf("%q %v", b, err)
	}
}

func TestAMissingFileSaysSo(t *testing.T) {
	if _, err := config.Load(sample{}, config.Options{Path: "/nowhere/c.yaml", Environ: []string{}}); !fault.HasReason(err, "no-config") {
		t.Fatal(err)
	}
	if _, err := config.Load(sample{}, config.Options{Path: "/nowhere/c.yaml", Optional: true, Environ: []string{}}); err != nil {
		t.Fatal(err)
	}
}

func FuzzNoDocumentBreaksTheLoader(f *testing.F) {
	for _, s := range []string{"", "a", "name: a", "listen: &x {api: *x}", "a: &a [*a]", "? {a: b}\n: c", "<<: {name: b}", "name: !!binary aGk="} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, body string) {
		path := filepath.Join(t.TempDir(), "c.yaml")
		if err := os.WriteFile(path, []byte(body), 0o600); err != nil {
			t.Fatal(err)
		}
		_, err := config.Load(sample{}, config.Options{Path: path, Environ: []string{}})
		if err != nil && !fault.Is(err, fault.Invalid) {
			t.Fatalf("%q: %v", body, err)
		}
	})
}
