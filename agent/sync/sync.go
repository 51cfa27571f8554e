// Package sync keeps the one stream to the control plane: it goes through the list of controllers until one answers, says
// what the agent has, hands what comes back to its handler, and starts again with growing, jittered pauses.
//
// It promises that a report which replaces an unsent one replaces it (a slow link never builds up a queue), that calls use
// the connection whose stream lives, and that losing every controller changes nothing on the node. It keeps no state on disk.
package sync

import (
	"context"
	"crypto/tls"
	"errors"
	"io"
	"log/slog"
	"net"
	"strings"
	"sync"
	"time"

	"github.com/jonboulle/clockwork"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"

	agentv1 "github.com/cassandra-security-manager/csm/protocol/agent/v1"
	"github.com/cassandra-security-manager/csm/shared/fault"
	"github.com/cassandra-security-manager/csm/shared/identity"
)

// Pauses between rounds over the whole list: doubled each round, then jittered to 20-100 %. The longest is short because
// it is what an agent may still wait when a controller answers again, and long enough for 1000 agents to come back to one
// controller at 250 a second, about what it can shake hands with on two cores. A controller without a quorum costs few
// handshakes: it keeps each stream that opens waiting for a leader, for seconds, before it sends it away.
const (
	firstPause = time.Second
	lastPause  = 5 * time.Second
	// settled is how long a stream must live for the next failure to start from the first pause.
	settled = 30 * time.Second
	// openFor bounds connecting to one controller, and after it all until its first answer: when thousands come at once, a controller lets
	// each wait for its turn.
	openFor, answerFor = 10 * time.Second, time.Minute
	// hopelessPause is between rounds while no stream can open by itself.
	hopelessPause = 2 * time.Minute
)

// Handler is told what comes over the stream. Its methods return soon.
type Handler interface {
	// Hello is what the stream begins with.
	Hello() *agentv1.Hello
	Target(*agentv1.Target)
	ProofTask(*agentv1.ProofTask)
	ProofResult(*agentv1.ProofResult)
	Control(*agentv1.Control)
	// Connected is told that a stream to a controller lives, Disconnected that none does, and why.
	Connected(controller string)
	Disconnected(why error)
}

// Options of a Client.
type Options struct {
	Controllers []string
	TLS         *tls.Config
	// Dialer may be nil.
	Dialer  Dialer
	Handler Handler
	Clock   clockwork.Clock
	// Jitter draws from [0, 1).
	Jitter func() float64
	Logger *slog.Logger
	// Hopeless says that no stream can open as things are, because the identity has expired: rounds are then minutes apart until
	// Reconnect. It may be nil.
	Hopeless func() bool
}

// Client is one stream and the calls beside it. It is safe for concurrent use.
type Client struct {
	o      Options
	report chan *agentv1.Report
	// again ends a pause.
	again chan struct{}

	mu    sync.Mutex
	conn  *grpc.ClientConn
	ready chan struct{} // closed while conn is set
	start int
	drop  context.CancelFunc
}

// New makes a client; Run makes it work.
func New(o Options) *Client {
	c := &Client{o: o, report: make(chan *agentv1.Report, 1), again: make(chan struct{}, 1), ready: make(chan struct{})}
	if n := len(o.Controllers); n > 0 {
		c.start = int(o.Jitter() * float64(n))
	}
	return c
}

// Run keeps the stream until ctx ends. It returns nil then, and never otherwise. Why there is no stream is logged once for each
// controller and cause.
func (c *Client) Run(ctx context.Context) error {
	round, said := 0, map[string]string{}
	for i := c.start; ctx.Err() == nil; i++ {
		address := c.o.Controllers[i%len(c.o.Controllers)]
		began := c.o.Clock.Now()
		opened, err := c.stream(ctx, address)
		if ctx.Err() != nil {
			return nil
		}
		c.o.Handler.Disconnected(err)
		if opened {
			delete(said, address)
		}
		level := slog.LevelDebug
		if k := Kind(err); said[address] != k {
			level, said[address] = slog.LevelWarn, k
		}
		c.o.Logger.Log(ctx, level, "no stream", "controller", address, "error", err)
		if opened && c.o.Clock.Since(began) >= settled {
			round = 0
		}
		// The next controller is tried at once; the pause comes after each round over all of them.
		if (i-c.start+1)%len(c.o.Controllers) == 0 {
			c.rest(ctx, round)
			round++
		}
	}
	return nil
}

