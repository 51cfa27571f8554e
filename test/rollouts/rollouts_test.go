//go:build linux

// Package rollouts_test runs rollouts over a real ring with real controllers, agents and a load, as an operator does: by
// the command line.
package rollouts_test

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"net/http"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/cassandra-security-manager/csm/controller/api/rest"
	"github.com/cassandra-security-manager/csm/controller/fleet"
	"github.com/cassandra-security-manager/csm/shared/certificate"
	"github.com/cassandra-security-manager/csm/shared/workload"
	"github.com/cassandra-security-manager/csm/test/plane"
	"github.com/cassandra-security-manager/csm/test/process"
	"github.com/cassandra-security-manager/csm/test/ring"
)

const (
	prod = "/v1/tenants/default/clusters/prod"
	// patience bounds a wait that fails.
	patience = 5 * time.Minute
	// quick lets a ring settle within seconds: nobody else is on this machine.
	quick = "-Dcassandra.ring_delay_ms=5000"
)

// estate is a ring with its controllers and agents.
type estate struct {
	t        *testing.T
	p        *plane.Plane
	r        *ring.Ring
	bin, dir string
	agents   map[string]*plane.Agent
}

func (e *estate) must(err error) {
	e.t.Helper()
	if err == nil {
		return
	}
	for name, a := range e.agents {
		e.t.Logf("-- agent of %s\n%s", name, process.Tail(a.Log(), 12))
	}
	e.t.Fatalf("%v\n%s", err, e.p.Tails(4))
}

