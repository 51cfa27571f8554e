package consensus

import (
	"context"
	"net"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/connectivity"
	"google.golang.org/protobuf/proto"

	"github.com/cassandra-security-manager/csm/controller/consensus/transport"
	"github.com/cassandra-security-manager/csm/controller/state"
	clusterv1 "github.com/cassandra-security-manager/csm/protocol/cluster/v1"
	"github.com/cassandra-security-manager/csm/shared/fault"
)

// clients are the shared gRPC connections, by address.
type clients struct {
	trans *transport.Transport

	mu     sync.Mutex
	byAddr map[string]*grpc.ClientConn
	pipes  map[*grpc.ClientConn]*pipe
	hurry  map[string]time.Time
	closed bool
}

// mayHurry lets a back-off be cut short ten times a second, however many wait for the connection.
func (c *clients) mayHurry(addr string) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	now := time.Now()
	if now.Sub(c.hurry[addr]) < 100*time.Millisecond {
		return false
	}
	if c.hurry == nil {
		c.hurry = map[string]time.Time{}
	}
	c.hurry[addr] = now
	return true
}

func (c *clients) get(addr string) (*grpc.ClientConn, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed {
		return nil, fault.New(fault.Unavailable, "shutting-down", "this controller is shutting down")
	}
	if cc := c.byAddr[addr]; cc != nil {
		return cc, nil
	}
	cc, err := c.trans.Client(addr)
	if err != nil {
		return nil, err
	}
	if c.byAddr == nil {
		c.byAddr = map[string]*grpc.ClientConn{}
	}
	c.byAddr[addr] = cc
	return cc, nil
}

// keep closes connections to addresses where no member is any more.
func (c *clients) keep(list []Member) {
	if len(list) == 0 {
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	for addr, cc := range c.byAddr {
		stay := false
		for _, m := range list {
			stay = stay || m.Address == addr
		}
		if !stay {
			cc.Close()
			delete(c.byAddr, addr)
			delete(c.pipes, cc)
		}
	}
}

func (c *clients) close() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.closed = true
	for _, cc := range c.byAddr {
		cc.Close()
	}
}

// Dial implements Quorum.
func (n *Node) Dial(ctx context.Context, name string) (grpc.ClientConnInterface, error) {
	m, ok := n.dir.find(func(m Member) bool { return m.Name == name && m.Trusted() })
	if !ok {
		return nil, fault.New(fault.NotFound, "no-such-controller", "there is no controller %q", name).Do("list them: `csm system controllers`")
	}
	return n.clients.get(m.Address)
}

func (n *Node) leaderAddress() string {
	addr, id := n.raft.LeaderWithID()
	if m, ok := n.dir.find(func(m Member) bool { return m.ID == string(id) }); ok {
		return m.Address
	}
	return string(addr)
}

// leaderClient is a connection to the leader that stands, or a fault at once: what was not sent was not applied.
func (n *Node) leaderClient(ctx context.Context) (*grpc.ClientConn, error) {
	addr := n.leaderAddress()
	if addr == "" {
		return nil, fault.New(fault.Unavailable, "no-leader", "there is no leader")
	}
	cc, err := n.connected(ctx, addr, 300*time.Millisecond)
	if err != nil {
		return nil, fault.New(fault.Unavailable, "leader-unreachable", "the leader at %s cannot be reached", addr)
	}
	return cc, nil
}

// connected is the connection to an address, standing, within patience: gRPC's own back-off may just be waiting although
// the other side is there again.
func (n *Node) connected(ctx context.Context, addr string, patience time.Duration) (*grpc.ClientConn, error) {
	cc, err := n.clients.get(addr)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	for failed, s := false, cc.GetState(); s != connectivity.Ready; s = cc.GetState() {
		if s == connectivity.TransientFailure {
			if failed = !n.clients.mayHurry(addr) || failed; !failed {
				cc.ResetConnectBackoff()
			}
		}
		cc.Connect()
		if failed || !cc.WaitForStateChange(ctx, s) {
			return nil, fault.New(fault.Unavailable, "unreachable", "the controller at %s cannot be reached", addr).Do("check that it runs and that its port is open")
		}
	}
	return cc, nil
}

