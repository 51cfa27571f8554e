package agenttest

import (
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/cassandra-security-manager/csm/agent/reload"
	cassandraring "github.com/cassandra-security-manager/csm/test/ring"
)

// No Cassandra answers here: nodetool writes what it writes before it connects.
func TestNodetoolWritesNothingOutsideOfTheStateFolder(t *testing.T) {
	if testing.Short() {
		t.Skip("a real nodetool is left out of -short runs")
	}
	t.Parallel()
	strace, err := exec.LookPath("strace")
	if err != nil {
		t.Fatal("strace is missing: `make setup` installs it")
	}
	dist, err := cassandraring.Prepare(t.Context(), "../../build/cassandra/"+cassandraring.Version, false, func(s string) { t.Log(s) })
	must(t, err)
	r, err := cassandraring.New(dist, cassandraring.Options{Dir: t.TempDir(), Cluster: "silent", Addresses: []netip.Addr{netip.MustParseAddr("127.0.0.1")}})
	must(t, err)
	n := r.Nodes[0]
	said := traceRing(t, strace, n.Config, fmt.Sprintf("reload: {command: [%s, reloadssl]}", n.Nodetool), func(state string) {
		if data, err := os.ReadFile(filepath.Join(state, "cassandra", "nodetool", ".cassandra", "nodetool.history")); err != nil || !strings.Contains(string(data), "status") {
			t.Errorf("nodetool's history holds %q, %v", data, err)
		}
	})
	if !strings.Contains(said, "Failed to connect") {
		t.Errorf("nodetool without a Cassandra says %s", said)
	}
	said = traceRing(t, strace, n.Config, fmt.Sprintf("jmx: {port: %d}, reload: {way: jmx, java: %s}", n.JMX, dist.Java), func(state string) {
		if left, _ := filepath.Glob(filepath.Join(state, "cassandra", "nodetool", "*")); len(left) > 0 {
			t.Errorf("our own client leaves %v", left)
		}
	})
	if !strings.Contains(said, "cannot connect to JMX at 127.0.0.1:"+fmt.Sprint(n.JMX)) {
		t.Errorf("our own client without a Cassandra says %s", said)
	}
}

// traceRing lists the ring by the helper under strace, and gives what the agent is told. What it changes lies in the state folder.
func traceRing(t *testing.T, strace, config, how string, look func(state string)) string {
	t.Helper()
	bin, dir := program(t), t.TempDir()
	state, trace, conf := filepath.Join(dir, "state"), filepath.Join(dir, "trace"), filepath.Join(dir, "agent.yaml")
	must(t, os.MkdirAll(filepath.Join(state, "cassandra"), 0o700)) // the agent makes it before it asks for anything
	must(t, os.WriteFile(conf, fmt.Appendf(nil, "controllers: [127.0.0.1:1]\npin: sha256:%s\ncluster: prod\nstate_dir: %s\ncassandra: [{config: %s, %s}]\n",
		strings.Repeat("0", 64), state, config, how), 0o600))

	h, err := reload.Start(strace, "-f", "-qq", "-y", "-s", "4096", "-e", "trace="+traced, "-o", trace, bin, "helper", "--config", conf)
	must(t, err)
	_, said := h.Reloader(config).(reload.Lister).Ring(t.Context())
	must(t, h.Close())
	look(state)
	data, err := os.ReadFile(trace)
	must(t, err)
	if bad, _ := violations(string(data), state); len(bad) > 0 {
		t.Errorf("with %s something outside of %s was changed:\n%s", how, state, strings.Join(bad, ""))
	}
	return fmt.Sprint(said)
}
