package agentapi

import (
	"context"
	"crypto/sha256"
	"errors"
	"io"
	"time"

	"github.com/jonboulle/clockwork"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	agentv1 "github.com/cassandra-security-manager/csm/protocol/agent/v1"
	clusterv1 "github.com/cassandra-security-manager/csm/protocol/cluster/v1"

	"github.com/cassandra-security-manager/csm/controller/fleet"
	"github.com/cassandra-security-manager/csm/controller/state"
	"github.com/cassandra-security-manager/csm/shared/fault"
)

// Protocol is the newest version of the agents' protocol that this controller speaks.
const Protocol = 1

// reportPause is the least time between two recorded reports of one agent; what comes between is kept, newest first.
const reportPause = time.Second

// catchUp is how long a stream waits for a state that is behind what the agent has already been told.
const catchUp = 10 * time.Second

// pusher is the life of one stream: everything is sent and remembered by its one goroutine.
type pusher struct {
	s      *Server
	x      *session
	stream agentv1.AgentService_SyncServer

	watches struct{ target, proofs, agent, wave *state.Watch }
	timer   clockwork.Timer

	lastTarget sum
	generation uint64 // of lastTarget
	tasks      map[string]bool
	results    uint64
	waits      waiting
	reported   sum
	pending    *clusterv1.AgentReported
	reportedAt time.Time
	// at is when something is due by time alone, by what it is.
	at map[string]time.Time
}

// sum stands for a message that is only compared: ten thousand streams would keep ten thousand of them.
type sum [sha256.Size]byte

func sumOf(m proto.Message) sum {
	b, err := proto.MarshalOptions{Deterministic: true}.Marshal(m)
	if err != nil {
		return sum{} // text that is not UTF-8: no message that was received or read from the state has any
	}
	return sha256.Sum256(b)
}

// Sync holds the agent's stream: Hello first, then pushes until either side ends it.
func (s *Server) Sync(stream agentv1.AgentService_SyncServer) error {
	ctx := stream.Context()
	c := callerOf(ctx)
	if err := c.Allowed(); err != nil {
		return s.dismiss(stream, c.Caller, err)
	}
	first, err := stream.Recv()
	if err != nil {
		return err
	}
	hello := first.GetHello()
	if hello == nil {
		return fault.New(fault.Invalid, "no-hello", "a stream begins with Hello")
	}
	if err := s.sameTime(hello.GetAgent().GetClock()); err != nil {
		return err
	}
	if v := hello.GetAgent().GetProtocol(); v > Protocol {
		return fault.New(fault.Refused, "protocol-newer", "the agent speaks version %d of the protocol, this controller %d", v, Protocol).Do("update the controllers before the agents")
	}
	report, err := fleet.Report{UID: c.UID, Incarnation: c.Incarnation, Agent: hello.Agent, Instance: hello.Instance, Stores: hello.Stores}.Encode()
	if err != nil {
		return err
	}
	if err := s.notBehind(ctx, hello.HighestGeneration); err != nil {
		return err
	}
	x, err := s.open(c, hello.Trusts)
	if err != nil {
		return err
	}
	connected := false
	defer func() { s.closeSession(x, connected) }()
	p := &pusher{s: s, x: x, stream: stream, at: map[string]time.Time{}, reported: sumOf(report), reportedAt: s.Clock.Now()}
	p.watches.target = s.Store.Watch(fleet.TargetSignals(c.Node)...)
	p.watches.proofs = s.Store.Watch(fleet.ProofSignal(c.Node))
	p.watches.agent = s.Store.Watch(fleet.AgentSignal(c.UID))
	p.watches.wave = s.Store.Watch(fleet.WaveSignal(c.Cluster))
	defer p.close()
	if err := s.Fleet.Connected(ctx, report, s.Controller, x.stream); err != nil {
		if fault.HasReason(err, "agent-suspended") {
			return s.dismiss(stream, fleet.Caller{State: fleet.Suspended, Reason: fault.From(err).Message}, err)
		}
		return err
	}
	connected = true
	if p.results, err = s.Fleet.ProofCursor(ctx, c.Node); err != nil {
		return err
	}
	return p.run(ctx)
}

