//go:build linux

package links_test

import (
	"bytes"
	"encoding/json"
	"fmt"
	"net/http"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/cassandra-security-manager/csm/agent/links"
	"github.com/cassandra-security-manager/csm/controller/fleet"
	"github.com/cassandra-security-manager/csm/test/plane"
	"github.com/cassandra-security-manager/csm/test/process"
	"github.com/cassandra-security-manager/csm/test/ring"
)

// patience bounds a wait that fails.
const patience = 3 * time.Minute

// estate is a ring in network namespaces with real controllers and agents.
type estate struct {
	t        *testing.T
	bin, dir string
	p        *plane.Plane
	agents   []*plane.Agent
}

func (e *estate) must(err error) {
	e.t.Helper()
	if err == nil {
		return
	}
	for _, a := range e.agents {
		e.t.Logf("-- agent of %s\n%s", a.Node.Name, process.Tail(a.Log(), 12))
	}
	e.t.Fatal(err)
}

// csm runs the command line and gives what it printed.
func (e *estate) csm(args ...string) string {
	e.t.Helper()
	c := exec.Command(filepath.Join(e.bin, "csm"), args...)
	c.Env = append(os.Environ(), "HOME="+e.dir)
	var out bytes.Buffer
	c.Stdout, c.Stderr = &out, &out
	if err := c.Run(); err != nil {
		e.must(fmt.Errorf("csm %s: %w: %s", strings.Join(args, " "), err, out.String()))
	}
	return out.String()
}

func (e *estate) until(name, what string, want func(fleet.Node) bool) (v fleet.Node) {
	e.t.Helper()
	e.must(plane.Eventually(e.t.Context(), patience, func() error {
		v = fleet.Node{}
		err := e.p.API.Do(e.t.Context(), http.MethodGet, "/v1/tenants/default/clusters/prod/nodes/"+name, nil, &v)
		if err == nil && !want(v) {
			b, _ := json.Marshal(v)
			err = fmt.Errorf("%s: %s is %s", name, what, b)
		}
		return err
	}))
	return v
}

func installed(v fleet.Node) bool {
	return len(v.Stores) == 1 && v.Stores[0].Installed > 0 && v.Stores[0].Leaf != ""
}

func proved(v fleet.Node) bool {
	return installed(v) && v.Stores[0].State == "proven" && v.Stores[0].Proven == v.Stores[0].Leaf
}

// controllers run on addresses of the bridge.
func (e *estate) controllers() {
	e.t.Helper()
	build := exec.Command("go", "build", "-o", e.bin+"/", "./controller/cmd/csm-controller", "./controller/cmd/csm", "./agent/cmd/csm-agent")
	build.Dir, build.Env = "../..", append(os.Environ(), "CGO_ENABLED=0", "GOFLAGS=-trimpath")
	if out, err := build.CombinedOutput(); err != nil {
		e.t.Fatalf("%v: %s", err, out)
	}
	address := func(n int) netip.Addr { return netip.AddrFrom4([4]byte{10, 77, 0, byte(100 + n)}) }
	for n := 1; n <= 3; n++ {
		e.must(ip(fmt.Sprintf("addr add %s/24 dev br0", address(n))))
	}
	var err error
	e.p, err = plane.Start(e.t.Context(), plane.Options{Dir: e.dir, Bin: e.bin, Host: address, Regions: []string{"eu-west", "us-east", "ap-south"}, Root: "lab"})
	if e.p != nil {
		e.t.Cleanup(e.p.Stop)
	}
	e.must(err)
	var servers []string
	for _, c := range e.p.Controllers {
		servers = append(servers, "https://"+c.Address(9640))
	}
	e.csm("context", "set", "links", "--server", strings.Join(servers, ","), "--ca-pin", e.p.API.Pin, "--cert", e.p.AdminFile, "--key", e.p.AdminFile)
	e.csm("cluster", "create", "prod", "--ca", "root", "--cassandra-name", "links-command", "--region", "eu-west")
}

