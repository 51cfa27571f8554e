//go:build linux

package fleetsim

import (
	"context"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/cassandra-security-manager/csm/agent/cassandra"
	"github.com/cassandra-security-manager/csm/agent/install"
	"github.com/cassandra-security-manager/csm/agent/links"
	"github.com/cassandra-security-manager/csm/agent/probe"
	"github.com/cassandra-security-manager/csm/agent/reload"
	agentv1 "github.com/cassandra-security-manager/csm/protocol/agent/v1"
)

// ring is what its members share: who is up, and which signatures were found good.
type ring struct {
	Ring
	hosts   map[string]*host // by address
	vouched *vouched

	mu      sync.Mutex
	waiting int // members without stores: a ring is started when each has its own
	status  string
	listed  int // members in status
	up      int
}

// host is one Cassandra as far as its agent can tell: it reads its files when it starts and when it is told to, serves what it
// read, and knows its ring. It implements reload.Reloader, Lister and Streamer.
type host struct {
	spec   Spec
	ring   *ring
	number int

	mu      sync.Mutex
	random  *rand.Rand
	inst    *cassandra.Instance
	stored  bool      // its stores were there once
	boots   time.Time // when it will be up; zero before its ring starts
	up      bool
	served  [32]byte
	chain   []*x509.Certificate
	trusted []*x509.Certificate
}

func newHost(s Spec, r *ring, number int) *host {
	return &host{spec: s, ring: r, number: number, random: rand.New(rand.NewPCG(s.Seed, uint64(number)))}
}

// draw gives a number in [0, 1): the agent's pauses are drawn from it too.
func (h *host) draw() float64 {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.random.Float64()
}

