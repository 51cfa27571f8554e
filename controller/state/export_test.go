package state

import (
	"context"
	"strconv"
)

// LimitPages lets the file grow by n pages and no more: the disk is full after that.
func (s *Store) LimitPages(n int) error {
	s.writing.Lock()
	defer s.writing.Unlock()
	ctx := context.Background()
	var pages int
	if err := s.current.writer.QueryRowContext(ctx, "PRAGMA page_count").Scan(&pages); err != nil {
		return err
	}
	var now int
	return s.current.writer.conn.QueryRowContext(ctx, "PRAGMA max_page_count="+strconv.Itoa(pages+n)).Scan(&now)
}

// Tamper writes past the log, as a defect would.
func (s *Store) Tamper(query string) error {
	s.writing.Lock()
	defer s.writing.Unlock()
	_, err := s.current.writer.ExecContext(context.Background(), query)
	return err
}

// Checkpoint folds the log in as the background does each second.
func (s *Store) Checkpoint() { s.checkpointOnce(context.Background()) }

// Path is the file in use.
func (s *Store) Path() string { return s.current.path }

// TryRestartLog reports whether nothing holds the write-ahead log back.
func (s *Store) TryRestartLog() (bool, error) {
	return checkpoint(context.Background(), s.current.check, "RESTART")
}
