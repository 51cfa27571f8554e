package state

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hashicorp/raft"
	"github.com/jonboulle/clockwork"

	clusterv1 "github.com/cassandra-security-manager/csm/protocol/cluster/v1"
	"github.com/cassandra-security-manager/csm/shared/fault"
)

// Options of a Store.
type Options struct {
	// Dir is the folder of the state: generations and CURRENT. Made if absent. One process at a time.
	Dir string
	// ClusterID and NodeID must match what the file says; an empty file takes them.
	ClusterID, NodeID string
	// Modules bring tables and commands.
	Modules []Module
	// Clock drives the checkpointer; the real one when nil. Apply never asks it.
	Clock clockwork.Clock
	// Logger; silent when nil.
	Logger *slog.Logger
	// Fatal must end the process: this machine can no longer keep its promise, and no entry since was answered.
	// It panics when nil. If it returns, every entry from there on is answered with a fault of code Unknown.
	Fatal func(error)
	// Checked says that Inspect has just passed this file: Open does not read all of it once more after an unclean stop.
	Checked bool
}

// Store is the state machine of one controller. ApplyBatch, Apply, Snapshot and Restore belong to raft's one goroutine;
// all else may be called from anywhere.
type Store struct {
	opts       Options
	log        *slog.Logger
	clock      clockwork.Clock
	registry   Registry
	migrations []Migration

	// writing is held by whoever may change the file or replace it.
	writing sync.Mutex
	// step is told of each step of a batch; under writing.
	step   func()
	head   head
	failed error
	memory memory

	// current is the generation that is read; swapped by Restore.
	mu      sync.RWMutex
	current *generation
	closed  bool

	applied, appliedTerm, stateClock atomic.Uint64
	// delivered is the last index raft handed over since it started, applied then or long before.
	delivered atomic.Uint64

	waiters waiters
	watches watches
	sums    checksums

	// life ends when the store closes: it stops what runs in the background.
	life       context.Context
	stop       context.CancelFunc
	background sync.WaitGroup
}

var _ interface {
	raft.FSM
	raft.BatchingFSM
} = (*Store)(nil)

// head is the end of what was applied; it stands in table meta.
type head struct {
	applied, term uint64
	// clock is the state clock in unix milliseconds.
	clock int64
	// commands counts the commands ever applied: pruning happens at multiples, wherever batches begin or end.
	commands uint64
	// changesAfter: all changes with a greater revision are still listed.
	changesAfter uint64
}

// Open opens the state, or makes an empty one. It refuses a file of another cluster, another node, a newer format or
// another schema (Refused), and a broken one (Internal, reason state-broken).
func Open(ctx context.Context, opts Options) (*Store, error) {
	s := &Store{opts: opts, log: opts.Logger, clock: opts.Clock}
	if s.log == nil {
		s.log = slog.New(slog.DiscardHandler)
	}
	if s.clock == nil {
		s.clock = clockwork.NewRealClock()
	}
	if s.opts.Fatal == nil {
		s.opts.Fatal = func(err error) { panic(err) }
	}
	if opts.ClusterID == "" || opts.NodeID == "" {
		return nil, errors.New("state: cluster id and node id are required")
	}
	if err := s.register(); err != nil {
		return nil, err
	}
	if err := os.MkdirAll(opts.Dir, 0o700); err != nil {
		return nil, fmt.Errorf("make the state folder: %w", err)
	}
	number, err := currentGeneration(opts.Dir)
	if err != nil {
		return nil, err
	}
	if number == 0 {
		if number, err = s.createFirst(ctx); err != nil {
			return nil, err
		}
	} else if !opts.Checked {
		if _, err := Inspect(opts.Dir); err != nil {
			return nil, err
		}
	}
	removeStrays(opts.Dir, number, s.log)
	g, h, err := s.openGeneration(ctx, number)
	if err != nil {
		return nil, err
	}
	s.current, s.head = g, h
	s.publish()
	s.waiters.wake(h.applied)
	s.sums.init()
	s.life, s.stop = context.WithCancel(context.Background())
	s.background.Add(1)
	go func() {
		defer s.background.Done()
		s.checkpointLoop(s.life)
	}()
	return s, nil
}

// register collects the handlers and the migrations.
func (s *Store) register() error {
	var err error
	if s.migrations, err = plan(s.opts.Modules); err != nil {
		return err
	}
	for _, m := range s.opts.Modules {
		if m.Commands != nil {
			m.Commands(&s.registry)
		}
	}
	// Marker and TermStart say nothing to any domain; a module may still bring a handler of its own.
	if s.registry.handlers[Kind(&clusterv1.Marker{})] == nil {
		Handle(&s.registry, func(*Apply, *clusterv1.Marker) (*clusterv1.Empty, error) { return &clusterv1.Empty{}, nil })
	}
	if s.registry.handlers[Kind(&clusterv1.TermStart{})] == nil {
		Handle(&s.registry, func(*Apply, *clusterv1.TermStart) (*clusterv1.Empty, error) { return &clusterv1.Empty{}, nil })
	}
	return nil
}

// createFirst makes generation 1 beside and names it in CURRENT when it is whole.
func (s *Store) createFirst(ctx context.Context) (uint64, error) {
	const first = 1
	path := generationFile(s.opts.Dir, first)
	if err := os.RemoveAll(filepath.Dir(path)); err != nil {
		return 0, err
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return 0, err
	}
	db, err := openDB(path)
	if err != nil {
		return 0, err
	}
	defer db.Close()
	w, err := openSession(ctx, db)
	if err != nil {
		return 0, fmt.Errorf("make the state file: %w", err)
	}
	if err := errors.Join(create(ctx, w, s.migrations, s.opts.ClusterID, s.opts.NodeID), w.close()); err != nil {
		return 0, fmt.Errorf("make the state file: %w", err)
	}
	return first, setCurrent(s.opts.Dir, first)
}

// publish makes the head visible to readers; called after the commit that made it true.
func (s *Store) publish() {
	s.stateClock.Store(uint64(s.head.clock))
	s.appliedTerm.Store(s.head.term)
	s.applied.Store(s.head.applied)
}

// Applied is the index of the last entry whose effect is committed in SQLite and can be read.
func (s *Store) Applied() uint64 { return s.applied.Load() }

// AppliedTerm is the term of the entry at Applied.
func (s *Store) AppliedTerm() uint64 { return s.appliedTerm.Load() }

// Now is the state clock: the newest stamp applied. A leader whose clock is far behind it must not stamp.
func (s *Store) Now() time.Time { return time.UnixMilli(int64(s.stateClock.Load())).UTC() }

// fail ends the process through Options.Fatal; the store applies nothing any more.
func (s *Store) fail(err error) error {
	if s.failed == nil {
		s.failed = fault.Wrap(err, fault.Unknown, "state-failed", "this controller's state machine stopped")
	}
	s.log.Error("the state machine stops", "error", err)
	s.opts.Fatal(err)
	return s.failed
}

var errClosed = fault.New(fault.Unavailable, "closed", "the state is closed").Do("ask another controller")

// Close marks the file as cleanly closed and folds its log into it. Readers are given up to 30 s.
func (s *Store) Close() error {
	s.writing.Lock()
	defer s.writing.Unlock()
	s.mu.Lock()
	if s.closed {
		s.mu.Unlock()
		return nil
	}
	s.closed = true
	g := s.current
	s.mu.Unlock()
	s.stop()
	s.background.Wait()
	s.waiters.close()
	g.drain()
	var err error
	if s.failed == nil {
		err = g.markClean()
		s.failed = errClosed
	}
	return errors.Join(err, g.close())
}
