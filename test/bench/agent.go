//go:build linux

package main

import (
	"context"
	"fmt"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/cassandra-security-manager/csm/controller/fleet"
	"github.com/cassandra-security-manager/csm/test/plane"
	"github.com/cassandra-security-manager/csm/test/process"
	"github.com/cassandra-security-manager/csm/test/ring"
)

// agent measures what an agent costs on a node, and how long one full renewal takes: asked for by REST, signed, written, hot
// reloaded by a real Cassandra and proved by a neighbour's agent.
func (b *bench) agent(ctx context.Context) error {
	info, err := os.Stat(filepath.Join(b.bin, "csm-agent"))
	if err != nil {
		return err
	}
	size := float64(info.Size()) / 1e6
	b.add(figure{Name: "agent binary", Value: size, Unit: "MB", Goal: "< 25 MB", Holds: yes(size < 25), Load: "linux/amd64, stripped"})
	s, err := b.site(ctx)
	if err != nil {
		return err
	}
	defer s.stop()
	if err := s.up(ctx); err != nil {
		return err
	}
	if err := b.installs(ctx, s); err != nil {
		return err
	}
	return b.idle(ctx, s)
}

// site is a ring with an agent beside each node, under one controller.
type site struct {
	*plane.Plane
	ring   *ring.Ring
	agents []*plane.Agent
	frees  []func()
}

const (
	siteCluster = "bench"
	clusterPath = "/v1/tenants/default/clusters/" + siteCluster
)

// site starts the controller and lays everything out; Cassandra and the agents do not run yet.
func (b *bench) site(ctx context.Context) (s *site, err error) {
	s = &site{}
	defer func() {
		if err != nil {
			s.stop()
		}
	}()
	dist, err := ring.Prepare(ctx, filepath.Join("build", "cassandra", ring.Version), true, func(what string) { fmt.Fprintf(os.Stderr, "  %s\n", what) })
	if err != nil {
		return s, err
	}
	p, release, err := b.plane(ctx, "site", 1)
	if err != nil {
		return s, err
	}
	s.Plane = p
	s.frees = append(s.frees, release)
	nodes, err := process.Claim(150, 3, ring.StoragePort, ring.NativePort)
	if err != nil {
		return s, err
	}
	s.frees = append(s.frees, nodes.Release)
	s.ring, err = ring.New(dist, ring.Options{Dir: filepath.Join(b.work, "cassandra"), Cluster: siteCluster,
		Addresses: []netip.Addr{nodes.Host(1), nodes.Host(2), nodes.Host(3)}})
	if err != nil {
		return s, err
	}
	if err := b.authority(ctx, p, "P-384"); err != nil {
		return s, err
	}
	if err := p.API.Do(ctx, http.MethodPost, filepath.Dir(clusterPath), map[string]string{"id": siteCluster, "authority": authorityID("P-384"), "cassandraName": siteCluster}, nil); err != nil {
		return s, err
	}
	for _, n := range s.ring.Nodes {
		a := plane.NewAgent(filepath.Join(b.work, "agents", n.Name), b.bin, n)
		if err := a.Write(p.Fleet(siteCluster), "manage"); err != nil {
			return s, err
		}
		dns, ips := a.Names("bench.example")
		var token struct{ Token string }
		if err := p.API.Do(ctx, http.MethodPost, clusterPath+"/joinTokens", map[string]any{"node": n.Name, "dns": dns, "ips": ips}, &token); err != nil {
			return s, err
		}
		if err := os.WriteFile(a.Token, []byte(token.Token+"\n"), 0o600); err != nil {
			return s, err
		}
		s.agents = append(s.agents, a)
	}
	return s, nil
}

// stop ends what was started, agents first so that they see no dying Cassandra.
func (s *site) stop() {
	for _, a := range s.agents {
		if a.Process != nil {
			a.Process.Kill()
		}
	}
	if s.ring != nil {
		s.ring.Kill()
	}
	for _, f := range slices.Backward(s.frees) {
		f()
	}
}

// up has the agents join and write the stores, starts Cassandra, and waits until every store is proved.
func (s *site) up(ctx context.Context) error {
	for _, a := range s.agents {
		if err := a.Start(); err != nil {
			return err
		}
	}
	for _, a := range s.agents {
		if err := s.wait(ctx, a, time.Minute, "installed-unproven", 0); err != nil {
			return err
		}
	}
	if err := s.ring.Start(ctx); err != nil {
		return err
	}
	for _, a := range s.agents {
		if err := s.wait(ctx, a, time.Minute, "proven", 0); err != nil {
			return err
		}
	}
	return nil
}

