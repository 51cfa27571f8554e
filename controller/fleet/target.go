package fleet

import (
	"context"
	"database/sql"
	"time"

	"google.golang.org/protobuf/types/known/timestamppb"

	agentv1 "github.com/cassandra-security-manager/csm/protocol/agent/v1"

	"github.com/cassandra-security-manager/csm/controller/state"
)

// TemplateNode is the template of a node's certificate.
const TemplateNode = "node"

// Target reads what a node should have. recheck is when it changes by time alone (a freeze that ends), zero if never.
// The anchors are shared between the targets of a cluster: they are not to be changed.
func (f *Fleet) Target(ctx context.Context, node string) (t *agentv1.Target, recheck time.Time, err error) {
	t, err = view(ctx, f.read, func(ctx context.Context, q state.Querier) (*agentv1.Target, error) {
		t := &agentv1.Target{Node: node}
		var names, cluster string
		ok, err := found(q.QueryRowContext(ctx, `SELECT n.incarnation, n.names, c.name, c.trust_domain, c.bundle_version FROM nodes n JOIN clusters c ON c.name = n.cluster WHERE n.name = ?`, node).
			Scan(&t.Incarnation, &names, &cluster, &t.TrustDomain, &t.BundleVersion))
		if err != nil {
			return nil, err
		}
		if !ok {
			return nil, noNode(node)
		}
		n, err := namesFrom(names)
		if err != nil {
			return nil, err
		}
		if t.Generation, err = targetGeneration(ctx, q, node); err != nil {
			return nil, err
		}
		if t.Anchors, err = f.bundle(ctx, q, t.TrustDomain, t.BundleVersion); err != nil {
			return nil, err
		}
		if t.Withdrawn, err = Withdrawn(ctx, q, t.TrustDomain); err != nil {
			return nil, err
		}
		z, err := frozen(ctx, q, node, f.clock.Now().UnixMilli())
		if err != nil {
			return nil, err
		}
		if z != nil {
			t.Frozen, recheck = &agentv1.Frozen{Active: true, Scope: z.Scope, Actor: z.Actor, Reason: z.Reason, Since: timestamppb.New(z.Since)}, z.Until
			if !z.Until.IsZero() {
				t.Frozen.Until = timestamppb.New(z.Until)
			}
		}
		if t.Stores, err = storeTargets(ctx, q, node, n); err != nil {
			return nil, err
		}
		if err := wishedCycle(ctx, q, t, f.clock.Now()); err != nil {
			return nil, err
		}
		if t.Look, err = lookOf(ctx, q, cluster); err != nil {
			return nil, err
		}
		return t, lived(ctx, q, cluster, t)
	})
	return t, recheck, err
}

// lived tells of a cluster that was let go, and which stores may only take trust.
func lived(ctx context.Context, q state.Querier, cluster string, t *agentv1.Target) error {
	l, err := lifeOf(ctx, q, cluster)
	if err != nil {
		return err
	}
	if l.released > 0 {
		t.Released = "let go by " + l.releaser + ": " + l.reason
	}
	if l.onboarded == 0 {
		return nil
	}
	theirs, err := collect(ctx, q, scanString, `SELECT store FROM stores WHERE node = ? AND leaf_sha256 IS NOT NULL AND wanted_sha256 IS NULL
		AND (state IN (?,?) OR installed > 0) AND NOT `+givenLeaf+` ORDER BY store`, t.Node, int(agentv1.InstallState_INSTALL_STATE_FOREIGN), int(agentv1.InstallState_INSTALL_STATE_FAILED))
	for _, s := range t.Stores {
		s.TrustOnly = containsString(theirs, s.Store)
	}
	return err
}

func storeTargets(ctx context.Context, q state.Querier, node string, n Names) ([]*agentv1.StoreTarget, error) {
	return collect(ctx, q, func(r *sql.Rows) (*agentv1.StoreTarget, error) {
		s := &agentv1.StoreTarget{Template: TemplateNode, Names: n.wire(), KeyAlgorithm: "P-384"}
		var renewAt int64
		err := r.Scan(&s.Store, &s.Generation, &renewAt, &s.LeafSha256, &s.Reason, &s.Move, &s.PlanHash, &s.KeptSha256, &s.KeptDone)
		if renewAt != 0 {
			s.RenewAt = timestamppb.New(at(renewAt))
		}
		return s, err
	}, `SELECT store, generation, renew_at_ms, coalesce(wanted_sha256, CASE WHEN `+givenLeaf+` THEN leaf_sha256 END), reason, wish_move, plan_hash, kept_sha256, kept_done FROM stores WHERE node = ? ORDER BY store`, node)
}

// targetGeneration is the index of the newest entry that changed what the node is told: it never goes back, because
// each of its parts only grows.
func targetGeneration(ctx context.Context, q state.Querier, node string) (g uint64, err error) {
	s := scopes(node)
	err = q.QueryRowContext(ctx, `SELECT max(coalesce((SELECT changed FROM nodes WHERE name = ?), 0), coalesce((SELECT changed FROM clusters WHERE name = ?), 0),
		coalesce((SELECT max(generation) FROM stores WHERE node = ?), 0), coalesce((SELECT max(changed) FROM freezes WHERE scope IN (?,?,?,?)), 0))`,
		s[0], s[1], s[0], s[0], s[1], s[2], s[3]).Scan(&g)
	return g, err
}

// bundle gives the anchors of a trust domain, read once per version.
func (f *Fleet) bundle(ctx context.Context, q state.Querier, trust string, version uint64) ([][]byte, error) {
	f.mu.Lock()
	b, ok := f.bundles[trust]
	f.mu.Unlock()
	if ok && b.version == version {
		return b.anchors, nil
	}
	anchors, err := collect(ctx, q, scanBytes, `SELECT der FROM trust_anchors WHERE trust_domain = ? ORDER BY sha256`, trust)
	if err != nil {
		return nil, err
	}
	f.mu.Lock()
	f.bundles[trust] = bundle{version, anchors}
	f.mu.Unlock()
	return anchors, nil
}
