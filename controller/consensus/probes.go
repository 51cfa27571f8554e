package consensus

import (
	"context"
	"strings"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/protobuf/types/known/timestamppb"

	clusterv1 "github.com/cassandra-security-manager/csm/protocol/cluster/v1"
	"github.com/cassandra-security-manager/csm/shared/fault"
)

const (
	probeEvery   = time.Second
	probeTimeout = time.Second
	// freshFor is how long an answer says that a controller can be reached.
	freshFor = 3 * time.Second
)

// contact is the last answer of a member to a ping.
type contact struct {
	at  time.Time
	rtt time.Duration
	// offset of its wall clock against ours as it was at clock.
	offset time.Duration
	clock  reading
	answer *clusterv1.PingResponse
	failed error
}

// offsetAt is the offset against our clock as it is now, which may have been set since.
func (c contact) offsetAt(now reading) time.Duration { return c.offset - c.clock.leapt(now) }

type contacts struct {
	mu   sync.Mutex
	byID map[string]contact
}

func (c *contacts) put(id string, update func(*contact)) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.byID == nil {
		c.byID = map[string]contact{}
	}
	v := c.byID[id]
	update(&v)
	c.byID[id] = v
}

func (c *contacts) get(id string) contact {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.byID[id]
}

// fresh says that the member answered the last ping, a moment ago.
func (c *contacts) fresh(id string) bool {
	v := c.get(id)
	return v.failed == nil && v.answer != nil && time.Since(v.at) < freshFor
}

func (c *contacts) rtt(id string) time.Duration { return c.get(id).rtt }

// Ping implements cluster.proto.
func (s service) Ping(context.Context, *clusterv1.PingRequest) (*clusterv1.PingResponse, error) {
	return s.n.self(), nil
}

// self is this controller's own answer to a ping.
func (n *Node) self() *clusterv1.PingResponse {
	r := &clusterv1.PingResponse{Name: n.cfg.Name, Id: n.cfg.NodeID, ClusterId: n.cfg.ClusterID, Now: timestamppb.New(n.cfg.Clock.Now()),
		Version: n.cfg.Version, FeatureLevel: n.cfg.FeatureLevel, Applied: n.store.Applied(), Term: n.raft.CurrentTerm(),
		Role: strings.ToLower(n.raft.State().String()), Leader: n.Leader(), LastContactMs: -1, DiskFree: float64(n.free.Load()) / 1e6, Trusts: n.trusts()}
	r.LastLogIndex = n.raft.LastIndex()
	r.LastLogTerm = n.lastTerm()
	if n.IsLeader() {
		r.LastContactMs = 0
	} else if at := n.raft.LastContact(); !at.IsZero() {
		r.LastContactMs = time.Since(at).Milliseconds()
	}
	return r
}

// ping measures one member: its clock against ours in the middle of the round trip.
func (n *Node) ping(ctx context.Context, m Member) {
	ctx, cancel := context.WithTimeout(ctx, probeTimeout)
	defer cancel()
	cc, err := n.clients.get(m.Address)
	var r *clusterv1.PingResponse
	began := n.readClock()
	if err == nil {
		r, err = clusterv1.NewClusterServiceClient(cc).Ping(ctx, &clusterv1.PingRequest{}, grpc.WaitForReady(true))
	}
	rtt := time.Since(began.mono)
	if err == nil && r.GetId() != m.ID {
		err = fault.New(fault.Unavailable, "wrong-controller", "%s answers as another installation", m.Address)
	}
	n.contacts.put(m.ID, func(c *contact) {
		c.failed = err
		if err == nil {
			*c = contact{at: time.Now(), rtt: rtt, offset: r.GetNow().AsTime().Sub(began.wall.Add(rtt / 2)), clock: began, answer: r}
		}
	})
}

// pingAll measures every other member at once and returns when all have answered or failed.
func (n *Node) pingAll(ctx context.Context) {
	var wg sync.WaitGroup
	for _, m := range n.dir.trusted() {
		if m.ID != n.cfg.NodeID {
			wg.Add(1)
			go func() {
				defer wg.Done()
				n.ping(ctx, m)
			}()
		}
	}
	wg.Wait()
}

// probe keeps the contacts fresh and judges the clocks.
func (n *Node) probe() {
	every := time.NewTicker(probeEvery)
	defer every.Stop()
	for {
		n.pingAll(n.ctx)
		n.judgeClocks()
		n.judgeRefusals()
		select {
		case <-every.C:
		case <-n.ctx.Done():
			return
		}
	}
}

// refusesUs says that the member is there but does not take this controller's certificate: TLS 1.3 tells that by an alert
// on the connection alone.
func (c *contacts) refusesUs(id string) bool {
	v := c.get(id)
	return v.failed != nil && strings.Contains(v.failed.Error(), "remote error: tls: bad certificate")
}

// judgeRefusals notices that this controller is out: one that was removed while it led, or was away, never gets the entry
// that says so, because nobody talks to it any more.
func (n *Node) judgeRefusals() {
	others, answers, refuse := 0, 0, []string{}
	for _, m := range n.dir.trusted() {
		if m.ID == n.cfg.NodeID {
			continue
		}
		others++
		if n.contacts.fresh(m.ID) {
			answers++
		}
		if n.contacts.refusesUs(m.ID) {
			refuse = append(refuse, m.Name)
		}
	}
	old := n.shutOut.Load()
	if 2*len(refuse) <= others {
		if answers > 0 { // a probe that failed otherwise, now and then, says nothing new
			n.shutOut.Store(nil)
		}
		return
	}
	f := fault.New(fault.Unavailable, "shut-out", "%s refuse the certificate of %s: it was removed from the system", strings.Join(refuse, " and "), n.cfg.Name).
		Do("look at `csm system controllers` on one of them; if %s is not there, stop it: it comes back only as a new controller, with an empty %s, a join token and an approval", n.cfg.Name, n.cfg.DataDir)
	n.shutOut.Store(f)
	if old == nil {
		n.cfg.Logger.Error("this controller is shut out", "error", f)
	}
}

// watchDisk hands leadership over and refuses writes before the disk is full.
func (n *Node) watchDisk() {
	every := time.NewTicker(2 * time.Second)
	defer every.Stop()
	for {
		n.lookAtDisk()
		select {
		case <-every.C:
		case <-n.ctx.Done():
			return
		}
	}
}

func (n *Node) lookAtDisk() {
	free, err := n.cfg.tuning.diskFree(n.cfg.DataDir)
	if err != nil {
		n.cfg.Logger.Warn("cannot see how full the disk is", "error", err)
		return
	}
	n.free.Store(uint64(free * 1e6))
	var f *fault.Error
	if free < n.cfg.MinDiskFree {
		f = fault.New(fault.Unavailable, "disk-low", "the disk of %s has %.1f %% free, %.1f %% are needed", n.cfg.Name, free*100, n.cfg.MinDiskFree*100).
			Do("free or add disk space under %s; meanwhile ask another controller", n.cfg.DataDir)
	}
	n.diskLow.Store(f)
}
