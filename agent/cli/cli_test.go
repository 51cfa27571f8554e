package cli_test

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/cassandra-security-manager/csm/agent/cassandra/cassandratest"
	"github.com/cassandra-security-manager/csm/agent/cli"
	"github.com/cassandra-security-manager/csm/agent/node"
	"github.com/cassandra-security-manager/csm/agent/state"
	agentv1 "github.com/cassandra-security-manager/csm/protocol/agent/v1"
	ui "github.com/cassandra-security-manager/csm/shared/cli"
	"github.com/cassandra-security-manager/csm/shared/keystore"
)

// host is a machine with one Cassandra, its stores in place, and an agent.yaml.
type host struct {
	t                         *testing.T
	config, state, hold, yaml string
	cassandra                 *cassandratest.Node
}

func newHost(t *testing.T) host {
	t.Helper()
	dir, err := filepath.EvalSymlinks(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	h := host{t, filepath.Join(dir, "agent.yaml"), filepath.Join(dir, "state"), filepath.Join(dir, "HOLD"), filepath.Join(dir, "cassandra.yaml"), nil}
	ca, store := cassandratest.NewCA(t, "ring"), cassandratest.NewStore(t, keystore.PKCS12)
	cassandratest.Write(t, store, ca.Leaf(), ca.Root)
	h.cassandra = cassandratest.Start(t, store)
	i := h.cassandra.Instance()
	tls := fmt.Sprintf("  keystore: %s\n  keystore_password: changeit\n  truststore: %s\n  truststore_password: changeit\n  store_type: PKCS12\n  require_client_auth: true\n",
		store.KeystorePath, store.TruststorePath)
	h.write(h.yaml, fmt.Sprintf("cluster_name: ring\nlisten_address: 127.0.0.1\nrpc_address: 127.0.0.1\nstorage_port: %d\nnative_transport_port: %d\n"+
		"server_encryption_options:\n  internode_encryption: all\n  require_endpoint_verification: true\n%sclient_encryption_options:\n  enabled: true\n%s",
		i.StoragePort, i.NativePort, tls, tls))
	h.write(h.config, fmt.Sprintf("cluster: prod\nmode: observe\nstate_dir: %s\nhold_file: %s\ncassandra: [{config: %s, store_roots: [%s]}]\n",
		h.state, h.hold, h.yaml, filepath.Dir(store.KeystorePath)))
	return h
}

func (h host) write(path, text string) {
	h.t.Helper()
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		h.t.Fatal(err)
	}
}

type result struct {
	code     int
	out, err string
}

func (h host) run(args ...string) result {
	h.t.Helper()
	root := cli.Root()
	g := ui.Of(root)
	var out, errs bytes.Buffer
	g.In, g.Out, g.Err = strings.NewReader(""), &out, &errs
	g.Env = func(string) string { return "" }
	code := ui.Run(context.Background(), root, append(args, "--config", h.config))
	return result{code, out.String(), errs.String()}
}

func (h host) exits(code int, r result) result {
	h.t.Helper()
	if r.code != code {
		h.t.Fatalf("exit %d, want %d\nstdout: %s\nstderr: %s", r.code, code, r.out, r.err)
	}
	return r
}

func TestExitCodesSayWhatHappened(t *testing.T) {
	h := newHost(t)
	h.exits(2, h.run("stauts"))
	h.exits(4, h.run("status"))
	h.exits(4, h.run("inspect", "no-such-instance"))
	if r := h.exits(2, h.run("run")); !strings.Contains(r.err, "controllers") {
		t.Errorf("%s", r.err)
	}
	if r := h.exits(2, h.run("join")); !strings.Contains(r.err, "controllers") {
		t.Errorf("%s", r.err)
	}
	h.write(h.config, "controlers: [a:1]\n")
	if r := h.exits(2, h.run("status")); !strings.Contains(r.err, `did you mean "controllers"?`) {
		t.Errorf("%s", r.err)
	}
}

func TestInspectSaysWhatIsUnderstoodAndTouchesNothing(t *testing.T) {
	h := newHost(t)
	r := h.run("inspect", "-o", "json")
	var x struct {
		ClusterName string
		StoragePort uint16
		Stores      []struct {
			Format, Keystore string
			Manageable       bool
			Leaf             struct{ Serial string }
			Anchors          int
		}
	}
	if err := json.Unmarshal([]byte(r.out), &x); err != nil {
		t.Fatalf("%v\n%s%s", err, r.out, r.err)
	}
	if x.ClusterName != "ring" || x.StoragePort != h.cassandra.Instance().StoragePort || len(x.Stores) != 1 {
		t.Fatalf("%+v", x)
	}
	if s := x.Stores[0]; s.Format != "PKCS12" || s.Keystore != h.cassandra.Store.KeystorePath || !s.Manageable || len(s.Leaf.Serial) < 20 || s.Anchors != 1 {
		t.Errorf("%+v", s)
	}
	if text := h.run("inspect").out; !strings.Contains(text, "store node, PKCS12") || strings.Contains(text, "changeit") {
		t.Errorf("%s", text)
	}
	if _, err := os.Stat(h.state); err == nil {
		t.Error("a state folder was made")
	}
	if h.cassandra.LoggedErrors() > 0 {
		t.Error("Cassandra was spoken to")
	}
}

