//go:build linux

package main

import (
	"context"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/cassandra-security-manager/csm/test/fleetsim"
	"github.com/cassandra-security-manager/csm/test/plane"
	"github.com/cassandra-security-manager/csm/test/process"
)

const (
	// fleetAgents is what has been seen to fit two cores beside other work; -agents asks for more.
	fleetAgents = 500
	// ringNodes is the size of each ring of the fleet; simAgents what one simulator runs: each agent holds two descriptors.
	ringNodes, simAgents = 100, 5_000
	// fleetRamp is how many agents join in a second, fleetReturn how many of a simulator that starts anew come back with full handshakes:
	// they share the machine with the controllers.
	fleetRamp, fleetReturn = 25, 45
)

// crowd is a control plane with simulated agents.
type crowd struct {
	b      *bench
	p      *plane.Plane
	agents int
	specs  []fleetsim.Spec
	sims   []*fleetsim.Fleet
}

// fleet measures what many agents cost the controllers, and how long they need to come back to them.
func (b *bench) fleet(ctx context.Context) error {
	p, release, err := b.plane(ctx, "fleet", 3)
	if err != nil {
		return err
	}
	defer release()
	if err := b.authority(ctx, p, "P-384"); err != nil {
		return err
	}
	e := &crowd{b: b, p: p, agents: fleetAgents}
	if b.agents > 0 {
		e.agents = b.agents
	}
	dir, err := os.MkdirTemp("/dev/shm", "csm-fleet-")
	if err != nil {
		return fmt.Errorf("agents' folders are kept in memory: %w", err)
	}
	defer os.RemoveAll(dir)
	defer e.stop()
	began := time.Now()
	if err := e.lay(ctx, dir); err != nil {
		return err
	}
	if err := e.start(ctx, func(a fleetsim.Agent) bool { return a.Open && !a.Target.IsZero() }); err != nil {
		return err
	}
	fmt.Fprintf(os.Stderr, "  %d agents joined in %s\n", e.agents, time.Since(began).Round(time.Second))
	if err := e.cost(ctx); err != nil {
		return err
	}
	if err := e.word(ctx); err != nil {
		return err
	}
	if err := e.restart(ctx); err != nil {
		return err
	}
	return e.bundle(ctx)
}

// lay makes rings of a hundred and what lies on their hosts.
func (e *crowd) lay(ctx context.Context, dir string) error {
	var rings []fleetsim.Ring
	for first := 1; first <= e.agents; first += ringNodes {
		r := fleetsim.Ring{Cluster: fmt.Sprintf("ring%d", len(rings)+1), First: first, Nodes: min(ringNodes, e.agents-first+1), Datacenters: 2, Racks: 3}
		body := map[string]string{"id": r.Cluster, "authority": authorityID("P-384"), "cassandraName": r.Cluster, "region": "eu-west"}
		if err := e.p.API.Do(ctx, http.MethodPost, filepath.Dir(clusterPath), body, nil); err != nil {
			return err
		}
		rings = append(rings, r)
	}
	pace := fleetsim.Pace{Reload: 2 * time.Second, Ask: time.Second, Handshake: 20 * time.Millisecond, Boot: 10 * time.Second}
	for part := range slices.Chunk(rings, simAgents/ringNodes) {
		s, err := fleetsim.Over(e.p, dir, 1, pace, part...)
		if err != nil {
			return err
		}
		s.Mode = "observe"
		s.Ramp = fleetRamp * float64(len(part)) / float64(len(rings))
		if err := fleetsim.Lay(ctx, s, fleetsim.TokensOf(e.p)); err != nil {
			return err
		}
		e.specs = append(e.specs, s)
	}
	return nil
}

// start runs the simulators until every agent is as wanted.
func (e *crowd) start(ctx context.Context, want func(fleetsim.Agent) bool) error {
	e.sims = nil
	for _, s := range e.specs {
		f, err := fleetsim.Start(s, e.b.bin)
		if err != nil {
			return err
		}
		e.sims = append(e.sims, f)
		if err := plane.Eventually(ctx, time.Minute, func() error { _, err := f.Agents(ctx); return err }); err != nil {
			return err
		}
	}
	return e.until(ctx, 40*time.Minute, want)
}

func (e *crowd) stop() {
	for _, f := range e.sims {
		f.Kill()
	}
	e.sims = nil
}

