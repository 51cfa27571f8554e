// Package install puts a new keystore and truststore under a running Cassandra without its ever serving a bad one.
//
// It owns the transaction of an install (README.md says why each step is where it is), the journal and the old
// generations in the state folder, and the decision what to do after a kill. It refuses to begin where it knows no way
// back, where files are not as it left them, and while the HOLD file stands. The invariant: at every moment the pair of
// files on disk is valid and trusted, since Cassandra's poll, a handshake after an emptied cache, or a restart may load it.
package install

import (
	"context"
	"crypto"
	"crypto/x509"
	"log/slog"
	"sync"
	"time"

	"github.com/jonboulle/clockwork"

	"github.com/cassandra-security-manager/csm/agent/cassandra"
	"github.com/cassandra-security-manager/csm/agent/probe"
	"github.com/cassandra-security-manager/csm/agent/reload"
	agentv1 "github.com/cassandra-security-manager/csm/protocol/agent/v1"
	"github.com/cassandra-security-manager/csm/shared/certificate"
	"github.com/cassandra-security-manager/csm/shared/fault"
)

// Defaults.
const (
	DefaultHold = "/etc/csm/HOLD"
	// Poll is how often Cassandra looks at its files (hard-coded there since 4.0).
	Poll = 600 * time.Second
	// KeepGenerations is how many old generations stay in the state folder beside the current one.
	KeepGenerations = 2
	// HoldGrace is how long a transaction may still go forward, and BackGrace how long back, once a HOLD file has appeared
	// or the node was frozen: together, with a look each second, less than 30 s.
	HoldGrace = 10 * time.Second
	BackGrace = 15 * time.Second
	// ContestWindow: a second foreign change within it makes a store contested.
	ContestWindow = 24 * time.Hour
)

// Options of an Installer. StateDir and Reloader are required.
type Options struct {
	// StateDir is this instance's folder for journal, records and generations; created with mode 0700.
	StateDir string
	// Hold is the kill switch's file; empty is DefaultHold.
	Hold string
	// Frozen says why no effect may begin (a freeze, a suspended identity, a mode that was lowered), nil while it may; it may be
	// nil. Unlike HOLD it does not keep Recover from bringing an interrupted install to its end.
	Frozen func() error
	// Reloader makes the instance reload. Budget limits reloads that are not rollbacks; nil is no limit.
	Reloader reload.Reloader
	Budget   *reload.Budget
	// Probe runs a probe; nil is probe.Probe.
	Probe func(context.Context, probe.Request) probe.Result
	// Detect says which ports are open; nil connects to them.
	Detect func(context.Context, *cassandra.Instance) cassandra.Presence
	Clock  clockwork.Clock
	Logger *slog.Logger
	// Now is the time by which certificates are judged: not a clock that was set a moment ago. Nil is Clock.Now.
	Now func() time.Time
	// Before is asked before each step and each effect on files; an error makes that step fail. It exists so that tests
	// can fail or stop the program at every point; nil in production.
	Before func(op Op) error
	// ProveFor is how long a proof is tried again while the port says nothing; 0 is 15 s. Between tries: ProveEvery, 0 is 1 s.
	ProveFor, ProveEvery time.Duration
	// NeighbourFor bounds the neighbour's proof; 0 is 60 s. HOLD and freeze shorten it to HoldGrace.
	NeighbourFor time.Duration
	// Poll says that nothing reloads but Cassandra's own poll: Run waits for it, at most PollBound forth and as long back, and looks at
	// the ports each PollEvery, 0 is 20 s. The Reloader changes nothing then: it is told when a wait begins and when it has ended.
	Poll      bool
	PollEvery time.Duration
	// Waiting, if set, is told at each look which store waits for the poll and until when at most; an empty name when it waits no longer.
	Waiting func(store string, until time.Time)
}

// Neighbour asks other nodes to prove what this node serves and waits for their answers. It returns no proof and no
// error when the cluster has no other node that could: then the own proof is all there is.
type Neighbour func(ctx context.Context, leaf [32]byte, ports []cassandra.Port) ([]*agentv1.Proof, error)

