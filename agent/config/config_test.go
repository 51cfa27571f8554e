package config_test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/cassandra-security-manager/csm/agent/config"
	"github.com/cassandra-security-manager/csm/agent/reload"
	agentv1 "github.com/cassandra-security-manager/csm/protocol/agent/v1"
	shared "github.com/cassandra-security-manager/csm/shared/config"
)

func load(t *testing.T, text string) (config.Config, error) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "agent.yaml")
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return shared.Load(config.Defaults(), shared.Options{Path: path, Environ: []string{}})
}

func TestSixLinesAreEnough(t *testing.T) {
	c, err := load(t, `controllers: [csm1.eu:9641, csm2.us:9641, csm3.ap:9641]
pin: sha256:`+strings.Repeat("9f", 32)+`
cluster: prod-eu
join: {method: token, file: /etc/csm/join.token}
mode: observe
cassandra: [{config: /etc/cassandra/cassandra.yaml}]
`)
	if err != nil {
		t.Fatal(err)
	}
	in := c.Cassandra[0]
	if c.AgentMode() != agentv1.Mode_MODE_OBSERVE || c.StateDir != config.DefaultStateDir || c.JoinFor(in).File != "/etc/csm/join.token" {
		t.Errorf("%+v", c)
	}
	cmd := c.Commands()["/etc/cassandra/cassandra.yaml"]
	if cmd.Path != "nodetool" || cmd.Way != reload.Auto || strings.Join(cmd.Args, " ") != "-h 127.0.0.1 -p 7199 reloadssl" || cmd.Home != config.DefaultStateDir+"/cassandra/nodetool" {
		t.Errorf("reload = %+v", cmd)
	}
}

func TestAnEmptyFileObserves(t *testing.T) {
	c, err := load(t, "")
	if err != nil || c.AgentMode() != agentv1.Mode_MODE_OBSERVE {
		t.Errorf("%v, %v", c.Mode, err)
	}
	p := &shared.Problems{}
	if c.ForRun(p); len(p.List()) != 2 {
		t.Errorf("to run it needs %v", p.List())
	}
}

func TestWhatCannotWorkIsNamed(t *testing.T) {
	for text, key := range map[string]string{
		"mode: force":                                                   "mode",
		"controllers: [csm1]":                                           "controllers[0]",
		"pin: sha256:12":                                                "pin",
		"state_dir: relative":                                           "state_dir",
		"hold_file: HOLD":                                               "hold_file",
		"join: {method: magic}":                                         "join.method",
		"scan: {every: 1m}":                                             "scan.every",
		"cassandra: [{config: x}]":                                      "cassandra[0].config",
		"cassandra: [{config: /a, store_roots: [/]}]":                   "cassandra[0].store_roots[0]",
		"cassandra: [{config: /a, name: ../b}]":                         "cassandra[0].name",
		"cassandra: [{config: /a}, {config: /b}]":                       "cassandra[1].name",
		"cassandra: [{config: /a, jmx: {port: 700000}}]":                "cassandra[0].jmx.port",
		"cassandra: [{config: /a, jmx: {user: csm}}]":                   "cassandra[0].jmx",
		"cassandra: [{config: /a, jmx: {user: csm, password_file: x}}]": "cassandra[0].jmx.password_file",
		"cassandra: [{config: /a, jmx: {host: -pwf}}]":                  "cassandra[0].jmx",
		"cassandra: [{config: /a, jmx: {password: x}}]":                 "cassandra[0].jmx.password",
		"cassandra: [{config: /a, reload: {cmd: [x]}}]":                 "cassandra[0].reload.cmd",
		"cassandra: [{config: /a, reload: {way: wait}}]":                "cassandra[0].reload.way",
		"cassandra: [{config: /a, reload: {way: poll, command: [x]}}]":  "cassandra[0].reload.command",
		"cassandra: [{config: /a, reload: {java: java}}]":               "cassandra[0].reload.java",
		"log: {level: loud}":                                            "log",
	} {
		_, err := load(t, text)
		ps := shared.Of(err)
		if len(ps) == 0 || ps[0].Key != key || ps[0].Remedy == "" {
			t.Errorf("%s: %+v", text, ps)
		}
	}
}

func TestTwoInstancesAreReloadedEachByItsOwnFixedCommand(t *testing.T) {
	c, err := load(t, `cassandra:
  - {name: one, config: /etc/cassandra1/cassandra.yaml, jmx: {port: 7199, user: csm, password_file: /etc/csm/one.password}}
  - {name: two, config: /etc/cassandra2/cassandra.yaml, jmx: {host: 127.0.0.2, port: 7299, user: other, password_file: /etc/csm/two.password, tls: true}}
`)
	if err != nil {
		t.Fatal(err)
	}
	for path, want := range map[string]string{
		"/etc/cassandra1/cassandra.yaml": "-h 127.0.0.1 -p 7199 -u csm -pwf /etc/csm/one.password reloadssl",
		"/etc/cassandra2/cassandra.yaml": "-h 127.0.0.2 -p 7299 --ssl -u other -pwf /etc/csm/two.password reloadssl",
	} {
		if got := strings.Join(c.Commands()[path].Args, " "); got != want {
			t.Errorf("%s: %s", path, got)
		}
	}
	if c.Folder(c.Cassandra[0]) == c.Folder(c.Cassandra[1]) {
		t.Error("two instances share a state folder")
	}
}