// lay runs three controllers and lays out a ring of three that has never been started.
func lay(t *testing.T) *estate {
	t.Helper()
	e := &estate{t: t, bin: t.TempDir(), dir: t.TempDir(), agents: map[string]*plane.Agent{}}
	build := exec.Command("go", "build", "-o", e.bin+"/", "./controller/cmd/csm-controller", "./controller/cmd/csm", "./agent/cmd/csm-agent")
	build.Dir, build.Env = "../..", append(os.Environ(), "CGO_ENABLED=0", "GOFLAGS=-trimpath")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	dist, err := ring.Prepare(t.Context(), "../../build/cassandra/"+ring.Version, false, func(s string) { t.Log(s) })
	if err != nil {
		t.Fatal(err)
	}
	hosts, err := process.Claim(60, 3, ring.StoragePort, ring.NativePort)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(hosts.Release)
	controllers, err := process.Claim(120, 3, 9640, 9641, 9642, 9643, 9644)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(controllers.Release)
	if e.r, err = ring.New(dist, ring.Options{Dir: filepath.Join(e.dir, "ring"), Cluster: "rollouts", Addresses: []netip.Addr{hosts.Host(1), hosts.Host(2), hosts.Host(3)}}); err != nil {
		t.Fatal(err)
	}
	e.p, err = plane.Start(t.Context(), plane.Options{Dir: e.dir, Bin: e.bin, Host: controllers.Host, Regions: []string{"eu-west", "us-east", "ap-south"}, Root: "lab"})
	if e.p != nil {
		t.Cleanup(e.p.Stop)
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(e.r.Kill)
	var servers []string
	for _, c := range e.p.Controllers {
		servers = append(servers, "https://"+c.Address(9640))
	}
	e.csm("context", "set", "rollouts", "--server", strings.Join(servers, ","), "--ca-pin", e.p.API.Pin, "--cert", e.p.AdminFile, "--key", e.p.AdminFile, "--cluster", "prod")
	e.csm("cluster", "create", "prod", "--ca", "root", "--cassandra-name", e.r.Cluster, "--region", "eu-west")
	for _, n := range e.r.Nodes {
		n.JVM = append(n.JVM, quick)
	}
	return e
}

// begin lets the nodes of that ring get their first stores from CSM, and starts them.
func begin(t *testing.T) *estate {
	t.Helper()
	e := lay(t)
	for _, n := range e.r.Nodes {
		e.enrol(n)
	}
	for _, n := range e.r.Nodes {
		e.until(n.Name, "installed before the first start", func(v fleet.Node) bool { return len(v.Stores) == 1 && v.Stores[0].Installed > 0 })
	}
	e.must(e.r.Start(t.Context()))
	for _, n := range e.r.Nodes {
		e.until(n.Name, "proved", proved)
	}
	return e
}

func proved(v fleet.Node) bool {
	return len(v.Stores) == 1 && v.Stores[0].State == "proven" && v.Stores[0].Proven == v.Stores[0].Leaf && v.Instance.HostID != ""
}

var (
	secret   = regexp.MustCompile(`csmt_[A-Za-z0-9_-]+`)
	planHash = regexp.MustCompile(`--plan ([0-9a-f]{16})`)
)

func (e *estate) enrol(n *ring.Node) {
	e.t.Helper()
	token := secret.FindString(e.csm("cluster", "join-command", "prod/"+n.Name, "--yes", "--ip", n.Address.String(), "--ip", "127.0.0.1", "--dns", n.Name+".rollouts.example"))
	a := plane.NewAgent(filepath.Join(e.dir, "agents", n.Name), e.bin, n)
	e.must(os.MkdirAll(a.Dir, 0o700))
	e.must(os.WriteFile(a.Token, []byte(token+"\n"), 0o600))
	e.must(a.Write(e.p.Fleet("prod"), "manage"))
	e.must(a.Start())
	e.t.Cleanup(func() { a.Process.Kill() })
	e.agents[n.Name] = a
}

// csm runs the command line and gives what it printed.
func (e *estate) csm(args ...string) string {
	e.t.Helper()
	out, said, err := e.run(args...)
	if err != nil {
		e.must(fmt.Errorf("csm %s: %w: %s%s", strings.Join(args, " "), err, out, said))
	}
	return out
}

func (e *estate) run(args ...string) (out, said string, err error) {
	c := exec.CommandContext(e.t.Context(), filepath.Join(e.bin, "csm"), args...)
	c.Env = append(os.Environ(), "HOME="+e.dir)
	var o, s bytes.Buffer
	c.Stdout, c.Stderr = &o, &s
	err = c.Run()
	return o.String(), s.String(), err
}

func (e *estate) node(name string) (v fleet.Node) {
	e.t.Helper()
	e.must(e.p.API.Do(e.t.Context(), http.MethodGet, prod+"/nodes/"+name, nil, &v))
	return v
}

// until waits until a node is as wanted.
func (e *estate) until(name, what string, want func(fleet.Node) bool) {
	e.t.Helper()
	e.must(plane.Eventually(e.t.Context(), patience, func() error {
		var v fleet.Node
		err := e.p.API.Do(e.t.Context(), http.MethodGet, prod+"/nodes/"+name, nil, &v)
		if err == nil && !want(v) {
			b, _ := json.Marshal(v)
			err = fmt.Errorf("%s: %s is %s", name, what, b)
		}
		return err
	}))
}

// load keeps the ring busy with a certificate of its CA, and trusts these roots.
func (e *estate) load(roots ...*x509.Certificate) *workload.Load { return e.loadOf("load", roots...) }

// loadOf names the keyspace.
func (e *estate) loadOf(keyspace string, roots ...*x509.Certificate) *workload.Load {
	e.t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
	e.must(err)
	names, err := certificate.ParseNames([]string{"load.rollouts.example"}, nil, nil)
	e.must(err)
	der, err := certificate.NewRequest(key, names)
	e.must(err)
	csr := filepath.Join(e.dir, "app.csr")
	e.must(os.WriteFile(csr, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: der}), 0o600))
	var c rest.Certificate
	e.must(json.Unmarshal([]byte(e.csm("certificate", "issue", "--csr", csr, "--ca", "root", "-o", "json")), &c))
	chain, err := certificate.DecodePEM([]byte(c.Chain))
	e.must(err)
	conf := &tls.Config{Certificates: []tls.Certificate{{PrivateKey: key, Certificate: certificate.Raw(chain)}}, RootCAs: pool(roots...)}
	l, err := workload.Start(e.t.Context(), workload.Options{Hosts: e.r.Hosts(), Keyspace: keyspace, TLS: func() *tls.Config { return conf }})
	e.must(err)
	e.t.Cleanup(l.Stop)
	return l
}

