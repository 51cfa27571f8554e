package fleet

import (
	"bytes"
	"context"
	"crypto/sha256"
	"strings"

	agentv1 "github.com/cassandra-security-manager/csm/protocol/agent/v1"
	clusterv1 "github.com/cassandra-security-manager/csm/protocol/cluster/v1"

	"github.com/cassandra-security-manager/csm/controller/state"
	"github.com/cassandra-security-manager/csm/shared/fault"
	"github.com/cassandra-security-manager/csm/shared/resource"
)

// CreateCluster makes a cluster whose nodes get certificates of spec.Authority and trust its anchors.
func (f *Fleet) CreateCluster(ctx context.Context, spec ClusterSpec, actor string) (Cluster, error) {
	tenant, id := resource.Segment(spec.Name, "tenants"), resource.Segment(spec.Name, "clusters")
	if spec.Name != resource.Cluster(tenant, id) {
		return Cluster{}, fault.New(fault.Invalid, "bad-name", "%.200q is not the name of a cluster", spec.Name).
			Do("it looks like %s", resource.Cluster(resource.DefaultTenant, "prod-eu"))
	}
	if err := resource.CheckID("cluster", id); err != nil {
		return Cluster{}, err
	}
	if spec.Authority == "" {
		return Cluster{}, fault.New(fault.Invalid, "no-authority", "a cluster needs an authority that signs for its nodes").
			Do("name one of `csm ca list`, or make one with `csm ca create`")
	}
	anchors, err := f.anchors(ctx, spec.Authority)
	if err != nil {
		return Cluster{}, err
	}
	uid, err := f.id()
	if err != nil {
		return Cluster{}, err
	}
	if _, err := f.propose(ctx, spec.Name, actor, "", &clusterv1.CreateCluster{Name: spec.Name, Uid: uid,
		CassandraName: spec.CassandraName, Authority: spec.Authority, Region: spec.Region, Anchors: anchors}); err != nil {
		return Cluster{}, err
	}
	return f.GetCluster(ctx, spec.Name)
}

// GrowTrust reads the authority's anchors again and adds the new ones to the cluster's trust domain; each store of the
// cluster is then asked to move, one node at a time. Anchors are never taken away here: that is a rotation's last step.
func (f *Fleet) GrowTrust(ctx context.Context, cluster, actor string) (Cluster, error) {
	c, err := f.GetCluster(ctx, cluster)
	if err != nil {
		return Cluster{}, err
	}
	anchors, err := f.anchors(ctx, c.Authority)
	if err != nil {
		return Cluster{}, err
	}
	if _, err := f.propose(ctx, cluster, actor, "trust grows", &clusterv1.GrowTrust{Cluster: cluster, Anchors: anchors}); err != nil {
		return Cluster{}, err
	}
	return f.GetCluster(ctx, cluster)
}

func applyCreateCluster(a *state.Apply, c *clusterv1.CreateCluster) (*clusterv1.Empty, error) {
	var n int
	if err := a.QueryRow(`SELECT count(*) FROM clusters WHERE name = ?`, c.Name).Scan(&n); err != nil {
		return nil, err
	}
	if n > 0 {
		return nil, fault.New(fault.Conflict, "cluster-exists", "the cluster %s exists already", c.Name).Do("see it with `csm cluster get %s`", resource.Last(c.Name))
	}
	if len(c.Anchors) == 0 {
		return nil, fault.New(fault.Refused, "no-anchors", "the authority %s has no trust anchor yet", c.Authority).Do("wait until its root is made: `csm ca get %s`", resource.Last(c.Authority))
	}
	trust := resource.Tenant(resource.Segment(c.Name, "tenants")) + "/trustDomains/" + resource.Last(c.Name)
	now := a.Now.UnixMilli()
	if _, err := a.Exec(`INSERT INTO clusters (name, uid, cassandra_name, authority, region, trust_domain, bundle_version, changed, created_ms, updated_ms, revision)
		VALUES (?,?,?,?,?,?,?,?,?,?,?)`, c.Name, c.Uid, c.CassandraName, c.Authority, c.Region, trust, a.Index, a.Index, now, now, a.Index); err != nil {
		return nil, err
	}
	if _, err := addAnchors(a, trust, c.Anchors); err != nil {
		return nil, err
	}
	a.Touch(state.Created, c.Name)
	a.Touch(state.Created, trust)
	return &clusterv1.Empty{}, nil
}

func (g gates) applyGrowTrust(a *state.Apply, c *clusterv1.GrowTrust) (*clusterv1.Empty, error) {
	var trust string
	if ok, err := found(a.QueryRow(`SELECT trust_domain FROM clusters WHERE name = ?`, c.Cluster).Scan(&trust)); err != nil {
		return nil, err
	} else if !ok {
		return nil, noCluster(c.Cluster)
	}
	held, err := collect(a.Context(), a.Querier(), scanBytes, `SELECT der FROM trust_anchors WHERE trust_domain = ? ORDER BY sha256`, trust)
	if err != nil {
		return nil, err
	}
	for _, h := range held {
		if !contains(c.Anchors, h) {
			return nil, fault.New(fault.Refused, "trust-would-shrink", "an anchor that %s trusts is no longer one of its authority's", trust).
				Do("anchors are taken away only as the last step of a rotation, when every node is proved without them")
		}
	}
	if err := g.mayRaise(a, c.Cluster, ""); err != nil {
		return nil, err
	}
	added, err := AddAnchors(a, c.Cluster, c.Anchors)
	if err != nil || added == 0 {
		return &clusterv1.Empty{}, err
	}
	_, err = a.Exec(`UPDATE stores SET generation = ?, reason = 'trust grows', wish_move = ?, plan_hash = NULL WHERE node IN (SELECT name FROM nodes WHERE cluster = ?)`,
		a.Index, int(agentv1.MoveKind_MOVE_KIND_TRUST), c.Cluster)
	return &clusterv1.Empty{}, err
}

func addAnchors(a *state.Apply, trust string, anchors [][]byte) (added int64, err error) {
	for _, der := range anchors {
		sum := sha256.Sum256(der)
		res, err := a.Exec(`INSERT INTO trust_anchors (trust_domain, sha256, der, added) VALUES (?,?,?,?) ON CONFLICT DO NOTHING`, trust, sum[:], der, a.Index)
		if err != nil {
			return 0, err
		}
		n, err := res.RowsAffected()
		if err != nil {
			return 0, err
		}
		added += n
	}
	return added, nil
}

func contains(all [][]byte, one []byte) bool {
	for _, x := range all {
		if bytes.Equal(x, one) {
			return true
		}
	}
	return false
}

func noCluster(name string) error {
	return fault.New(fault.NotFound, "no-cluster", "there is no cluster %.200q", name).Do("see `csm cluster list`")
}

func noNode(name string) error {
	return fault.New(fault.NotFound, "no-node", "there is no node %.300q", name).Do("see `csm node list`")
}

// short is how people name a node or cluster: "prod-eu/n7".
func short(name string) string {
	c := resource.Segment(name, "clusters")
	if n := resource.Segment(name, "nodes"); n != "" {
		return c + "/" + n
	}
	return strings.TrimPrefix(c, "/")
}
