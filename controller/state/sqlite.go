package state

import (
	"context"
	"database/sql"
	"database/sql/driver"
	"errors"
	"fmt"
	"io"
	"net/url"
	"strconv"
	"strings"

	sqlite "modernc.org/sqlite"
	sqlite3 "modernc.org/sqlite/lib"

	"github.com/cassandra-security-manager/csm/shared/fault"
)

// oldest SQLite that may run: before it, a checkpoint racing a commit could lose committed pages (WAL-reset bug).
var oldestSQLite = [3]int{3, 51, 3}

// openDB opens the pool of a file. Each connection gets the same pragmas; a role adds its own.
func openDB(path string) (*sql.DB, error) {
	dsn := "file:" + (&url.URL{Path: path}).EscapedPath() + "?" + strings.Join([]string{
		"_pragma=busy_timeout(5000)",
		"_pragma=journal_mode(WAL)",
		"_pragma=synchronous(NORMAL)",
		"_pragma=wal_autocheckpoint(0)",
		"_pragma=foreign_keys(1)",
		"_pragma=temp_store(MEMORY)",
		"_pragma=trusted_schema(0)",
	}, "&")
	db, err := sql.Open("sqlite", dsn)
	if err != nil {
		return nil, err
	}
	db.SetMaxIdleConns(0)
	return db, nil
}

func checkVersion(ctx context.Context, q Querier) error {
	var v string
	if err := q.QueryRowContext(ctx, "SELECT sqlite_version()").Scan(&v); err != nil {
		return err
	}
	var got [3]int
	for i, p := range strings.SplitN(v, ".", 3) {
		got[i], _ = strconv.Atoi(p)
	}
	for i := range got {
		if got[i] != oldestSQLite[i] {
			if got[i] > oldestSQLite[i] {
				return nil
			}
			return fault.New(fault.Internal, "old-sqlite", "SQLite %s can lose committed pages", v).
				Do("build csm-controller with modernc.org/sqlite v1.60.1 or later")
		}
	}
	return nil
}

// session is one connection with its prepared statements: parsing costs more than most statements. It serves one
// goroutine at a time.
type session struct {
	conn  *sql.Conn
	stmts map[string]*sql.Stmt
	// execs are statements of the driver itself: what package sql does for each of them costs a tenth of an insert. A
	// session has its connection to itself, so nothing of it is needed.
	execs  map[string]driver.StmtExecContext
	values []driver.NamedValue
	// broken is the first error of the machine (not of the statement) that any statement met, even if a handler hid it.
	broken error
	// wrote is set by every statement that may have changed something.
	wrote bool
	// rows are those given out since settle, when track is set.
	track bool
	rows  []*sql.Rows
}

// maxStatements bounds the cache: a handler that builds SQL from values would fill it otherwise.
const maxStatements = 512

func openSession(ctx context.Context, db *sql.DB, pragmas ...string) (*session, error) {
	conn, err := db.Conn(ctx)
	if err != nil {
		return nil, err
	}
	for _, p := range pragmas {
		if _, err := conn.ExecContext(ctx, "PRAGMA "+p); err != nil {
			return nil, errors.Join(fmt.Errorf("pragma %s: %w", p, err), conn.Close())
		}
	}
	return &session{conn: conn, stmts: map[string]*sql.Stmt{}, execs: map[string]driver.StmtExecContext{}}, nil
}

func (s *session) close() error {
	for _, st := range s.stmts {
		st.Close()
	}
	for _, st := range s.execs {
		if c, ok := st.(io.Closer); ok {
			c.Close()
		}
	}
	s.execs = nil
	// ErrBadConn makes the pool close the connection, not keep it.
	s.conn.Raw(func(any) error { return driver.ErrBadConn })
	if err := s.conn.Close(); err != nil && !errors.Is(err, sql.ErrConnDone) && !errors.Is(err, driver.ErrBadConn) {
		return err
	}
	return nil
}

func (s *session) stmt(ctx context.Context, query string) *sql.Stmt {
	if st := s.stmts[query]; st != nil {
		return st
	}
	if len(s.stmts) >= maxStatements {
		return nil
	}
	st, err := s.conn.PrepareContext(ctx, query)
	if err != nil {
		return nil // run it unprepared: the same error comes back where the caller looks for it
	}
	s.stmts[query] = st
	return st
}

func (s *session) note(err error) {
	if err != nil && s.broken == nil && ofMachine(err) {
		s.broken = err
	}
}

// inUse: the prepared statement is being stepped through by an outer query with the same text.
func inUse(err error) bool {
	var e *sqlite.Error
	return errors.As(err, &e) && e.Code()&0xff == sqlite3.SQLITE_MISUSE
}

// mark notes a statement that may write: all but plain queries.
func (s *session) mark(query string) {
	if !s.wrote && !reads(query) {
		s.wrote = true
	}
}

// reads tells a plain query. "WITH" may stand before an INSERT too, so it does not count.
func reads(query string) bool {
	query = strings.TrimLeft(query, " \t\n")
	return len(query) > 6 && strings.EqualFold(query[:6], "SELECT")
}

