package fleet

import (
	"context"
	"database/sql"
	"strings"
	"time"

	clusterv1 "github.com/cassandra-security-manager/csm/protocol/cluster/v1"

	"github.com/cassandra-security-manager/csm/controller/state"
	"github.com/cassandra-security-manager/csm/shared/fault"
	"github.com/cassandra-security-manager/csm/shared/resource"
)

// Freeze lets no effect begin in a scope (System, a tenant, a cluster or a node) until it is lifted, or until a time
// when until is not zero. Frozen is not blind: reports and probes go on.
func (f *Fleet) Freeze(ctx context.Context, scope, reason string, until time.Time, actor string) error {
	if err := checkScope(scope); err != nil {
		return err
	}
	if reason == "" {
		return fault.New(fault.Invalid, "no-reason", "say why nothing may move").Do("add --reason")
	}
	c := &clusterv1.SetFreeze{Scope: scope, Active: true, Reason: reason}
	if !until.IsZero() {
		if !until.After(f.clock.Now()) {
			return fault.New(fault.Invalid, "bad-until", "%s is past", until.Format(time.RFC3339))
		}
		c.UntilMs = until.UnixMilli()
	}
	_, err := f.propose(ctx, scope, actor, reason, c)
	return err
}

// Unfreeze lifts the freeze of exactly this scope; wider and narrower ones stay.
func (f *Fleet) Unfreeze(ctx context.Context, scope, reason, actor string) error {
	if err := checkScope(scope); err != nil {
		return err
	}
	_, err := f.propose(ctx, scope, actor, reason, &clusterv1.SetFreeze{Scope: scope, Reason: reason})
	return err
}

// ListFreezes reads the freezes in force, by scope.
func (f *Fleet) ListFreezes(ctx context.Context) ([]Freeze, error) {
	return view(ctx, f.read, func(ctx context.Context, q state.Querier) ([]Freeze, error) {
		return collect(ctx, q, func(r *sql.Rows) (Freeze, error) { return scanFreeze(r) },
			freezeColumns+` WHERE active = 1 AND (until_ms = 0 OR until_ms > ?) ORDER BY scope`, f.clock.Now().UnixMilli())
	})
}

func checkScope(scope string) error {
	t, c, n := resource.Segment(scope, "tenants"), resource.Segment(scope, "clusters"), resource.Segment(scope, "nodes")
	empty := strings.HasSuffix(scope, "/") || strings.Contains(scope, "//")
	switch scope {
	case System:
		return nil
	case resource.Tenant(t), resource.Cluster(t, c), resource.Node(t, c, n):
		if !empty {
			return nil
		}
	}
	return fault.New(fault.Invalid, "bad-scope", "%.200q cannot be frozen", scope).Do("name %q, a tenant, a cluster or a node", System)
}

// scopes are the names by which a node can be frozen, narrowest first.
func scopes(node string) []string {
	cluster := resource.Parent(node)
	return []string{node, cluster, resource.Parent(cluster), System}
}

const freezeColumns = `SELECT scope, actor, reason, since_ms, until_ms FROM freezes`

type scanner interface{ Scan(...any) error }

func scanFreeze(r scanner) (f Freeze, err error) {
	var since, until int64
	err = r.Scan(&f.Scope, &f.Actor, &f.Reason, &since, &until)
	f.Since, f.Until = at(since), at(until)
	return f, err
}

// frozen finds the freeze in force on a node or cluster at a time, the widest first; nil when there is none.
func frozen(ctx context.Context, q state.Querier, name string, now int64) (*Freeze, error) {
	var list []string
	for s := name; s != ""; s = resource.Parent(s) {
		list = append(list, s)
	}
	tenant := resource.Tenant(resource.Segment(name, "tenants"))
	args := []any{System, tenant}
	for _, s := range list {
		args = append(args, s)
	}
	args = append(args, now)
	f, err := scanFreeze(q.QueryRowContext(ctx, freezeColumns+` WHERE scope IN (?,?`+strings.Repeat(",?", len(list))+`)
		AND active = 1 AND (until_ms = 0 OR until_ms > ?) ORDER BY length(scope) LIMIT 1`, args...))
	if ok, err := found(err); !ok || err != nil {
		return nil, err
	}
	return &f, nil
}

func (z *Freeze) refusal() error {
	e := fault.New(fault.Refused, "frozen", "%s is frozen since %s by %s: %s", z.Scope, z.Since.Format(time.RFC3339), z.Actor, z.Reason)
	if !z.Until.IsZero() {
		return e.Do("it ends at %s, or lift it with `csm cluster unfreeze`", z.Until.Format(time.RFC3339))
	}
	return e.Do("lift it with `csm cluster unfreeze` (or `csm system unfreeze`) when it is no longer needed")
}

func applySetFreeze(a *state.Apply, c *clusterv1.SetFreeze) (*clusterv1.Empty, error) {
	if err := scopeExists(a, c.Scope); err != nil {
		return nil, err
	}
	if _, err := a.Exec(`INSERT INTO freezes (scope, active, actor, reason, since_ms, until_ms, changed) VALUES (?,?,?,?,?,?,?)
		ON CONFLICT (scope) DO UPDATE SET active = excluded.active, actor = excluded.actor, reason = excluded.reason, since_ms = excluded.since_ms,
		until_ms = excluded.until_ms, changed = excluded.changed`,
		c.Scope, flag(c.Active), a.Envelope.GetActor(), c.Reason, a.Now.UnixMilli(), c.UntilMs, a.Index); err != nil {
		return nil, err
	}
	a.Touch(state.Updated, c.Scope)
	signalTarget(a, c.Scope)
	if !c.Active {
		a.Touch(state.Signalled, c.Scope+"/wave")
	}
	return &clusterv1.Empty{}, nil
}

// scopeExists refuses to freeze what is not there: a mistyped name must not look like safety.
func scopeExists(a *state.Apply, scope string) error {
	table := ""
	switch {
	case resource.Segment(scope, "nodes") != "":
		table = "nodes"
	case resource.Segment(scope, "clusters") != "":
		table = "clusters"
	default:
		return nil
	}
	var n int
	if err := a.QueryRow(`SELECT count(*) FROM `+table+` WHERE name = ?`, scope).Scan(&n); err != nil {
		return err
	}
	if n == 0 && table == "nodes" {
		return noNode(scope)
	}
	if n == 0 {
		return noCluster(scope)
	}
	return nil
}
