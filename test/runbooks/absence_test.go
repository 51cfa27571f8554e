//go:build linux

package runbooks

import (
	"fmt"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/cassandra-security-manager/csm/test/clock"
	"github.com/cassandra-security-manager/csm/test/plane"
	"github.com/cassandra-security-manager/csm/test/process"
	"github.com/cassandra-security-manager/csm/test/ring"
)

const (
	away     = 400 * 24 * time.Hour
	prod     = "/v1/tenants/default/clusters/prod"
	yamlText = `cluster_name: ring
listen_address: %[1]s
rpc_address: %[1]s
storage_port: 7000
ssl_storage_port: 7001
native_transport_port: 9042
server_encryption_options:
  internode_encryption: all
  require_client_auth: true
%[2]sclient_encryption_options:
  enabled: true
%[2]s`
)

// member is what the API says of a node.
type member struct {
	State string
	Why   string
	Agent struct{ Connected bool }
	Store []struct{ NotAfter time.Time } `json:"stores"`
}

// ends is when the certificate of its first store ends; zero before there is one.
func (m member) ends() time.Time {
	if len(m.Store) == 0 {
		return time.Time{}
	}
	return m.Store[0].NotAfter
}

// absence is a system of three controllers and one agent that is left alone for long.
type absence struct {
	operator
	dir   string
	fleet plane.Fleet
	node  *ring.Node
	agent *plane.Agent
}

func (x *absence) must(err error) {
	x.t.Helper()
	if err != nil {
		x.t.Fatalf("%v\n%s", err, x.p.Tails(8))
	}
}

