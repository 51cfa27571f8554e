package rotation

import (
	"context"
	"time"

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
		return &clusterv1.Empty{}, event(a, r, "set aside "+c.Member+": "+c.Reason)
	}
	return nil, fault.New(fault.NotFound, "no-member", "the ring has no member %.200q", c.Member).Do("see `csm rotation explain`")
}

// back says whether a member that was set aside is up again.
func (m Member) back() bool { return m.Aside != "" && m.Up }

// welcome ends the setting aside of members that are up again: who goes down once more after that is waited for, as before.
func welcome(a *state.Apply, r row, v *View) error {
	for i := range v.Members {
		m := &v.Members[i]
		if !m.back() || r.phase.Ended() {
			continue
		}
		if _, err := a.Exec(`DELETE FROM rotation_asides WHERE rotation = ? AND host_id = ?`, r.name, m.HostID); err != nil {
			return err
		}
		m.Aside = ""
		if err := event(a, r, m.Name+", which was set aside, is up: it counts again"); err != nil {
			return err
		}
	}
	return nil
}

func ended(r row) error {
	return fault.New(fault.Conflict, "rotation-ended", "the rotation %s has ended: %s", short(r.name), r.phase).Do("see `csm rotation list`")
}
