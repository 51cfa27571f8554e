//go:build linux

package fleetsim_test

import (
	"bytes"
	"encoding/json"
	"fmt"
	"math"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/cassandra-security-manager/csm/controller/fleet"
	"github.com/cassandra-security-manager/csm/test/fleetsim"
	"github.com/cassandra-security-manager/csm/test/plane"
	"github.com/cassandra-security-manager/csm/test/process"
)

// patience bounds a wait that fails.
const patience = 15 * time.Minute

// ramp is how many agents start in a second: they share two cores with what they join.
const ramp = 15

// estate is three controllers and a simulated ring.
type estate struct {
	t        *testing.T
	bin, dir string
	p        *plane.Plane
	f        *fleetsim.Fleet
}

func (e *estate) must(err error) {
	e.t.Helper()
	if err == nil {
		return
	}
	if e.f != nil {
		e.t.Log(e.f.Tail(20))
	}
	if e.p != nil {
		e.t.Log(e.p.Tails(4))
	}
	e.t.Fatal(err)
}

// begin runs three controllers and a ring whose nodes are all proved.
func begin(t *testing.T, r fleetsim.Ring, pace fleetsim.Pace) *estate {
	t.Helper()
	e := &estate{t: t, bin: t.TempDir(), dir: t.TempDir()}
	build := exec.Command("go", "build", "-o", e.bin+"/", "./controller/cmd/csm-controller", "./controller/cmd/csm", "./test/fleetsim/cmd/fleetsim")
	build.Dir, build.Env = "../..", append(os.Environ(), "CGO_ENABLED=0", "GOFLAGS=-trimpath")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	hosts, err := process.Claim(150, 3, 9640, 9641, 9642, 9643, 9644)
	e.must(err)
	t.Cleanup(hosts.Release)
	e.p, err = plane.Start(t.Context(), plane.Options{Dir: e.dir, Bin: e.bin, Host: hosts.Host, Regions: []string{"eu-west", "us-east", "ap-south"}, Root: "lab"})
	if e.p != nil {
		t.Cleanup(e.p.Stop)
	}
	e.must(err)
	var servers []string
	for _, c := range e.p.Controllers {
		servers = append(servers, "https://"+c.Address(9640))
	}
	e.csm("context", "set", "sim", "--server", strings.Join(servers, ","), "--ca-pin", e.p.API.Pin, "--cert", e.p.AdminFile, "--key", e.p.AdminFile, "--cluster", r.Cluster)
	e.csm("cluster", "create", r.Cluster, "--ca", "root", "--cassandra-name", r.Cluster, "--region", "eu-west")
	nodes := filepath.Join(e.dir, "nodes")
	e.must(os.Mkdir(nodes, 0o700))
	s, err := fleetsim.Over(e.p, nodes, 1, pace, r)
	e.must(err)
	s.Ramp = ramp
	e.must(fleetsim.Lay(t.Context(), s, fleetsim.TokensOf(e.p)))
	e.f, err = fleetsim.Start(s, e.bin)
	e.must(err)
	t.Cleanup(func() { e.f.Kill() })
	began := time.Now()
	// The agents are asked first: a controller that lists hundreds of nodes twenty times a second has no time for them.
	e.must(plane.Eventually(t.Context(), patience, func() error {
		agents, err := e.f.Agents(t.Context())
		missing := 0
		for _, a := range agents {
			if a.Moves == 0 || a.Proved == 0 {
				missing++
			}
		}
		if err == nil && missing > 0 {
			err = fmt.Errorf("%d of %d agents have not installed or are not proved", missing, len(agents))
		}
		return err
	}))
	e.must(plane.Eventually(t.Context(), patience, func() error {
		v, err := e.proved(r.Cluster)
		if err == nil && v < r.Nodes {
			err = fmt.Errorf("%d of %d nodes are proved", v, r.Nodes)
		}
		return err
	}))
	t.Logf("%d agents joined, installed and were proved in %s", r.Nodes, time.Since(began).Round(time.Second))
	return e
}

// proved counts the nodes whose certificate neighbours have proved.
func (e *estate) proved(cluster string) (n int, err error) {
	for token := ""; ; {
		var page struct {
			Items         []fleet.Node
			NextPageToken string
		}
		if err := e.p.API.Do(e.t.Context(), http.MethodGet, "/v1/tenants/default/clusters/"+cluster+"/nodes?pageSize=500&pageToken="+token, nil, &page); err != nil {
			return 0, err
		}
		for _, v := range page.Items {
			if len(v.Stores) == 1 && v.Stores[0].State == "proven" && v.Stores[0].Proven == v.Stores[0].Leaf && v.Instance.HostID != "" {
				n++
			}
		}
		if token = page.NextPageToken; token == "" {
			return n, nil
		}
	}
}

