package consensus

import (
	"context"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hashicorp/raft"
	"google.golang.org/protobuf/proto"

	"github.com/cassandra-security-manager/csm/controller/state"
	clusterv1 "github.com/cassandra-security-manager/csm/protocol/cluster/v1"
	"github.com/cassandra-security-manager/csm/shared/fault"
)

// leadership tells who waits that something about the leader changed.
type leadership struct {
	notify chan bool
	// ready is the term whose TermStart this controller applied as its leader.
	ready atomic.Uint64
	// changes counts the leaders that were heard of.
	changes atomic.Uint64

	mu      sync.Mutex
	changed chan struct{}
	leading bool
	subs    []chan bool
}

func (l *leadership) init() {
	l.notify = make(chan bool, 64)
	l.changed = make(chan struct{})
}

func (l *leadership) observe(ctx context.Context, r *raft.Raft) {
	seen := make(chan raft.Observation, 16)
	o := raft.NewObserver(seen, false, func(o *raft.Observation) bool {
		seen, leader := o.Data.(raft.LeaderObservation)
		if leader && seen.LeaderID != "" {
			l.changes.Add(1)
		}
		return leader
	})
	r.RegisterObserver(o)
	go func() {
		defer r.DeregisterObserver(o)
		for {
			select {
			case <-seen:
				l.wake()
			case <-ctx.Done():
				return
			}
		}
	}()
}

// wake wakes all that wait for a change.
func (l *leadership) wake() {
	l.mu.Lock()
	defer l.mu.Unlock()
	close(l.changed)
	l.changed = make(chan struct{})
}

func (l *leadership) wait() <-chan struct{} {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.changed
}

func (l *leadership) set(leading bool) {
	l.mu.Lock()
	l.leading = leading
	for _, s := range l.subs {
		replace(s, leading)
	}
	l.mu.Unlock()
	l.wake()
}

func (l *leadership) subscribe() <-chan bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	c := make(chan bool, 1)
	c <- l.leading
	l.subs = append(l.subs, c)
	return c
}

// replace leaves the newest value in a channel of one.
func replace(c chan bool, v bool) {
	for {
		select {
		case c <- v:
			return
		default:
		}
		select {
		case <-c:
		default:
		}
	}
}

// IsLeader says that this controller leads; it may have lost leadership a moment ago.
func (n *Node) IsLeader() bool { return n.raft.State() == raft.Leader }

// LeaderCh implements Quorum.
func (n *Node) LeaderCh() <-chan bool { return n.leaders.subscribe() }

// Leader implements Quorum.
func (n *Node) Leader() string {
	_, id := n.raft.LeaderWithID()
	if id == "" {
		return ""
	}
	return n.dir.name(string(id))
}

// followLeadership runs the leader's duties while this controller leads.
func (n *Node) followLeadership() {
	stop := func() {}
	for {
		select {
		case leading := <-n.leaders.notify:
			stop()
			stop = func() {}
			n.leaders.set(leading)
			if leading {
				ctx, cancel := context.WithCancel(n.ctx)
				done := make(chan struct{})
				go func() {
					defer close(done)
					n.lead(ctx)
				}()
				stop = func() { cancel(); <-done }
			}
		case <-n.ctx.Done():
			stop()
			return
		}
	}
}

// lead does what a leader does besides replicating, until it no longer leads.
func (n *Node) lead(ctx context.Context) {
	term := n.raft.CurrentTerm()
	n.cfg.Logger.Info("this controller leads", "term", term)
	for !n.startTerm(ctx, term) {
		select {
		case <-time.After(20 * time.Millisecond):
		case <-ctx.Done():
			return
		}
	}
	n.leaders.ready.Store(term)
	n.leaders.wake()
	n.admitFirst(ctx)
	n.pilot.Start(ctx)
	w := n.store.Watch("system/controllers/")
	defer w.Close()
	again := time.NewTicker(time.Second)
	defer again.Stop()
	for {
		if err := n.reconcile(ctx); err != nil && ctx.Err() == nil {
			n.cfg.Logger.Warn("raft's configuration does not follow the members table yet", "error", err)
		}
		n.handOverIfUnfit()
		select {
		case <-w.C():
		case <-again.C:
		case <-ctx.Done():
			<-n.pilot.Stop()
			return
		}
	}
}

// startTerm applies TermStart: what earlier leaders committed is applied here once it is.
func (n *Node) startTerm(ctx context.Context, term uint64) bool {
	e, err := state.NewEnvelope(state.Proposal{Command: &clusterv1.TermStart{Term: term, Leader: n.cfg.Name}, Actor: "system", Timeout: state.MaxDeadline}, later(n.cfg.Clock.Now(), n.store.Now()))
	if err != nil {
		n.cfg.Logger.Error("cannot begin the term", "error", err)
		return false
	}
	a := n.append(ctx, e)
	return a.class == clusterv1.OutcomeClass_OUTCOME_CLASS_DECIDED && a.outcome.GetFault() == nil && n.raft.CurrentTerm() == term
}

