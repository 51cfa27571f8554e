package consensus

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/hashicorp/raft"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/cassandra-security-manager/csm/controller/state"
	clusterv1 "github.com/cassandra-security-manager/csm/protocol/cluster/v1"
	"github.com/cassandra-security-manager/csm/shared/fault"
)

const (
	decided    = clusterv1.OutcomeClass_OUTCOME_CLASS_DECIDED
	notApplied = clusterv1.OutcomeClass_OUTCOME_CLASS_NOT_APPLIED
	unknown    = clusterv1.OutcomeClass_OUTCOME_CLASS_UNKNOWN
	refused    = clusterv1.OutcomeClass_OUTCOME_CLASS_REFUSED
)

// attempt is what one try to append an envelope came to. why is set for each class but decided.
type attempt struct {
	class   clusterv1.OutcomeClass
	outcome *clusterv1.Outcome
	why     *fault.Error
}

func missed(class clusterv1.OutcomeClass, reason, format string, args ...any) attempt {
	return attempt{class: class, why: fault.New(fault.Unavailable, reason, format, args...)}
}

// Propose implements state.Log. It holds the command through elections until its deadline; what was perhaps appended is
// tried again under the same id only, so it runs at most once.
func (n *Node) Propose(ctx context.Context, p state.Proposal) (state.Result, error) {
	e, err := state.NewEnvelope(p, later(n.leaderNow(), n.store.Now()))
	if err != nil {
		return state.Result{}, err
	}
	if err := n.store.Check(e); err != nil {
		return state.Result{}, err
	}
	timeout := p.Timeout
	if timeout <= 0 {
		timeout = DefaultTimeout
	}
	ctx, cancel := context.WithTimeout(ctx, min(timeout, state.MaxDeadline))
	defer cancel()
	size := int64(proto.Size(e))
	if err := n.proposing.Acquire(ctx, size); err != nil {
		return state.Result{}, fault.Wrap(err, fault.Unavailable, "overloaded", "more than %d MiB of writes wait at this controller", MaxInFlight>>20).Do("try again with fewer at once")
	}
	defer n.proposing.Release(size)
	var last attempt
	maybe := false
	for pause := 10 * time.Millisecond; ; pause = min(2*pause, 250*time.Millisecond) {
		changed := n.leaders.wait()
		a := n.try(ctx, e)
		switch a.class {
		case decided:
			r, err := state.DecodeOutcome(a.outcome, e.Kind)
			if p.Whole {
				n.owe(r.Index)
			} else {
				_ = n.upTo(ctx, r.Index)
			}
			return r, err
		case refused:
			if !maybe {
				return state.Result{}, a.why
			}
		case unknown:
			maybe = true
		}
		if ctx.Err() == nil || last.why == nil {
			last = a
		}
		select {
		case <-changed:
		case <-time.After(pause):
		case <-ctx.Done():
			return state.Result{}, n.gaveUp(ctx, last, maybe, e)
		case <-n.ctx.Done():
			return state.Result{}, n.gaveUp(n.ctx, missed(notApplied, "shutting-down", "this controller is shutting down"), maybe, e)
		}
	}
}

// catchUpLimit is how long a reader waits for this controller to have applied what was written through it.
const catchUpLimit = 3 * time.Second

// owe remembers that a write through this controller was acknowledged before it can be read here.
func (n *Node) owe(index uint64) {
	for held := n.owed.Load(); index > held && !n.owed.CompareAndSwap(held, index); held = n.owed.Load() {
	}
}

// CatchUp lets whoever wrote here read here what was written: the leader has applied it, and this controller hears of that
// with the leader's next message. A controller that stays behind answers all the same after 3 s, because the write is done;
// the error then says so. Propose waits so by itself, so that the packages above read after it without a word more, unless
// the proposal says that its reply is whole; the door to people waits before each answer that such a write may concern.
func (n *Node) CatchUp(ctx context.Context) error {
	owed := n.owed.Load()
	if n.store.Applied() >= owed {
		return nil
	}
	if n.vain.Load() < owed {
		if n.upTo(ctx, owed) == nil {
			return nil
		}
		if ctx.Err() == nil { // cut off: one reader has waited, the next ones need not
			n.vain.Store(owed)
		}
	}
	return fault.New(fault.Unavailable, "behind", "%s has acknowledged writes that it has not applied yet", n.cfg.Name).Do("ask another controller, or wait until there is a quorum")
}

func (n *Node) upTo(ctx context.Context, index uint64) error {
	ctx, cancel := context.WithTimeout(ctx, catchUpLimit)
	defer cancel()
	return n.store.WaitApplied(ctx, index)
}

func (n *Node) try(ctx context.Context, e *clusterv1.Envelope) attempt {
	if n.IsLeader() {
		return n.append(ctx, e)
	}
	if f := n.diskLow.Load(); f != nil {
		return attempt{class: notApplied, why: f}
	}
	return n.forward(ctx, e)
}

// gaveUp says what is known at the deadline.
func (n *Node) gaveUp(ctx context.Context, last attempt, maybe bool, e *clusterv1.Envelope) error {
	why := last.why
	if why == nil || why.Reason == "no-leader" || why.Reason == "leadership-lost" || why.Reason == "leader-unreachable" || why.Reason == "timeout" {
		why = n.noQuorum()
	}
	if maybe {
		return fault.New(fault.Unknown, "outcome-unknown", "it is not known whether the write %s was done: %s", e.Id, why.Message).
			Do("%s; then ask again with the same id: it runs at most once", strings.TrimSuffix(why.Remedy, "."))
	}
	if why.Code != fault.Unavailable {
		return fault.Wrap(ctx.Err(), fault.Unavailable, why.Reason, "%s", why.Message).Do("%s", why.Remedy)
	}
	return why
}

