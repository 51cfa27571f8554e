package rotation

import (
	"context"
	"fmt"
	"time"

	agentv1 "github.com/cassandra-security-manager/csm/protocol/agent/v1"

	"github.com/cassandra-security-manager/csm/controller/fleet"
	"github.com/cassandra-security-manager/csm/controller/state"
	clusterv1 "github.com/cassandra-security-manager/csm/protocol/cluster/v1"
	"github.com/cassandra-security-manager/csm/shared/fault"
)

// Aside is a member that a person took out of the count while it is down.
type Aside struct {
	HostID      string    `json:"hostId"`
	Node        string    `json:"node,omitempty"`
	Incarnation uint64    `json:"incarnation,omitempty"`
	Reason      string    `json:"reason"`
	Actor       string    `json:"actor"`
	Time        time.Time `json:"time"`
}

func asidesOf(ctx context.Context, q state.Querier, rotation string) ([]Aside, error) {
	rows, err := q.QueryContext(ctx, `SELECT host_id, node, incarnation, reason, actor, time_ms FROM rotation_asides WHERE rotation = ? ORDER BY host_id`, rotation)
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	var out []Aside
	for rows.Next() {
		var x Aside
		var ms int64
		if err := rows.Scan(&x.HostID, &x.Node, &x.Incarnation, &x.Reason, &x.Actor, &ms); err != nil {
			return nil, err
		}
		x.Time = at(ms)
		out = append(out, x)
	}
	return out, rows.Err()
}

func exceptionsOf(ctx context.Context, q state.Querier, rotation string) (map[string]bool, error) {
	rows, err := q.QueryContext(ctx, `SELECT client FROM rotation_exceptions WHERE rotation = ? ORDER BY client`, rotation)
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	out := map[string]bool{}
	for rows.Next() {
		var c string
		if err := rows.Scan(&c); err != nil {
			return nil, err
		}
		out[c] = true
	}
	return out, rows.Err()
}

// applySetAside takes a member out of the count. Only one that is down may be: a live one that trusts too little would be cut off.
func (m machine) applySetAside(a *state.Apply, c *clusterv1.SetAsideMember) (*clusterv1.Empty, error) {
	r, err := get(a.Context(), a.Querier(), c.Name)
	switch {
	case err != nil:
		return nil, err
	case r.phase.Ended():
		return nil, ended(r)
	case c.Reason == "":
		return nil, fault.NoReason()
	}
	members, _, err := look(a.Context(), a.Querier(), a.Now, r).members()
	if err != nil {
		return nil, err
	}
	for _, x := range members {
		switch {
		case x.HostID != c.Member && (x.Node == "" || x.Node != c.Member):
			continue
		case x.Incarnation != c.Incarnation:
			return nil, fault.New(fault.Stale, "other-incarnation", "%.200q is at incarnation %d, not %d", c.Member, x.Incarnation, c.Incarnation).Do("look again: `csm rotation explain`")
		case x.Up:
			return nil, fault.New(fault.Refused, "member-up", "%.200q is up: a member that serves cannot be left out, it would lose its peers", c.Member).
				Do("let it take the new trust: `csm why NODE`; or stop its Cassandra first")
		}
		if _, err := a.Exec(`INSERT INTO rotation_asides (rotation, host_id, node, incarnation, reason, actor, time_ms) VALUES (?,?,?,?,?,?,?)
			ON CONFLICT (rotation, host_id) DO UPDATE SET incarnation = excluded.incarnation, node = excluded.node, reason = excluded.reason, actor = excluded.actor, time_ms = excluded.time_ms`,
			r.name, x.HostID, x.Node, x.Incarnation, c.Reason, a.Envelope.GetActor(), a.Now.UnixMilli()); err != nil {
			return nil, err
		}
		if err := event(a, r, "set aside "+c.Member+": "+c.Reason); err != nil {
			return nil, err
		}
		v, err := look(a.Context(), a.Querier(), a.Now, r).view(m.waves)
		if err != nil {
			return nil, err
		}
		if err := m.excuse(a, r, v); err != nil {
			return nil, err
		}
		return &clusterv1.Empty{}, m.tend(a, r, v)
	}
	return nil, fault.New(fault.NotFound, "no-member", "the ring has no member %.200q", c.Member).Do("see `csm rotation explain`")
}

// back says whether a member that was set aside is up again.
func (m Member) back() bool { return m.Aside != "" && m.Up }

// leftOut are the members that nothing waits for now, by host id and by full name of the node.
func leftOut(v View) (out []string) {
	for _, m := range v.Members {
		if !m.left() {
			continue
		}
		if out = append(out, m.HostID); m.Node != "" && m.Node != m.HostID {
			out = append(out, m.Node)
		}
	}
	return out
}

// excuse tells the waves that are under way who is left out.
func (m machine) excuse(a *state.Apply, r row, v View) error {
	if r.rollout == "" || r.rollout == nothing {
		return nil
	}
	return m.waves.Excuse(a, r.rollout, leftOut(v))
}

// welcome ends the setting aside of members that are up again: who goes down once more after that is waited for, as before.
func (m machine) welcome(a *state.Apply, r row, v *View) error {
	came := false
	for i := range v.Members {
		x := &v.Members[i]
		if !x.back() {
			continue
		}
		if _, err := a.Exec(`DELETE FROM rotation_asides WHERE rotation = ? AND host_id = ?`, r.name, x.HostID); err != nil {
			return err
		}
		x.Aside, came = "", true
		if err := event(a, r, x.Name+", which was set aside, is up: it counts again"); err != nil {
			return err
		}
	}
	if !came {
		return nil
	}
	return m.excuse(a, r, *v)
}