// Site is one store of one instance.
type Site struct {
	Instance *cassandra.Instance
	Store    *cassandra.Store
	// Neighbour may be nil.
	Neighbour Neighbour
}

// Plan is one install. It grows trust and/or swaps the leaf, or only shrinks trust; never both.
type Plan struct {
	Site
	// Claim under which the effect happens, and the target's generation.
	Claim      string
	Generation uint64
	// Key and Chain (leaf first, without the root) of the new keystore. Both nil: the keystore stays, only trust changes.
	Key   crypto.Signer
	Chain []*x509.Certificate
	// Anchors are ours from now on. All anchors found in the truststore are kept beside them, but those of Withdraw.
	Anchors []*x509.Certificate
	// Shrink says that trust shrinks: of the anchors that CSM placed, those named by their SHA-256 in Withdraw go, and
	// nothing else changes. Without it nothing goes, whatever Withdraw names.
	Shrink   bool
	Withdraw [][32]byte
	// GiveBack is the SHA-256 of a leaf of another CA that was kept when ours took its place: it is put back. Zero: none is.
	GiveBack [32]byte
	// Names that the target demands; the addresses of Instance.RequiredNamesFor are demanded besides.
	Names certificate.Names
	// MinRemaining life of the new leaf; 0 is 24 h.
	MinRemaining time.Duration
	// Given says that the controllers gave the leaf in place: anchors of the plan that lie beside it are ours, though no record
	// of this agent says so.
	Given bool
	// NoWayBack allows an install although the old pair is broken or expired and could not be put back: an operator's
	// word, never a default.
	NoWayBack bool
}

// Outcome is how a move ended. It is complete for agentv1.ReportMoveRequest.
type Outcome struct {
	Result agentv1.MoveOutcome
	State  agentv1.InstallState
	Claim  string
	Store  string
	// Generation of the target that the move was about.
	Generation uint64
	// Before and After are the leaves served (or on disk, where nothing is served); zero when none.
	Before, After [32]byte
	Proofs        []*agentv1.Proof
	// Reason is a stable kebab-case word, Detail is for people.
	Reason, Detail string
	Took           time.Duration
	// Reload is what the last reload left, nil when there was none.
	Reload *reload.Output
}

// Installer runs the transactions of one instance. It is safe for concurrent use: one transaction at a time.
type Installer struct {
	o    Options
	turn chan struct{} // held by the running transaction

	mu    sync.Mutex
	tried map[string]time.Time // last Reprove of each store
}

// New checks the options and returns an installer. It touches nothing.
func New(o Options) (*Installer, error) {
	if o.StateDir == "" || o.Reloader == nil {
		return nil, fault.New(fault.Internal, "bad-options", "an installer needs a state folder and a reloader")
	}
	if o.Hold == "" {
		o.Hold = DefaultHold
	}
	if o.Probe == nil {
		o.Probe = probe.Probe
	}
	if o.Detect == nil {
		o.Detect = func(ctx context.Context, i *cassandra.Instance) cassandra.Presence { return i.Detect(ctx) }
	}
	if o.Clock == nil {
		o.Clock = clockwork.NewRealClock()
	}
	if o.Now == nil {
		o.Now = o.Clock.Now
	}
	if o.Logger == nil {
		o.Logger = slog.Default()
	}
	if o.Before == nil {
		o.Before = func(Op) error { return nil }
	}
	if o.Frozen == nil {
		o.Frozen = func() error { return nil }
	}
	o.ProveFor = orElse(o.ProveFor, 15*time.Second)
	o.ProveEvery = orElse(o.ProveEvery, time.Second)
	o.NeighbourFor = orElse(o.NeighbourFor, 60*time.Second)
	o.PollEvery = orElse(o.PollEvery, 20*time.Second)
	if o.Waiting == nil {
		o.Waiting = func(string, time.Time) {}
	}
	return &Installer{o: o, turn: make(chan struct{}, 1), tried: map[string]time.Time{}}, nil
}

func orElse(d, otherwise time.Duration) time.Duration {
	if d <= 0 {
		return otherwise
	}
	return d
}
