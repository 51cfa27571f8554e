// Package node is the agent of one Cassandra: it looks at the files and at the process, decides what comes next (Decide, a
// pure function) and does it: claim, key, request, certificate, install, proof by neighbours, report. README.md says how.
//
// It keeps these promises: no effect without a claim, except bringing an interrupted install to its end and putting back
// what CSM wrote; nothing at all outside the state folder in mode observe or stage; a report is sent until it is
// acknowledged; a private key is made here and goes into the keystore and nowhere else; losing the controllers changes
// nothing on the node. One goroutine decides and acts; what comes over the stream only wakes it.
package node

import (
	"cmp"
	"context"
	"crypto/rand"
	"encoding/binary"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	stdsync "sync"
	"time"

	"github.com/jonboulle/clockwork"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/cassandra-security-manager/csm/agent/cassandra"
	"github.com/cassandra-security-manager/csm/agent/config"
	"github.com/cassandra-security-manager/csm/agent/install"
	"github.com/cassandra-security-manager/csm/agent/join"
	"github.com/cassandra-security-manager/csm/agent/links"
	"github.com/cassandra-security-manager/csm/agent/probe"
	"github.com/cassandra-security-manager/csm/agent/reload"
	"github.com/cassandra-security-manager/csm/agent/state"
	"github.com/cassandra-security-manager/csm/agent/sync"
	"github.com/cassandra-security-manager/csm/agent/watch"
	agentv1 "github.com/cassandra-security-manager/csm/protocol/agent/v1"
	"github.com/cassandra-security-manager/csm/shared/cli"
	"github.com/cassandra-security-manager/csm/shared/fault"
)

// Protocol is the version of the agent's protocol that this agent speaks.
const Protocol = 1

// How often the agent looks without being woken. Looking reads file times and the table of listening sockets; it opens no
// connection to Cassandra.
const (
	tick = 15 * time.Second
	// firstTick grows to tick while something is expected to happen: Cassandra's start.
	firstTick = time.Second
	// fullLook is how often everything is read again although nothing seems to have changed.
	fullLook = 10 * time.Minute
)

// Options of a Node.
type Options struct {
	Config   config.Config
	Instance config.Instance
	Reloader reload.Reloader
	Clock    clockwork.Clock
	Logger   *slog.Logger
	// Install is handed to the installer after the fields that the node owns are filled in; tests shorten its waits.
	Install install.Options
	// Detect says which ports listen; nil asks the system.
	Detect func(context.Context, *cassandra.Instance) cassandra.Presence
	// Machine is the hash of the machine id; nil asks the system.
	Machine func() [32]byte
	// ClaimFor is how long a claim, a report and the question for a neighbour are tried again while no controller answers; 0 is 10 s.
	ClaimFor time.Duration
	// Links is the table of connections; nil is the kernel's. Cutter ends some of them; nil can end none.
	Links  links.Table
	Cutter *links.Cutter
	// Mode is the mode of agent.yaml as it is now; one below that of the start stops a running move. Nil: it stays as at the start.
	Mode func() agentv1.Mode
	// Watched is agent.yaml, looked at when it changes; may be empty.
	Watched string
	// Read reads cassandra.yaml; nil reads it as Instance says. Probe proves ports of neighbours; nil is probe.Probe.
	Read  func() (*cassandra.Instance, []cassandra.Finding, error)
	Probe func(context.Context, probe.Request) probe.Result
	// Dialer opens connections to controllers; may be nil. Jitter draws from [0, 1); nil draws anew each time.
	Dialer sync.Dialer
	Jitter func() float64
	// Unwatched looks at files by time alone: a kernel gives notifications to some hundred agents, not to thousands.
	Unwatched bool
	// Notify, if set, is told each action that was done, after it is done.
	Notify func(store string, a Action, err error)
}

