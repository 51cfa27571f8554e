package consensus

import (
	"context"
	"sync"
	"time"

	"google.golang.org/grpc"

	clusterv1 "github.com/cassandra-security-manager/csm/protocol/cluster/v1"
	"github.com/cassandra-security-manager/csm/shared/fault"
)

const tickEvery = 500 * time.Millisecond

// verifier asks raft once for all who wait: whoever comes while a round is under way is served by the next one, because
// a round that began before a question cannot answer it.
type verifier struct {
	mu      sync.Mutex
	running bool
	next    *round
}

type round struct {
	done chan struct{}
	err  error
}

func (v *verifier) do(ctx context.Context, ask func() error) error {
	v.mu.Lock()
	if v.next == nil {
		v.next = &round{done: make(chan struct{})}
	}
	r := v.next
	if !v.running {
		v.running = true
		go v.run(ask)
	}
	v.mu.Unlock()
	select {
	case <-r.done:
		return r.err
	case <-ctx.Done():
		return ctx.Err()
	}
}

func (v *verifier) run(ask func() error) {
	for {
		v.mu.Lock()
		r := v.next
		v.next = nil
		v.running = r != nil
		v.mu.Unlock()
		if r == nil {
			return
		}
		r.err = ask()
		close(r.done)
	}
}

// readIndex is the leader's answer: its own SQLite-applied index, then proof that it still led after reading it.
func (n *Node) readIndex(ctx context.Context) (index, term uint64, err error) {
	term = n.raft.CurrentTerm()
	if !n.IsLeader() || n.leaders.ready.Load() != term {
		return 0, 0, fault.New(fault.Unavailable, "no-leader", "%s does not lead, or has only begun to", n.cfg.Name).Do("try again")
	}
	index = n.store.Applied()
	if err := n.verifying.do(ctx, func() error { return n.raft.VerifyLeader().Error() }); err != nil {
		return 0, 0, fault.Wrap(err, fault.Unavailable, "no-leader", "%s could not prove that it leads", n.cfg.Name).Do("try again")
	}
	if n.raft.CurrentTerm() != term {
		return 0, 0, fault.New(fault.Unavailable, "no-leader", "the term changed meanwhile").Do("try again")
	}
	return index, term, nil
}

// ReadIndex implements the leader's side.
func (s service) ReadIndex(ctx context.Context, _ *clusterv1.ReadIndexRequest) (*clusterv1.ReadIndexResponse, error) {
	index, term, err := s.n.readIndex(ctx)
	if err != nil {
		return nil, err
	}
	return &clusterv1.ReadIndexResponse{Index: index, Term: term}, nil
}

// Linearize implements Quorum. Without a deadline it waits for 5 s.
func (n *Node) Linearize(ctx context.Context) error {
	if _, bounded := ctx.Deadline(); !bounded {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, DefaultTimeout)
		defer cancel()
	}
	for pause := 10 * time.Millisecond; ; pause = min(2*pause, 250*time.Millisecond) {
		changed := n.leaders.wait()
		index, err := n.askIndex(ctx)
		if err == nil {
			return n.store.WaitApplied(ctx, index)
		}
		select {
		case <-changed:
		case <-time.After(pause):
		case <-ctx.Done():
			return n.noQuorum()
		case <-n.ctx.Done():
			return fault.New(fault.Unavailable, "shutting-down", "this controller is shutting down").Do("ask another controller")
		}
	}
}

func (n *Node) askIndex(ctx context.Context) (uint64, error) {
	if n.IsLeader() {
		index, _, err := n.readIndex(ctx)
		return index, err
	}
	cc, err := n.leaderClient(ctx)
	if err != nil {
		return 0, err
	}
	ctx, cancel := context.WithTimeout(ctx, 2*time.Second)
	defer cancel()
	r, err := clusterv1.NewClusterServiceClient(cc).ReadIndex(ctx, &clusterv1.ReadIndexRequest{})
	return r.GetIndex(), err
}

// ticks are the leader's positions that were not reached here yet, and when the newest reached one was sent.
type ticks struct {
	mu      sync.Mutex
	waiting []tick
	reached time.Time
}

type tick struct {
	applied uint64
	sent    time.Time
}

const maxTicks = 2400 // twenty minutes behind; older ones are dropped, the age then only looks greater

func (t *ticks) add(applied uint64, sent time.Time) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if len(t.waiting) >= maxTicks {
		t.waiting = t.waiting[1:]
	}
	t.waiting = append(t.waiting, tick{applied, sent})
}

func (t *ticks) age(applied uint64, now time.Time) time.Duration {
	t.mu.Lock()
	defer t.mu.Unlock()
	i := 0
	for ; i < len(t.waiting) && t.waiting[i].applied <= applied; i++ {
		if t.waiting[i].sent.After(t.reached) {
			t.reached = t.waiting[i].sent
		}
	}
	t.waiting = t.waiting[i:]
	if t.reached.IsZero() {
		return AgeUnknown
	}
	return max(now.Sub(t.reached), 0)
}

// Age implements Quorum: 0 on a leader; else the time since the newest tick whose index is reached was sent.
func (n *Node) Age() time.Duration {
	now := time.Now()
	if n.raft != nil && n.IsLeader() && n.leaders.ready.Load() == n.raft.CurrentTerm() {
		n.ticks.add(n.store.Applied(), now) // the day it stops leading, its age begins here
		n.ticks.age(n.store.Applied(), now)
		return 0
	}
	return n.ticks.age(n.store.Applied(), now)
}

// Ticks implements the leader's side.
func (s service) Ticks(_ *clusterv1.TicksRequest, out grpc.ServerStreamingServer[clusterv1.TicksResponse]) error {
	every := time.NewTicker(tickEvery)
	defer every.Stop()
	for {
		term := s.n.raft.CurrentTerm()
		if !s.n.IsLeader() || s.n.leaders.ready.Load() != term {
			return fault.New(fault.Unavailable, "no-leader", "%s does not lead", s.n.cfg.Name).Do("ask the leader")
		}
		if err := out.Send(&clusterv1.TicksResponse{Applied: s.n.store.Applied(), Term: term}); err != nil {
			return err
		}
		select {
		case <-every.C:
		case <-out.Context().Done():
			return nil
		case <-s.n.ctx.Done():
			return nil
		}
	}
}

// followTicks listens to whoever leads.
func (n *Node) followTicks() {
	for n.ctx.Err() == nil {
		if n.IsLeader() {
			n.Age()
		} else if cc, err := n.leaderClient(n.ctx); err == nil {
			n.listen(cc)
		}
		select {
		case <-n.leaders.wait():
		case <-time.After(tickEvery / 2):
		case <-n.ctx.Done():
		}
	}
}

func (n *Node) listen(cc *grpc.ClientConn) {
	ctx, cancel := context.WithCancel(n.ctx)
	defer cancel()
	stream, err := clusterv1.NewClusterServiceClient(cc).Ticks(ctx, &clusterv1.TicksRequest{})
	if err != nil {
		return
	}
	var term uint64
	for {
		t, err := stream.Recv()
		if err != nil || t.GetTerm() < term || n.IsLeader() {
			return
		}
		term = t.GetTerm()
		n.ticks.add(t.GetApplied(), time.Now().Add(-n.contacts.rtt(n.leaderID())))
	}
}

func (n *Node) leaderID() string {
	_, id := n.raft.LeaderWithID()
	return string(id)
}