// rest waits between two rounds: seconds, or minutes while it is hopeless, and not after Reconnect.
func (c *Client) rest(ctx context.Context, round int) {
	enough := time.Duration(float64(hopelessPause) * (0.5 + 0.5*c.o.Jitter()))
	for waited := time.Duration(0); waited < enough; {
		pause := Pause(round, c.o.Jitter())
		select {
		case <-c.o.Clock.After(pause):
		case <-c.again:
			return
		case <-ctx.Done():
			return
		}
		if waited += pause; c.o.Hopeless == nil || !c.o.Hopeless() {
			return
		}
	}
}

// Pause is how long to wait after the given number of fruitless rounds. jitter is drawn from [0, 1).
func Pause(round int, jitter float64) time.Duration {
	p := firstPause << min(round, 16)
	p = min(p, lastPause)
	return time.Duration(float64(p) * (0.2 + 0.8*jitter))
}

// Kind is an error without what differs each time: times, ports, counts. Two errors of one kind are told once.
func Kind(err error) string {
	if err == nil {
		return ""
	}
	return strings.Map(func(r rune) rune {
		if r >= '0' && r <= '9' {
			return -1
		}
		return r
	}, err.Error())
}

// Reconnect ends the stream, or the pause before the next, which uses the identity as it is now.
func (c *Client) Reconnect() {
	select {
	case c.again <- struct{}{}:
	default:
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.drop != nil {
		c.drop()
	}
}

func (c *Client) stream(ctx context.Context, address string) (opened bool, err error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	// The stream must open in time, but may then live for hours.
	conn, tooLate, err := dialOnce(address, c.o.TLS, c.o.Dialer, cancel)
	if err != nil {
		return false, err
	}
	defer tooLate.Stop()
	defer conn.Close()
	s, err := agentv1.NewAgentServiceClient(conn).Sync(ctx)
	if err != nil {
		return false, fault.FromGRPC(err)
	}
	hello := c.o.Handler.Hello()
	if err := s.Send(&agentv1.SyncRequest{Message: &agentv1.SyncRequest_Hello{Hello: hello}}); err != nil && !errors.Is(err, io.EOF) {
		return false, fault.FromGRPC(err)
	}
	first, err := s.Recv()
	if err != nil {
		if ctx.Err() != nil {
			return false, noAnswer(address)
		}
		return false, fault.FromGRPC(err)
	}
	tooLate.Stop()
	c.use(conn, cancel)
	defer c.unuse()
	c.o.Handler.Connected(address)
	c.o.Logger.Info("stream open", "controller", address)
	c.dispatch(first)
	sent := make(chan error, 1)
	go func() { sent <- c.send(ctx, s) }()
	for {
		m, err := s.Recv()
		if err != nil {
			cancel()
			<-sent
			if errors.Is(err, io.EOF) {
				return true, fault.New(fault.Unavailable, "stream-closed", "the controller %s closed the stream", address)
			}
			return true, fault.FromGRPC(err)
		}
		c.dispatch(m)
	}
}

// dialOnce opens a lazy connection and calls giveUp when it is not there in openFor, or the timer that it returns is not stopped in
// answerFor after that.
func dialOnce(address string, t *tls.Config, through Dialer, giveUp func()) (*grpc.ClientConn, *time.Timer, error) {
	tooLate := time.AfterFunc(openFor, giveUp)
	conn, err := Dial(address, answered{credentials.NewTLS(identity.ForDial(t)), func() { tooLate.Reset(answerFor) }}, through)
	if err != nil {
		tooLate.Stop()
	}
	return conn, tooLate, err
}

// answered says when a connection is there on which the handshake begins.
type answered struct {
	credentials.TransportCredentials
	say func()
}

// Clone is of credentials.TransportCredentials.
func (a answered) Clone() credentials.TransportCredentials {
	a.TransportCredentials = a.TransportCredentials.Clone()
	return a
}

// ClientHandshake is of credentials.TransportCredentials.
func (a answered) ClientHandshake(ctx context.Context, authority string, c net.Conn) (net.Conn, credentials.AuthInfo, error) {
	a.say()
	return a.TransportCredentials.ClientHandshake(ctx, authority, c)
}

func (c *Client) send(ctx context.Context, s grpc.BidiStreamingClient[agentv1.SyncRequest, agentv1.SyncResponse]) error {
	for {
		select {
		case <-ctx.Done():
			return nil
		case r := <-c.report:
			if err := s.Send(&agentv1.SyncRequest{Message: &agentv1.SyncRequest_Report{Report: r}}); err != nil {
				return err // Recv tells the reason
			}
		}
	}
}

func (c *Client) dispatch(m *agentv1.SyncResponse) {
	h := c.o.Handler
	switch {
	case m.GetTarget() != nil:
		h.Target(m.GetTarget())
	case m.GetProofTask() != nil:
		h.ProofTask(m.GetProofTask())
	case m.GetProofResult() != nil:
		h.ProofResult(m.GetProofResult())
	case m.GetControl() != nil:
		h.Control(m.GetControl())
	}
}

func (c *Client) use(conn *grpc.ClientConn, drop context.CancelFunc) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.conn, c.drop = conn, drop
	close(c.ready)
}

