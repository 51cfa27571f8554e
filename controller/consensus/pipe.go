package consensus

import (
	"context"
	"errors"
	"io"
	"sync"

	"google.golang.org/grpc"

	clusterv1 "github.com/cassandra-security-manager/csm/protocol/cluster/v1"
)

// maxForwards is how many writes of one follower the leader works on at once; more wait in the stream.
const maxForwards = 4096

// pipe is one stream of writes to the leader, shared by all who write here: a stream for each write costs more than the
// write. It serves until its stream ends, and then a new one is opened.
type pipe struct {
	stream grpc.BidiStreamingClient[clusterv1.ForwardRequest, clusterv1.ForwardResponse]
	// queue has no room: what the sender has not taken was not sent.
	queue chan *clusterv1.ForwardRequest

	mu      sync.Mutex
	waiting map[uint64]chan *clusterv1.ForwardResponse
	last    uint64
	// ended is why the stream ended; done closes with it.
	ended error
	done  chan struct{}
}

// pipe is the open one on a connection.
func (c *clients) pipe(ctx context.Context, cc *grpc.ClientConn) (*pipe, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if p := c.pipes[cc]; p != nil && p.open() {
		return p, nil
	}
	stream, err := clusterv1.NewClusterServiceClient(cc).Forward(ctx)
	if err != nil {
		return nil, err
	}
	p := &pipe{stream: stream, queue: make(chan *clusterv1.ForwardRequest), waiting: map[uint64]chan *clusterv1.ForwardResponse{}, done: make(chan struct{})}
	if c.pipes == nil {
		c.pipes = map[*grpc.ClientConn]*pipe{}
	}
	c.pipes[cc] = p
	go p.receive()
	go p.send()
	return p, nil
}

func (p *pipe) open() bool {
	select {
	case <-p.done:
		return false
	default:
		return true
	}
}

// send is the only one that sends: a leader that does not read holds it up, and nobody else.
func (p *pipe) send() {
	for {
		select {
		case r := <-p.queue:
			_ = p.stream.Send(r) // an error here is the stream's end, and receive knows why
		case <-p.done:
			return
		}
	}
}

// receive hands the answers out until the stream ends.
func (p *pipe) receive() {
	for {
		r, err := p.stream.Recv()
		p.mu.Lock()
		if err != nil {
			p.ended = err
			close(p.done)
			p.mu.Unlock()
			return
		}
		if answer := p.waiting[r.Tag]; answer != nil {
			delete(p.waiting, r.Tag)
			answer <- r // holds one
		}
		p.mu.Unlock()
	}
}

// ask sends one envelope and waits for its answer. sent false: the leader never saw it. Else an error leaves its outcome unknown.
func (p *pipe) ask(ctx context.Context, envelope []byte) (r *clusterv1.ForwardResponse, sent bool, err error) {
	answer := make(chan *clusterv1.ForwardResponse, 1)
	p.mu.Lock()
	p.last++
	tag := p.last
	p.waiting[tag] = answer
	p.mu.Unlock()
	defer func() {
		p.mu.Lock()
		delete(p.waiting, tag)
		p.mu.Unlock()
	}()
	select {
	case p.queue <- &clusterv1.ForwardRequest{Envelope: envelope, Tag: tag}:
	case <-ctx.Done():
		return nil, false, ctx.Err()
	case <-p.done:
		return nil, false, p.ended
	}
	select {
	case r := <-answer:
		return r, true, nil
	case <-ctx.Done():
		return nil, true, ctx.Err()
	case <-p.done:
		return nil, true, p.ended
	}
}

// Forward implements the leader's side: every write on its own, so that a slow one holds no other up.
func (s service) Forward(stream grpc.BidiStreamingServer[clusterv1.ForwardRequest, clusterv1.ForwardResponse]) error {
	var busy sync.WaitGroup
	defer busy.Wait()
	ctx, cancel := context.WithCancel(stream.Context())
	defer cancel() // before waiting: who asked is gone
	var sending sync.Mutex
	room := make(chan struct{}, maxForwards)
	for {
		r, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		if err := s.n.admits(ctx, "Forward"); err != nil {
			return err // removed since the stream was opened
		}
		room <- struct{}{}
		busy.Go(func() {
			defer func() { <-room }()
			out := s.decide(ctx, r)
			sending.Lock()
			defer sending.Unlock()
			_ = stream.Send(out) // a broken stream ends Recv too
		})
	}
}
