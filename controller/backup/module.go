package backup

import (
	"context"
	"database/sql"
	"errors"
	"time"

	"github.com/cassandra-security-manager/csm/controller/state"
	clusterv1 "github.com/cassandra-security-manager/csm/protocol/cluster/v1"
	"github.com/cassandra-security-manager/csm/shared/fault"
	"github.com/cassandra-security-manager/csm/shared/resource"
)

// The states of a backup.
const (
	Running = "running"
	Ready   = "ready"
	Failed  = "failed"
)

// keepFailed is how many failed ones are remembered.
const keepFailed = 20

const schema = `
CREATE TABLE backups (
	id TEXT PRIMARY KEY,
	state TEXT NOT NULL,
	controller TEXT NOT NULL,
	location TEXT NOT NULL,
	idx INTEGER NOT NULL,
	term INTEGER NOT NULL,
	size INTEGER NOT NULL,
	sha256 BLOB NOT NULL,
	problem TEXT NOT NULL,
	scheduled INTEGER NOT NULL,
	version TEXT NOT NULL,
	created_ms INTEGER NOT NULL,
	verified_ms INTEGER NOT NULL,
	revision INTEGER NOT NULL
) STRICT, WITHOUT ROWID;`

// Module is the tables and commands of this package; migrations 700 to 799.
func Module() state.Module {
	return state.Module{
		Name:       "backup",
		Migrations: []state.Migration{{Number: 700, SQL: schema}},
		Commands: func(r *state.Registry) {
			state.Handle(r, record)
			state.Handle(r, forget)
		},
	}
}

// Backup is what the state knows of one.
type Backup struct {
	ID         string
	State      string
	Controller string
	Location   string
	Index      uint64
	Term       uint64
	Size       int64
	SHA256     []byte
	Problem    string
	Scheduled  bool
	Version    string
	// Created by the state clock; Verified is zero while nobody has read it back.
	Created, Verified time.Time
	Revision          uint64
}

func record(a *state.Apply, c *clusterv1.RecordBackup) (*clusterv1.Empty, error) {
	if err := resource.CheckID("backup", c.GetId()); err != nil {
		return nil, err
	}
	if s := c.GetState(); s != Running && s != Ready && s != Failed {
		return nil, fault.New(fault.Invalid, "bad-state", "%.40q is no state of a backup", s)
	}
	known, err := get(a.Context(), a.Querier(), c.GetId())
	if err != nil && !fault.Is(err, fault.NotFound) {
		return nil, err
	}
	created, verified, verb := a.Now.UnixMilli(), int64(0), state.Created
	if err == nil {
		created, verb = known.Created.UnixMilli(), state.Updated
		if !known.Verified.IsZero() {
			verified = known.Verified.UnixMilli()
		}
	}
	if c.GetVerified() {
		verified = a.Now.UnixMilli()
	}
	sum := c.GetSha256()
	if sum == nil {
		sum = []byte{}
	}
	if _, err := a.Exec(`INSERT OR REPLACE INTO backups (id, state, controller, location, idx, term, size, sha256, problem, scheduled, version, created_ms, verified_ms, revision)
		VALUES (?,?,?,?,?,?,?,?,?,?,?,?,?,?)`, c.GetId(), c.GetState(), c.GetController(), c.GetLocation(), int64(c.GetIndex()), int64(c.GetTerm()), c.GetSize(), sum,
		c.GetProblem(), c.GetScheduled(), c.GetVersion(), created, verified, int64(a.Index)); err != nil {
		return nil, err
	}
	a.Touch(verb, resource.Backup(c.GetId()))
	_, err = a.Exec(`DELETE FROM backups WHERE state = ? AND id NOT IN (SELECT id FROM backups WHERE state = ? ORDER BY created_ms DESC, id DESC LIMIT ?)`, Failed, Failed, keepFailed)
	return &clusterv1.Empty{}, err
}

func forget(a *state.Apply, c *clusterv1.ForgetBackup) (*clusterv1.Empty, error) {
	res, err := a.Exec(`DELETE FROM backups WHERE id = ?`, c.GetId())
	if err != nil {
		return nil, err
	}
	if n, err := res.RowsAffected(); err != nil || n == 0 {
		return &clusterv1.Empty{}, err
	}
	a.Touch(state.Deleted, resource.Backup(c.GetId()))
	return &clusterv1.Empty{}, nil
}

const columns = `id, state, controller, location, idx, term, size, sha256, problem, scheduled, version, created_ms, verified_ms, revision`

func scan(row interface{ Scan(...any) error }) (b Backup, err error) {
	var created, verified int64
	err = row.Scan(&b.ID, &b.State, &b.Controller, &b.Location, &b.Index, &b.Term, &b.Size, &b.SHA256, &b.Problem, &b.Scheduled, &b.Version, &created, &verified, &b.Revision)
	b.Created = time.UnixMilli(created).UTC()
	if verified != 0 {
		b.Verified = time.UnixMilli(verified).UTC()
	}
	return b, err
}

func get(ctx context.Context, q state.Querier, id string) (Backup, error) {
	b, err := scan(q.QueryRowContext(ctx, `SELECT `+columns+` FROM backups WHERE id = ?`, id))
	if errors.Is(err, sql.ErrNoRows) {
		return b, noBackup(id)
	}
	return b, err
}

func noBackup(id string) error {
	return fault.New(fault.NotFound, "no-backup", "there is no backup %.80q", id).Do("`csm backup list` shows what there is")
}

// list is all by time, newest first.
func list(ctx context.Context, q state.Querier) ([]Backup, error) {
	rows, err := q.QueryContext(ctx, `SELECT `+columns+` FROM backups ORDER BY created_ms DESC, id DESC LIMIT 10000`)
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	var out []Backup
	for rows.Next() {
		b, err := scan(rows)
		if err != nil {
			return nil, err
		}
		out = append(out, b)
	}
	return out, rows.Err()
}

// Settle tells a state that was restored or recovered what became of the backups that it says are running: the one that it came
// out of is ready, all others failed with their controllers.
func Settle(ctx context.Context, store Store, log state.Log, from *File, actor string) error {
	var all []Backup
	if err := store.View(ctx, func(ctx context.Context, q state.Querier) (err error) {
		all, err = list(ctx, q)
		return err
	}); err != nil {
		return err
	}
	for _, k := range all {
		if k.State != Running {
			continue
		}
		cmd := &clusterv1.RecordBackup{Id: k.ID, State: Failed, Controller: k.Controller, Location: k.Location, Scheduled: k.Scheduled, Version: k.Version,
			Problem: "its controller was lost"}
		if from != nil && from.Header.ID == k.ID {
			cmd.State, cmd.Problem, cmd.Index, cmd.Term, cmd.Size = Ready, "", from.Header.Index, from.Header.Term, from.Size
		}
		if _, err := log.Propose(ctx, state.Proposal{Command: cmd, Actor: actor, Reason: "the state began anew"}); err != nil {
			return err
		}
	}
	return nil
}