// tend raises the stores of members that no wave takes along, so that their agents bring them up to date when they come back.
func (m machine) tend(a *state.Apply, r row, v View) error {
	wishes, err := r.untold(a.Context(), a.Querier(), m.waves, v)
	for _, w := range wishes {
		if err == nil {
			_, err = fleet.RaiseStore(a, w)
		}
	}
	return err
}

// untold are the wishes of members that no wave takes along, as far as they have not been told.
func (r row) untold(ctx context.Context, q state.Querier, waves Waves, v View) (out []fleet.Wish, err error) {
	for _, m := range v.Members {
		for _, s := range m.Stores {
			w := r.wish(m, s)
			if w.Move == agentv1.MoveKind_MOVE_KIND_UNSPECIFIED || w.Move == s.Move && (w.Authority == "" || w.Authority == s.Signer) {
				continue
			}
			held, err := waves.Holds(ctx, q, r.cluster, m.Node, s.Name)
			if err != nil {
				return nil, err
			}
			if !held {
				w.Node, w.Store, w.Reason = m.Node, s.Name, fmt.Sprintf("%s: %s, alone", short(r.name), r.phase)
				out = append(out, w)
			}
		}
	}
	return out, nil
}

// wish is what a store must do next, alone, to be up to date, from the phase on in which that matters to others: one move after the
// other, trust before the leaf and the leaf before what goes, as its agent demands. It is for members that were set aside, until the
// end and after it, and while the rotation runs for those that came up with files of before. Pure.
func (r row) wish(m Member, s Store) fleet.Wish {
	trust, shrink := fleet.Wish{Move: agentv1.MoveKind_MOVE_KIND_TRUST}, fleet.Wish{Move: agentv1.MoveKind_MOVE_KIND_SHRINK}
	leaf := func(authority string) fleet.Wish {
		return fleet.Wish{Move: agentv1.MoveKind_MOVE_KIND_RENEW, Authority: authority, TakeOver: r.kind == Takeover}
	}
	old := func(side Side) bool { return s.Behind && s.Leaf != side && s.Files != side }
	alone := m.left() || m.Aside != "" && r.phase.Ended()
	leaves := r.phase == Reissue || r.phase == Reissued || (r.phase == Retire || r.phase == Done) && r.kind != Takeover
	switch {
	case m.Node == "" || !m.Active:
	case leaves && s.Lacks && (m.Up && !r.phase.Ended() || alone):
		return trust
	case leaves && (r.phase == Reissued || r.phase == Retire) && m.Up && s.Leaf == Before:
		return leaf(r.after)
	case (r.phase == Retire || r.phase == Withdrawing) && m.Up && s.Stale && !s.Behind: // it came late, and its leaf is there by now
		return shrink
	case !alone:
	case leaves && old(After):
		return leaf(r.after)
	case r.phase.Undo() && r.kind == Takeover && s.Kept && !s.Stays && s.Gone == "" && s.Leaf != Before:
		return fleet.Wish{Move: agentv1.MoveKind_MOVE_KIND_GIVE_BACK}
	case r.phase.Undo() && r.kind != Takeover && old(Before):
		return leaf(r.before)
	case (r.phase == Retire || r.phase == Withdrawing) && s.Behind || s.Stale:
		return shrink
	}
	return fleet.Wish{}
}

// late are the rotations that have ended without a member that was set aside, each the last one of a ring that has none under way.
func late(ctx context.Context, q state.Querier) ([]row, error) {
	return many(ctx, q, `r WHERE ended_ms > 0 AND name IN (SELECT rotation FROM rotation_asides) AND NOT EXISTS (SELECT 1 FROM rotations n WHERE n.cluster = r.cluster AND (n.ended_ms = 0 OR n.ended_ms > r.ended_ms)) ORDER BY name`)
}

// heard says whether the agent of a member that was set aside is connected: until then nothing is to be done for any.
func (r row) heard(ctx context.Context, q state.Querier) (bool, error) {
	asides, err := asidesOf(ctx, q, r.name)
	for _, x := range asides {
		here, err := fleet.Connected(ctx, q, x.Node, x.Incarnation)
		if err != nil || here {
			return here, err
		}
	}
	return false, err
}

// arrived are the members that a rotation ended without and that have all of it by now. Pure.
func (r row) arrived(v View) (out []Member) {
	const none = agentv1.MoveKind_MOVE_KIND_UNSPECIFIED
	if !r.phase.Ended() {
		return nil
	}
	for _, m := range v.Members {
		here := m.back()
		for _, s := range m.Stores {
			here = here && !s.Moving && s.Move == none && s.Leaf != Unknown && r.wish(m, s).Move == none
		}
		if here {
			out = append(out, m)
		}
	}
	return out
}

// finish takes care of those that come back after the end.
func (m machine) finish(a *state.Apply, r row, v View) error {
	if err := m.tend(a, r, v); err != nil {
		return err
	}
	for _, x := range r.arrived(v) {
		if _, err := a.Exec(`DELETE FROM rotation_asides WHERE rotation = ? AND host_id = ?`, r.name, x.HostID); err != nil {
			return err
		}
		if err := event(a, r, x.Name+", which was set aside, is back and proved"); err != nil {
			return err
		}
	}
	return nil
}

func ended(r row) error {
	return fault.New(fault.Conflict, "rotation-ended", "the rotation %s has ended: %s", short(r.name), r.phase).Do("see `csm rotation list`")
}
