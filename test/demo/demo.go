//go:build linux

package main

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/cassandra-security-manager/csm/shared/workload"
	"github.com/cassandra-security-manager/csm/test/plane"
	"github.com/cassandra-security-manager/csm/test/process"
	"github.com/cassandra-security-manager/csm/test/ring"
)

// story is what is told: on which ring, and what is shown once it runs under load.
type story struct {
	title string
	// datacenters of the nodes, in their order; spare is how many more addresses there are for nodes that come later.
	datacenters []string
	spare       int
	// tell shows it; false when something did not hold.
	tell func(ctx context.Context, d *demo) bool
}

// stories by their names for -story.
var stories = map[string]story{
	"renewal":  {"from three empty controllers to a proved ring", []string{"dc1", "dc1", "dc1"}, 0, tellRenewal},
	"rotation": {"the root of a living ring is replaced", []string{"dc1", "dc2", "dc1", "dc2", "dc1", "dc2"}, 1, tellRotation},
}

// demo is everything that runs, and what was seen of it.
type demo struct {
	story
	screen          *screen
	only            string
	bin, dir, cache string

	loopback []*process.Range
	nodes    *process.Range
	plane    *plane.Plane
	agents   []*plane.Agent
	roots    []string // files of the roots that were made
	client   *client
	ring     *ring.Ring
	ready    []ring.Mark               // place in each node's log when the ring had come up
	load     *workload.Load            // the first of the loads
	loads    map[string]*workload.Load // by data centre
	busy     workload.Mark

	proofs    []proof
	renewals  []renewal
	errorsBy  map[string][]string // what scenarios wrote into Cassandra's logs on purpose
	leaderOut time.Duration
}

// proof is one thing that was claimed and what was seen.
type proof struct {
	what string
	err  error
}

// prove records that what holds when err is nil. It tells a failure at once; the others go on.
func (d *demo) prove(what string, err error) bool {
	d.proofs = append(d.proofs, proof{what, err})
	if err != nil {
		d.screen.note("%s %s: %v", d.screen.paint("31", "NOT HELD"), what, err)
	}
	return err == nil
}

// scenario is one thing that is shown. What run returns is the line that is printed; an error is what was seen instead.
type scenario struct {
	name  string
	shows string
	run   func(ctx context.Context, d *demo) (string, error)
}

// foundation are the steps without which nothing else can be shown.
var foundation = []scenario{
	{"tools", "Java 17, Maven and Cassandra's jars are here", prepare},
	{"controllers", "three controllers in three regions form one quorum", startControllers},
	{"authorities", "a root, and an issuing CA per region", makeAuthorities},
	{"cluster", "a cluster, and a one-time join token per node", makeCluster},
	{"observe", "an agent for each node joins and only looks", observe},
	{"manage", "the agents write the stores before Cassandra's first start", manage},
	{"ring", "a real Cassandra ring starts with these stores", startRing},
	{"load", "a CQL load with client certificates, at QUORUM, no retries", startLoad},
}

func (d *demo) run(ctx context.Context) (held bool) {
	d.errorsBy = map[string][]string{}
	defer func() { d.screen.watch(nil) }()
	d.screen.title("Cassandra Security Manager: " + d.title)
	for _, s := range foundation {
		if !d.show(ctx, s) {
			d.logs()
			return false
		}
	}
	return d.tell(ctx, d)
}

func tellRenewal(ctx context.Context, d *demo) bool {
	d.screen.title("Every node is renewed, one at a time, under load")
	d.busy = d.load.Mark()
	d.show(ctx, scenario{"renewal", "each node gets a new certificate, proved by its neighbour", renewAll})
	d.screen.title("What must not happen")
	for _, s := range scenarios {
		if ctx.Err() == nil && strings.Contains(s.name, d.only) {
			d.show(ctx, s)
		}
	}
	if ctx.Err() != nil {
		d.screen.failed("interrupted")
		return false
	}
	return d.report(ctx)
}