// Node is the agent of one Cassandra. Run makes it work.
type Node struct {
	o         Options
	log       *slog.Logger
	folder    *state.Folder
	installer *install.Installer
	client    *sync.Client
	watch     *watch.Watch
	wake      chan struct{}
	tasks     chan *agentv1.ProofTask

	// Of the deciding goroutine alone.
	inst       *cassandra.Instance
	instErr    error
	presence   cassandra.Presence
	stores     []*agentv1.StoreFacts
	births     map[string]time.Time // hex leaf -> notBefore
	outcomes   uint32               // of moves that were reported since the start
	attempts   map[string]*Attempt
	unanswered unansweredClaims
	failures   map[string]int
	rest       map[string]time.Time // store -> no proof at rest before
	actions    map[string]Action
	stamps     map[string]string // what the files looked like at the last full look
	looked     time.Time
	pace       time.Duration
	sent       *agentv1.Report
	inventory  inventory
	flushAt    time.Time
	renewAt    time.Time
	// renewTries counts the renewals of the identity that brought nothing, since the last that did; renewSaid is what was logged of them.
	renewTries int
	renewSaid  string
	published  []byte
	metrics    metrics
	links      linkWork
	waits      pollWait

	mu         stdsync.Mutex
	online     Link
	target     *agentv1.Target
	frozenBy   *agentv1.Frozen // of the newest target; that of the last run until one comes
	released   string
	suspended  string
	skew       skew
	succession succession
	reopen     bool // claims may be asked again
	wantScan   bool
	waiting    map[string]chan *agentv1.Proof
	early      map[string]*agentv1.Proof
	doing      map[string]bool
	snapshot   *agentv1.Hello
	ownCert    *cassandra.Instance
	roots      [][]byte
	wanted     []string // fingerprints of roots; those of the last run until a target comes
	up         bool     // all of Cassandra's ports listen
	ring       ring
	offers     offers
	health     health

	// login is of the goroutine that looks at the ring.
	login login
}

// Link is what is known of the stream.
type Link struct {
	Connected  bool      `json:"connected"`
	Controller string    `json:"controller,omitempty"`
	Since      time.Time `json:"since,omitzero"`
	// LastContact is when a controller last said something.
	LastContact time.Time `json:"lastContact,omitzero"`
	Error       string    `json:"error,omitempty"`
}

// Open opens the node's state folder and builds the node. Close must be called.
func Open(o Options) (*Node, error) {
	if o.Machine == nil {
		o.Machine = state.Machine
	}
	if o.Detect == nil {
		o.Detect = Detect
	}
	if o.Read == nil {
		o.Read = func() (*cassandra.Instance, []cassandra.Finding, error) {
			return o.Instance.ReadOptions().Read(o.Instance.Config)
		}
	}
	if o.Probe == nil {
		o.Probe = probe.Probe
	}
	if o.Jitter == nil {
		o.Jitter = jitter
	}
	o.ClaimFor = cmp.Or(o.ClaimFor, defaultClaimFor)
	f, err := state.Open(o.Config.Folder(o.Instance), o.Machine())
	if err != nil {
		return nil, err
	}
	n := &Node{o: o, folder: f, log: o.Logger.With("instance", o.Instance.StateName()), wake: make(chan struct{}, 1), tasks: make(chan *agentv1.ProofTask, 32),
		births: map[string]time.Time{}, attempts: map[string]*Attempt{}, unanswered: unansweredClaims{}, failures: map[string]int{}, rest: map[string]time.Time{}, actions: map[string]Action{},
		stamps: map[string]string{}, waiting: map[string]chan *agentv1.Proof{}, early: map[string]*agentv1.Proof{}, doing: map[string]bool{}, pace: firstTick, ring: ring{soon: make(chan struct{}, 1)}, health: health{soon: make(chan struct{}, 1)}}
	io := o.Install
	io.StateDir, io.Hold, io.Reloader, io.Clock, io.Logger = f.InstallDir(), o.Config.HoldFile, n.reloader(), o.Clock, n.log
	io.Poll, io.Waiting = o.Instance.Reload.Polls(), n.awaitsPoll
	io.Budget = reload.NewBudget(filepath.Join(f.Dir(), "reloads.json"), o.Clock)
	io.Detect, io.Frozen, io.Now = o.Detect, n.halted, n.now
	if n.installer, err = install.New(io); err != nil {
		f.Close()
		return nil, err
	}
	if last, _, err := ReadStatus(f.Dir()); err == nil {
		n.wanted = last.Wanted
	}
	n.frozenBy, n.released = f.Stop()
	n.openLinks()
	n.watch = watch.None()
	if !o.Unwatched {
		n.watch = watch.New(n.log)
	}
	n.inventory = inventory{every: o.Config.Scan.Every}
	return n, nil
}

// Close lets go of the state folder.
func (n *Node) Close() {
	n.watch.Close()
	n.folder.Close()
}

// jitter draws from [0, 1).
func jitter() float64 {
	var b [8]byte
	_, _ = rand.Read(b[:])
	return float64(binary.BigEndian.Uint64(b[:])>>11) / (1 << 53)
}

