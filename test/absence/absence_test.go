//go:build linux

package absence

import (
	"fmt"
	"net/http"
	"net/netip"
	"os"
	"os/exec"
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
	away    = 400 * 24 * time.Hour
	cluster = "/v1/tenants/default/clusters/prod"
)

var programs = []string{"./controller/cmd/csm-controller", "./agent/cmd/csm-agent"}

// build makes the programs of today and of 400 days ago.
func build(t *testing.T) (today, past string) {
	t.Helper()
	t.Chdir("../..")
	dir := t.TempDir()
	today, past = filepath.Join(dir, "today"), filepath.Join(dir, "past")
	if err := os.MkdirAll(today, 0o700); err != nil {
		t.Fatal(err)
	}
	c := exec.Command("go", append([]string{"build", "-o", today + "/"}, programs...)...)
	c.Env = append(os.Environ(), "CGO_ENABLED=0", "GOFLAGS=-trimpath")
	if out, err := c.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	if err := clock.Build(past, programs...); err != nil {
		t.Fatal(err)
	}
	return today, past
}

type node struct {
	State string
	Why   string
	Agent struct{ Connected bool }
	Store []struct{ NotAfter time.Time } `json:"stores"`
}

// cassandra is a node whose Cassandra is not running: files alone, as before its first start.
func cassandra(t *testing.T, dir string, ip netip.Addr) *ring.Node {
	t.Helper()
	n := &ring.Node{Name: "n1", Dir: dir, Address: ip, Config: filepath.Join(dir, "cassandra.yaml"), Stores: filepath.Join(dir, "tls"), Nodetool: "/bin/false"}
	n.Keystore, n.Truststore = filepath.Join(n.Stores, "keystore.p12"), filepath.Join(n.Stores, "truststore.p12")
	stores := fmt.Sprintf("  store_type: PKCS12\n  keystore: %s\n  keystore_password: changeit-1\n  truststore: %s\n  truststore_password: changeit-1\n", n.Keystore, n.Truststore)
	text := fmt.Sprintf("cluster_name: ring\nlisten_address: %[1]s\nrpc_address: %[1]s\nstorage_port: 7000\nssl_storage_port: 7001\nnative_transport_port: 9042\n"+
		"server_encryption_options:\n  internode_encryption: all\n  require_client_auth: true\n%[2]sclient_encryption_options:\n  enabled: true\n%[2]s", ip, stores)
	if err := os.MkdirAll(n.Stores, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(n.Config, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return n
}

func TestASystemThatWasOffFor400DaysComesBack(t *testing.T) {
	if testing.Short() {
		t.Skip("real programs are left out of -short runs")
	}
	today, past := build(t)
	// Programs as they are shipped do not know this variable: it stays set to the end.
	name, value, _ := strings.Cut(clock.Shift(-away), "=")
	t.Setenv(name, value)
	r, err := process.Claim(200, 4, 9640, 9641, 9642, 9643, 9644)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(r.Release)
	ctx := t.Context()
	dir := t.TempDir()
	p, err := plane.Start(ctx, plane.Options{Dir: dir, Bin: past, Host: r.Host, Regions: []string{"eu-west", "us-east", "ap-south"}, Root: "lab",
		Now: func() time.Time { return time.Now().Add(-away) }})
	if p != nil {
		t.Cleanup(p.Stop)
	}
	fail := func(err error) {
		t.Helper()
		if err != nil {
			if p != nil {
				t.Log(p.Tails(8))
			}
			t.Fatal(err)
		}
	}
	fail(err)

	// 400 days ago: a node joins and takes its first certificate.
	n := cassandra(t, filepath.Join(dir, "n1"), r.Host(4))
	fail(p.API.Do(ctx, http.MethodPost, "/v1/tenants/default/clusters", map[string]string{"id": "prod", "authority": "root", "cassandraName": "ring"}, nil))
	fleet := p.Fleet("prod")
	write := func(bin string) *plane.Agent {
		a := plane.NewAgent(filepath.Join(dir, "agent"), bin, n)
		fail(a.Write(fleet, "manage"))
		return a
	}
	a := write(past)
	var token struct{ Token string }
	fail(p.API.Do(ctx, http.MethodPost, cluster+"/joinTokens", map[string]any{"node": "n1", "dns": []string{"n1.example"}, "ips": []string{n.Address.String(), "127.0.0.1"}}, &token))
	fail(os.WriteFile(a.Token, []byte(token.Token), 0o600))
	fail(a.Start())
	seen := func(ok func(node) bool) func() error {
		return func() error {
			var x node
			if err := p.API.Do(ctx, http.MethodGet, cluster+"/nodes/n1", nil, &x); err != nil {
				return err
			}
			if !ok(x) {
				return fmt.Errorf("%+v\n%s", x, process.Tail(a.Log(), 6))
			}
			return nil
		}
	}
	fail(plane.Eventually(ctx, 60*time.Second, seen(func(x node) bool { return len(x.Store) > 0 && !x.Store[0].NotAfter.IsZero() })))
	if err := seen(func(x node) bool { return x.Store[0].NotAfter.Before(time.Now().Add(-300 * 24 * time.Hour)) })(); err != nil {
		t.Fatalf("the past is not past: %v", err)
	}

	// Everything stops. 400 days later everything starts, and the quorum is back by itself.
	a.Process.Kill()
	p.Stop()
	for _, c := range p.Controllers {
		c.Use(today)
		fail(c.Start())
	}
	began := time.Now()
	admin := filepath.Join(dir, "ada-today.pem")
	fail(plane.Eventually(ctx, 60*time.Second, func() error { return p.Controllers[1].Admin(ctx, "ada", admin) }))
	fail(p.Login(admin))
	fail(p.Ready(ctx))
	t.Logf("quorum, new controller identities and a new administrator after %s", time.Since(began).Round(100*time.Millisecond))

	// The agent's identity ended 370 days ago: it is refused until a grace is given.
	a = write(today)
	fail(a.Start())
	t.Cleanup(func() { a.Process.Kill() })
	refused := func() error {
		if log := process.Tail(a.Log(), 40); !strings.Contains(log, "identity was not renewed") {
			return fmt.Errorf("the agent was not refused: %s", log)
		}
		return nil
	}
	fail(plane.Eventually(ctx, 60*time.Second, refused))
	if err := seen(func(x node) bool { return !x.Agent.Connected || x.Store[0].NotAfter.Before(time.Now()) })(); err != nil {
		t.Fatalf("it came back without a grace: %v", err)
	}
	fail(p.API.Do(ctx, http.MethodPost, "/v1/system:grace", map[string]any{"reason": "the site was off", "until": time.Now().Add(time.Hour).UTC().Format(time.RFC3339)}, nil))
	fail(plane.Eventually(ctx, 120*time.Second, seen(func(x node) bool {
		return x.Agent.Connected && x.Store[0].NotAfter.After(time.Now().Add(80*24*time.Hour))
	})))
	t.Logf("the agent is back with a new certificate %s after the start", time.Since(began).Round(100*time.Millisecond))
	var sums struct{ Consistent bool }
	fail(p.API.Do(ctx, http.MethodPost, "/v1/system:verify", struct{}{}, &sums))
	if !sums.Consistent {
		t.Error("the controllers do not hold the same state")
	}
}
