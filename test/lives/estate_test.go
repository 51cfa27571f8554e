//go:build linux

// Package lives_test tells what becomes of nodes on a real ring, with real controllers and real agents: a host that is
// replaced, one that is rebuilt, one that lost its state folder, and one that is decommissioned.
package lives_test

import (
	"bytes"
	"encoding/json"
	"errors"
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

	"github.com/cassandra-security-manager/csm/controller/fleet"
	"github.com/cassandra-security-manager/csm/test/plane"
	"github.com/cassandra-security-manager/csm/test/process"
	"github.com/cassandra-security-manager/csm/test/ring"
)

const (
	prod = "/v1/tenants/default/clusters/prod"
	// patience bounds a wait that fails. A Cassandra that bootstraps takes half a minute on a quiet machine.
	patience = 5 * time.Minute
)

// estate is a ring with its controllers and agents.
type estate struct {
	t, root  *testing.T
	p        *plane.Plane
	r        *ring.Ring
	bin, dir string
	agents   map[string]*plane.Agent
	address  func(n int) netip.Addr
}

// as lets a part of the story fail by itself.
func (e *estate) as(t *testing.T) *estate {
	c := *e
	c.t = t
	return &c
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

// begin runs three controllers and a ring of three whose stores CSM wrote before the first start.
func begin(t *testing.T) *estate {
	t.Helper()
	e := &estate{t: t, root: t, bin: t.TempDir(), dir: t.TempDir(), agents: map[string]*plane.Agent{}}
	build := exec.Command("go", "build", "-o", e.bin+"/", "./controller/cmd/csm-controller", "./controller/cmd/csm", "./agent/cmd/csm-agent")
	build.Dir, build.Env = "../..", append(os.Environ(), "CGO_ENABLED=0", "GOFLAGS=-trimpath")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	dist, err := ring.Prepare(t.Context(), "../../build/cassandra/"+ring.Version, false, func(s string) { t.Log(s) })
	if err != nil {
		t.Fatal(err)
	}
	hosts, err := process.Claim(20, 5, ring.StoragePort, ring.NativePort)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(hosts.Release)
	controllers, err := process.Claim(190, 3, 9640, 9641, 9642, 9643, 9644)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(controllers.Release)
	e.address = hosts.Host
	if e.r, err = ring.New(dist, ring.Options{Dir: filepath.Join(e.dir, "ring"), Cluster: "lives", Addresses: []netip.Addr{hosts.Host(1), hosts.Host(2), hosts.Host(3)}}); err != nil {
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
	e.csm("context", "set", "lives", "--server", strings.Join(servers, ","), "--ca-pin", e.p.API.Pin, "--cert", e.p.AdminFile, "--key", e.p.AdminFile)
	e.csm("cluster", "create", "prod", "--ca", "root", "--cassandra-name", e.r.Cluster, "--region", "eu-west")
	for _, n := range e.r.Nodes {
		e.enrol(n, e.token("cluster", "join-command", "prod/"+n.Name, "--yes", "--ip", n.Address.String(), "--ip", "127.0.0.1", "--dns", n.Name+".lives.example"))
	}
	for _, n := range e.r.Nodes {
		e.until(n.Name, "installed before the first start", func(v fleet.Node) bool { return installed(v) })
		n.JVM = append(n.JVM, quick)
	}
	e.must(e.r.Start(t.Context()))
	for _, n := range e.r.Nodes {
		e.until(n.Name, "proved", proved)
	}
	return e
}

// quick lets a ring settle within seconds: nobody else is on this machine.
const quick = "-Dcassandra.ring_delay_ms=5000"

func installed(v fleet.Node) bool {
	return len(v.Stores) == 1 && v.Stores[0].Installed > 0 && v.Stores[0].Leaf != ""
}

func proved(v fleet.Node) bool {
	return installed(v) && v.Stores[0].State == "proven" && v.Stores[0].Proven == v.Stores[0].Leaf && v.Instance.HostID != ""
}

// enrol writes a node's agent and starts it.
func (e *estate) enrol(n *ring.Node, token string) {
	e.t.Helper()
	a := plane.NewAgent(filepath.Join(e.dir, "agents", n.Name), e.bin, n)
	e.must(os.MkdirAll(a.Dir, 0o700))
	e.must(os.WriteFile(a.Token, []byte(token+"\n"), 0o600))
	e.must(a.Write(e.p.Fleet("prod"), "manage"))
	e.must(a.Start())
	e.root.Cleanup(func() { a.Process.Kill() })
	e.agents[n.Name] = a
}

// csm runs the command line and gives what it printed.
func (e *estate) csm(args ...string) string {
	e.t.Helper()
	out, err := e.try(args...)
	e.must(err)
	return out
}

func (e *estate) try(args ...string) (string, error) {
	c := exec.Command(filepath.Join(e.bin, "csm"), args...)
	c.Env = append(os.Environ(), "HOME="+e.dir)
	var out, said bytes.Buffer
	c.Stdout, c.Stderr = &out, &said
	if err := c.Run(); err != nil {
		return "", fmt.Errorf("csm %s: %w: %s%s", strings.Join(args, " "), err, out.String(), said.String())
	}
	return out.String() + said.String(), nil
}

var (
	planHash = regexp.MustCompile(`plan ([0-9a-f]{16})`)
	secret   = regexp.MustCompile(`csmt_[A-Za-z0-9_-]+`)
)

// planned runs a grave command with --dry-run and then with the hash of its plan.
func (e *estate) planned(args ...string) string {
	e.t.Helper()
	hash := planHash.FindStringSubmatch(e.csm(append(args, "--dry-run")...))
	if hash == nil {
		e.t.Fatalf("csm %v shows no plan", args)
	}
	return e.csm(append(args, "--plan", hash[1])...)
}

// token is the secret in what a command prints for pasting.
func (e *estate) token(args ...string) string {
	e.t.Helper()
	return e.secret(e.csm(args...))
}

func (e *estate) secret(out string) string {
	e.t.Helper()
	s := secret.FindString(out)
	if s == "" {
		e.t.Fatalf("no token in %s", out)
	}
	return s
}

func (e *estate) node(name string) (v fleet.Node, err error) {
	return v, e.p.API.Do(e.t.Context(), http.MethodGet, prod+"/nodes/"+name, nil, &v)
}

// until gives the node when it is as wanted.
func (e *estate) until(name, what string, want func(fleet.Node) bool) (v fleet.Node) {
	e.t.Helper()
	began := time.Now()
	e.must(plane.Eventually(e.t.Context(), patience, func() (err error) {
		if v, err = e.node(name); err == nil && !want(v) {
			b, _ := json.Marshal(v)
			err = fmt.Errorf("%s: %s is %s", name, what, b)
		}
		return err
	}))
	e.t.Logf("%s: %s after %s", name, what, time.Since(began).Round(100*time.Millisecond))
	return v
}

// status waits until a node's Cassandra sees as many of a kind ("UN", "DN") as wanted.
func (e *estate) status(n *ring.Node, kind string, count int) {
	e.t.Helper()
	e.must(plane.Eventually(e.t.Context(), patience, func() error {
		out, err := n.RunNodetool(e.t.Context(), "status")
		if got := strings.Count("\n"+out, "\n"+kind+" "); err == nil && got != count {
			err = fmt.Errorf("%s sees %d of %s, not %d:\n%s", n.Name, got, kind, count, out)
		}
		return err
	}))
}

// relist lets agents ask their Cassandra for the ring now; they do so each ten minutes.
func (e *estate) relist(names ...string) {
	e.t.Helper()
	for _, n := range names {
		e.must(e.agents[n].Restart(e.t.Context()))
		e.until(n, "back", func(v fleet.Node) bool { return v.Agent.Connected })
	}
}

func (e *estate) proposal(v fleet.Node) (fleet.Condition, bool) {
	for _, c := range v.Conditions {
		if c.Type == "removal-proposed" {
			return c, true
		}
	}
	return fleet.Condition{}, false
}

var errFull = errors.New("takes some minutes; runs with make test-full")
