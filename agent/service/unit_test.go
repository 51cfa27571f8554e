package service

import (
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	"github.com/cassandra-security-manager/csm/agent/config"
	"github.com/cassandra-security-manager/csm/shared/fault"
)

func options() Options {
	c := config.Defaults()
	c.Cassandra = []config.Instance{{Config: "/opt/cassandra/conf/cassandra.yaml", StoreRoots: []string{"/srv/my tls"}}}
	return Options{Program: "/opt/csm/csm-agent", ConfigPath: "/etc/csm/agent.yaml", User: "cassandra", Config: c}
}

func TestTheUnitMayWriteIntoStateAndStoreFoldersOnly(t *testing.T) {
	unit, err := options().unit()
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"User=cassandra\n", "ProtectSystem=strict\n", "ReadWritePaths=-/var/lib/csm-agent -/etc/cassandra/tls \"-/srv/my tls\"\n",
		"ExecStart=/opt/csm/csm-agent service run --config /etc/csm/agent.yaml\n", "ConditionPathExistsGlob=/var/lib/csm-agent/*/identity.json\n"} {
		if !strings.Contains(unit, want) {
			t.Errorf("%q is not in\n%s", want, unit)
		}
	}
}

func TestAPathThatSystemdWouldReadOtherwiseIsRefused(t *testing.T) {
	for _, p := range []string{"/opt/%i/agent.yaml", "/opt/a\nExecStartPre=/bin/sh", `/opt/"x`, "/opt/${HOME}"} {
		o := options()
		o.ConfigPath = p
		if _, err := o.unit(); !fault.HasReason(err, "bad-path") {
			t.Errorf("%q: %v", p, err)
		}
	}
}

func TestTheUnitIsClosed(t *testing.T) {
	if runtime.GOOS != "linux" {
		return // systemd is Linux's
	}
	unit, err := options().unit()
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "csm-agent.service")
	if err := os.WriteFile(path, []byte(unit), 0o600); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command("systemd-analyze", "security", "--offline=yes", "--threshold=35", path).CombinedOutput(); err != nil {
		t.Errorf("%v\n%s", err, out)
	}
}

func TestOnlyAnAgentThatHasJoinedIsStarted(t *testing.T) {
	o := options()
	o.Config.StateDir = t.TempDir()
	if err := Joined(o.Config); !fault.HasReason(err, "not-joined") || fault.From(err).Remedy == "" {
		t.Error(err)
	}
	dir := o.Config.Folder(o.Config.Cassandra[0])
	if err := os.MkdirAll(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "identity.json"), []byte("{}"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := Joined(o.Config); err != nil {
		t.Error(err)
	}
}