func (e *crowd) all(ctx context.Context) (all []fleetsim.Agent, err error) {
	for _, f := range e.sims {
		some, err := f.Agents(ctx)
		if err != nil {
			return nil, err
		}
		all = append(all, some...)
	}
	return all, nil
}

// until waits until every agent is as wanted, and says now and then how many are.
func (e *crowd) until(ctx context.Context, within time.Duration, want func(fleetsim.Agent) bool) error {
	ctx, cancel := context.WithTimeout(ctx, within)
	defer cancel()
	said := time.Now()
	for {
		all, err := e.all(ctx)
		if err != nil {
			for _, f := range e.sims {
				if !f.Running() {
					return err
				}
			}
			if perr := pause(ctx, time.Second); perr != nil { // a simulator may be too busy with its agents to tell of them
				return fmt.Errorf("%w: %w", perr, err)
			}
			continue
		}
		missing, last := 0, fleetsim.Agent{}
		for _, a := range all {
			if !want(a) {
				missing++
				last = a
			}
		}
		if missing == 0 {
			return nil
		}
		if time.Since(said) > 20*time.Second {
			fmt.Fprintf(os.Stderr, "  %d of %d agents are there\n", len(all)-missing, len(all))
			said = time.Now()
		}
		if err := pause(ctx, time.Second); err != nil {
			return fmt.Errorf("%d agents are missing, one of them %+v: %w", missing, last, err)
		}
	}
}

// usage of all controllers together.
func (e *crowd) usage() (sum process.Usage, err error) {
	for _, c := range e.p.Controllers {
		u, err := c.Usage()
		if err != nil {
			return sum, err
		}
		sum.Resident += u.Resident
		sum.CPU += u.CPU
	}
	return sum, nil
}

// bounce ends every controller without warning and starts it again.
func (e *crowd) bounce() (at time.Time, err error) {
	for _, c := range e.p.Controllers {
		c.Kill()
	}
	at = time.Now()
	for _, c := range e.p.Controllers {
		if err := c.Start(); err != nil {
			return at, err
		}
	}
	return at, nil
}

// back is an agent that a controller has told its target since a time.
func back(since time.Time) func(fleetsim.Agent) bool {
	return func(a fleetsim.Agent) bool { return a.Open && a.Opened.After(since) && a.Target.After(since) }
}

// cost compares controllers with this state and no agent, and with all of them at rest.
func (e *crowd) cost(ctx context.Context) error {
	e.stop()
	for i := range e.specs {
		e.specs[i].Ramp *= float64(fleetReturn) / fleetRamp
	}
	if _, err := e.bounce(); err != nil {
		return err
	}
	if err := e.p.Ready(ctx); err != nil {
		return err
	}
	rest, span := 30*time.Second, time.Minute
	if e.b.short {
		rest, span = rest/3, span/3
	}
	if err := pause(ctx, rest); err != nil {
		return err
	}
	without, err := e.usage()
	if err != nil {
		return err
	}
	if err := e.start(ctx, back(time.Now())); err != nil {
		return err
	}
	if err := pause(ctx, rest); err != nil {
		return err
	}
	with, err := e.usage()
	if err != nil {
		return err
	}
	began := time.Now()
	if err := pause(ctx, span); err != nil {
		return err
	}
	after, err := e.usage()
	if err != nil {
		return err
	}
	bare, err := e.b.bare(ctx)
	if err != nil {
		return err
	}
	kb := float64(after.Resident-without.Resident) / float64(e.agents) / 1e3
	load := fmt.Sprintf("%d simulated agents that observe, in rings of %d; three controllers in processes of their own; resident memory of all three, with every agent at rest for %.0f s less without any, each after a start", e.agents, ringNodes, (rest + span).Seconds())
	e.b.add(figure{Name: "controllers' memory for an agent", Value: kb, Unit: "kB", Goal: "< 100 kB", Holds: yes(kb < 100), Peer: "bare mTLS stream", PeerValue: num(bare / 1e3), Load: load})
	e.b.add(figure{Name: "controllers' CPU for an agent at rest", Value: (after.CPU - with.CPU).Seconds() / time.Since(began).Seconds() / float64(e.agents) * 1e6, Unit: "millionths of a core", Load: fmt.Sprintf("the same, over %.0f s from %.0f s after the last came", span.Seconds(), rest.Seconds())})
	return nil
}

