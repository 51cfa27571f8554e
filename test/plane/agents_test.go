//go:build linux

package plane_test

import (
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/cassandra-security-manager/csm/test/plane"
	"github.com/cassandra-security-manager/csm/test/port"
	"github.com/cassandra-security-manager/csm/test/process"
)

var agentProgram = sync.OnceValues(func() (string, error) {
	path := filepath.Join(folder, "csm-agent")
	c := exec.Command("go", "build", "-o", path, "./agent/cmd/csm-agent")
	c.Dir, c.Env = "../..", append(os.Environ(), "CGO_ENABLED=0")
	if out, err := c.CombinedOutput(); err != nil {
		return "", fmt.Errorf("%w: %s", err, out)
	}
	return path, nil
})

// host is a real csm-agent beside a Cassandra that does not run: its stores are installed for its next start.
type host struct {
	w      world
	name   string
	log    string
	stores string
	dir    string
	spec   process.Spec
	runs   *process.Process
}

type nodeView struct {
	Agent  struct{ Connected bool }
	Stores []struct {
		Generation, Installed uint64
		State, LeafSha256     string
	}
}

func (w world) host(name string) *host {
	w.t.Helper()
	program, err := agentProgram()
	w.must(err)
	return w.hostOf(program, name)
}

// hostOf is a host whose agent is of another build, with an environment of its own.
func (w world) hostOf(program, name string, env ...string) *host {
	w.t.Helper()
	dir := w.t.TempDir()
	var token struct{ Token string }
	w.must(w.API.Do(w.t.Context(), http.MethodPost, "/v1/tenants/default/clusters/prod/joinTokens",
		map[string]any{"node": name, "dns": []string{name + ".example"}, "ips": []string{"127.0.0.1"}}, &token))
	internode, err := port.Free()
	w.must(err)
	native, err := port.Free()
	w.must(err)
	stores := filepath.Join(dir, "tls")
	w.must(os.MkdirAll(stores, 0o700))
	section := fmt.Sprintf("require_client_auth: true, store_type: PKCS12, keystore: %[1]s/keystore.p12, keystore_password: changeit, truststore: %[1]s/truststore.p12, truststore_password: changeit", stores)
	files := map[string]string{
		"cassandra.yaml": fmt.Sprintf("cluster_name: ring\nendpoint_snitch: SimpleSnitch\nlisten_address: 127.0.0.1\nrpc_address: 127.0.0.1\nstorage_port: %d\nnative_transport_port: %d\n"+
			"server_encryption_options: {internode_encryption: all, %s}\n", internode, native, section),
		"token": token.Token + "\n",
		"agent.yaml": fmt.Sprintf("controllers: [%s]\npin: %s\ncluster: prod\njoin: {method: token, file: %s/token}\nmode: manage\nstate_dir: %s/state\nhold_file: %s/HOLD\n"+
			"cassandra: [{config: %s/cassandra.yaml, store_roots: [%s], reload: {command: [/bin/true]}}]\n",
			strings.Join(w.Fleet("prod").Controllers, ", "), w.API.Pin, dir, dir, dir, dir, stores),
	}
	for name, text := range files {
		w.must(os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600))
	}
	h := &host{w: w, name: name, log: filepath.Join(dir, "agent.log"), stores: stores, dir: dir}
	h.spec = process.Spec{Name: "agent of " + name, Path: program, Args: []string{"run", "--config", filepath.Join(dir, "agent.yaml")}, Env: env, Dir: dir, Log: h.log}
	h.start()
	w.t.Cleanup(h.kill)
	return h
}

func (h *host) start() {
	h.w.t.Helper()
	var err error
	h.runs, err = process.Start(h.spec)
	h.w.must(err)
}

// kill ends the agent with SIGKILL.
func (h *host) kill() { h.runs.Kill() }

func (h *host) path() string { return "/v1/tenants/default/clusters/prod/nodes/" + h.name }

// await gives the node when it is as wanted.
func (h *host) await(what string, want func(nodeView) bool) (v nodeView) {
	h.w.t.Helper()
	err := plane.Eventually(h.w.t.Context(), 90*time.Second, func() error {
		v = nodeView{}
		if err := h.w.API.Do(h.w.t.Context(), http.MethodGet, h.path(), nil, &v); err != nil {
			return err
		}
		if len(v.Stores) != 1 || !want(v) {
			return fmt.Errorf("%s: %s is %+v", what, h.name, v)
		}
		return nil
	})
	if err != nil {
		h.w.t.Logf("the agent's log:\n%s", process.Tail(h.log, 15))
	}
	h.w.must(err)
	return v
}

func (h *host) installed() nodeView {
	h.w.t.Helper()
	return h.await("installed", func(v nodeView) bool { return v.Stores[0].Installed > 0 && v.Stores[0].LeafSha256 != "" })
}

// renew asks for a renewal and waits until it is installed.
func (h *host) renew() {
	h.w.t.Helper()
	before := h.installed()
	var r struct{ Generation uint64 }
	h.w.must(h.w.API.Do(h.w.t.Context(), http.MethodPost, h.path()+":renew", map[string]string{"reason": "test"}, &r))
	h.await("renewed", func(v nodeView) bool {
		return v.Stores[0].Installed >= r.Generation && v.Stores[0].LeafSha256 != before.Stores[0].LeafSha256
	})
}

// TestEveryAgentsNextRenewalWorksAfterARestore: agents that heard more than the backup holds, renewed after it even, follow the
// restored system with the identity and the pin that they have.
func TestEveryAgentsNextRenewalWorksAfterARestore(t *testing.T) {
	t.Parallel()
	w, _ := copies(t, "")
	w.must(w.cluster("prod"))
	hosts := []*host{w.host("n1"), w.host("n2")}
	for _, h := range hosts {
		h.installed()
	}
	b := w.backup(w.Controllers[0])
	hosts[0].renew() // the backup knows nothing of it
	w.wipe(w.Controllers...)
	first := w.Controllers[1]
	if out, err := first.Command(t.Context(), "snapshot", "restore", b.Location, "--recovery-share", w.Recovery()); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	w.must(first.Start())
	w.must(w.Wait(t.Context(), 1))
	for _, h := range hosts {
		h.await("back", func(v nodeView) bool { return v.Agent.Connected })
		h.renew()
	}
}