// notBehind waits for the state that the agent was last told from, so that a lagging controller cannot turn it back.
func (s *Server) notBehind(ctx context.Context, highest uint64) error {
	if highest <= s.Store.Applied() {
		return nil
	}
	if err := s.Linearize(ctx); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, catchUp)
	defer cancel()
	if err := s.Store.WaitApplied(ctx, highest); err != nil {
		return fault.Wrap(err, fault.Unavailable, "behind", "this controller is behind what the agent was told before").Do("connect to another controller")
	}
	return nil
}

// dismiss tells an agent why it may not act, and ends its stream.
func (s *Server) dismiss(stream agentv1.AgentService_SyncServer, c fleet.Caller, err error) error {
	// The agent learns the same from the error; a stream that is gone already needs no word.
	_ = stream.Send(&agentv1.SyncResponse{Message: &agentv1.SyncResponse_Control{Control: &agentv1.Control{Suspended: true, Reason: c.Reason, ServerTime: timestamppb.New(s.Clock.Now())}}})
	return err
}

func (p *pusher) close() {
	p.watches.target.Close()
	p.watches.proofs.Close()
	p.watches.agent.Close()
	p.watches.wave.Close()
	if p.timer != nil {
		p.timer.Stop()
	}
}

type received struct {
	m   *agentv1.SyncRequest
	err error
}

// receive hands over what the agent sends; it ends with the stream.
func (p *pusher) receive(ctx context.Context) <-chan received {
	c := make(chan received)
	go func() {
		for {
			m, err := p.stream.Recv()
			select {
			case c <- received{m, err}:
			case <-ctx.Done():
				return
			}
			if err != nil {
				return
			}
		}
	}()
	return c
}

func (p *pusher) run(ctx context.Context) error {
	in := p.receive(ctx)
	if err := p.send(&agentv1.Control{ServerTime: timestamppb.New(p.s.Clock.Now())}); err != nil {
		return err
	}
	for _, push := range []func(context.Context) error{p.agent, p.system, p.target, p.proofs} {
		if err := push(ctx); err != nil {
			return err
		}
	}
	for {
		var err error
		select {
		case r := <-in:
			err = p.received(ctx, r)
		case <-p.watches.target.C():
			err = p.target(ctx)
		case <-p.watches.proofs.C():
			err = p.proofs(ctx)
		case <-p.watches.agent.C():
			err = p.agent(ctx)
		case <-p.watches.wave.C():
			err = p.wave(ctx)
		case <-p.x.wave:
			err = p.refused(ctx)
		case <-p.x.system:
			err = p.system(ctx)
		case <-p.x.retired:
			return p.s.withNode(ctx, errRetired(), p.x.UID, p.x.Incarnation)
		case <-p.due():
			err = p.timed(ctx)
		case <-p.x.ended:
			return fault.New(fault.Unavailable, "replaced", "the node opened another stream").Do("one agent holds one stream; is its state folder used twice?")
		case <-p.x.away:
			return errAway
		case <-p.s.stop:
			return errClosing
		case <-ctx.Done():
			return fault.From(ctx.Err())
		}
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
	}
}

func (p *pusher) received(ctx context.Context, r received) error {
	if r.err != nil {
		return r.err
	}
	p.x.lastSeen.Store(p.s.Clock.Now().UnixMilli())
	m := r.m.GetReport()
	if m == nil {
		return fault.New(fault.Invalid, "bad-message", "after Hello only reports are sent")
	}
	if err := p.s.sameTime(m.GetAgent().GetClock()); err != nil {
		return err
	}
	p.x.trusts.Store(&m.Trusts)
	report, err := fleet.Report{UID: p.x.UID, Incarnation: p.x.Incarnation, Agent: m.Agent, Instance: m.Instance, Stores: m.Stores}.Encode()
	if err != nil {
		return err
	}
	// One that turns back to what was recorded before one that was not is recorded: a move may have told the other meanwhile.
	if sumOf(report) == p.reported && p.pending == nil {
		return nil
	}
	p.pending = report
	return p.report(ctx)
}