// enrolled is a ring whose stores CSM wrote before its first start.
func (e *estate) enrolled() *ring.Ring {
	e.t.Helper()
	r := inNamespaces(e.t, "links-command", "en")
	for _, n := range r.Nodes {
		a := plane.NewAgent(filepath.Join(e.dir, "agents", n.Name), e.bin, n)
		e.must(a.Write(e.p.Fleet("prod"), "manage"))
		e.plain(a)
		token := regexp.MustCompile(`csmt_[A-Za-z0-9_-]+`).FindString(e.csm("cluster", "join-command", "prod/"+n.Name, "--yes", "--ip", n.Address.String(), "--ip", "127.0.0.1", "--dns", n.Name+".links.example"))
		e.must(os.WriteFile(a.Token, []byte(token+"\n"), 0o600))
		e.must(a.Start())
		e.t.Cleanup(a.Process.Kill)
		e.agents = append(e.agents, a)
	}
	for _, n := range r.Nodes {
		e.until(n.Name, "installed before the first start", installed)
	}
	e.must(r.Start(e.t.Context()))
	e.must(r.WaitUp(e.t.Context()))
	for _, n := range r.Nodes {
		e.until(n.Name, "proved", proved)
	}
	return r
}

// plain lets an agent reload by nodetool itself: it knows by that how to list the ring and the streams.
func (e *estate) plain(a *plane.Agent) {
	e.t.Helper()
	text, err := os.ReadFile(a.Config)
	e.must(err)
	text = regexp.MustCompile(`(?m)^    reload: .*$`).ReplaceAll(text, []byte("    reload: {command: ["+a.Node.Nodetool+", reloadssl]}"))
	e.must(os.WriteFile(a.Config, text, 0o600))
}

// TestTheCommandEndsOldLinksOfARealRing: what `csm node cycle-links` says before, and what the kernel says after it.
func TestTheCommandEndsOldLinksOfARealRing(t *testing.T) {
	if os.Getenv("CSM_TEST_FULL") == "" {
		t.Skip("three real Cassandras in network namespaces; runs with make test-full")
	}
	e := &estate{t: t, bin: t.TempDir(), dir: t.TempDir()}
	e.controllers()
	r := e.enrolled()
	n := r.Nodes[0]
	ns, err := os.Open("/run/netns/en1")
	e.must(err)
	defer ns.Close()
	table, port := links.KernelOf(ns), links.Port{Address: n.Address, Number: ring.StoragePort}

	e.csm("node", "renew", "prod/n1", "--wait", "--timeout", "2m", "--reason", "to leave links behind")
	before, err := table.Links(port)
	e.must(err)
	v := e.until("n1", "to tell of old links", func(v fleet.Node) bool { return v.Links != nil && v.Links.Old > 0 })
	t.Logf("%d connections live on the old leaf, with %v", v.Links.Old, v.Links.Peers)
	if out := e.csm("node", "cycle-links", "prod/n1", "--dry-run"); !strings.Contains(out, "live on certificates of before") || !strings.Contains(out, "nothing was done") {
		t.Errorf("--dry-run says %s", out)
	}
	if now, err := table.Links(port); err != nil || !slices.ContainsFunc(before, func(l links.Link) bool { return slices.Contains(now, l) }) {
		t.Errorf("--dry-run did something: %v %v", now, err)
	}
	began := time.Now()
	out := e.csm("node", "cycle-links", "prod/n1", "--wait", "--timeout", "8m", "--reason", "leaf of before")
	t.Logf("%s after %s", strings.TrimSpace(out), time.Since(began).Round(time.Second))
	if !strings.Contains(out, "no internode connection lives on certificates of before") {
		t.Errorf("it says %s", out)
	}
	now, err := table.Links(port)
	e.must(err)
	for _, l := range before {
		if slices.Contains(now, l) {
			t.Errorf("%s is left", l)
		}
	}
	e.must(r.WaitUp(t.Context()))
}