// forward hands the envelope to the leader.
func (n *Node) forward(ctx context.Context, e *clusterv1.Envelope) attempt {
	e.Stamp = nil
	raw, err := proto.Marshal(e)
	if err != nil {
		return attempt{class: refused, why: fault.Wrap(err, fault.Invalid, "bad-envelope", "the command cannot be encoded")}
	}
	cc, err := n.leaderClient(ctx)
	if err != nil {
		return attempt{class: notApplied, why: fault.From(err)}
	}
	p, err := n.clients.pipe(n.ctx, cc)
	if err != nil {
		return missed(notApplied, "leader-unreachable", "the leader takes no writes: %v", fault.FromGRPC(err))
	}
	r, sent, err := p.ask(ctx, raw)
	if err != nil && !sent {
		return missed(notApplied, "leader-unreachable", "the leader did not take the write: %v", fault.FromGRPC(err))
	}
	if err != nil {
		return missed(unknown, "leader-unreachable", "the leader was lost while it had the write: %v", fault.FromGRPC(err))
	}
	if r.Class == decided && r.Outcome != nil {
		return attempt{class: decided, outcome: r.Outcome}
	}
	why := state.DecodeFault(r.Refusal)
	if why == nil {
		why = fault.New(fault.Unavailable, "no-leader", "%s", r.Why)
	}
	switch r.Class {
	case notApplied, refused:
		return attempt{class: r.Class, why: why}
	}
	return attempt{class: unknown, why: why}
}

type service struct {
	clusterv1.UnimplementedClusterServiceServer
	n *Node
}

// decide is the leader's side of one forwarded write; it hops once.
func (s service) decide(ctx context.Context, r *clusterv1.ForwardRequest) *clusterv1.ForwardResponse {
	var e clusterv1.Envelope
	var a attempt
	if err := proto.Unmarshal(r.GetEnvelope(), &e); err != nil {
		a = attempt{class: refused, why: fault.Wrap(err, fault.Invalid, "bad-envelope", "the forwarded command cannot be read")}
	} else if err := s.n.store.Check(&e); err != nil {
		a = attempt{class: refused, why: fault.From(err)}
	} else if !s.n.IsLeader() {
		a = missed(notApplied, "no-leader", "%s does not lead", s.n.cfg.Name)
	} else {
		ctx, cancel := context.WithDeadline(ctx, e.Deadline.AsTime())
		defer cancel()
		a = s.n.append(ctx, &e)
	}
	out := &clusterv1.ForwardResponse{Tag: r.Tag, Class: a.class, Outcome: a.outcome}
	if a.why != nil {
		out.Why, out.Refusal = clip(a.why.Message), state.EncodeFault(a.why)
	}
	return out
}

func clip(s string) string { return s[:min(len(s), 1024)] }

// TransferLeadership implements the leader's side.
func (s service) TransferLeadership(ctx context.Context, r *clusterv1.TransferLeadershipRequest) (*clusterv1.TransferLeadershipResponse, error) {
	if !s.n.IsLeader() {
		return nil, fault.New(fault.Unavailable, "no-leader", "%s does not lead", s.n.cfg.Name).Do("try again")
	}
	return &clusterv1.TransferLeadershipResponse{}, s.n.TransferLeadership(ctx, r.GetTo())
}

const joinMethod = "/csm.cluster.v1.AdmissionService/Join"

// startServices serves gRPC on the cluster port: members everything, guests Join.
func (n *Node) startServices() {
	guard := func(ctx context.Context, method string) error {
		if method == joinMethod {
			return nil
		}
		return n.admits(ctx, method)
	}
	n.grpc = grpc.NewServer(append(transport.ServerOptions(),
		grpc.UnaryInterceptor(func(ctx context.Context, req any, info *grpc.UnaryServerInfo, h grpc.UnaryHandler) (any, error) {
			if err := guard(ctx, info.FullMethod); err != nil {
				return nil, err
			}
			return h(ctx, req)
		}),
		grpc.StreamInterceptor(func(srv any, ss grpc.ServerStream, info *grpc.StreamServerInfo, h grpc.StreamHandler) error {
			if err := guard(ss.Context(), info.FullMethod); err != nil {
				return err
			}
			return h(srv, ss)
		}))...)
	clusterv1.RegisterClusterServiceServer(n.grpc, service{n: n})
	clusterv1.RegisterAdmissionServiceServer(n.grpc, admission{n: n})
	if n.cfg.Services != nil {
		n.cfg.Services(n.grpc)
	}
	go n.grpc.Serve(n.trans.Listener(transport.GRPC))
}

// admits says whether the caller is a member now. A stream that lives on asks again for each thing it is asked.
func (n *Node) admits(ctx context.Context, method string) error {
	p := transport.PeerFrom(ctx)
	if p == nil {
		return fault.New(fault.Unauthenticated, "no-certificate", "only members may call %s", method).Do("join first: `csm-controller join`")
	}
	if !n.dir.Allowed(p.Key) {
		return fault.New(fault.Refused, "not-a-member", "the controller %s is no member", p.ID.Path)
	}
	return nil
}

func (n *Node) dialGossip(ctx context.Context, name string) (net.Conn, error) {
	m, ok := n.dir.find(func(m Member) bool { return m.Name == name && m.Trusted() })
	if !ok {
		return nil, fault.New(fault.NotFound, "no-such-controller", "there is no controller %q", name)
	}
	c, err := n.trans.Dial(ctx, transport.Gossip, m.Address)
	if err != nil {
		return nil, err
	}
	return c, nil
}