func (c *Client) unuse() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.conn, c.drop = nil, nil
	c.ready = make(chan struct{})
}

// Report sends what the node looks like now; an older report that was not sent yet is dropped.
func (c *Client) Report(r *agentv1.Report) {
	for {
		select {
		case c.report <- r:
			return
		default:
		}
		select {
		case <-c.report:
		default:
		}
	}
}

// Apart makes calls without a stream, each on a connection of its own: what an agent needs whose identity has expired, for
// which no stream opens.
type Apart struct {
	Controllers []string
	TLS         *tls.Config
	// Dialer may be nil.
	Dialer Dialer
}

// Call asks one controller after the other until one answers; a fault that a controller sent is an answer.
func (a Apart) Call(ctx context.Context, call func(context.Context, agentv1.AgentServiceClient) error) error {
	err := error(fault.New(fault.Unavailable, "no-controller", "no controller is configured").Do("name them in agent.yaml"))
	for _, address := range a.Controllers {
		if err = a.one(ctx, address, call); err == nil || ctx.Err() != nil || !fault.Is(err, fault.Unavailable) && !fault.Is(err, fault.Unknown) {
			return err
		}
	}
	return err
}

func (a Apart) one(outer context.Context, address string, call func(context.Context, agentv1.AgentServiceClient) error) error {
	ctx, cancel := context.WithCancel(outer)
	defer cancel()
	conn, tooLate, err := dialOnce(address, a.TLS, a.Dialer, cancel)
	if err != nil {
		return err
	}
	defer tooLate.Stop()
	defer conn.Close()
	err = call(ctx, agentv1.NewAgentServiceClient(conn))
	if err != nil && ctx.Err() != nil && outer.Err() == nil {
		return noAnswer(address)
	}
	return fault.FromGRPC(err)
}

func noAnswer(address string) error {
	return fault.New(fault.Unavailable, "no-answer", "the controller %s did not answer in time", address)
}

// Call runs a call on the connection whose stream lives, and waits for one until ctx ends. Faults come back as they were
// sent.
func (c *Client) Call(ctx context.Context, call func(context.Context, agentv1.AgentServiceClient) error) error {
	for {
		c.mu.Lock()
		conn, ready := c.conn, c.ready
		c.mu.Unlock()
		if conn != nil {
			return fault.FromGRPC(call(ctx, agentv1.NewAgentServiceClient(conn)))
		}
		select {
		case <-ready:
		case <-ctx.Done():
			return fault.New(fault.Unavailable, "no-controller", "no controller can be reached").Do("check that a controller runs and that its port 9641 is open from here")
		}
	}
}