// root is the root of a CA of this estate.
func (e *estate) root(ca string) *x509.Certificate {
	e.t.Helper()
	var is struct {
		Issuers []struct{ Kind, PEM string }
	}
	e.must(json.Unmarshal([]byte(e.csm("ca", "get", ca, "-o", "json")), &is))
	for _, i := range is.Issuers {
		if i.Kind != "root" {
			continue
		}
		c, err := certificate.DecodePEM([]byte(i.PEM))
		e.must(err)
		return c[0]
	}
	e.t.Fatalf("%s has no root", ca)
	return nil
}

func TestARenewalOfTheWholeRingUnderLoadCostsNoQuery(t *testing.T) {
	if os.Getenv("CSM_TEST_FULL") == "" {
		t.Skip("takes minutes; runs with make test-full")
	}
	e := begin(t)
	load := e.load(e.root("root"))
	before := map[string]string{}
	for _, n := range e.r.Nodes {
		before[n.Name] = e.node(n.Name).Stores[0].Leaf
	}
	plan := e.csm("rollout", "plan", "--bake", "2s")
	t.Log(plan)
	hash := planHash.FindStringSubmatch(plan)
	if hash == nil {
		t.Fatal("the plan has no hash")
	}
	mark, began := load.Mark(), time.Now()
	out, said, err := e.run("rollout", "start", "--bake", "2s", "--reason", "a test", "--plan", hash[1], "--wait", "--timeout", "4m")
	t.Logf("%s%s", said, out)
	if err != nil {
		t.Logf("%s", e.csm("rollout", "explain"))
		e.must(err)
	}
	took, r := time.Since(began), load.Since(mark)
	t.Logf("renewed in %s under %d queries and %d new connections: %d failed, p99 %s", took.Round(time.Second), r.Queries, r.Connections, r.Failed, r.P99)
	if r.Failed > 0 || r.Wrong > 0 || r.Queries < 500 {
		t.Errorf("%d queries, %d failed, %d wrong: %v", r.Queries, r.Failed, r.Wrong, r.Errors)
	}
	for _, n := range e.r.Nodes {
		if v := e.node(n.Name); !proved(v) || v.Stores[0].Leaf == before[n.Name] {
			t.Errorf("%s: %+v", n.Name, v.Stores)
		}
	}

	// A member that goes down holds the next one, and it goes on when the member is back.
	plan = e.csm("rollout", "plan", "--bake", "0s")
	hash = planHash.FindStringSubmatch(plan)
	last := e.r.Nodes[2]
	last.Kill()
	e.until(last.Name, "seen down by its agent", func(v fleet.Node) bool { return !v.Instance.Running })
	e.csm("rollout", "start", "--bake", "0s", "--reason", "with a node down", "--plan", hash[1])
	if out := e.csm("rollout", "explain"); !strings.Contains(out, "prod/n3") || !strings.Contains(out, "waits:") {
		t.Errorf("explain says %s", out)
	}
	if out := e.csm("why", "prod/n1"); !strings.Contains(out, "prod/n3") {
		t.Errorf("why says %s", out)
	}
	e.csm("rollout", "abort", "--reason", "enough seen", "--yes")
	for _, n := range e.r.Nodes[:2] {
		if v := e.node(n.Name); v.Stores[0].Installed < v.Stores[0].Generation {
			t.Errorf("%s still wants to move: %+v", n.Name, v.Stores[0])
		}
	}
}