func (n *Node) poke() {
	select {
	case n.wake <- struct{}{}:
	default:
	}
}

// Run joins if need be, keeps the stream, and looks, decides and acts until ctx ends. A running install is brought to its
// end first. The error tells what a person must put right before the agent can work at all.
func (n *Node) Run(ctx context.Context) error {
	n.look(ctx, true)
	if err := n.settleAll(ctx); err != nil {
		n.log.Error("an interrupted install could not be settled; it is tried again", "error", err)
	}
	n.look(ctx, true)
	n.publish()
	n.listRing(ctx)
	if n.folder.Identity() == nil {
		if err := n.join(ctx); err != nil {
			return err
		}
	}
	n.client = sync.New(sync.Options{Controllers: n.o.Config.Controllers, TLS: sync.IdentityTLS(n.folder.Identity, n.now),
		Handler: n, Clock: n.o.Clock, Dialer: n.o.Dialer, Jitter: n.o.Jitter, Logger: n.log, Hopeless: n.expired})
	n.prepareHello()
	var wg stdsync.WaitGroup
	wg.Go(func() { _ = n.client.Run(ctx) })
	wg.Go(func() { n.probeNeighbours(ctx) })
	wg.Go(func() { n.watchRing(ctx) })
	wg.Go(func() { n.watchHealth(ctx) })
	defer wg.Wait()
	for ctx.Err() == nil {
		again := n.step(ctx)
		n.pause(ctx, again)
	}
	n.publish()
	return nil
}

// Join asks for an identity once, if there is none yet.
func (n *Node) Join(ctx context.Context) (*state.Identity, error) {
	if id := n.folder.Identity(); id != nil {
		return id, nil
	}
	if n.inst == nil {
		n.look(ctx, true)
	}
	j := n.o.Config.JoinFor(n.o.Instance)
	return join.Join(ctx, n.folder, join.Options{Controllers: n.o.Config.Controllers, Pin: n.o.Config.Pin, Cluster: n.o.Config.Cluster,
		Method: j.Method, EvidenceFile: j.File, Cassandra: n.cassandraKey, Wish: n.wish(j), Agent: n.agentFacts(), Instance: n.instanceFacts(), Now: n.o.Clock.Now, Dialer: n.o.Dialer, Jitter: n.o.Jitter})
}

// join asks for an identity until it gets one or is refused. Meanwhile the node is observed and its status told.
func (n *Node) join(ctx context.Context) error {
	for round := 0; ; round++ {
		id, err := n.Join(ctx)
		if err == nil {
			n.log.Info("joined", "node", id.Node, "uid", id.UID, "incarnation", id.Incarnation)
			return nil
		}
		n.mu.Lock()
		n.online.Error = err.Error()
		n.mu.Unlock()
		n.publish()
		if !fault.Is(err, fault.Unavailable) && !fault.Is(err, fault.Unknown) && !fault.HasReason(err, "pin-mismatch") && !fault.HasReason(err, "frozen") {
			return err
		}
		n.log.Warn("not joined yet", "error", err)
		select {
		case <-ctx.Done():
			return nil
		case <-n.o.Clock.After(sync.Pause(round, n.o.Jitter())):
		}
		n.look(ctx, true)
	}
}

// step looks, decides and does at most one thing for each store. It returns when to come again.
func (n *Node) step(ctx context.Context) time.Time {
	n.look(ctx, n.changed() || n.o.Clock.Since(n.looked) >= fullLook)
	n.flush(ctx)
	n.adoptRoots()
	n.renewIdentity(ctx)
	n.tell()
	acted := false
	var next time.Time
	for _, s := range n.storesNow() {
		n.forgetKept(ctx, s)
		a := Decide(n.view(s))
		n.note(s.Name, a)
		if a.Do != Rest && a.Do != Wait && ctx.Err() == nil {
			n.publish()
			err := n.do(ctx, s, a)
			n.after(s.Name, a, err)
			acted = true
			n.look(ctx, true)
			n.tell()
			n.publish()
			continue
		}
		if !a.Again.IsZero() && (next.IsZero() || a.Again.Before(next)) {
			next = a.Again
		}
	}
	if again := n.cycle(ctx); !again.IsZero() && (next.IsZero() || again.Before(next)) {
		next = again
	}
	n.tell()
	n.scan(ctx)
	n.publish()
	if acted {
		n.pace = firstTick
		n.poke()
	}
	return next
}

