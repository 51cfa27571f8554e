package fleet

import (
	"context"
	"database/sql"
	"slices"
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

// ListFreezes reads the freezes in force, by scope, each with what expires under it.
func (f *Fleet) ListFreezes(ctx context.Context) ([]Freeze, error) {
	return view(ctx, f.read, func(ctx context.Context, q state.Querier) ([]Freeze, error) {
		now := f.clock.Now()
		list, err := inForce(ctx, q, now)
		for i := range list {
			if err != nil {
				break
			}
			var e expiry
			e, err = expiringUnder(ctx, q, list[i].Scope, list[i], now)
			list[i].Expiring, list[i].FirstExpiry = e.stores, e.first
			if e.stores > 0 {
				list[i].Alarm = e.message(list[i])
			}
		}
		return list, err
	})
}

func inForce(ctx context.Context, q state.Querier, now time.Time) ([]Freeze, error) {
	return collect(ctx, q, func(r *sql.Rows) (Freeze, error) { return scanFreeze(r) },
		freezeColumns+` WHERE active = 1 AND (until_ms = 0 OR until_ms > ?) ORDER BY scope`, now.UnixMilli())
}

// Tenant is an owner of clusters.
type Tenant struct {
	Name     string  `json:"name"`
	Clusters int     `json:"clusters"`
	Frozen   *Freeze `json:"frozen,omitempty"`
}

// GetTenant reads a tenant: the default one, or one that has a cluster.
func (f *Fleet) GetTenant(ctx context.Context, name string) (Tenant, error) {
	return view(ctx, f.read, func(ctx context.Context, q state.Querier) (Tenant, error) {
		t := Tenant{Name: name}
		var err error
		if t.Clusters, err = clustersOf(ctx, q, name); err != nil {
			return t, err
		}
		if t.Clusters == 0 && name != resource.Tenant(resource.DefaultTenant) {
			return t, noTenant(name)
		}
		t.Frozen, err = frozen(ctx, q, name, f.clock.Now().UnixMilli())
		return t, err
	})
}

func clustersOf(ctx context.Context, q state.Querier, tenant string) (n int, err error) {
	err = q.QueryRowContext(ctx, `SELECT count(*) FROM clusters WHERE substr(name, 1, length(?1)) = ?1`, tenant+"/").Scan(&n)
	return n, err
}

func noTenant(name string) error {
	return fault.New(fault.NotFound, "no-tenant", "there is no tenant %.200q with a cluster", name).Do("see `csm cluster list -T -` for all clusters")
}

// expireMargin: what expires within a freeze, or so shortly after it that a renewal may come too late.
const expireMargin = 24 * time.Hour

// noEnd is how far ahead a freeze without an end is looked at: the repair floor, below which a node is red.
const noEnd = 21 * 24 * time.Hour

// expiringUnder finds the stores that CSM wrote, within a scope, that a freeze lets expire.
func expiringUnder(ctx context.Context, q state.Querier, scope string, z Freeze, now time.Time) (e expiry, err error) {
	limit := now.Add(noEnd)
	if !z.Until.IsZero() {
		limit = z.Until.Add(expireMargin)
	}
	const where = ` FROM stores WHERE installed > 0 AND not_after_ms > 0 AND not_after_ms < ?1 AND (?2 = 'system' OR node = ?2 OR substr(node, 1, length(?2) + 1) = ?2 || '/')`
	if err := q.QueryRowContext(ctx, `SELECT count(*)`+where, limit.UnixMilli(), scope).Scan(&e.stores); err != nil || e.stores == 0 {
		return e, err
	}
	var first int64
	err = q.QueryRowContext(ctx, `SELECT not_after_ms, node`+where+` ORDER BY not_after_ms, node LIMIT 1`, limit.UnixMilli(), scope).Scan(&first, &e.node)
	e.first = at(first)
	return e, err
}

// WatchFreezes records an alarm for each freeze under which more expires than was said before. The leader calls it now and
// then: time passes without commands.
func (f *Fleet) WatchFreezes(ctx context.Context) error {
	list, err := f.ListFreezes(ctx)
	if err != nil {
		return err
	}
	for _, z := range list {
		if z.Expiring == 0 {
			continue
		}
		said, err := view(ctx, f.read, func(ctx context.Context, q state.Querier) (int, error) { return alarmed(ctx, q, z) })
		if err != nil {
			return err
		}
		if z.Expiring > said {
			if _, err := f.propose(ctx, z.Scope, "freeze watch", "", &clusterv1.AlarmFreeze{Scope: z.Scope}); err != nil {
				return err
			}
		}
	}
	return nil
}

// alarmed is how many expiring stores the newest alarm of this freeze spoke of.
func alarmed(ctx context.Context, q state.Querier, z Freeze) (n int, err error) {
	_, err = found(q.QueryRowContext(ctx, `SELECT stores FROM freeze_alarms WHERE scope = ? AND since_ms = ?`, z.Scope, z.Since.UnixMilli()).Scan(&n))
	return n, err
}

func applyAlarmFreeze(a *state.Apply, c *clusterv1.AlarmFreeze) (*clusterv1.Empty, error) {
	list, err := inForce(a.Context(), a.Querier(), a.Now)
	if err != nil {
		return nil, err
	}
	for _, z := range list {
		if z.Scope == c.Scope {
			return &clusterv1.Empty{}, alarmFreeze(a, z)
		}
	}
	return &clusterv1.Empty{}, nil
}

// alarmFreeze says what will expire under a freeze, when it is more than was said.
func alarmFreeze(a *state.Apply, z Freeze) error {
	e, err := expiringUnder(a.Context(), a.Querier(), z.Scope, z, a.Now)
	if err != nil {
		return err
	}
	said, err := alarmed(a.Context(), a.Querier(), z)
	if err != nil || e.stores <= said {
		return err
	}
	if _, err := a.Exec(`INSERT INTO freeze_alarms (scope, since_ms, stores) VALUES (?,?,?) ON CONFLICT (scope) DO UPDATE SET since_ms = excluded.since_ms, stores = excluded.stores`,
		z.Scope, z.Since.UnixMilli(), e.stores); err != nil {
		return err
	}
	a.Touch(state.Updated, z.Scope)
	return alarm(a, "expires-frozen", z.Scope, e.message(z))
}

// kindOf is the kind of a scope: System, "tenant", "cluster" or "node".
func kindOf(scope string) string {
	switch {
	case resource.Segment(scope, "nodes") != "":
		return "node"
	case resource.Segment(scope, "clusters") != "":
		return "cluster"
	case scope == System:
		return System
	}
	return "tenant"
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
	scopes := scopesOf(name)
	args := make([]any, 0, len(scopes)+1)
	for _, s := range scopes {
		args = append(args, s)
	}
	args = append(args, now)
	f, err := scanFreeze(q.QueryRowContext(ctx, freezeColumns+` WHERE scope IN (?`+strings.Repeat(",?", len(scopes)-1)+`)
		AND active = 1 AND (until_ms = 0 OR until_ms > ?) ORDER BY length(scope) LIMIT 1`, args...))
	if ok, err := found(err); !ok || err != nil {
		return nil, err
	}
	return &f, nil
}

// scopesOf are the scopes whose freeze reaches a name.
func scopesOf(name string) []string {
	list := []string{System, resource.Tenant(resource.Segment(name, "tenants"))}
	for s := name; s != ""; s = resource.Parent(s) {
		list = append(list, s)
	}
	return list
}

// Freezes are those in force, the widest scope first: for those who ask about many names.
type Freezes []Freeze

// FreezesAt reads them.
func FreezesAt(ctx context.Context, q state.Querier, now time.Time) (Freezes, error) {
	return collect(ctx, q, func(r *sql.Rows) (Freeze, error) { return scanFreeze(r) },
		freezeColumns+` WHERE active = 1 AND (until_ms = 0 OR until_ms > ?) ORDER BY length(scope), scope`, now.UnixMilli())
}

// On is the freeze in force on a node or cluster, nil when there is none.
func (z Freezes) On(name string) *Freeze {
	if len(z) == 0 {
		return nil
	}
	scopes := scopesOf(name)
	for i := range z {
		if slices.Contains(scopes, z[i].Scope) {
			return &z[i]
		}
	}
	return nil
}

func (z *Freeze) refusal() error {
	e := fault.New(fault.Refused, "frozen", "%s is frozen since %s by %s: %s", z.Scope, z.Since.Format(time.RFC3339), z.Actor, z.Reason)
	if !z.Until.IsZero() {
		return e.Do("it ends at %s, or lift it with `%s`", z.Until.Format(time.RFC3339), unfreezeCommand(z.Scope))
	}
	return e.Do("lift it with `%s` when it is no longer needed", unfreezeCommand(z.Scope))
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
		return &clusterv1.Empty{}, nil
	}
	return &clusterv1.Empty{}, alarmFreeze(a, Freeze{Scope: c.Scope, Since: a.Now.Truncate(time.Millisecond), Until: at(c.UntilMs)})
}

// scopeExists refuses to freeze what is not there: a mistyped name must not look like safety.
func scopeExists(a *state.Apply, scope string) error {
	var n int
	var err error
	missing := noTenant
	switch kindOf(scope) {
	case System:
		return nil
	case "node":
		missing = noNode
		err = a.QueryRow(`SELECT count(*) FROM nodes WHERE name = ?`, scope).Scan(&n)
	case "cluster":
		missing = noCluster
		err = a.QueryRow(`SELECT count(*) FROM clusters WHERE name = ?`, scope).Scan(&n)
	default:
		if scope == resource.Tenant(resource.DefaultTenant) {
			return nil
		}
		n, err = clustersOf(a.Context(), a.Querier(), scope)
	}
	if err == nil && n == 0 {
		err = missing(scope)
	}
	return err
}

// mayJoin asks the freezes above a node that is about to become a new incarnation.
func mayJoin(a *state.Apply, node string) error {
	z, err := frozen(a.Context(), a.Querier(), node, a.Now.UnixMilli())
	if err != nil || z == nil {
		return err
	}
	return z.refusal()
}
