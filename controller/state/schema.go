package state

import (
	"context"
	"fmt"
	"regexp"
	"slices"
	"strings"

	"github.com/cassandra-security-manager/csm/shared/fault"
)

// Format is the newest state format this controller knows. A file keeps the format it was made with.
const Format = 1

// Tables of the state machine itself. Those named local_* differ between controllers and stand outside the checksum.
var ownMigrations = []Migration{{Number: 1, SQL: `
CREATE TABLE meta (
	id INTEGER PRIMARY KEY CHECK (id = 1),
	cluster_id TEXT NOT NULL,
	format INTEGER NOT NULL,
	applied INTEGER NOT NULL,
	applied_term INTEGER NOT NULL,
	clock INTEGER NOT NULL,
	commands INTEGER NOT NULL,
	changes_after INTEGER NOT NULL
) STRICT;
CREATE TABLE local_meta (
	id INTEGER PRIMARY KEY CHECK (id = 1),
	node_id TEXT NOT NULL,
	clean INTEGER NOT NULL
) STRICT;
CREATE TABLE migrations (number INTEGER PRIMARY KEY) STRICT;
CREATE TABLE outcomes (
	idx INTEGER PRIMARY KEY,
	id TEXT NOT NULL UNIQUE,
	kind TEXT NOT NULL,
	actor TEXT NOT NULL,
	tenant TEXT NOT NULL,
	time INTEGER NOT NULL,
	expires INTEGER NOT NULL,
	reply BLOB,
	fault BLOB
) STRICT;
CREATE TABLE audit (
	idx INTEGER PRIMARY KEY,
	time INTEGER NOT NULL,
	actor TEXT NOT NULL,
	tenant TEXT NOT NULL,
	kind TEXT NOT NULL,
	id TEXT NOT NULL,
	correlation_id TEXT NOT NULL,
	reason TEXT NOT NULL,
	command_sha256 BLOB NOT NULL,
	touched TEXT NOT NULL,
	fault_code TEXT NOT NULL,
	fault_reason TEXT NOT NULL,
	fault_message TEXT NOT NULL
) STRICT;
`}, {Number: 2, SQL: `
CREATE TABLE kept_outcomes (
	idx INTEGER PRIMARY KEY,
	id TEXT NOT NULL UNIQUE,
	request BLOB NOT NULL,
	kind TEXT NOT NULL,
	actor TEXT NOT NULL,
	tenant TEXT NOT NULL,
	time INTEGER NOT NULL,
	expires INTEGER NOT NULL,
	reply BLOB
) STRICT;
CREATE TABLE kept_counts (
	actor TEXT PRIMARY KEY,
	count INTEGER NOT NULL
) STRICT, WITHOUT ROWID;
`}}

// plan puts the migrations of all modules into one list and refuses doubles.
func plan(modules []Module) ([]Migration, error) {
	all := slices.Clone(ownMigrations)
	owner := map[int]string{}
	for _, m := range ownMigrations {
		owner[m.Number] = "state"
	}
	names := map[string]bool{}
	for _, m := range modules {
		if names[m.Name] {
			return nil, fmt.Errorf("state: module %q is given twice", m.Name)
		}
		names[m.Name] = true
		for _, g := range m.Migrations {
			if other, double := owner[g.Number]; double {
				return nil, fmt.Errorf("state: migration %d of %s is taken by %s", g.Number, m.Name, other)
			}
			if !g.creates() {
				return nil, fmt.Errorf("state: migration %d of %s does more than create tables and indexes", g.Number, m.Name)
			}
			owner[g.Number] = m.Name
			all = append(all, g)
		}
	}
	slices.SortFunc(all, func(a, b Migration) int { return a.Number - b.Number })
	return all, nil
}

// create fills an empty file: all migrations in one transaction, so that a crash leaves an empty file or a whole one.
func create(ctx context.Context, s *session, migrations []Migration, clusterID, nodeID string) error {
	if _, err := s.ExecContext(ctx, "BEGIN IMMEDIATE"); err != nil {
		return err
	}
	err := func() error {
		if err := run(ctx, s, migrations); err != nil {
			return err
		}
		if _, err := s.ExecContext(ctx, `INSERT INTO meta (id, cluster_id, format, applied, applied_term, clock, commands, changes_after)
			VALUES (1, ?, ?, 0, 0, 0, 0, 0)`, clusterID, Format); err != nil {
			return err
		}
		_, err := s.ExecContext(ctx, "INSERT INTO local_meta (id, node_id, clean) VALUES (1, ?, 0)", nodeID)
		return err
	}()
	if err != nil {
		s.ExecContext(ctx, "ROLLBACK")
		return err
	}
	_, err = s.ExecContext(ctx, "COMMIT")
	return err
}

// Numbers are the numbers of all migrations of these modules and of the state machine itself, in order: what says whether a
// state was made by a program like this one.
func Numbers(modules []Module) ([]int, error) {
	all, err := plan(modules)
	var out []int
	for _, m := range all {
		out = append(out, m.Number)
	}
	return out, err
}

func readMigrations(ctx context.Context, q Querier) (have []int, err error) {
	rows, err := q.QueryContext(ctx, "SELECT number FROM migrations ORDER BY number")
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	for rows.Next() {
		var n int
		if err := rows.Scan(&n); err != nil {
			return nil, err
		}
		have = append(have, n)
	}
	return have, rows.Err()
}

// upgrade adds what this program has and the file has not, in one transaction. It refuses a file of a newer program.
func upgrade(ctx context.Context, s *session, migrations []Migration) error {
	have, err := readMigrations(ctx, s)
	if err != nil {
		return err
	}
	var missing []Migration
	for _, m := range migrations {
		if !slices.Contains(have, m.Number) {
			missing = append(missing, m)
		}
	}
	if len(have)+len(missing) > len(migrations) {
		return fault.New(fault.Refused, "schema-newer", "the state was made with migrations %v, this controller has %d of them", have, len(migrations)-len(missing)).
			Do("start the csm-controller version that made it or a newer one, or remove this controller and let it join again")
	}
	if len(missing) == 0 {
		return nil
	}
	if _, err := s.ExecContext(ctx, "BEGIN IMMEDIATE"); err != nil {
		return err
	}
	if err := run(ctx, s, missing); err != nil {
		s.ExecContext(ctx, "ROLLBACK")
		return err
	}
	_, err = s.ExecContext(ctx, "COMMIT")
	return err
}

func run(ctx context.Context, s *session, migrations []Migration) error {
	for _, m := range migrations {
		if _, err := s.conn.ExecContext(ctx, m.SQL); err != nil {
			return fmt.Errorf("migration %d: %w", m.Number, err)
		}
		if _, err := s.ExecContext(ctx, "INSERT INTO migrations (number) VALUES (?)", m.Number); err != nil {
			return err
		}
	}
	return nil
}

var comment = regexp.MustCompile(`--[^\n]*`)

// creates says whether a migration does nothing but create tables and indexes. Each controller runs it when its program is
// upgraded, at an index of its own: what touches rows, or the columns of a table that has some, would fork the state.
func (m Migration) creates() bool {
	for statement := range strings.SplitSeq(comment.ReplaceAllString(m.SQL, ""), ";") {
		words := strings.Fields(statement)
		if len(words) == 0 {
			continue
		}
		if len(words) < 3 || words[0] != "CREATE" || !slices.Contains([]string{"TABLE", "INDEX", "UNIQUE"}, words[1]) {
			return false
		}
	}
	return true
}