// word says one thing to all agents, by one command that changes the target of each: a freeze of everything.
func (e *crowd) word(ctx context.Context) error {
	at := time.Now()
	if err := e.p.API.Do(ctx, http.MethodPost, "/v1/system:freeze", map[string]string{"reason": "a figure"}, nil); err != nil {
		return err
	}
	if err := e.until(ctx, 5*time.Minute, func(a fleetsim.Agent) bool { return a.Open && a.Target.After(at) }); err != nil {
		return err
	}
	all, err := e.all(ctx)
	if err != nil {
		return err
	}
	var took []float64
	for _, a := range all {
		took = append(took, a.Target.Sub(at).Seconds())
	}
	slices.Sort(took)
	load := fmt.Sprintf("%d simulated agents with streams to three controllers; one command that changes what each is told (a freeze of all); until the agent has its new target", e.agents)
	e.b.add(figure{Name: "one command to all agents, p99", Value: took[(len(took)*99-1)/100], Unit: "s", Load: load})
	e.b.add(figure{Name: "one command to all agents, last", Value: took[len(took)-1], Unit: "s", Goal: "< 30 s", Holds: yes(took[len(took)-1] < 30), Load: load})
	return e.p.API.Do(ctx, http.MethodPost, "/v1/system:unfreeze", map[string]string{"reason": "a figure"}, nil)
}

// restart kills all controllers at once and counts until each agent has its target again.
func (e *crowd) restart(ctx context.Context) error {
	at, err := e.bounce()
	if err != nil {
		return err
	}
	if err := e.until(ctx, 10*time.Minute, back(at)); err != nil {
		return err
	}
	all, err := e.all(ctx)
	if err != nil {
		return err
	}
	var took []float64
	for _, a := range all {
		took = append(took, max(a.Opened.Sub(at), a.Target.Sub(at)).Seconds())
	}
	slices.Sort(took)
	p99 := took[(len(took)*99-1)/100]
	load := fmt.Sprintf("%d simulated agents with streams; SIGKILL of all three controllers, started at once; until each agent has a stream and its target", e.agents)
	e.b.add(figure{Name: "restart of all controllers to agents healthy, p50", Value: took[len(took)/2], Unit: "s", Load: load})
	e.b.add(figure{Name: "restart of all controllers to agents healthy, p99", Value: p99, Unit: "s", Goal: "< 60 s", Holds: yes(p99 < 60), Load: load})
	e.b.add(figure{Name: "restart of all controllers to agents healthy, last", Value: took[len(took)-1], Unit: "s", Load: load})
	return nil
}

// bundle begins a rotation of the system CA and counts until each agent has said that its verifier holds the new root too. It is the
// last figure: the rotation goes on from there.
func (e *crowd) bundle(ctx context.Context) error {
	const rotations = "/v1/system/authorities/system/rotations"
	var plan struct{ Hash string }
	if err := e.p.API.Do(ctx, http.MethodPost, rotations+":plan", struct{}{}, &plan); err != nil {
		return err
	}
	at := time.Now()
	var begun struct{ Name string }
	if err := e.p.API.Do(ctx, http.MethodPost, rotations, map[string]string{"planHash": plan.Hash, "reason": "a figure"}, &begun); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, 5*time.Minute)
	defer cancel()
	for {
		var now struct {
			Phase  string
			Agents struct{ Total, Trusting int }
		}
		if err := e.p.API.Do(ctx, http.MethodGet, "/v1/"+begun.Name, nil, &now); err != nil {
			return err
		}
		if now.Phase != "distribute" || now.Agents.Total >= e.agents && now.Agents.Trusting == now.Agents.Total { // the phase ends when all have said so
			break
		}
		if err := pause(ctx, 2*time.Second); err != nil { // such a question costs a controller a third of a second
			return fmt.Errorf("%d of %d agents trust the new root, phase %s: %w", now.Agents.Trusting, now.Agents.Total, now.Phase, err)
		}
	}
	took := time.Since(at).Seconds()
	e.b.add(figure{Name: "bundle change to all acknowledged", Value: took, Unit: "s", Goal: "< 30 s", Holds: yes(took < 30),
		Load: fmt.Sprintf("%d simulated agents with streams to three controllers; a rotation of the system CA begins: until the controllers have on record that each agent verifies by the new root too, looked at every 2 s", e.agents)})
	return nil
}