// wait until the one store of a node is in a state with a generation.
func (s *site) wait(ctx context.Context, a *plane.Agent, within time.Duration, state string, generation uint64) error {
	err := plane.Eventually(ctx, within, func() error {
		var n fleet.Node
		if err := s.API.Do(ctx, http.MethodGet, clusterPath+"/nodes/"+a.Node.Name, nil, &n); err != nil {
			return err
		}
		if len(n.Stores) != 1 {
			return fmt.Errorf("%d stores", len(n.Stores))
		}
		if st := n.Stores[0]; st.State != state || st.Installed < generation {
			return fmt.Errorf("%s at generation %d, not %s at %d: %s %s", st.State, st.Installed, state, generation, st.Detail, n.Why)
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("%s: %w; the agent's log ends with: %s", a.Node.Name, err, a.Process.Tail(3))
	}
	return nil
}

// installs renews each node once, one after the other.
func (b *bench) installs(ctx context.Context, s *site) error {
	var took []time.Duration
	for _, a := range s.agents {
		began := time.Now()
		var r struct{ Generation uint64 }
		if err := s.API.Do(ctx, http.MethodPost, clusterPath+"/nodes/"+a.Node.Name+":renew", map[string]string{"reason": "measured"}, &r); err != nil {
			return err
		}
		if err := s.wait(ctx, a, 2*time.Minute, "proven", r.Generation); err != nil {
			return err
		}
		took = append(took, time.Since(began))
	}
	slices.Sort(took)
	load := "P-384; asked over REST, key, request, certificate, PKCS#12, JKS and PEM stores, hot reload of Cassandra " + ring.Version + ", proved on both ports by itself and by a neighbour; three nodes, one at a time"
	b.add(figure{Name: "one full install with reload and proof, median", Value: took[len(took)/2].Seconds(), Unit: "s", Load: load})
	b.add(figure{Name: "one full install with reload and proof, longest", Value: took[len(took)-1].Seconds(), Unit: "s", Load: load})
	return nil
}

// idle lets everything be for a minute, once the agents have looked after their last move, and tells the one that took most.
func (b *bench) idle(ctx context.Context, s *site) error {
	rest, span := 40*time.Second, time.Minute
	if b.short {
		rest, span = rest/10, span/10
	}
	if err := pause(ctx, rest); err != nil {
		return err
	}
	before := make([]time.Duration, len(s.agents))
	for i, a := range s.agents {
		u, err := family(a)
		if err != nil {
			return err
		}
		before[i] = u.CPU
	}
	began := time.Now()
	if err := pause(ctx, span); err != nil {
		return err
	}
	var resident, together, peak, share float64
	for i, a := range s.agents {
		own, err := a.Process.Usage()
		if err != nil {
			return err
		}
		all, err := family(a)
		if err != nil {
			return err
		}
		resident, peak, together = max(resident, float64(own.Resident)/1e6), max(peak, float64(own.Peak)/1e6), max(together, float64(all.Resident)/1e6)
		share = max(share, (all.CPU-before[i]).Seconds()/time.Since(began).Seconds()*100)
	}
	load := fmt.Sprintf("%.0f s idle in mode manage beside a running Cassandra, from %.0f s after its last move; the agent that took most of three", span.Seconds(), rest.Seconds())
	b.add(figure{Name: "agent, resident", Value: resident, Unit: "MB", Goal: "< 30 MB", Holds: yes(resident < 30), Load: load})
	b.add(figure{Name: "agent, resident at its highest", Value: peak, Unit: "MB", Load: "since its start: join, first install, one renewal"})
	b.add(figure{Name: "agent and its reload helper, resident", Value: together, Unit: "MB", Load: load + "; shared pages of the one program count twice"})
	b.add(figure{Name: "agent, CPU", Value: share, Unit: "% of one core", Goal: "< 0.1 %", Holds: yes(share < 0.1), Load: load + ", helper included; the kernel counts in steps of 10 ms"})
	return nil
}

func pause(ctx context.Context, d time.Duration) error {
	select {
	case <-time.After(d):
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// family is the agent and its helper together.
func family(a *plane.Agent) (sum process.Usage, err error) {
	for _, pid := range a.Process.Group() {
		u, err := process.UsageOf(pid)
		if err != nil {
			return sum, err
		}
		sum.Resident += u.Resident
		sum.CPU += u.CPU
	}
	return sum, nil
}
