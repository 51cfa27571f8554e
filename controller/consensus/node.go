package consensus

import (
	"context"
	"errors"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hashicorp/raft"
	autopilot "github.com/hashicorp/raft-autopilot"
	"golang.org/x/sync/semaphore"
	"golang.org/x/time/rate"
	"google.golang.org/grpc"

	"github.com/cassandra-security-manager/csm/controller/consensus/gossip"
	"github.com/cassandra-security-manager/csm/controller/consensus/startup"
	"github.com/cassandra-security-manager/csm/controller/consensus/transport"
	"github.com/cassandra-security-manager/csm/controller/consensus/wal"
	"github.com/cassandra-security-manager/csm/controller/consensus/watchdog"
	"github.com/cassandra-security-manager/csm/controller/state"
	"github.com/cassandra-security-manager/csm/shared/fault"
	"github.com/cassandra-security-manager/csm/shared/resource"
)

// Node is this controller's part in the quorum. All methods may be called from anywhere at any time.
type Node struct {
	cfg   Config
	store *state.Store
	dir   *directory
	trans *transport.Transport
	log   *wal.Log
	raft  *raft.Raft
	net   *raft.NetworkTransport
	grpc  *grpc.Server
	talk  *gossip.Gossip
	pilot *autopilot.Autopilot

	ctx    context.Context
	cancel context.CancelFunc
	wg     sync.WaitGroup
	// started once raft runs; closed when it no longer does.
	started, closed atomic.Bool

	// proposing bounds the bytes of proposals that wait here, appending those in our own log.
	proposing, appending *semaphore.Weighted
	// waiting counts what is appended here as the leader and not yet answered.
	waiting atomic.Int64
	// owed is the newest index of what was acknowledged through this controller before it could be read here.
	owed atomic.Uint64
	// vain is up to where a reader has waited for that in vain.
	vain      atomic.Uint64
	leaders   leadership
	verifying verifier
	contacts  contacts
	ticks     ticks
	clients   clients
	joins     *rate.Limiter
	matched   matched

	diskLow atomic.Pointer[fault.Error]
	judged  atomic.Pointer[judgement]
	shutOut atomic.Pointer[fault.Error]
	free    atomic.Uint64 // parts per million of the disk
}

// Open starts this controller's part. The store must have been opened on what Prepare left.
func Open(ctx context.Context, cfg Config, store *state.Store) (*Node, error) {
	return open(ctx, cfg, store, false)
}

// BootstrapSingle makes a new system of this one controller and returns when it leads and stands in the members table. It
// may be called again after a crash; on a controller that has a log it only opens it.
func BootstrapSingle(ctx context.Context, cfg Config, store *state.Store) (*Node, error) {
	n, err := open(ctx, cfg, store, true)
	if err != nil {
		return nil, err
	}
	for {
		w := store.Watch(resource.Controller(cfg.Name))
		if m, ok := n.dir.find(func(m Member) bool { return m.Name == cfg.Name }); ok && m.Trusted() && n.IsLeader() {
			w.Close()
			return n, n.Linearize(ctx)
		}
		select {
		case <-w.C():
		case <-time.After(50 * time.Millisecond):
		case <-ctx.Done():
			w.Close()
			return nil, errors.Join(ctx.Err(), n.Close())
		}
		w.Close()
	}
}

