//go:build linux

package fleetsim

import (
	"context"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net"
	"net/http"
	"sync"
	"time"

	"github.com/jonboulle/clockwork"

	"github.com/cassandra-security-manager/csm/agent/install"
	"github.com/cassandra-security-manager/csm/agent/node"
)

// Sim is the fleet in this process.
type Sim struct {
	spec Spec
	// Log takes what agents warn of; discarded when nil.
	Log    slog.Handler
	agents []*agent
}

// agent is one node: the real agent and what stands in for its Cassandra.
type agent struct {
	*host
	ear *ear
}

// New makes the fleet; Run makes it work.
func New(s Spec) *Sim {
	sim := &Sim{spec: s, Log: slog.DiscardHandler}
	v := newVouched()
	for _, r := range s.Rings {
		ring := &ring{Ring: r, hosts: map[string]*host{}, vouched: v, waiting: r.Nodes}
		for k := range r.Nodes {
			h := newHost(s, ring, r.First+k)
			ring.hosts[Address(h.number).String()] = h
			sim.agents = append(sim.agents, &agent{host: h, ear: &ear{stat: Agent{Node: Name(h.number), Cluster: r.Cluster}}})
		}
	}
	// The order in which agents start is drawn too.
	random := rand.New(rand.NewPCG(s.Seed, 0))
	random.Shuffle(len(sim.agents), func(i, j int) { sim.agents[i], sim.agents[j] = sim.agents[j], sim.agents[i] })
	return sim
}

// Run runs the agents until ctx ends or one of them cannot go on.
func (s *Sim) Run(ctx context.Context) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	server := &http.Server{Addr: s.spec.Listen, Handler: http.HandlerFunc(s.tell), ReadHeaderTimeout: 5 * time.Second}
	l, err := net.Listen("tcp", s.spec.Listen)
	if err != nil {
		return err
	}
	go func() { _ = server.Serve(l) }()
	defer server.Close()
	var wg sync.WaitGroup
	began := time.Now()
	for i, a := range s.agents {
		if s.spec.Ramp > 0 {
			select {
			case <-time.After(time.Until(began.Add(time.Duration(float64(i) / s.spec.Ramp * float64(time.Second))))):
			case <-ctx.Done():
			}
		}
		wg.Go(func() {
			if err := s.run(ctx, a); err != nil {
				cancel(fmt.Errorf("%s: %w", Name(a.number), err))
			}
		})
	}
	wg.Wait()
	if err := context.Cause(ctx); err != context.Canceled {
		return err
	}
	return nil
}

func (s *Sim) run(ctx context.Context, a *agent) error {
	if ctx.Err() != nil {
		return nil
	}
	conf := s.spec.config(a.ring.Ring, a.number)
	dialer := net.Dialer{LocalAddr: net.TCPAddrFromAddrPort(netipPort(a.number)), Timeout: 20 * time.Second, KeepAlive: -1}
	n, err := node.Open(node.Options{Config: conf, Instance: conf.Cassandra[0], Reloader: a.host, Clock: clockwork.NewRealClock(),
		Logger:  slog.New(&listening{ear: a.ear, to: s.Log.WithAttrs([]slog.Attr{slog.String("node", Name(a.number))})}),
		Install: install.Options{Probe: a.probe}, Read: a.read, Probe: a.probe, Detect: a.detect, Links: noLinks{},
		Machine:   func() (m [32]byte) { binary.BigEndian.PutUint64(m[:], uint64(a.number)); return m },
		Unwatched: true, Jitter: a.draw,
		Dialer: func(ctx context.Context, address string) (net.Conn, error) {
			return dialer.DialContext(ctx, "tcp", address)
		},
		Notify: func(_ string, did node.Action, err error) { a.ear.did(did, err) }})
	if err != nil {
		return err
	}
	defer n.Close()
	return n.Run(ctx)
}

// tell answers with how the agents are.
func (s *Sim) tell(w http.ResponseWriter, _ *http.Request) {
	all := make([]Agent, len(s.agents))
	for i, a := range s.agents {
		all[i] = a.ear.now()
	}
	w.Header().Set("Content-Type", "application/json")
	_ = json.NewEncoder(w).Encode(all)
}