// csm runs the command line and gives what it printed.
func (e *estate) csm(args ...string) string {
	e.t.Helper()
	c := exec.CommandContext(e.t.Context(), filepath.Join(e.bin, "csm"), args...)
	c.Env = append(os.Environ(), "HOME="+e.dir)
	var out, said bytes.Buffer
	c.Stdout, c.Stderr = &out, &said
	if err := c.Run(); err != nil {
		e.must(fmt.Errorf("csm %s: %w: %s%s", strings.Join(args, " "), err, out.String(), said.String()))
	}
	return out.String()
}

type plan struct {
	PlanHash string
	Seconds  float64
	Waves    []struct{ Nodes []struct{ Node string } }
	Now      []struct{ Code, Message string }
}

// plan waits until nothing would hold it: the members of a ring that has just started have yet to see each other.
func (e *estate) plan(flags ...string) (p plan) {
	e.t.Helper()
	e.must(plane.Eventually(e.t.Context(), patience, func() error {
		p = plan{}
		if err := json.Unmarshal([]byte(e.csm(append([]string{"rollout", "plan", "-o", "json"}, flags...)...)), &p); err != nil {
			return err
		}
		if len(p.Now) > 0 {
			return fmt.Errorf("it would be held by %v", p.Now)
		}
		return nil
	}))
	return p
}

// roll runs a plan to its end and gives how long it took by the controllers' clock.
func (e *estate) roll(p plan, flags ...string) time.Duration {
	e.t.Helper()
	e.csm(append([]string{"rollout", "start", "--reason", "a test", "--plan", p.PlanHash, "--wait", "--timeout", "30m"}, flags...)...)
	var page struct {
		Items []struct {
			State               string
			CreateTime, EndTime time.Time
		}
	}
	e.must(json.Unmarshal([]byte(e.csm("rollout", "list", "-o", "json")), &page))
	for _, r := range page.Items {
		if r.State != "done" {
			e.t.Fatalf("%+v", r)
		}
	}
	newest := page.Items[0]
	for _, r := range page.Items {
		if r.CreateTime.After(newest.CreateTime) {
			newest = r
		}
	}
	return newest.EndTime.Sub(newest.CreateTime)
}

func (e *estate) planAll(r fleetsim.Ring, flags ...string) plan {
	e.t.Helper()
	p := e.plan(flags...)
	n := 0
	for _, w := range p.Waves {
		n += len(w.Nodes)
	}
	if n != r.Nodes {
		e.t.Fatalf("the plan is about %d of %d nodes", n, r.Nodes)
	}
	return p
}

// moved wants every agent to have its stream and to have moved so often.
// moved waits until each agent counts so many moves: the controllers know of the last one before its agent has heard that they do.
func (e *estate) moved(times int) {
	e.t.Helper()
	e.must(plane.Eventually(e.t.Context(), time.Minute, func() error {
		agents, err := e.f.Agents(e.t.Context())
		if err != nil {
			return err
		}
		for _, a := range agents {
			if !a.Open || a.Moves < times {
				return fmt.Errorf("%+v", a)
			}
		}
		return nil
	}))
}

func TestASimulatedRingIsRenewedByAPlan(t *testing.T) {
	r := fleetsim.Ring{Cluster: "sim", First: 1, Nodes: 4, Datacenters: 1, Racks: 1}
	e := begin(t, r, fleetsim.Pace{Reload: 500 * time.Millisecond, Ask: 200 * time.Millisecond, Handshake: 10 * time.Millisecond, Boot: 200 * time.Millisecond})
	flags := []string{"--width", "4", "--max-unavailable", "4", "--bake", "1s", "--canary", "0"}
	p := e.planAll(r, flags...)
	t.Logf("renewed in %s", e.roll(p, flags...).Round(time.Second))
	e.moved(2)
}

// A plan over 600 nodes, once moves have been seen on that ring.
func TestThePlanOfALargeRingSaysHowLongItTakes(t *testing.T) {
	if os.Getenv("CSM_TEST_FULL") == "" {
		t.Skip("takes minutes; runs with make test-full")
	}
	r := fleetsim.Ring{Cluster: "sim", First: 1, Nodes: 600, Datacenters: 3, Racks: 1}
	e := begin(t, r, fleetsim.Pace{Reload: 3 * time.Second, Ask: 500 * time.Millisecond, Handshake: 20 * time.Millisecond, Boot: time.Second})
	flags := []string{"--width", "40", "--max-unavailable", "40", "--bake", "2s", "--canary", "0"}
	some := flags
	for k := range 60 {
		some = append(some[:len(some):len(some)], "--node", fleetsim.Name(r.First+k*r.Datacenters))
	}
	first := e.plan(some...)
	t.Logf("60 nodes first, which teach how long a move takes here: planned %.0f s, took %s", first.Seconds, e.roll(first, some...).Round(time.Second))
	all := e.planAll(r, flags...)
	took := e.roll(all, flags...).Seconds()
	off := (all.Seconds - took) / took
	t.Logf("%d nodes in %d waves: planned %.0f s, took %.0f s, %+.0f %%", r.Nodes, len(all.Waves), all.Seconds, took, 100*off)
	if math.Abs(off) > 0.2 {
		t.Errorf("the plan is off by %.0f %%", 100*off)
	}
	e.moved(2)
}
