package members

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

// EraLeap is how far above the last index a new era begins. Agents refuse to be told less than they were told before, so a
// state that went back must be ahead of all that anybody may have heard from the one that was lost: a thousand million
// entries are days at full load and years at rest.
const EraLeap = 1 << 30

// eraSlack is how far two indexes of one log may lie apart at most: a batch, with room to spare.
const eraSlack = 1 << 20

const eraSchema = `
CREATE TABLE eras (
	era INTEGER PRIMARY KEY,
	idx INTEGER NOT NULL,
	cause TEXT NOT NULL,
	source TEXT NOT NULL,
	begun_ms INTEGER NOT NULL
) STRICT;`

// Era is a beginning of this state after a restore or a recovery. A system that never had one has none.
type Era struct {
	Number uint64
	// Index at which it began.
	Index         uint64
	Cause, Source string
	Begun         time.Time
}

// LastEra is the newest one; the zero Era without any.
func LastEra(ctx context.Context, q state.Querier) (e Era, err error) {
	var ms int64
	err = q.QueryRowContext(ctx, "SELECT era, idx, cause, source, begun_ms FROM eras ORDER BY era DESC LIMIT 1").Scan(&e.Number, &e.Index, &e.Cause, &e.Source, &ms)
	if errors.Is(err, sql.ErrNoRows) {
		return Era{}, nil
	}
	e.Begun = fromMilli(ms)
	return e, err
}

// beginEra replaces the table by those who go on and fences everybody else by his key. It is refused where an entry follows
// the last one closely: within a running log it would throw out members that are alive.
func beginEra(a *state.Apply, c *clusterv1.BeginEra) (*clusterv1.EraReply, error) {
	last, err := state.Revision(a.Context(), a.Querier())
	if err != nil {
		return nil, err
	}
	if a.Index < last+eraSlack {
		return nil, fault.New(fault.Refused, "not-an-era", "a new era begins only outside of a running log").Do("use `csm-controller recover` or `csm-controller snapshot restore`")
	}
	if len(c.GetMembers()) == 0 {
		return nil, fault.New(fault.Invalid, "bad-era", "a new era needs a controller that goes on")
	}
	keep := map[[32]byte]bool{}
	var next []Member
	for _, p := range c.GetMembers() {
		m := FromProto(p)
		if err := check(m); err != nil {
			return nil, err
		}
		keep[m.Key] = true
		next = append(next, m)
	}
	removed, err := fence(a, keep)
	if err != nil {
		return nil, err
	}
	for _, m := range next {
		m.State, m.Voter = Unsealed, true
		m.Joined, m.Approved, m.Unsealed = a.Now, a.Now, a.Now
		if _, err := a.Exec("DELETE FROM removed_members WHERE key = ?", m.Key[:]); err != nil {
			return nil, err
		}
		if err := insert(a, m, ""); err != nil {
			return nil, err
		}
		a.Touch(state.Created, resource.Controller(m.Name))
	}
	if _, err := a.Exec("DELETE FROM controller_join_tokens"); err != nil {
		return nil, err
	}
	e, err := LastEra(a.Context(), a.Querier())
	if err != nil {
		return nil, err
	}
	_, err = a.Exec("INSERT INTO eras (era, idx, cause, source, begun_ms) VALUES (?, ?, ?, ?, ?)", e.Number+1, int64(a.Index), c.GetCause(), c.GetSource(), a.Now.UnixMilli())
	return &clusterv1.EraReply{Era: e.Number + 1, Removed: removed}, err
}

// fence empties the table; who does not go on may never connect again with the same key.
func fence(a *state.Apply, keep map[[32]byte]bool) (removed []string, err error) {
	all, err := List(a.Context(), a.Querier())
	if err != nil {
		return nil, err
	}
	for _, m := range all {
		if _, err := a.Exec("DELETE FROM members WHERE name = ?", m.Name); err != nil {
			return nil, err
		}
		if keep[m.Key] {
			continue
		}
		removed = append(removed, m.Name)
		if _, err := a.Exec("INSERT INTO removed_members (key, id, name, removed_ms) VALUES (?, ?, ?, ?) ON CONFLICT DO NOTHING", m.Key[:], m.ID, m.Name, a.Now.UnixMilli()); err != nil {
			return nil, err
		}
		a.Touch(state.Deleted, resource.Controller(m.Name))
	}
	return removed, nil
}
