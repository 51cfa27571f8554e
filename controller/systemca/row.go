package systemca

import (
	"context"
	"database/sql"
	"errors"
	"time"

	"github.com/cassandra-security-manager/csm/controller/authority"
	"github.com/cassandra-security-manager/csm/controller/state"
	"github.com/cassandra-security-manager/csm/shared/fault"
	"github.com/cassandra-security-manager/csm/shared/resource"
)

// row is a rotation as the state holds it.
type row struct {
	name                   string
	phase                  Phase
	paused                 bool
	before, after          string // issuers
	newWithOld, oldWithNew []byte
	turn                   string
	planHash               []byte
	reason, actor          string
	created, since, ended  time.Time
	revision               uint64
}

const columns = `SELECT name, phase, paused, issuer_before, issuer_after, new_with_old, old_with_new, turn, plan_hash, reason, actor, created_ms, phase_ms, ended_ms, revision FROM system_rotations `

func scan(s interface{ Scan(...any) error }) (r row, err error) {
	var created, since, ended int64
	err = s.Scan(&r.name, &r.phase, &r.paused, &r.before, &r.after, &r.newWithOld, &r.oldWithNew, &r.turn, &r.planHash, &r.reason, &r.actor, &created, &since, &ended, &r.revision)
	r.created, r.since, r.ended = at(created), at(since), at(ended)
	return r, err
}

func at(ms int64) time.Time {
	if ms == 0 {
		return time.Time{}
	}
	return time.UnixMilli(ms).UTC()
}

func short(name string) string { return resource.Last(name) }

// get reads a rotation by its full name.
func get(ctx context.Context, q state.Querier, name string) (row, error) {
	r, err := scan(q.QueryRowContext(ctx, columns+`WHERE name = ?`, name))
	if errors.Is(err, sql.ErrNoRows) {
		return r, fault.New(fault.NotFound, "no-rotation", "there is no rotation %.300q", name).Do("see `csm rotation list --system`")
	}
	return r, err
}

// running reads the rotation that has not ended; ok is false without one.
func running(ctx context.Context, q state.Querier) (r row, ok bool, err error) {
	r, err = scan(q.QueryRowContext(ctx, columns+`WHERE ended_ms = 0`))
	if errors.Is(err, sql.ErrNoRows) {
		return r, false, nil
	}
	return r, err == nil, err
}

func many(ctx context.Context, q state.Querier) ([]row, error) {
	rows, err := q.QueryContext(ctx, columns+`ORDER BY created_ms DESC, name LIMIT 1000`)
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	var out []row
	for rows.Next() {
		r, err := scan(rows)
		if err != nil {
			return nil, err
		}
		out = append(out, r)
	}
	return out, rows.Err()
}

func insert(a *state.Apply, r row) error {
	now := a.Now.UnixMilli()
	_, err := a.Exec(`INSERT INTO system_rotations (name, phase, paused, issuer_before, issuer_after, new_with_old, old_with_new, turn, plan_hash, reason, actor, created_ms, phase_ms, ended_ms, revision)
		VALUES (?,?,0,?,?,?,?,'',?,?,?,?,?,0,?)`, r.name, string(r.phase), r.before, r.after, r.newWithOld, r.oldWithNew, r.planHash, r.reason, a.Envelope.GetActor(), now, now, int64(a.Index))
	a.Touch(state.Created, r.name)
	return err
}

// enter moves a rotation to another phase.
func enter(a *state.Apply, r row, to Phase, message string) error {
	now, ended := a.Now.UnixMilli(), int64(0)
	if to.Ended() {
		ended = now
	}
	if _, err := a.Exec(`UPDATE system_rotations SET phase = ?, turn = '', phase_ms = ?, ended_ms = ?, revision = ? WHERE name = ?`, string(to), now, ended, int64(a.Index), r.name); err != nil {
		return err
	}
	r.phase = to
	return event(a, r, message)
}

// event adds a line to the timeline.
func event(a *state.Apply, r row, message string) error {
	_, err := a.Exec(`INSERT INTO system_rotation_events (rotation, idx, part, time_ms, phase, message, actor)
		SELECT ?1, ?2, (SELECT count(*) FROM system_rotation_events WHERE rotation = ?1 AND idx = ?2), ?3, ?4, ?5, ?6`,
		r.name, int64(a.Index), a.Now.UnixMilli(), string(r.phase), message, a.Envelope.GetActor())
	a.Touch(state.Updated, r.name)
	return err
}

// set says which of the two roots signs and what becomes of the other.
func (r row) set(a *state.Apply, signs, other string, st authority.State) error {
	if err := authority.SetSystemRoot(a, other, st); err != nil {
		return err
	}
	return authority.SetSystemRoot(a, signs, authority.Active)
}
