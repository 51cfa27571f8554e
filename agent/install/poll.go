package install

import (
	"context"
	"errors"
	"time"

	"github.com/cassandra-security-manager/csm/agent/probe"
	agentv1 "github.com/cassandra-security-manager/csm/protocol/agent/v1"
	"github.com/cassandra-security-manager/csm/shared/fault"
)

// PollBound is how long after a write Cassandra may take to serve both files by itself: one poll and, where that fell between the
// two renames, another.
const PollBound = 2*Poll + time.Minute

// errLeft: the agent ends while Cassandra's poll is waited for. The pair on disk is valid and the journal stays open: Recover goes on.
var errLeft = errors.New("the agent ends while it waits for Cassandra's own look at its files")

// awaitPoll waits until Cassandra has looked at its files by itself and serves the pair's leaf; where only trust changes, which no
// port shows, until one poll must have passed. Who does not wait (a recovery, a restore) is answered at once: later proofs tell.
func (t *transaction) awaitPoll(ctx context.Context, p pair) error {
	if t.stay == nil {
		return fault.New(fault.Unavailable, "poll-pending", "Cassandra has not looked at its files yet").Do("it does so within %s", PollBound)
	}
	// What a poll does not reach is noted as for a reload: what stands now, and once more what came until the new files were served.
	if _, err := t.i.o.Reloader.Reload(ctx); err != nil {
		return err
	}
	bound := PollBound
	if t.trustOnly() {
		bound = Poll + pollSlack
	}
	until := t.i.o.Clock.Now().Add(bound)
	t.i.o.Logger.Info("waits for Cassandra's own look at its files", "store", t.site.Store.Name, "until", until.UTC())
	defer t.i.o.Waiting("", time.Time{})
	if err := t.watchPorts(ctx, p, until); err != nil {
		return err
	}
	_, err := t.i.o.Reloader.Reload(ctx)
	return err
}

func (t *transaction) watchPorts(ctx context.Context, p pair, until time.Time) error {
	for {
		if !t.trustOnly() && t.shows(ctx, p) {
			return nil
		}
		now := t.i.o.Clock.Now()
		switch {
		case !now.Before(until) && t.trustOnly():
			return nil
		case !now.Before(until):
			return fault.New(fault.Unavailable, "poll-missed", "Cassandra did not serve the new files within %s", PollBound).Do("look into Cassandra's log for SSLFactory")
		}
		t.i.o.Waiting(t.site.Store.Name, until)
		timer := t.i.o.Clock.NewTimer(min(t.i.o.PollEvery, until.Sub(now)))
		select {
		case <-timer.Chan():
		case <-ctx.Done():
			timer.Stop()
			return fault.From(ctx.Err())
		case <-t.stay.Done():
			timer.Stop()
			return errLeft
		}
	}
}

// shows says whether each port serves the pair's leaf. The certificate of before is shown: it is trusted before the poll and after
// it, while a new one that is refused would write an ERROR into Cassandra's log at each look.
func (t *transaction) shows(ctx context.Context, p pair) bool {
	with := t.old
	if t.old.key == nil || fatal("old", checkNow(t.old, t.i.o.Now())) != nil {
		with = t.new
	}
	for _, port := range t.ports() {
		if t.gateProbe(port) != nil {
			return false
		}
		r := t.i.o.Probe(ctx, probe.Request{Kind: port.Kind, Address: port.Address.String(), Port: port.Port, Local: localFor(t.site.Instance, port),
			Certificate: with.certificate(), Roots: p.anchors, ExpectLeaf: p.leaf(), Now: t.i.o.Now})
		if r.Served != p.leaf() {
			return false
		}
	}
	return true
}

// pending says whether a proof failed because Cassandra's poll may not have come yet.
func (t *transaction) pending(err error, written time.Time) bool {
	return t.i.o.Poll && t.i.o.Clock.Now().Before(written.Add(PollBound)) &&
		(fault.HasReason(err, "poll-pending") || fault.HasReason(err, "proof-wrong-leaf") || fault.HasReason(err, "proof-refused"))
}

// left ends a transaction that Recover takes up.
func (t *transaction) left() (Outcome, error) {
	err := fault.Wrap(errLeft, fault.Unavailable, "interrupted", "the agent was stopped in the middle of the install").Do("it is settled when the agent starts")
	o := t.outcome(agentv1.MoveOutcome_MOVE_OUTCOME_UNSPECIFIED, err)
	o.State = agentv1.InstallState_INSTALL_STATE_MOVING
	return o, err
}

// Left says whether a transaction was left open because the agent ends: there is nothing to report yet.
func Left(err error) bool { return errors.Is(err, errLeft) }
