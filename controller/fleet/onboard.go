package fleet

import (
	"context"

	agentv1 "github.com/cassandra-security-manager/csm/protocol/agent/v1"
	clusterv1 "github.com/cassandra-security-manager/csm/protocol/cluster/v1"

	"github.com/cassandra-security-manager/csm/controller/state"
	"github.com/cassandra-security-manager/csm/shared/fault"
)

// Onboard lets the stores of a cluster that CSM did not write take our anchors, one node at a time: trust first. Their
// leaves stay in service, and the anchors that others put there stay too.
func (f *Fleet) Onboard(ctx context.Context, cluster, reason, actor string) error {
	if reason == "" {
		return fault.NoReason()
	}
	_, err := f.propose(ctx, cluster, actor, reason, &clusterv1.OnboardCluster{Cluster: cluster, Reason: reason})
	return err
}

// Release lets a cluster go: its agents change nothing any more, no certificate is issued for its nodes, nobody can join.
// It is final for the cluster of this name.
func (f *Fleet) Release(ctx context.Context, cluster, reason, actor string) error {
	if reason == "" {
		return fault.NoReason()
	}
	_, err := f.propose(ctx, cluster, actor, reason, &clusterv1.ReleaseCluster{Cluster: cluster, Reason: reason})
	return err
}

// trustFirst refuses every change of a store that holds somebody else's leaf, but two: our anchors are added beside theirs
// once a person has onboarded the cluster, and a rotation that a person has started takes the leaf over. Pure.
func trustFirst(n nodeRow, s storeRow, l life, kind agentv1.MoveKind) error {
	takeOver := kind == agentv1.MoveKind_MOVE_KIND_TAKE_OVER
	switch {
	case takeOver && (!s.theirs() || s.move != kind || s.installed == 0 || s.installed >= s.generation):
		return fault.New(fault.Refused, "no-takeover", "nobody has asked to take over the certificate of store %s of %s", s.store, short(n.name)).Do("it is a rotation: `csm rotation plan`")
	case kind == agentv1.MoveKind_MOVE_KIND_GIVE_BACK && !s.goesBack():
		return fault.New(fault.Refused, "nothing-kept", "no certificate of another CA is to come back to store %s of %s", s.store, short(n.name)).Do("it is the way back of a take-over: `csm rotation rollback`")
	case !s.theirs() || l.onboarded == 0 && s.state != agentv1.InstallState_INSTALL_STATE_FOREIGN:
		return nil
	case l.onboarded == 0:
		return fault.New(fault.Refused, "store-foreign", "the files of store %s of %s were not written by CSM", s.store, short(n.name)).
			Do("`csm cluster onboard %s` adds our CA beside theirs; for a node that has never run, move the files away", short(n.cluster))
	case !trustAlone(kind) && !takeOver:
		return fault.New(fault.Refused, "leaf-theirs", "store %s of %s holds the certificate of another CA: only trust may change", s.store, short(n.name)).
			Do("taking over its certificate is a rotation")
	}
	return nil
}

// theirs says whether the leaf in the files is somebody else's: they were reported as foreign, or there is a leaf and CSM
// never gave one. What CSM gave is its own whoever reports it: an agent that has lost its state folder knows nothing of it.
func (s storeRow) theirs() bool {
	return !s.given && (s.state == agentv1.InstallState_INSTALL_STATE_FOREIGN ||
		len(s.leaf) > 0 && len(s.wanted) == 0 && (s.installed > 0 || s.state == agentv1.InstallState_INSTALL_STATE_FAILED))
}

func applyOnboardCluster(a *state.Apply, c *clusterv1.OnboardCluster) (*clusterv1.Empty, error) {
	l, err := lifeOf(a.Context(), a.Querier(), c.Cluster)
	switch {
	case err != nil:
		return nil, err
	case l.released > 0:
		return nil, l.refusal(c.Cluster)
	case l.onboarded > 0:
		return &clusterv1.Empty{}, nil
	}
	if err := scopeExists(a, c.Cluster); err != nil {
		return nil, err
	}
	if _, err := a.Exec(`INSERT INTO cluster_lives (cluster, onboarded_ms, onboarder, released_ms, releaser, reason) VALUES (?,?,?,0,'',?)`,
		c.Cluster, a.Now.UnixMilli(), a.Envelope.GetActor(), c.Reason); err != nil {
		return nil, err
	}
	return &clusterv1.Empty{}, clusterMoved(a, c.Cluster)
}

func applyReleaseCluster(a *state.Apply, c *clusterv1.ReleaseCluster) (*clusterv1.Empty, error) {
	l, err := lifeOf(a.Context(), a.Querier(), c.Cluster)
	if err != nil || l.released > 0 {
		return &clusterv1.Empty{}, err
	}
	if err := scopeExists(a, c.Cluster); err != nil {
		return nil, err
	}
	if _, err := a.Exec(`INSERT INTO cluster_lives (cluster, onboarded_ms, onboarder, released_ms, releaser, reason) VALUES (?,0,'',?,?,?)
		ON CONFLICT (cluster) DO UPDATE SET released_ms = excluded.released_ms, releaser = excluded.releaser, reason = excluded.reason`,
		c.Cluster, a.Now.UnixMilli(), a.Envelope.GetActor(), c.Reason); err != nil {
		return nil, err
	}
	if _, err := a.Exec(`UPDATE node_tokens SET revoked = 1, revision = ? WHERE cluster = ?`, a.Index, c.Cluster); err != nil {
		return nil, err
	}
	return &clusterv1.Empty{}, clusterMoved(a, c.Cluster)
}

// clusterMoved tells every agent of the cluster to look again.
func clusterMoved(a *state.Apply, cluster string) error {
	if _, err := a.Exec(`UPDATE clusters SET changed = ?, updated_ms = ?, revision = ? WHERE name = ?`, a.Index, a.Now.UnixMilli(), a.Index, cluster); err != nil {
		return err
	}
	a.Touch(state.Updated, cluster)
	signalTarget(a, cluster)
	return nil
}

// life is whether a cluster was onboarded trust first, and whether it was let go; times in unix milliseconds, 0 if not.
type life struct {
	onboarded, released int64
	releaser, reason    string
}

func lifeOf(ctx context.Context, q state.Querier, cluster string) (l life, err error) {
	_, err = found(q.QueryRowContext(ctx, `SELECT onboarded_ms, released_ms, releaser, reason FROM cluster_lives WHERE cluster = ?`, cluster).Scan(&l.onboarded, &l.released, &l.releaser, &l.reason))
	return l, err
}

func (l life) refusal(cluster string) error {
	return fault.New(fault.Refused, "cluster-released", "%s was let go by %s: %s", short(cluster), l.releaser, l.reason).
		Do("nothing on its nodes is changed any more; to manage it again, create a cluster of another name and let its nodes join that")
}

// live fills in whether the cluster was onboarded, and whether it was let go.
func (c *Cluster) live(ctx context.Context, q state.Querier) error {
	l, err := lifeOf(ctx, q, c.Name)
	if err != nil {
		return err
	}
	c.Onboarded = at(l.onboarded)
	if l.released > 0 {
		c.Released = &Release{Actor: l.releaser, Reason: l.reason, Time: at(l.released)}
	}
	return nil
}