func open(ctx context.Context, cfg Config, store *state.Store, bootstrap bool) (_ *Node, err error) {
	if err := cfg.fill(); err != nil {
		return nil, err
	}
	n := &Node{cfg: cfg, store: store, proposing: semaphore.NewWeighted(MaxInFlight), appending: semaphore.NewWeighted(MaxInFlight),
		joins: rate.NewLimiter(20, 50)}
	n.ctx, n.cancel = context.WithCancel(context.Background())
	n.leaders.init()
	n.dir = &directory{identity: cfg.Identity, now: cfg.Clock.Now, current: func() bool { return n.started.Load() && n.Age() < 10*time.Second }}
	defer func() {
		if err != nil {
			n.Close()
		}
	}()
	if n.log, err = wal.Open(startup.LogDir(cfg.DataDir), hclogger(cfg.Logger, "wal")); err != nil {
		return nil, err
	}
	snaps, err := startup.Snapshots(cfg.DataDir, hclogger(cfg.Logger, "snapshots"))
	if err != nil {
		return nil, err
	}
	if err := n.checkPrepared(snaps); err != nil {
		return nil, err
	}
	if err := n.dir.reload(ctx, store); err != nil {
		return nil, err
	}
	n.trans = transport.New(transport.Config{Listener: cfg.Listener, Advertise: cfg.Advertise, Certificate: cfg.Identity.Certificate,
		Roots: cfg.Identity.Roots, Guard: n.dir, Logger: cfg.Logger})
	n.clients.trans = n.trans
	if err := n.startRaft(snaps, bootstrap); err != nil {
		return nil, err
	}
	n.started.Store(true)
	n.lookAtDisk()
	n.judgeClocks()
	n.startServices()
	if n.talk, err = gossip.Start(gossip.Config{Name: cfg.Name, ID: cfg.NodeID, Advertise: cfg.Advertise, WAN: cfg.Profile == WAN, Logger: cfg.Logger,
		Listener: n.trans.Listener(transport.Gossip), Dial: n.dialGossip, Epoch: uint64(cfg.Clock.Now().UnixMilli())}); err != nil {
		return nil, err
	}
	for _, loop := range []func(){n.followTable, n.followLeadership, n.probe, n.followTicks, n.watchDisk, n.move} {
		n.wg.Add(1)
		go func() {
			defer n.wg.Done()
			loop()
		}()
	}
	return n, nil
}

// checkPrepared hears the witness once more: a start that left Prepare out must not vote on a log that lost entries.
func (n *Node) checkPrepared(snaps raft.SnapshotStore) error {
	list, err := snaps.List()
	if err != nil {
		return err
	}
	d := startup.Disk{State: state.FileInfo{Applied: n.store.Applied()}}
	if len(list) > 0 {
		d.Snapshot = list[0]
	}
	if d.First, err = n.log.FirstIndex(); err != nil {
		return err
	}
	if d.Last, err = n.log.LastIndex(); err != nil {
		return err
	}
	return startup.LostTail(d)
}

func (n *Node) startRaft(snaps raft.SnapshotStore, bootstrap bool) error {
	dog := watchdog.New(n.ctx, n.cfg.tuning.stall, n.cfg.Fatal)
	var logs raft.LogStore = n.log
	if n.cfg.tuning.wrapLog != nil {
		logs = n.cfg.tuning.wrapLog(logs)
	}
	cached, err := raft.NewLogCache(512, gather{LogStore: watchdog.Log{LogStore: logs, Dog: dog}, waiting: &n.waiting})
	if err != nil {
		return err
	}
	timeout := 5 * time.Second
	if n.cfg.Profile == WAN {
		timeout = 10 * time.Second
	}
	n.net = raft.NewNetworkTransportWithConfig(&raft.NetworkTransportConfig{Stream: n.trans.StreamLayer(), MaxPool: 3, Timeout: timeout,
		Logger: hclogger(n.cfg.Logger, "raft-net"), ServerAddressProvider: n, MsgpackUseNewTimeFormat: true})
	conf := n.cfg.raftConfig(n.leaders.notify)
	stable := watchdog.Stable{StableStore: n.log, Dog: dog}
	if bootstrap {
		if err := n.forgetHalfBootstrap(snaps); err != nil {
			return err
		}
		err := raft.BootstrapCluster(conf, cached, stable, snaps, n.net, raft.Configuration{Servers: []raft.Server{
			{Suffrage: raft.Voter, ID: conf.LocalID, Address: raft.ServerAddress(n.cfg.Advertise)}}})
		if err != nil && !errors.Is(err, raft.ErrCantBootstrap) {
			return err
		}
	}
	if n.raft, err = raft.NewRaft(conf, watchdog.FSM{Stepping: n.store, Dog: dog}, cached, stable, snaps, n.net); err != nil {
		return fault.Wrap(err, fault.Internal, "raft", "raft cannot start")
	}
	n.leaders.observe(n.ctx, n.raft)
	n.pilot = n.newAutopilot()
	return nil
}

