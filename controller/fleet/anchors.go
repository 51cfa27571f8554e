package fleet

import (
	"context"
	"crypto/sha256"
	"slices"

	agentv1 "github.com/cassandra-security-manager/csm/protocol/agent/v1"

	"github.com/cassandra-security-manager/csm/controller/state"
	"github.com/cassandra-security-manager/csm/shared/fault"
)

// withdrawnSchema: anchors of ours that nodes are to trust no longer. Their certificates are kept, because the way back adds
// them again and a node that was away for long is told by name what must go.
const withdrawnSchema = `
CREATE TABLE withdrawn_anchors (
	trust_domain TEXT NOT NULL,
	sha256 BLOB NOT NULL,
	der BLOB NOT NULL,
	withdrawn INTEGER NOT NULL,
	PRIMARY KEY (trust_domain, sha256)
) STRICT, WITHOUT ROWID;
`

// maxWithdrawn is how many anchors a target names as withdrawn, the newest first.
const maxWithdrawn = 64

// MaxBundle is how many anchors of ours a trust domain may hold: more would no longer fit the wire, and each one is a CA
// that can speak for every node.
const MaxBundle = 16

// AddAnchors adds anchors (DER) to a cluster's trust domain and tells its nodes, but asks no store to move: who opens a wave
// raises its stores. It says how many were new. One that was withdrawn is so no longer.
func AddAnchors(a *state.Apply, cluster string, ders [][]byte) (added int64, err error) {
	trust, err := trustDomainOf(a, cluster)
	if err != nil {
		return 0, err
	}
	if added, err = addAnchors(a, trust, ders); err != nil || added == 0 {
		return 0, err
	}
	var held int
	if err := a.QueryRow(`SELECT count(*) FROM trust_anchors WHERE trust_domain = ?`, trust).Scan(&held); err != nil {
		return 0, err
	}
	if held > MaxBundle {
		return 0, fault.New(fault.Refused, "bundle-full", "%s would have %d anchors, at most %d are allowed", short(cluster), held, MaxBundle).
			Do("finish a rotation first: its last step takes the old anchors out")
	}
	for _, der := range ders {
		sum := sha256.Sum256(der)
		if _, err := a.Exec(`DELETE FROM withdrawn_anchors WHERE trust_domain = ? AND sha256 = ?`, trust, sum[:]); err != nil {
			return 0, err
		}
	}
	return added, bundleMoved(a, cluster, trust)
}

// WithdrawAnchors takes anchors, named by their SHA-256, out of a trust domain and names them to its nodes as those
// that must go. No store is asked to move: that is a wave's business. Repeated it does nothing. It refuses what is no anchor
// of the domain, and to leave none; whether a living leaf still chains to one of them is the caller's gate.
func WithdrawAnchors(a *state.Apply, trust string, sums [][]byte) error {
	var cluster string
	if ok, err := found(a.QueryRow(`SELECT name FROM clusters WHERE trust_domain = ?`, trust).Scan(&cluster)); err != nil {
		return err
	} else if !ok {
		return fault.New(fault.NotFound, "no-trust-domain", "there is no trust domain %.200q", trust).Do("see `csm trust list`: each cluster has one of its name")
	}
	gone := 0
	for _, sum := range sums {
		var der []byte
		held, err := found(a.QueryRow(`SELECT der FROM trust_anchors WHERE trust_domain = ? AND sha256 = ?`, trust, sum).Scan(&der))
		if err != nil {
			return err
		}
		if !held {
			if err := isWithdrawn(a, trust, sum); err != nil {
				return err
			}
			continue
		}
		if _, err := a.Exec(`INSERT INTO withdrawn_anchors (trust_domain, sha256, der, withdrawn) VALUES (?,?,?,?)`, trust, sum, der, a.Index); err != nil {
			return err
		}
		if _, err := a.Exec(`DELETE FROM trust_anchors WHERE trust_domain = ? AND sha256 = ?`, trust, sum); err != nil {
			return err
		}
		gone++
	}
	if gone == 0 {
		return nil
	}
	var left int
	if err := a.QueryRow(`SELECT count(*) FROM trust_anchors WHERE trust_domain = ?`, trust).Scan(&left); err != nil {
		return err
	}
	if left == 0 {
		return fault.New(fault.Refused, "last-anchor", "%s would be left without an anchor: its nodes could trust nobody", short(cluster)).Do("add the new anchors first")
	}
	return bundleMoved(a, cluster, trust)
}