// show runs a scenario and tells how it went. A scenario that panics or fails leaves the others their turn.
func (d *demo) show(ctx context.Context, s scenario) bool {
	d.screen.step("%s", s.shows)
	ctx, cancel := context.WithTimeout(ctx, 15*time.Minute)
	defer cancel()
	saw, err := s.run(ctx, d)
	d.proofs = append(d.proofs, proof{s.shows, err})
	if err != nil {
		d.screen.failed("%s\nseen instead: %s", s.shows, cut(err.Error(), 800))
		return false
	}
	d.screen.done("%s%s", s.shows, prefixed(": ", saw))
	return true
}

func prefixed(prefix, s string) string {
	if s == "" {
		return ""
	}
	return prefix + s
}

// logs shows the end of what the programs wrote, after a step without which nothing goes on.
func (d *demo) logs() {
	paths, _ := filepath.Glob(filepath.Join(d.dir, "*", "*", "*.log"))
	for _, p := range paths {
		if t := strings.TrimSpace(process.Tail(p, 4)); t != "" {
			d.screen.text(fmt.Sprintf("\n%s ends with:\n%s", p, t))
		}
	}
}

func prepare(ctx context.Context, d *demo) (string, error) {
	for _, program := range []string{"csm", "csm-agent", "csm-controller"} {
		if _, err := os.Stat(filepath.Join(d.bin, program)); err != nil {
			return "", fmt.Errorf("%w: run `make build` first", err)
		}
	}
	dist, err := ring.Prepare(ctx, filepath.Join(d.cache, ring.Version), true, func(what string) { d.screen.step("%s", what) })
	if err != nil {
		return "", err
	}
	if err := d.empty(); err != nil {
		return "", err
	}
	control, err := process.Claim(1, 3, 9640, 9641, 9642, 9643, 9644)
	if err != nil {
		return "", err
	}
	d.loopback = append(d.loopback, control)
	d.nodes, err = process.Claim(10, len(d.datacenters)+d.spare, ring.StoragePort, ring.NativePort)
	if err != nil {
		return "", err
	}
	d.loopback = append(d.loopback, d.nodes)
	d.ring, err = ring.New(dist, ring.Options{Dir: filepath.Join(d.dir, "cassandra"), Cluster: "demo", Addresses: addresses(d.nodes, len(d.datacenters)), Datacenters: d.datacenters})
	if err != nil {
		return "", err
	}
	if err := d.newPlane(control.Host); err != nil {
		return "", err
	}
	for _, n := range d.ring.Nodes {
		d.agents = append(d.agents, plane.NewAgent(filepath.Join(d.dir, "agents", n.Name), d.bin, n))
	}
	return "Cassandra " + ring.Version, nil
}

// empty clears the work folder, and refuses a folder that is not one of ours.
func (d *demo) empty() error {
	marker := filepath.Join(d.dir, ".csm-demo")
	if entries, err := os.ReadDir(d.dir); err == nil && len(entries) > 0 {
		if _, err := os.Stat(marker); err != nil {
			return fmt.Errorf("%s is not empty and was not made by this program: name another folder with -dir", d.dir)
		}
		if err := os.RemoveAll(d.dir); err != nil {
			return err
		}
	}
	return errors.Join(os.MkdirAll(d.dir, 0o750), os.WriteFile(marker, nil, 0o600))
}

// close ends everything that was started, agents first so that they see no dying Cassandra.
func (d *demo) close() {
	for _, l := range d.loads {
		l.Stop()
	}
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	for _, a := range d.agents {
		if a.Process != nil {
			_ = a.Process.Stop(ctx)
		}
	}
	if d.ring != nil {
		d.ring.Kill()
	}
	if d.plane != nil {
		for _, c := range d.plane.Controllers {
			_ = c.Stop(ctx)
		}
	}
	for _, r := range d.loopback {
		r.Release()
	}
}

func addresses(r *process.Range, n int) []netip.Addr {
	var out []netip.Addr
	for i := range n {
		out = append(out, r.Host(i+1))
	}
	return out
}