// forgetHalfBootstrap lets a bootstrap be done again that a crash cut between raft's two writes (term, first entry).
func (n *Node) forgetHalfBootstrap(snaps raft.SnapshotStore) error {
	last, err := n.log.LastIndex()
	if err != nil || last > 0 {
		return err
	}
	if list, err := snaps.List(); err != nil || len(list) > 0 {
		return err
	}
	return n.log.SetUint64([]byte("CurrentTerm"), 0)
}

// ServerAddr implements raft.ServerAddressProvider: a member may move; raft's configuration follows later.
func (n *Node) ServerAddr(id raft.ServerID) (raft.ServerAddress, error) {
	if m, ok := n.dir.find(func(m Member) bool { return m.ID == string(id) }); ok {
		return raft.ServerAddress(m.Address), nil
	}
	return "", errors.New("not in the members table")
}

// lastWord is how long the connections of a removed controller stay, so that the answer to a removal that it asked for
// itself gets out. New connections and calls of it are refused at once.
const lastWord = 100 * time.Millisecond

// followTable keeps the directory as the table is, and cuts off who left it.
func (n *Node) followTable() {
	w := n.store.Watch("system/controllers/")
	defer w.Close()
	again := time.NewTicker(5 * time.Second)
	defer again.Stop()
	for {
		if err := n.dir.reload(n.ctx, n.store); err != nil && n.ctx.Err() == nil {
			n.cfg.Logger.Warn("cannot read the members table", "error", err)
		}
		time.AfterFunc(lastWord, n.trans.Recheck)
		n.clients.keep(n.dir.trusted())
		n.talk.Peers(n.peerAddresses())
		n.leaders.wake()
		select {
		case <-w.C():
		case <-again.C:
		case <-n.ctx.Done():
			return
		}
	}
}

// peerAddresses maps the other members' names to their addresses.
func (n *Node) peerAddresses() map[string]string {
	out := map[string]string{}
	for _, m := range n.dir.trusted() {
		if m.ID != n.cfg.NodeID {
			out[m.Name] = m.Address
		}
	}
	return out
}

// Close ends this controller's part: it hands leadership over if it can, then stops. The store stays open.
func (n *Node) Close() error {
	if n.closed.Swap(true) {
		return nil
	}
	if n.raft != nil && n.raft.State() == raft.Leader && len(n.peerAddresses()) > 0 {
		done := make(chan struct{})
		go func() {
			defer close(done)
			n.raft.LeadershipTransfer().Error()
		}()
		select {
		case <-done:
		case <-time.After(2 * time.Second):
		}
	}
	return n.stop()
}

// stop stops without a word to the others.
func (n *Node) stop() error {
	n.closed.Store(true)
	n.cancel()
	var errs []error
	if n.talk != nil {
		n.talk.Close()
	}
	if n.raft != nil {
		errs = append(errs, n.raft.Shutdown().Error())
	}
	if n.grpc != nil {
		n.grpc.Stop()
	}
	n.clients.close()
	if n.net != nil {
		n.net.Close()
	}
	if n.trans != nil {
		errs = append(errs, n.trans.Close())
	} else if n.cfg.Listener != nil {
		n.cfg.Listener.Close()
	}
	n.wg.Wait()
	if n.log != nil {
		errs = append(errs, n.log.Close())
	}
	return errors.Join(errs...)
}