// append stamps the envelope and puts it into our own log, as the leader.
func (n *Node) append(ctx context.Context, e *clusterv1.Envelope) attempt {
	unfit := n.unfit()
	if unfit != nil && e.Kind != termStart {
		return attempt{class: notApplied, why: unfit}
	}
	deadline, bounded := ctx.Deadline()
	if !bounded {
		deadline = time.Now().Add(DefaultTimeout)
	}
	// The state clock never goes back: a stamp before it would only make deadlines look passed after a failover to a
	// slower clock.
	now := later(n.cfg.Clock.Now(), n.store.Now())
	if unfit != nil { // a term begins with whatever clock: it must not move that of the state
		now = n.store.Now()
	}
	if now.After(e.Deadline.AsTime()) {
		return missed(notApplied, "deadline-passed", "the deadline of the write passed before it reached the log")
	}
	size := int64(len(e.Command)+len(e.Sealed)) + 512
	if err := n.appending.Acquire(ctx, size); err != nil {
		return missed(notApplied, "overloaded", "more than %d MiB of writes wait at the leader", MaxInFlight>>20)
	}
	e.Stamp = timestamppb.New(now)
	data, err := stamped(e)
	if err != nil {
		n.appending.Release(size)
		return attempt{class: refused, why: fault.Wrap(err, fault.Invalid, "bad-envelope", "the command cannot be encoded")}
	}
	n.waiting.Add(1)
	f := n.raft.Apply(data, max(time.Until(deadline), time.Millisecond))
	done := make(chan error, 1)
	go func() {
		err := f.Error()
		n.waiting.Add(-1)
		n.appending.Release(size)
		done <- err
	}()
	select {
	case err := <-done:
		if err != nil {
			return classify(err)
		}
		if o, ok := f.Response().(*clusterv1.Outcome); ok && o != nil {
			if o.GetFault().GetCode() == uint32(fault.Unknown) {
				return attempt{class: unknown, why: state.DecodeFault(o.Fault)}
			}
			return attempt{class: decided, outcome: o}
		}
		return missed(unknown, "no-outcome", "the state machine gave no outcome (%T)", f.Response())
	case <-ctx.Done():
		return missed(unknown, "timeout", "the log did not take it in time")
	}
}

func later(a, b time.Time) time.Time {
	if b.After(a) {
		return b
	}
	return a
}

var termStart = state.Kind(&clusterv1.TermStart{})

// classify says which of raft's errors mean not applied and which leave the outcome unknown.
func classify(err error) attempt {
	switch {
	case errors.Is(err, raft.ErrNotLeader), errors.Is(err, raft.ErrLeadershipTransferInProgress):
		return missed(notApplied, "no-leader", "this controller does not lead")
	case errors.Is(err, raft.ErrEnqueueTimeout):
		return missed(notApplied, "overloaded", "the leader's queue is full")
	case errors.Is(err, raft.ErrAbortedByRestore):
		return missed(notApplied, "restored", "a backup was restored meanwhile")
	case errors.Is(err, raft.ErrLeadershipLost):
		return missed(unknown, "leadership-lost", "the leader lost its leadership meanwhile")
	case errors.Is(err, raft.ErrRaftShutdown):
		return missed(unknown, "shutting-down", "the leader is shutting down")
	}
	return missed(unknown, "log-failed", "the leader could not write its log: %v", err)
}

// noQuorum says which controllers are missing and what to start.
func (n *Node) noQuorum() *fault.Error {
	if f := n.shutOut.Load(); f != nil {
		return f
	}
	voters, conf := map[string]bool{}, n.raft.GetConfiguration()
	if conf.Error() == nil {
		for _, s := range conf.Configuration().Servers {
			if s.Suffrage == raft.Voter {
				voters[string(s.ID)] = true
			}
		}
	}
	var gone, start []string
	for _, m := range n.dir.trusted() {
		if !voters[m.ID] || m.ID == n.cfg.NodeID || n.contacts.fresh(m.ID) {
			continue
		}
		gone = append(gone, fmt.Sprintf("%s (%s)", m.Name, m.Address))
		start = append(start, m.Name)
	}
	if len(voters) == 0 {
		return fault.New(fault.Unavailable, "no-quorum", "%s has not heard from a leader yet", n.cfg.Name).
			Do("wait until it is approved and has caught up (`csm status`); the leader must reach it at %s", n.cfg.Advertise)
	}
	need := len(voters)/2 + 1
	if len(gone) == 0 {
		return fault.New(fault.Unavailable, "no-quorum", "the controllers have no leader; %s reaches all %d voters", n.cfg.Name, len(voters)).
			Do("they are electing one: try again in a few seconds; if it stays, see `csm status` and the logs of csm-controller")
	}
	return fault.New(fault.Unavailable, "no-quorum", "the controllers have no leader: %s reaches %d of %d voters, %d are needed; not reached: %s",
		n.cfg.Name, len(voters)-len(gone), len(voters), need, strings.Join(gone, ", ")).
		Do("start csm-controller on %s (any %d of them), or mend the network on port 9642", strings.Join(start, ", "), max(need-(len(voters)-len(gone)), 1))
}