// admitFirst writes the first row of the members table: that of the controller which bootstrapped the system.
func (n *Node) admitFirst(ctx context.Context) {
	if err := n.dir.reload(ctx, n.store); err != nil || len(n.dir.all()) > 0 {
		return
	}
	conf := n.raft.GetConfiguration()
	if conf.Error() != nil || len(conf.Configuration().Servers) != 1 {
		return
	}
	m := Member{Name: n.cfg.Name, ID: n.cfg.NodeID, Address: n.cfg.Advertise, Region: n.cfg.Region, Zone: n.cfg.Zone,
		Key: n.cfg.Identity.Key, KEKPublic: n.cfg.KEKPublic, Version: n.cfg.Version}
	if _, err := n.Propose(ctx, state.Proposal{Command: &clusterv1.AdmitFirst{Member: m.Proto()}, Actor: "system", Reason: "bootstrap"}); err != nil {
		n.cfg.Logger.Error("cannot record the first controller", "error", err)
	}
}

// reconcile makes raft's configuration follow the members table: removed ones out, approved ones in without a vote,
// addresses as they are. Votes are the promoter's.
func (n *Node) reconcile(ctx context.Context) error {
	if err := n.dir.reload(ctx, n.store); err != nil {
		return err
	}
	want := map[raft.ServerID]Member{}
	for _, m := range n.dir.trusted() {
		want[raft.ServerID(m.ID)] = m
	}
	if len(want) == 0 {
		return nil
	}
	if _, me := want[raft.ServerID(n.cfg.NodeID)]; !me {
		n.cfg.Logger.Warn("this controller was removed and hands leadership over")
		return n.raft.LeadershipTransfer().Error()
	}
	conf := n.raft.GetConfiguration()
	if err := conf.Error(); err != nil {
		return err
	}
	have := map[raft.ServerID]raft.Server{}
	for _, s := range conf.Configuration().Servers {
		have[s.ID] = s
		if _, member := want[s.ID]; !member {
			n.cfg.Logger.Info("removing a controller from raft", "id", s.ID, "address", s.Address)
			if err := n.raft.RemoveServer(s.ID, 0, 5*time.Second).Error(); err != nil {
				return err
			}
		}
	}
	for id, m := range want {
		s, in := have[id]
		if in && s.Address == raft.ServerAddress(m.Address) {
			continue
		}
		change := n.raft.AddNonvoter
		if in && s.Suffrage == raft.Voter {
			change = n.raft.AddVoter
		}
		if err := change(id, raft.ServerAddress(m.Address), 0, 5*time.Second).Error(); err != nil {
			return err
		}
	}
	return nil
}

// unfit says why this controller must not take writes as a leader; nil when it may.
func (n *Node) unfit() *fault.Error {
	if f := n.diskLow.Load(); f != nil {
		return f
	}
	return n.mayDate()
}

// handOverIfUnfit tries to give leadership away, again and again while it is not fit to lead. A clock that was set a moment
// ago is no reason yet: it is compared within a second.
func (n *Node) handOverIfUnfit() {
	f := n.diskLow.Load()
	if f == nil {
		f = n.clockWrong()
	}
	if f == nil || len(n.peerAddresses()) == 0 {
		return
	}
	n.cfg.Logger.Warn("this leader hands over", "why", f.Message)
	if err := n.raft.LeadershipTransfer().Error(); err != nil {
		n.cfg.Logger.Warn("leadership stays here", "error", err)
	}
}

// TransferLeadership implements Quorum.
func (n *Node) TransferLeadership(ctx context.Context, name string) error {
	if !n.IsLeader() {
		c, err := n.leaderClient(ctx)
		if err != nil {
			return err
		}
		_, err = clusterv1.NewClusterServiceClient(c).TransferLeadership(ctx, &clusterv1.TransferLeadershipRequest{To: name})
		return fault.FromGRPC(err)
	}
	var f raft.Future
	if name == "" {
		f = n.raft.LeadershipTransfer()
	} else if name == n.cfg.Name {
		return nil
	} else {
		m, ok := n.dir.find(func(m Member) bool { return m.Name == name })
		if !ok {
			return fault.New(fault.NotFound, "no-such-controller", "there is no controller %q", name).Do("list them: `csm system controllers`")
		}
		f = n.raft.LeadershipTransferToServer(raft.ServerID(m.ID), raft.ServerAddress(m.Address))
	}
	if err := f.Error(); err != nil {
		return fault.Wrap(err, fault.Unavailable, "no-transfer", "leadership was not handed over").Do("see `csm status`: another voter must be reachable and caught up")
	}
	return nil
}

// stamped is the envelope as it goes into the log.
func stamped(e *clusterv1.Envelope) ([]byte, error) {
	return proto.MarshalOptions{Deterministic: true}.Marshal(e)
}