// ClustersTrusting names the clusters whose nodes are told to trust one of these anchors (SHA-256), in every tenant.
func ClustersTrusting(ctx context.Context, q state.Querier, sums [][]byte) (out []string, err error) {
	for _, sum := range sums {
		names, err := collect(ctx, q, scanString, `SELECT c.name FROM clusters c JOIN trust_anchors t ON t.trust_domain = c.trust_domain WHERE t.sha256 = ? ORDER BY c.name LIMIT 1000`, sum)
		if err != nil {
			return nil, err
		}
		out = append(out, names...)
	}
	slices.Sort(out)
	return slices.Compact(out), nil
}

func isWithdrawn(a *state.Apply, trust string, sum []byte) error {
	var n int
	if err := a.QueryRow(`SELECT count(*) FROM withdrawn_anchors WHERE trust_domain = ? AND sha256 = ?`, trust, sum).Scan(&n); err != nil || n > 0 {
		return err
	}
	return fault.New(fault.NotFound, "no-anchor", "%.200s has no anchor %.64s of ours", trust, hexOf(sum)).Do("see `csm trust get`; anchors that others placed are never taken out")
}

func trustDomainOf(a *state.Apply, cluster string) (trust string, err error) {
	ok, err := found(a.QueryRow(`SELECT trust_domain FROM clusters WHERE name = ?`, cluster).Scan(&trust))
	if err == nil && !ok {
		err = noCluster(cluster)
	}
	return trust, err
}

func bundleMoved(a *state.Apply, cluster, trust string) error {
	if _, err := a.Exec(`UPDATE clusters SET bundle_version = ? WHERE name = ?`, a.Index, cluster); err != nil {
		return err
	}
	a.Touch(state.Updated, trust)
	return clusterMoved(a, cluster)
}

// Withdrawn are the SHA-256 of the anchors of a trust domain that must go, the newest first.
func Withdrawn(ctx context.Context, q state.Querier, trust string) ([][]byte, error) {
	return collect(ctx, q, scanBytes, `SELECT sha256 FROM withdrawn_anchors WHERE trust_domain = ? ORDER BY withdrawn DESC, sha256 LIMIT ?`, trust, maxWithdrawn)
}

// Shrunk says whether a store has made a move that takes anchors away since a generation. What it holds still is somebody else's.
func Shrunk(ctx context.Context, q state.Querier, node, store string, since uint64) (bool, error) {
	var n int
	err := q.QueryRowContext(ctx, `SELECT count(*) FROM moves WHERE node = ? AND store = ? AND kind = ? AND outcome IN (?,?) AND generation >= ?`, node, store,
		int(agentv1.MoveKind_MOVE_KIND_SHRINK), int(agentv1.MoveOutcome_MOVE_OUTCOME_PROVEN), int(agentv1.MoveOutcome_MOVE_OUTCOME_UNPROVEN), since).Scan(&n)
	return n > 0, err
}

// trustAlone says whether a move leaves the leaf as it is.
func trustAlone(k agentv1.MoveKind) bool {
	return k == agentv1.MoveKind_MOVE_KIND_TRUST || k == agentv1.MoveKind_MOVE_KIND_SHRINK
}

// shrinks refuses to take trust away where no anchor was withdrawn.
func shrinks(a *state.Apply, n nodeRow, kind agentv1.MoveKind) error {
	if kind != agentv1.MoveKind_MOVE_KIND_SHRINK {
		return nil
	}
	trust, err := trustDomainOf(a, n.cluster)
	if err != nil {
		return err
	}
	list, err := Withdrawn(a.Context(), a.Querier(), trust)
	if err == nil && len(list) == 0 {
		err = fault.New(fault.Refused, "nothing-withdrawn", "no anchor of %s was withdrawn", short(n.cluster)).Do("anchors go as the last step of a rotation")
	}
	return err
}