// exec is the prepared statement of the driver; nil where there is none.
func (s *session) exec(ctx context.Context, query string) driver.StmtExecContext {
	if st := s.execs[query]; st != nil {
		return st
	}
	if len(s.execs) >= maxStatements {
		return nil
	}
	s.conn.Raw(func(c any) error {
		p, ok := c.(driver.ConnPrepareContext)
		if !ok {
			return nil
		}
		st, err := p.PrepareContext(ctx, query)
		if err != nil {
			return nil // run it unprepared: the same error comes back where the caller looks for it
		}
		if e, ok := st.(driver.StmtExecContext); ok && st.NumInput() < 0 {
			s.execs[query] = e
			return nil
		}
		return st.Close()
	})
	return s.execs[query]
}

// bind makes of arguments what package sql would make of them.
func (s *session) bind(args []any) ([]driver.NamedValue, error) {
	s.values = s.values[:0]
	for i, a := range args {
		v, err := driver.DefaultParameterConverter.ConvertValue(a)
		if err != nil {
			return nil, fmt.Errorf("argument %d: %w", i+1, err)
		}
		s.values = append(s.values, driver.NamedValue{Ordinal: i + 1, Value: v})
	}
	return s.values, nil
}

func (s *session) ExecContext(ctx context.Context, query string, args ...any) (sql.Result, error) {
	s.mark(query)
	if st := s.exec(ctx, query); st != nil {
		values, err := s.bind(args)
		if err != nil {
			return nil, err
		}
		res, err := st.ExecContext(ctx, values)
		clear(s.values)
		if !inUse(err) {
			s.note(err)
			return res, err
		}
	}
	res, err := s.conn.ExecContext(ctx, query, args...)
	s.note(err)
	return res, err
}

func (s *session) QueryContext(ctx context.Context, query string, args ...any) (*sql.Rows, error) {
	s.mark(query)
	rows, err := s.query(ctx, query, args...)
	if s.track && err == nil {
		s.rows = append(s.rows, rows)
	}
	return rows, err
}

// settle closes rows that a handler left open (they would hold the read mark of the writer for ever) and notes the errors
// of the machine that ended others early, even if the handler never asked. It tells how many were open.
func (s *session) settle() (open int) {
	for _, r := range s.rows {
		if _, err := r.Columns(); err == nil { // only closed rows refuse to name their columns
			open++
			r.Close()
		}
		s.note(r.Err())
	}
	clear(s.rows)
	s.rows = s.rows[:0]
	return open
}

func (s *session) query(ctx context.Context, query string, args ...any) (*sql.Rows, error) {
	if st := s.stmt(ctx, query); st != nil {
		rows, err := st.QueryContext(ctx, args...)
		if !inUse(err) {
			s.note(err)
			return rows, err
		}
	}
	rows, err := s.conn.QueryContext(ctx, query, args...)
	s.note(err)
	return rows, err
}

func (s *session) QueryRowContext(ctx context.Context, query string, args ...any) *sql.Row {
	s.mark(query)
	if st := s.stmt(ctx, query); st != nil {
		row := st.QueryRowContext(ctx, args...)
		if !inUse(row.Err()) {
			s.note(row.Err())
			return row
		}
	}
	row := s.conn.QueryRowContext(ctx, query, args...)
	s.note(row.Err())
	return row
}

// ofSurroundings tells errors of permissions, locks, memory and disk from a file whose content is wrong.
func ofSurroundings(err error) bool {
	var e *sqlite.Error
	if !errors.As(err, &e) {
		return errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded)
	}
	switch e.Code() & 0xff {
	case sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_PERM, sqlite3.SQLITE_READONLY, sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED,
		sqlite3.SQLITE_NOMEM, sqlite3.SQLITE_FULL:
		return true
	case sqlite3.SQLITE_IOERR:
		return e.Code() != sqlite3.SQLITE_IOERR_SHORT_READ && e.Code() != sqlite3.SQLITE_IOERR_CORRUPTFS
	}
	return false
}

// badDisk tells an error that the next try will meet too.
func badDisk(err error) bool {
	var e *sqlite.Error
	if !errors.As(err, &e) {
		return false
	}
	code := e.Code() & 0xff
	return code == sqlite3.SQLITE_IOERR || code == sqlite3.SQLITE_CORRUPT || code == sqlite3.SQLITE_NOTADB
}

// ofMachine tells whether an error is this machine's own (disk, memory, locks, a closed connection), so that another
// controller would not have met it. Only what SQLite decides from the statement and the rows is everybody's.
func ofMachine(err error) bool {
	var e *sqlite.Error
	if errors.As(err, &e) {
		switch e.Code() & 0xff {
		case sqlite3.SQLITE_ERROR, sqlite3.SQLITE_CONSTRAINT, sqlite3.SQLITE_MISMATCH, sqlite3.SQLITE_TOOBIG, sqlite3.SQLITE_RANGE:
			return false
		}
		return true
	}
	return errors.Is(err, sql.ErrConnDone) || errors.Is(err, sql.ErrTxDone) || errors.Is(err, driver.ErrBadConn) ||
		errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded)
}
