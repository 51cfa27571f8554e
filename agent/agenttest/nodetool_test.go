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
	n, bin, dir := r.Nodes[0], program(t), t.TempDir()
	state, trace, conf := filepath.Join(dir, "state"), filepath.Join(dir, "trace"), filepath.Join(dir, "agent.yaml")
	must(t, os.MkdirAll(filepath.Join(state, "cassandra"), 0o700)) // the agent makes it before it asks for anything
	must(t, os.WriteFile(conf, fmt.Appendf(nil, "controllers: [127.0.0.1:1]\npin: sha256:%s\ncluster: prod\nstate_dir: %s\ncassandra: [{config: %s, reload: {command: [%s, reloadssl]}}]\n",
		strings.Repeat("0", 64), state, n.Config, n.Nodetool), 0o600))

	h, err := reload.Start(strace, "-f", "-qq", "-y", "-s", "4096", "-e", "trace="+traced, "-o", trace, bin, "helper", "--config", conf)
	must(t, err)
	_, err = h.Reloader(n.Config).(reload.Lister).Ring(t.Context())
	if err == nil || !strings.Contains(err.Error(), "Failed to connect") {
		t.Errorf("nodetool without a Cassandra says %v", err)
	}
	must(t, h.Close())

	if data, err := os.ReadFile(filepath.Join(state, "cassandra", "nodetool", ".cassandra", "nodetool.history")); err != nil || !strings.Contains(string(data), "status") {
		t.Errorf("nodetool's history holds %q, %v", data, err)
	}
	data, err := os.ReadFile(trace)
	must(t, err)
	if bad, _ := violations(string(data), state); len(bad) > 0 {
		t.Errorf("nodetool changed something outside of %s:\n%s", state, strings.Join(bad, ""))
	}
}