// pause waits for a change, for the time that the decisions named, or for the next tick.
func (n *Node) pause(ctx context.Context, again time.Time) {
	d := n.pace
	n.pace = min(n.pace*3/2, tick)
	if !again.IsZero() {
		d = min(d, max(again.Sub(n.o.Clock.Now()), 10*time.Millisecond))
	}
	t := n.o.Clock.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
	case <-t.Chan():
	case <-n.wake:
	case <-n.watch.C():
		n.pace = firstTick
		n.looked = time.Time{}
	}
}

// look reads what may have changed: cheap things always, files and cassandra.yaml when full.
func (n *Node) look(ctx context.Context, full bool) {
	if full {
		inst, findings, err := n.o.Read()
		n.inst, n.instErr = inst, err
		if err != nil {
			n.log.Warn("cassandra.yaml was not understood", "error", err)
			n.inst, n.stores = nil, nil
		} else if len(findings) > 0 {
			n.log.Debug("cassandra.yaml read", "findings", len(findings))
		}
		n.looked = n.o.Clock.Now()
	}
	n.watchClock()
	if n.inst == nil {
		return
	}
	was := n.presence
	n.presence = n.o.Detect(ctx, n.inst)
	if was != n.presence {
		n.pace = firstTick
		n.ringMoved()
		n.healthSoon()
	}
	if full {
		n.stores = n.stores[:0]
		watched := []string{n.o.Instance.Config, n.o.Config.HoldFile}
		if n.o.Watched != "" {
			watched = append(watched, n.o.Watched)
		}
		for _, s := range n.inst.Stores {
			n.stores = append(n.stores, n.facts(s))
			watched = append(watched, s.KeystorePath, s.TruststorePath, n.installer.Record(n.site(s)))
		}
		n.watch.Set(watched...)
		for _, p := range watched {
			n.stamps[p] = stamp(p)
		}
	}
	n.mu.Lock()
	n.ownCert, n.up = n.inst, n.presence.Normal()
	n.mu.Unlock()
	n.prepareHello()
}

// changed says whether a watched file looks different from the last full look.
func (n *Node) changed() bool {
	for p, s := range n.stamps {
		if stamp(p) != s {
			return true
		}
	}
	return false
}

// facts are the installer's, with the state that a controller must not mistake.
func (n *Node) facts(s *cassandra.Store) *agentv1.StoreFacts {
	f := n.installer.Facts(install.Site{Instance: n.inst, Store: s})
	f.Age = n.age()
	if len(f.LeafSha256) > 0 {
		if _, known := n.births[string(f.LeafSha256)]; !known {
			if c, err := install.Certificate(s); err == nil && c.Leaf != nil {
				clear(n.births)
				n.births[string(f.LeafSha256)] = c.Leaf.NotBefore
			}
		}
	}
	return f
}

// age orders facts: those read before a move's report are older than the report's.
func (n *Node) age() uint64 { return n.folder.Counter()<<32 | uint64(n.outcomes) }

func (n *Node) storesNow() []*cassandra.Store {
	if n.inst == nil {
		return nil
	}
	return n.inst.Stores
}

func (n *Node) site(s *cassandra.Store) install.Site { return install.Site{Instance: n.inst, Store: s} }

func (n *Node) factsOf(store string) *agentv1.StoreFacts {
	for _, f := range n.stores {
		if f.Store == store {
			return f
		}
	}
	return &agentv1.StoreFacts{Store: store}
}

func (n *Node) agentFacts() *agentv1.AgentFacts {
	hold, held := install.Held(n.o.Config.HoldFile)
	if !held {
		hold = ""
	}
	machine := n.o.Machine()
	return &agentv1.AgentFacts{Version: cli.Version, Protocol: Protocol, Os: runtime.GOOS, Arch: runtime.GOARCH, Machine: machine[:],
		GenerationCounter: n.folder.Counter(), Mode: n.mode(), Clock: timestamppb.New(n.o.Clock.Now()), Hold: hold}
}