// stopped is a node whose Cassandra does not run: files alone, as before its first start.
func stopped(t *testing.T, dir, name string, ip netip.Addr) *ring.Node {
	t.Helper()
	n := &ring.Node{Name: name, Dir: dir, Address: ip, Config: filepath.Join(dir, "cassandra.yaml"), Stores: filepath.Join(dir, "tls"), Nodetool: "/bin/false"}
	n.Keystore, n.Truststore = filepath.Join(n.Stores, "keystore.p12"), filepath.Join(n.Stores, "truststore.p12")
	stores := fmt.Sprintf("  store_type: PKCS12\n  keystore: %s\n  keystore_password: changeit-1\n  truststore: %s\n  truststore_password: changeit-1\n", n.Keystore, n.Truststore)
	if err := os.MkdirAll(n.Stores, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(n.Config, fmt.Appendf(nil, yamlText, ip, stores), 0o600); err != nil {
		t.Fatal(err)
	}
	return n
}

// start starts the agent with the program of a folder.
func (x *absence) start(bin string) {
	x.t.Helper()
	x.agent = plane.NewAgent(filepath.Join(x.dir, "agent"), bin, x.node)
	x.must(x.agent.Write(x.fleet, "manage"))
	x.must(x.agent.Start())
	x.t.Cleanup(x.agent.Process.Kill)
}

// until asks for the node until it is so.
func (x *absence) until(within time.Duration, ok func(member) bool) {
	x.t.Helper()
	x.must(plane.Eventually(x.t.Context(), within, func() error {
		m, err := x.member()
		if err == nil && !ok(m) {
			err = fmt.Errorf("%+v\n%s", m, process.Tail(x.agent.Log(), 6))
		}
		return err
	}))
}

func (x *absence) member() (m member, err error) {
	err = x.p.API.Do(x.t.Context(), http.MethodGet, prod+"/nodes/n1", nil, &m)
	return m, err
}

// TestASystemThatWasOffFor400DaysComesBack: the system is made in the past by programs built with a shifted clock (test/clock); what
// comes back are the programs as they are shipped, by docs/runbooks/long-absence.md.
func TestASystemThatWasOffFor400DaysComesBack(t *testing.T) {
	if os.Getenv("CSM_TEST_FULL") == "" {
		t.Skip("programs with another clock are compiled anew, with all that they import: `make test-full` does it")
	}
	today, past, dir := must[string](t)(shipped()), must[string](t)(shifted()), t.TempDir()
	x := made400DaysAgo(t, dir, past)
	x.agent.Process.Kill()
	x.p.Stop()
	began := time.Now()
	x.bin = today
	x.controllersComeBack(today)
	t.Logf("quorum and a new administrator after %s", time.Since(began).Round(100*time.Millisecond))
	x.agentComesBack(today)
	t.Logf("the agent has a new certificate %s after the start", time.Since(began).Round(100*time.Millisecond))
	x.expect("csm system grace --end --reason 'all agents are back'", 0)
	x.expect("csm status --verify", 0)
	x.expect("csm check expiry", 0)
	x.expect("csm doctor", 0)
}

// made400DaysAgo is a system whose node has joined and taken its first certificate.
func made400DaysAgo(t *testing.T, dir, past string) *absence {
	t.Helper()
	// Programs as they are shipped do not know this variable: it stays set to the end.
	name, value, _ := strings.Cut(clock.Shift(-away), "=")
	t.Setenv(name, value)
	p := found(t, plane.Options{Dir: dir, Bin: past, Now: func() time.Time { return time.Now().Add(-away) }})
	x := &absence{operator: operator{t: t, p: p, env: environment(dir)}, dir: dir, fleet: p.Fleet("prod"), node: stopped(t, filepath.Join(dir, "n1"), "n1", p.Host(4))}
	x.must(p.API.Do(t.Context(), http.MethodPost, "/v1/tenants/default/clusters", map[string]string{"id": "prod", "authority": "root", "cassandraName": "ring"}, nil))
	var token struct{ Token string }
	x.must(p.API.Do(t.Context(), http.MethodPost, prod+"/joinTokens", map[string]any{"node": "n1", "dns": []string{"n1.example"}, "ips": []string{x.node.Address.String(), "127.0.0.1"}}, &token))
	if err := os.MkdirAll(filepath.Join(dir, "agent"), 0o700); err != nil {
		t.Fatal(err)
	}
	x.must(os.WriteFile(filepath.Join(dir, "agent", "join.token"), []byte(token.Token), 0o600))
	x.start(past)
	x.until(60*time.Second, func(m member) bool { return !m.ends().IsZero() })
	if m, err := x.member(); err != nil || m.ends().After(time.Now().Add(-300*24*time.Hour)) {
		t.Fatalf("the past is not past: %+v %v", m, err)
	}
	return x
}

// controllersComeBack starts them on today's clock: the quorum needs nothing, the administrator a new certificate.
func (x *absence) controllersComeBack(today string) {
	x.t.Helper()
	ctx := x.t.Context()
	for _, c := range x.p.Controllers {
		c.Use(today)
		x.must(c.Start())
	}
	admin := filepath.Join(x.dir, "ada.pem")
	x.must(plane.Eventually(ctx, 60*time.Second, func() error { return x.p.Controllers[1].Admin(ctx, "ada", admin) }))
	x.must(x.p.Login(admin))
	x.must(x.p.Ready(ctx))
	x.context()
	x.expect("csm status --verify", 0)
	for _, c := range x.p.Controllers {
		x.must(plane.Eventually(ctx, 20*time.Second, func() error {
			if end := time.Unix(int64(x.metric(c, "csm_system_identity_not_after_timestamp_seconds")), 0); time.Until(end) < 20*24*time.Hour {
				return fmt.Errorf("the identity of %s ends at %s", c.Name, end)
			}
			return nil
		}))
	}
}

// agentComesBack: its identity ended 370 days ago, so that it is refused until a grace is given.
func (x *absence) agentComesBack(today string) {
	x.t.Helper()
	x.start(today)
	x.must(plane.Eventually(x.t.Context(), 60*time.Second, func() error {
		if log := process.Tail(x.agent.Log(), 40); !strings.Contains(log, "has expired and was not renewed") || !strings.Contains(log, "csm system grace") {
			return fmt.Errorf("the agent was not refused, or not told why: %s", log)
		}
		return nil
	}))
	if m, err := x.member(); err != nil || m.ends().After(time.Now()) {
		x.t.Fatalf("it came back without a grace: %+v %v", m, err)
	}
	x.expect("csm system grace --until 24h --reason 'the site was off for a year' --yes", 0)
	x.until(90*time.Second, func(m member) bool { return m.Agent.Connected && m.ends().After(time.Now().Add(80*24*time.Hour)) })
}