func TestProbeTakesSilenceForNoAnswer(t *testing.T) {
	h := newHost(t)
	if r := h.exits(0, h.run("probe")); strings.Count(r.out, "accepted") != 2 {
		t.Errorf("%s", r.out)
	}
	h.cassandra.Set(agentv1.PortKind_PORT_KIND_CQL, cassandratest.Closing)
	if r := h.exits(10, h.run("probe")); strings.Count(r.out, "accepted") != 1 || !strings.Contains(r.out, "unknown") {
		t.Errorf("%s", r.out)
	}
}

func TestHoldAndReleaseWriteAndRemoveTheFile(t *testing.T) {
	h := newHost(t)
	h.exits(0, h.run("release"))
	h.exits(2, h.run("hold"))
	h.exits(0, h.run("hold", "moving racks\nuntil 18:00"))
	if b, err := os.ReadFile(h.hold); err != nil || string(b) != "moving racks until 18:00\n" {
		t.Errorf("%q %v", b, err)
	}
	h.exits(0, h.run("release"))
	if _, err := os.Stat(h.hold); err == nil {
		t.Error("it is still held")
	}
}

// runs is an agent that runs and has written this status down.
func (h host) runs(s node.Status) (stop func()) {
	h.t.Helper()
	dir := filepath.Join(h.state, "cassandra")
	f, err := state.Open(dir, [32]byte{1})
	if err != nil {
		h.t.Fatal(err)
	}
	b, err := json.Marshal(s)
	if err != nil {
		h.t.Fatal(err)
	}
	h.write(filepath.Join(dir, node.StatusFile), string(b))
	return f.Close
}

func TestStatusExitsByTheWorstOfWhatItTells(t *testing.T) {
	h := newHost(t)
	now := time.Now()
	good := func() node.Status {
		return node.Status{Node: "tenants/default/clusters/prod/nodes/n1", Mode: "manage", Running: true, Updated: now,
			Link:   node.Link{Connected: true, Controller: "csm1:9641"},
			Stores: []node.StoreStatus{{Name: "node", State: "proven", NotBefore: now.AddDate(0, 0, -10), NotAfter: now.AddDate(0, 0, 80), Next: node.Action{Do: node.Rest, Wants: node.Rest, Reason: "proven"}}}}
	}
	for what, c := range map[string]struct {
		change func(*node.Status)
		code   int
		says   string
	}{
		"as it should be": {func(*node.Status) {}, 0, "proven"},
		"no controller":   {func(s *node.Status) { s.Link = node.Link{Error: "refused"} }, 10, "no controller can be reached"},
		"it expires in ten days": {func(s *node.Status) {
			s.Stores[0].NotBefore, s.Stores[0].NotAfter = now.AddDate(0, 0, -80), now.AddDate(0, 0, 10)
		}, 1, "good only until"},
		"suspended": {func(s *node.Status) { s.Suspended = "copied" }, 1, "suspended"},
	} {
		s := good()
		c.change(&s)
		stop := h.runs(s)
		r := h.run("status")
		stop()
		if r.code != c.code || !strings.Contains(r.out+r.err, c.says) {
			t.Errorf("%s: exit %d, want %d with %q\n%s%s", what, r.code, c.code, c.says, r.out, r.err)
		}
	}
	if r := h.exits(1, h.run("status")); !strings.Contains(r.out+r.err, "does not run") {
		t.Errorf("%s%s", r.out, r.err)
	}
}

func TestPlanExitsWithTenWhileSomethingIsToDo(t *testing.T) {
	h := newHost(t)
	s := node.Status{Stores: []node.StoreStatus{{Name: "node", Next: node.Action{Do: node.Rest, Wants: node.Rest}}}}
	h.runs(s)()
	h.exits(0, h.run("plan"))
	s.Stores[0].Next = node.Action{Do: node.Wait, Wants: node.Install, Message: "the mode is observe"}
	h.runs(s)()
	if r := h.exits(10, h.run("plan")); !strings.Contains(r.out, "the mode is observe") {
		t.Errorf("%s", r.out)
	}
}

func TestEachCommandHasHelpWithAnExample(t *testing.T) {
	h := newHost(t)
	for _, c := range cli.Root().Commands() {
		if c.Hidden || c.Name() == "help" || c.Name() == "completion" || c.Name() == "version" || c.HasSubCommands() {
			continue
		}
		if c.Example == "" || c.Short == "" {
			t.Errorf("%s has no example", c.CommandPath())
		}
		h.exits(0, h.run(c.Name(), "--help"))
	}
}