// report records the newest facts, not more often than reportPause. Without a quorum it is tried again: a stream is worth
// more than a fact.
func (p *pusher) report(ctx context.Context) error {
	if p.pending == nil {
		return nil
	}
	now := p.s.Clock.Now()
	if next := p.reportedAt.Add(reportPause); now.Before(next) {
		p.at["report"] = next
		return nil
	}
	p.reportedAt = now
	err := p.s.Fleet.Reported(ctx, p.pending)
	switch {
	case err == nil:
		p.reported, p.pending = sumOf(p.pending), nil
	case fault.Is(err, fault.Unavailable) || fault.Is(err, fault.Unknown):
		p.at["report"] = now.Add(5 * time.Second)
	case fault.HasReason(err, "agent-suspended"):
		return p.s.dismiss(p.stream, fleet.Caller{Reason: fault.From(err).Message}, err)
	default:
		return err
	}
	return nil
}

func (p *pusher) send(c *agentv1.Control) error {
	return p.stream.Send(&agentv1.SyncResponse{Message: &agentv1.SyncResponse_Control{Control: c}})
}

// target pushes the wish when it differs from what was last pushed.
func (p *pusher) target(ctx context.Context) error {
	t, recheck, err := p.s.Fleet.Target(ctx, p.x.Node)
	if err != nil {
		return err
	}
	p.at["freeze"] = recheck
	now := sumOf(t)
	if t.Incarnation != p.x.Incarnation || t.Generation < p.generation || now == p.lastTarget {
		return nil
	}
	p.lastTarget, p.generation = now, t.Generation
	return p.stream.Send(&agentv1.SyncResponse{Message: &agentv1.SyncResponse_Target{Target: t}})
}

// proofs pushes what this agent is asked to prove, and what others have proved of it.
func (p *pusher) proofs(ctx context.Context) error {
	tasks, err := p.s.Fleet.OpenTasks(ctx, p.x.Node)
	if err != nil {
		return err
	}
	var open map[string]bool
	if len(tasks) > 0 {
		open = make(map[string]bool, len(tasks))
	}
	for _, t := range tasks {
		open[t.Task] = true
		if p.tasks[t.Task] {
			continue
		}
		if err := p.stream.Send(&agentv1.SyncResponse{Message: &agentv1.SyncResponse_ProofTask{ProofTask: t}}); err != nil {
			return err
		}
	}
	p.tasks = open
	results, last, err := p.s.Fleet.Results(ctx, p.x.Node, p.results)
	if err != nil {
		return err
	}
	for _, r := range results {
		if err := p.stream.Send(&agentv1.SyncResponse{Message: &agentv1.SyncResponse_ProofResult{ProofResult: r}}); err != nil {
			return err
		}
	}
	p.results = last
	return nil
}

// agent ends the stream of an identity that no longer holds.
func (p *pusher) agent(ctx context.Context) error {
	c, err := p.s.Fleet.Caller(ctx, p.x.UID, p.x.Incarnation)
	if err != nil {
		return err
	}
	if err := c.Allowed(); err != nil {
		return p.s.dismiss(p.stream, c, err)
	}
	return nil
}

// due gives the channel of the earliest thing that is due by time alone; nil when there is none.
func (p *pusher) due() <-chan time.Time {
	var first time.Time
	for _, t := range p.at {
		if !t.IsZero() && (first.IsZero() || t.Before(first)) {
			first = t
		}
	}
	if p.timer != nil {
		p.timer.Stop()
		p.timer = nil
	}
	if first.IsZero() {
		return nil
	}
	// A millisecond late rather than early: times in the state are whole milliseconds.
	p.timer = p.s.Clock.NewTimer(first.Sub(p.s.Clock.Now()) + time.Millisecond)
	return p.timer.Chan()
}

// timed does what is due.
func (p *pusher) timed(ctx context.Context) error {
	now := p.s.Clock.Now()
	for what, do := range map[string]func(context.Context) error{"report": p.report, "freeze": p.target, "wave": p.wave} {
		t := p.at[what]
		if t.IsZero() || now.Before(t) {
			continue
		}
		delete(p.at, what)
		if err := do(ctx); err != nil {
			return err
		}
	}
	return nil
}