func (n *Node) instanceFacts() *agentv1.InstanceFacts {
	if n.inst == nil {
		f := &agentv1.InstanceFacts{ConfigPath: n.o.Instance.Config}
		if n.instErr != nil {
			e := fault.From(n.instErr)
			f.Findings = []*agentv1.Finding{{Code: "not-understood", Severity: "error", Message: e.Message, Remedy: e.Remedy}}
		}
		return f
	}
	f := n.inst.Facts(!n.presence.Down())
	n.mu.Lock()
	f.Ring, f.Health, f.Clients = n.ring.view, n.health.facts, n.health.clients
	if n.health.finding != nil && len(f.Findings) < 99 {
		f.Findings = append(f.Findings, n.health.finding)
	}
	n.mu.Unlock()
	f.HostId = n.inst.HostID(f.Ring)
	f.Links, f.Reload = n.linkFacts(), n.reloadFacts()
	if n.folder.Copied() {
		f.Findings = append(f.Findings, &agentv1.Finding{Code: "copied-state", Severity: "error",
			Message: "the agent's state folder was copied from another machine", Remedy: "remove it on the copy and join again with a new token"})
	}
	return f
}

// prepareHello keeps what a new stream begins with, so that the stream's goroutine needs nothing of the deciding one.
func (n *Node) prepareHello() {
	h := &agentv1.Hello{Agent: n.agentFacts(), Instance: n.instanceFacts(), HighestGeneration: n.folder.Highest(), Trusts: n.trusts()}
	for _, s := range n.stores {
		h.Stores = append(h.Stores, proto.CloneOf(s))
	}
	n.mu.Lock()
	n.snapshot = h
	n.mu.Unlock()
}

// tell reports what has changed since the last report.
func (n *Node) tell() {
	n.mu.Lock()
	h, connected := n.snapshot, n.online.Connected
	n.mu.Unlock()
	r := &agentv1.Report{Agent: proto.CloneOf(h.Agent), Instance: h.Instance, Stores: h.Stores, Trusts: h.Trusts}
	r.Agent.Clock = nil
	if !connected || n.sent != nil && proto.Equal(n.sent, r) {
		return
	}
	n.sent = r
	n.client.Report(&agentv1.Report{Agent: h.Agent, Instance: h.Instance, Stores: h.Stores, Trusts: h.Trusts})
}

// view gathers what Decide needs.
func (n *Node) view(s *cassandra.Store) View {
	f := n.factsOf(s.Name)
	v := View{Now: n.o.Clock.Now(), Mode: n.mode(), Copied: n.folder.Copied(), Running: !n.presence.Down(), Settled: n.presence.Normal() || n.presence.Down(),
		Last: n.attempts[s.Name]}
	if why, held := install.Held(n.o.Config.HoldFile); held {
		v.Hold = why
	}
	v.Store = StoreView{Name: s.Name, Manageable: s.Manageable, Blocked: blockedBy(n.inst, s), State: f.State, Generation: f.Generation, Leaf: f.LeafSha256,
		NotAfter: f.GetNotAfter().AsTime(), NotBefore: n.births[string(f.LeafSha256)], Anchors: f.Anchors,
		Changed: storeChanged(f), Unsettled: f.State == agentv1.InstallState_INSTALL_STATE_MOVING, Acknowledged: n.folder.Acknowledged(s.Name)}
	if at, err := n.installer.NextProof(n.site(s)); err == nil {
		v.NextProof = at
		if r := n.rest[s.Name]; !at.IsZero() && r.After(at) {
			v.NextProof = r
		}
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	v.Connected, v.Suspended, v.Skew = n.online.Connected, n.suspended, n.skew.at(read(n.o.Clock))
	v.Frozen, v.Released = inForce(n.frozenBy, n.told()), n.released
	if n.target != nil {
		for _, a := range n.target.Anchors {
			v.Anchors = append(v.Anchors, fingerprint(a))
		}
		i := slices.IndexFunc(n.target.Stores, func(t *agentv1.StoreTarget) bool { return t.Store == s.Name })
		if i >= 0 {
			v.Target = n.target.Stores[i]
		}
	}
	return v
}

func blockedBy(i *cassandra.Instance, s *cassandra.Store) string {
	for _, f := range i.Findings {
		if f.Blocks && (f.Store == "" || f.Store == s.Name) {
			return f.Message
		}
	}
	return ""
}

// local is the address that probes of neighbours come from: certificates of nodes name it.
func local(i *cassandra.Instance) netip.Addr {
	if i.Listen.IsUnspecified() {
		return netip.Addr{}
	}
	return i.Listen
}

// stamp is what can be told of a file without reading it; a missing one has its own.
func stamp(path string) string {
	fi, err := os.Stat(path)
	if err != nil {
		return "absent"
	}
	return fi.ModTime().String() + "/" + itoa(fi.Size())
}