// take lets the mean time pass, half more or less.
func (h *host) take(ctx context.Context, mean time.Duration) error {
	t := time.NewTimer(time.Duration(float64(mean) * (0.5 + h.draw())))
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// read reads cassandra.yaml; no process table is searched, which thousands of agents on one host share.
func (h *host) read() (*cassandra.Instance, []cassandra.Finding, error) {
	dir := h.spec.folder(h.ring.Ring, h.number)
	o := cassandra.Options{Roots: []string{filepath.Join(dir, "tls")}, WorkDir: dir, Proc: filepath.Join(dir, "tls")}
	i, findings, err := o.Read(filepath.Join(dir, "cassandra.yaml"))
	if err == nil {
		h.mu.Lock()
		h.inst = i
		h.mu.Unlock()
	}
	return i, findings, err
}

// detect says whether Cassandra is up. It starts when every member of its ring has its stores.
func (h *host) detect(context.Context, *cassandra.Instance) cassandra.Presence {
	h.mu.Lock()
	up, stored, inst, boots := h.up, h.stored, h.inst, h.boots
	h.mu.Unlock()
	if !up && inst != nil {
		if !stored && there(inst.Stores[0].KeystorePath) {
			h.mu.Lock()
			h.stored = true
			h.mu.Unlock()
			h.ring.arrived()
		}
		if boots.IsZero() && h.ring.complete() {
			boots = time.Now().Add(time.Duration(float64(h.spec.Pace.Boot) * (0.5 + h.draw())))
			h.mu.Lock()
			h.boots = boots
			h.mu.Unlock()
		}
		if !boots.IsZero() && !time.Now().Before(boots) && h.load() == nil {
			up = true
			h.ring.started()
		}
	}
	return cassandra.Presence{Internode: up, CQL: up, CQLExpected: true}
}

func there(path string) bool {
	_, err := os.Stat(path)
	return err == nil
}

// load reads the stores, as the first handshake after a reload does.
func (h *host) load() error {
	h.mu.Lock()
	inst := h.inst
	h.mu.Unlock()
	c, err := install.Certificate(inst.Stores[0])
	if err != nil {
		return err
	}
	trusted := h.ring.vouched.same(install.Trusted(inst.Stores[0]))
	chain := []*x509.Certificate{c.Leaf}
	for _, der := range c.Certificate[1:] {
		x, err := x509.ParseCertificate(der)
		if err != nil {
			return err
		}
		chain = append(chain, x)
	}
	chain = append(chain[:1], h.ring.vouched.same(chain[1:])...)
	h.mu.Lock()
	defer h.mu.Unlock()
	h.up, h.served, h.chain, h.trusted = true, sha256.Sum256(c.Leaf.Raw), chain, trusted
	return nil
}

// Reload is nodetool reloadssl: it ends well even where it does nothing.
func (h *host) Reload(ctx context.Context) (reload.Output, error) {
	began := time.Now()
	if err := h.take(ctx, h.spec.Pace.Reload); err != nil {
		return reload.Output{}, err
	}
	if h.draw() >= h.spec.Faults.Ignored {
		_ = h.load() // a pair that cannot be read leaves the old one in service, and nodetool says nothing
	}
	return reload.Output{Took: time.Since(began)}, nil
}

// Ring is nodetool status.
func (h *host) Ring(ctx context.Context) (string, error) {
	return h.ring.list(), h.take(ctx, h.spec.Pace.Ask)
}

// Netstats is nodetool netstats of a node that streams nothing.
func (h *host) Netstats(ctx context.Context) (string, error) {
	return "Mode: NORMAL\nNot sending any streams.\n", h.take(ctx, h.spec.Pace.Ask)
}

// probe is a handshake with a port of the ring.
func (h *host) probe(ctx context.Context, q probe.Request) probe.Result {
	began := time.Now()
	if h.take(ctx, h.spec.Pace.Handshake) != nil {
		return probe.Result{Verdict: agentv1.Verdict_VERDICT_UNKNOWN, Detail: "given up"}
	}
	r := h.ask(q)
	r.Took = time.Since(began)
	return r
}

func (h *host) ask(q probe.Request) probe.Result {
	other := h.ring.hosts[q.Address]
	if other == nil {
		return probe.Result{Verdict: agentv1.Verdict_VERDICT_DOWN, Detail: "nobody has this address"}
	}
	if other != h && h.draw() < h.spec.Faults.Silent {
		return probe.Result{Verdict: agentv1.Verdict_VERDICT_UNKNOWN, Detail: "no answer within 5s"}
	}
	other.mu.Lock()
	up, served, chain, trusted := other.up, other.served, other.chain, other.trusted
	other.mu.Unlock()
	if !up {
		return probe.Result{Verdict: agentv1.Verdict_VERDICT_DOWN, Detail: "connection refused"}
	}
	r := probe.Result{Verdict: agentv1.Verdict_VERDICT_ACCEPTED, Served: served, Chain: chain, Asked: true, TLS: tls.VersionTLS13, Detail: "accepted"}
	if len(q.Roots) > 0 {
		if r.Anchor = h.ring.vouched.leads(chain, q.Roots); r.Anchor == nil {
			r.Untrusted = "the chain leads to none of the anchors"
		}
	}
	if q.Certificate == nil || h.ring.vouched.leads(offered(q.Certificate), trusted) == nil {
		r.Verdict, r.Detail = agentv1.Verdict_VERDICT_REFUSED, "remote error: tls: unknown certificate authority"
		return r
	}
	if r.Accepted = true; q.ExpectLeaf != [32]byte{} && q.ExpectLeaf != served {
		r.Verdict, r.Detail = agentv1.Verdict_VERDICT_WRONG_LEAF, "another leaf is served"
	}
	return r
}

// arrived counts a member that has its stores; started one that is up.
func (r *ring) arrived() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.waiting--
}

func (r *ring) complete() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.waiting <= 0
}

func (r *ring) started() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.up++
}

// list is what nodetool status prints. Members of a ring that starts are in it from the first on.
func (r *ring) list() string {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.listed == r.up && r.status != "" {
		return r.status
	}
	var b strings.Builder
	b.WriteString("Datacenter: all\n--  Address  Load  Tokens  Owns  Host ID  Rack\n")
	for k := range r.Nodes {
		n := r.First + k
		h := r.hosts[Address(n).String()]
		h.mu.Lock()
		up := h.up
		h.mu.Unlock()
		_, rack := r.place(n)
		fmt.Fprintf(&b, "%sN  %s  104.5 KiB  16  ?  00000000-0000-4000-8000-%012x  %s\n", map[bool]string{true: "U", false: "D"}[up], Address(n), n, rack)
	}
	r.status, r.listed = b.String(), r.up
	return r.status
}

// noLinks is a kernel's table without connections.
type noLinks struct{}

func (noLinks) Links(links.Port) ([]links.Link, error) { return nil, nil }
func (noLinks) Cuttable() error                        { return nil }
func (noLinks) Cut(links.Link) error                   { return nil }
