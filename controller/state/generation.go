package state

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"github.com/cassandra-security-manager/csm/shared/fault"
)

const (
	// readers is how many read transactions run at once.
	readers = 8
	// readLimit bounds a read transaction: a longer one keeps the write-ahead log from being folded in.
	readLimit = 5 * time.Second
	// drainLimit is how long the readers of a replaced generation may go on.
	drainLimit = 30 * time.Second
)

// generation is one state file, opened: the writer, the checkpointer and the pool of readers.
type generation struct {
	number uint64
	path   string
	db     *sql.DB
	writer *session
	check  *session
	// free holds the readers that wait for work; a nil one is opened on first use.
	free chan *session
	// pinned counts read transactions that may last: while there are any, the log cannot restart.
	pinned atomic.Int32

	life context.Context
	end  context.CancelFunc
	busy sync.WaitGroup
}

// openGeneration opens a file that belongs to us and marks it as in use.
func (s *Store) openGeneration(ctx context.Context, number uint64) (*generation, head, error) {
	path := generationFile(s.opts.Dir, number)
	db, err := openDB(path)
	if err != nil {
		return nil, head{}, err
	}
	g := &generation{number: number, path: path, db: db, free: make(chan *session, readers)}
	for range readers {
		g.free <- nil
	}
	g.life, g.end = context.WithCancel(context.Background())
	h, err := func() (h head, err error) {
		if g.writer, err = openSession(ctx, db, "cache_size=-65536"); err != nil {
			return h, broken(err)
		}
		g.writer.track = true
		if err := checkVersion(ctx, g.writer); err != nil {
			return h, err
		}
		if g.check, err = openSession(ctx, db, "busy_timeout=100"); err != nil {
			return h, broken(err)
		}
		info, err := readInfo(ctx, g.writer)
		if err != nil {
			return h, err
		}
		if err := info.belongs(s.opts.ClusterID, s.opts.NodeID); err != nil {
			return h, err
		}
		if err := upgrade(ctx, g.writer, s.migrations); err != nil {
			return h, err
		}
		if _, err := g.writer.ExecContext(ctx, "UPDATE local_meta SET clean = 0, node_id = ? WHERE id = 1", s.opts.NodeID); err != nil {
			return h, broken(err)
		}
		return readHead(ctx, g.writer)
	}()
	if err != nil {
		g.end()
		return nil, h, errors.Join(err, g.close())
	}
	return g, h, nil
}

func readHead(ctx context.Context, q Querier) (h head, err error) {
	err = q.QueryRowContext(ctx, "SELECT applied, applied_term, clock, commands, changes_after FROM meta WHERE id = 1").
		Scan(&h.applied, &h.term, &h.clock, &h.commands, &h.changesAfter)
	return h, err
}

// Revision is the raft index whose state this read transaction sees.
func Revision(ctx context.Context, q Querier) (index uint64, err error) {
	err = q.QueryRowContext(ctx, "SELECT applied FROM meta WHERE id = 1").Scan(&index)
	return index, err
}

// take waits for a reader of the current generation.
func (s *Store) take(ctx context.Context) (*generation, *session, error) {
	s.mu.RLock()
	g := s.current
	if s.closed {
		s.mu.RUnlock()
		return nil, nil, errClosed
	}
	g.busy.Add(1)
	s.mu.RUnlock()
	select {
	case r := <-g.free:
		if r != nil {
			return g, r, nil
		}
		r, err := openSession(ctx, g.db, "query_only=1")
		if err != nil {
			g.free <- nil
			g.busy.Done()
			return nil, nil, fmt.Errorf("open a reader: %w", err)
		}
		return g, r, nil
	case <-ctx.Done():
		g.busy.Done()
		return nil, nil, fault.Wrap(ctx.Err(), fault.Unavailable, "busy", "all readers of the state are busy").Do("try again")
	}
}

// give returns a reader; one that could not end its transaction is thrown away.
func (g *generation) give(r *session, spoiled bool) {
	if spoiled {
		r.close()
		r = nil
	}
	g.free <- r
	g.busy.Done()
}

// View runs fn in one read transaction: it sees the state as of one commit. It lasts at most 5 s; fn uses the context
// it is given, closes its rows, and keeps nothing of q.
func (s *Store) View(ctx context.Context, fn func(ctx context.Context, q Querier) error) error {
	bounded, cancel := context.WithTimeoutCause(ctx, readLimit,
		fault.New(fault.Unavailable, "read-too-long", "the read took more than %v and was stopped", readLimit).Do("ask for a smaller page"))
	defer cancel()
	g, r, err := s.take(bounded)
	if err != nil {
		return err
	}
	stop := context.AfterFunc(g.life, cancel)
	defer stop()
	spoiled := true
	defer func() { g.give(r, spoiled) }()
	if _, err := r.ExecContext(context.Background(), "BEGIN"); err != nil {
		return err
	}
	err = fn(bounded, r)
	cancel() // closes rows that fn left open; they would keep the transaction alive
	_, rollback := r.ExecContext(context.Background(), "ROLLBACK")
	spoiled = rollback != nil
	if err != nil && bounded.Err() != nil && ctx.Err() == nil {
		if why := fault.From(context.Cause(bounded)); why != nil && why.Reason == "read-too-long" {
			return why
		}
	}
	return err
}

// pin opens a connection of its own and begins a read transaction that may last, as of the last commit.
func (g *generation) pin(ctx context.Context) (*session, head, error) {
	r, err := openSession(ctx, g.db, "query_only=1")
	if err != nil {
		return nil, head{}, err
	}
	if _, err = r.ExecContext(ctx, "BEGIN"); err == nil {
		var h head
		if h, err = readHead(ctx, r); err == nil {
			g.pinned.Add(1)
			g.busy.Add(1)
			return r, h, nil
		}
	}
	return nil, head{}, errors.Join(err, r.close())
}

func (g *generation) unpin(r *session) {
	r.close()
	g.pinned.Add(-1)
	g.busy.Done()
}

// drain waits for the readers, at most drainLimit, then interrupts them.
func (g *generation) drain() {
	idle := make(chan struct{})
	go func() { g.busy.Wait(); close(idle) }()
	limit := time.NewTimer(drainLimit)
	defer limit.Stop()
	select {
	case <-idle:
	case <-limit.C:
	}
	g.end()
}

// markClean folds the log into the file, so that the next start needs no check of every page.
func (g *generation) markClean() error {
	ctx := context.Background()
	for _, q := range []string{"PRAGMA synchronous=FULL", "UPDATE local_meta SET clean = 1 WHERE id = 1"} {
		if _, err := g.writer.ExecContext(ctx, q); err != nil {
			return fmt.Errorf("close the state: %w", err)
		}
	}
	if _, err := checkpoint(ctx, g.writer, "TRUNCATE"); err != nil {
		return fmt.Errorf("close the state: %w", err)
	}
	return nil
}

func (g *generation) close() error {
	g.end()
	var errs []error
	for range cap(g.free) {
		select {
		case r := <-g.free:
			if r != nil {
				errs = append(errs, r.close())
			}
		default:
		}
	}
	for _, w := range []*session{g.check, g.writer} {
		if w != nil {
			errs = append(errs, w.close())
		}
	}
	return errors.Join(append(errs, g.db.Close())...)
}
