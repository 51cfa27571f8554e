package rotation

import (
	"context"
	"database/sql"
	"encoding/hex"
	"encoding/json"
	"errors"
	"strings"
	"time"

	"github.com/cassandra-security-manager/csm/controller/state"
	"github.com/cassandra-security-manager/csm/shared/fault"
	"github.com/cassandra-security-manager/csm/shared/resource"
)

// row is a rotation as the state holds it.
type row struct {
	name, cluster, trust       string
	kind                       Kind
	phase                      Phase
	paused                     bool
	before, after              string // authorities
	sumsBefore, sumsAfter      [][]byte
	planHash                   []byte
	rollout                    string
	canary                     string // node that goes first in reissue
	rounds                     int
	generation                 uint64
	bake                       time.Duration // rest between two waves
	emergency                  bool
	relaxed                    []string // what an emergency gives up
	reason, actor              string
	created, since, upd, ended time.Time
	revision                   uint64
}

const columns = `SELECT name, cluster, trust_domain, kind, phase, paused, authority_before, authority_after, sums_before, sums_after, plan_hash, rollout, canary, rounds, generation, bake_ms, emergency, relaxed,
	reason, actor, created_ms, phase_ms, updated_ms, ended_ms, revision FROM rotations `

func scan(s interface{ Scan(...any) error }) (r row, err error) {
	var before, after, relaxed string
	var created, since, upd, ended, bake int64
	if err := s.Scan(&r.name, &r.cluster, &r.trust, &r.kind, &r.phase, &r.paused, &r.before, &r.after, &before, &after, &r.planHash, &r.rollout, &r.canary, &r.rounds, &r.generation, &bake, &r.emergency, &relaxed,
		&r.reason, &r.actor, &created, &since, &upd, &ended, &r.revision); err != nil {
		return r, err
	}
	r.bake = time.Duration(bake) * time.Millisecond
	r.created, r.since, r.upd, r.ended = at(created), at(since), at(upd), at(ended)
	if err := json.Unmarshal([]byte(relaxed), &r.relaxed); err != nil {
		return r, err
	}
	if r.sumsBefore, err = sumsFrom(before); err == nil {
		r.sumsAfter, err = sumsFrom(after)
	}
	return r, err
}

func sumsFrom(text string) (out [][]byte, err error) {
	var list []string
	if err := json.Unmarshal([]byte(text), &list); err != nil {
		return nil, err
	}
	for _, s := range list {
		b, err := hex.DecodeString(s)
		if err != nil {
			return nil, err
		}
		out = append(out, b)
	}
	return out, nil
}

func sumsText(sums [][]byte) string {
	list := []string{}
	for _, s := range sums {
		list = append(list, hex.EncodeToString(s))
	}
	b, _ := json.Marshal(list) // strings always encode
	return string(b)
}

func at(ms int64) time.Time {
	if ms == 0 {
		return time.Time{}
	}
	return time.UnixMilli(ms).UTC()
}

// get reads a rotation by its full name.
func get(ctx context.Context, q state.Querier, name string) (row, error) {
	r, err := scan(q.QueryRowContext(ctx, columns+`WHERE name = ?`, name))
	if errors.Is(err, sql.ErrNoRows) {
		return r, fault.New(fault.NotFound, "no-rotation", "there is no rotation %.300q", name).Do("see `csm rotation list`")
	}
	return r, err
}

// running reads the rotation of a cluster that has not ended; ok is false without one.
func running(ctx context.Context, q state.Querier, cluster string) (r row, ok bool, err error) {
	r, err = scan(q.QueryRowContext(ctx, columns+`WHERE cluster = ? AND ended_ms = 0`, cluster))
	if errors.Is(err, sql.ErrNoRows) {
		return r, false, nil
	}
	return r, err == nil, err
}

func insert(a *state.Apply, r row) error {
	now := a.Now.UnixMilli()
	relaxed, err := json.Marshal(append([]string{}, r.relaxed...))
	if err != nil {
		return err
	}
	_, err = a.Exec(`INSERT INTO rotations (name, cluster, trust_domain, kind, phase, paused, authority_before, authority_after, sums_before, sums_after, plan_hash, rollout, canary, rounds, generation, bake_ms, emergency, relaxed,
		reason, actor, created_ms, phase_ms, updated_ms, ended_ms, revision) VALUES (?,?,?,?,?,0,?,?,?,?,?,'','',0,?,?,?,?,?,?,?,?,?,0,?)`,
		r.name, r.cluster, r.trust, string(r.kind), string(r.phase), r.before, r.after, sumsText(r.sumsBefore), sumsText(r.sumsAfter), r.planHash, a.Index, r.bake.Milliseconds(), r.emergency, string(relaxed),
		r.reason, a.Envelope.GetActor(), now, now, now, a.Index)
	a.Touch(state.Created, r.name)
	a.Touch(state.Updated, r.cluster)
	return err
}

// enter moves a rotation to a phase whose waves have not begun.
func enter(a *state.Apply, r row, to Phase, message string) error {
	now, ended := a.Now.UnixMilli(), int64(0)
	if to.Ended() {
		ended = now
	}
	if _, err := a.Exec(`UPDATE rotations SET phase = ?, rollout = '', canary = '', rounds = 0, generation = ?, phase_ms = ?, updated_ms = ?, ended_ms = ?, revision = ? WHERE name = ?`,
		string(to), a.Index, now, now, ended, a.Index, r.name); err != nil {
		return err
	}
	r.phase = to
	return event(a, r, message)
}

// maxEvents bounds the timeline that is kept of one rotation.
const maxEvents = 1000

// event adds a line to the timeline.
func event(a *state.Apply, r row, message string) error {
	if _, err := a.Exec(`INSERT INTO rotation_events (rotation, idx, part, time_ms, phase, message, actor)
		SELECT ?1, ?2, (SELECT count(*) FROM rotation_events WHERE rotation = ?1 AND idx = ?2), ?3, ?4, ?5, ?6`,
		r.name, a.Index, a.Now.UnixMilli(), string(r.phase), message, a.Envelope.GetActor()); err != nil {
		return err
	}
	if _, err := a.Exec(`DELETE FROM rotation_events WHERE rotation = ? AND idx < coalesce((SELECT idx FROM rotation_events WHERE rotation = ? ORDER BY idx DESC LIMIT 1 OFFSET ?), 0)`,
		r.name, r.name, maxEvents); err != nil {
		return err
	}
	a.Touch(state.Updated, r.name)
	a.Touch(state.Updated, r.cluster)
	return nil
}

// goes are the anchors that a phase takes away, by their SHA-256. None where none are to go at the end, forward or back: the root
// stays, or the anchors of before are not ours to take.
func (r row) goes(phase Phase) [][]byte {
	switch {
	case phase == Retire:
		return r.sumsBefore
	case phase == Withdrawing && len(r.sumsBefore) > 0:
		return r.sumsAfter
	}
	return nil
}

// idle says whether the phase would take anchors away and there are none to take: nobody has anything to do in it.
func (r row) idle() bool {
	return (r.phase == Retire || r.phase == Withdrawing) && len(r.goes(r.phase)) == 0
}

func short(name string) string { return resource.Last(name) }

// urgency says for the timeline what an emergency gives up; empty in peace.
func (r row) urgency() string {
	switch {
	case !r.emergency:
		return ""
	case len(r.relaxed) == 0:
		return ", an emergency that gives nothing up but the rest between waves"
	}
	return ", an emergency that gives up " + strings.Join(r.relaxed, ", ")
}
