package fleet

import (
	"context"
	"crypto/sha256"
	"crypto/x509"
	"database/sql"
	"encoding/json"
	"time"

	clusterv1 "github.com/cassandra-security-manager/csm/protocol/cluster/v1"

	"github.com/cassandra-security-manager/csm/controller/state"
	"github.com/cassandra-security-manager/csm/shared/certificate"
	"github.com/cassandra-security-manager/csm/shared/fault"
	"github.com/cassandra-security-manager/csm/shared/resource"
)

// maxAnchors bounds the external anchors of one cluster.
const maxAnchors = 32

// Anchor is a CA that a trust domain knows: one of its authority's ("authority"), which its nodes are to trust, or one that
// CSM does not own ("external"), by whose certificates nodes may join. CSM never writes an external anchor into a
// truststore and never takes one out.
type Anchor struct {
	Name        string    `json:"name"`
	TrustDomain string    `json:"trustDomain"`
	Kind        string    `json:"kind" enum:"authority,external"`
	SHA256      string    `json:"sha256"`
	Subject     string    `json:"subject"`
	NotAfter    time.Time `json:"notAfter" doc:"end of the CA certificate itself"`
	State       string    `json:"state" enum:"active,expired"`
	Owner       string    `json:"owner,omitempty"`
	Reason      string    `json:"reason,omitempty"`
	Rule        *Rule     `json:"rule,omitempty" doc:"which names a node may get without a person's approval"`
	Expires     time.Time `json:"expireTime,omitzero" doc:"joining by it ends then"`
	Creator     string    `json:"creator,omitempty"`
	Created     time.Time `json:"createTime,omitzero"`
	Revision    uint64    `json:"revision"`
	PEM         string    `json:"pem"`

	// Cluster and Certificate are for who verifies chains.
	Cluster     string            `json:"-"`
	Certificate *x509.Certificate `json:"-"`
}

// TrustDomain is the trust between the nodes of one cluster.
type TrustDomain struct {
	Name     string   `json:"name"`
	Cluster  string   `json:"cluster"`
	Version  uint64   `json:"bundleVersion"`
	Anchors  []Anchor `json:"anchors"`
	Revision uint64   `json:"revision"`
}

// AnchorSpec registers a CA that is not ours.
type AnchorSpec struct {
	Certificate *x509.Certificate
	Owner       string
	Reason      string
	Expires     time.Time
	Rule        Rule
}

// AddAnchor registers an external anchor for the cluster behind a trust domain. Registered again it gets the new owner,
// reason, expiry and rule.
func (f *Fleet) AddAnchor(ctx context.Context, trustDomain string, spec AnchorSpec, actor string) (Anchor, error) {
	if err := spec.check(f.clock.Now()); err != nil {
		return Anchor{}, err
	}
	rule, err := spec.Rule.Normalise()
	if err != nil {
		return Anchor{}, err
	}
	d, err := f.GetTrustDomain(ctx, trustDomain)
	if err != nil {
		return Anchor{}, err
	}
	if _, err := f.propose(ctx, d.Cluster, actor, spec.Reason, &clusterv1.AddExternalAnchor{Cluster: d.Cluster, Der: spec.Certificate.Raw,
		Owner: spec.Owner, Reason: spec.Reason, ExpiresMs: spec.Expires.UnixMilli(), Rule: rule.wire()}); err != nil {
		return Anchor{}, err
	}
	sum := sha256.Sum256(spec.Certificate.Raw)
	return f.GetAnchor(ctx, resource.Anchor(trustDomain, hexOf(sum[:])))
}

func (s AnchorSpec) check(now time.Time) error {
	switch c := s.Certificate; {
	case c == nil:
		return fault.New(fault.Invalid, "no-anchor", "no certificate is given").Do("give the CA certificate in PEM")
	case !c.IsCA || !c.BasicConstraintsValid:
		return fault.New(fault.Refused, "anchor-not-ca", "%s is no CA certificate", certificate.Subject(c)).Do("register the CA that signed the nodes' certificates, not one of them")
	case !now.Before(c.NotAfter):
		return fault.New(fault.Refused, "anchor-expired", "the CA certificate of %s expired on %s", certificate.Subject(c), c.NotAfter.UTC().Format(time.DateOnly)).
			Do("join these nodes by tokens: `csm cluster join-command`")
	case s.Owner == "":
		return fault.New(fault.Invalid, "no-owner", "an anchor that is not ours needs an owner").Do("add --owner: the team or person who runs that CA")
	case s.Reason == "":
		return fault.NoReason()
	case !s.Expires.After(now):
		return fault.New(fault.Invalid, "bad-expiry", "the registration needs an end that lies ahead").Do("add --expires, like 720h or 2027-01-31")
	}
	return nil
}

// RemoveAnchor ends the registration; who has joined by it stays, and no truststore changes.
func (f *Fleet) RemoveAnchor(ctx context.Context, name, reason, actor string) error {
	_, err := f.propose(ctx, name, actor, reason, &clusterv1.RemoveExternalAnchor{Name: name, Reason: reason})
	return err
}

// GetTrustDomain reads a trust domain with its anchors.
func (f *Fleet) GetTrustDomain(ctx context.Context, name string) (TrustDomain, error) {
	list, err := f.trustDomains(ctx, `trust_domain = ?`, name)
	if err != nil {
		return TrustDomain{}, err
	}
	if len(list) == 0 {
		return TrustDomain{}, fault.New(fault.NotFound, "no-trust-domain", "there is no trust domain %.200q", name).Do("see `csm trust list`: each cluster has one of its name")
	}
	return list[0], nil
}

// ListTrustDomains reads the trust domains of a tenant, by name.
func (f *Fleet) ListTrustDomains(ctx context.Context, tenant string) ([]TrustDomain, error) {
	p := resource.Tenant(tenant) + "/"
	return f.trustDomains(ctx, `substr(trust_domain, 1, length(?1)) = ?1`, p)
}

func (f *Fleet) trustDomains(ctx context.Context, where string, args ...any) ([]TrustDomain, error) {
	return view(ctx, f.read, func(ctx context.Context, q state.Querier) ([]TrustDomain, error) {
		list, err := collect(ctx, q, func(r *sql.Rows) (d TrustDomain, err error) {
			return d, r.Scan(&d.Name, &d.Cluster, &d.Version, &d.Revision)
		}, `SELECT trust_domain, name, bundle_version, revision FROM clusters WHERE `+where+` ORDER BY trust_domain LIMIT 1000`, args...)
		for i := range list {
			if err != nil {
				break
			}
			list[i].Anchors, err = f.anchorsOf(ctx, q, list[i].Name)
		}
		return list, err
	})
}

// anchorsOf gives the authority's anchors, then the external ones.
func (f *Fleet) anchorsOf(ctx context.Context, q state.Querier, trust string) ([]Anchor, error) {
	own, err := collect(ctx, q, func(r *sql.Rows) (Anchor, error) {
		a := Anchor{TrustDomain: trust, Kind: "authority", State: "active"}
		var der []byte
		if err := r.Scan(&der, &a.Revision); err != nil {
			return a, err
		}
		return a, a.read(der)
	}, `SELECT der, added FROM trust_anchors WHERE trust_domain = ? ORDER BY sha256`, trust)
	if err != nil {
		return nil, err
	}
	other, err := f.external(ctx, q, `trust_domain = ?`, trust)
	return append(own, other...), err
}

func (a *Anchor) read(der []byte) error {
	sum := sha256.Sum256(der)
	a.SHA256 = hexOf(sum[:])
	a.Name = resource.Anchor(a.TrustDomain, a.SHA256)
	c, err := x509.ParseCertificate(der)
	if err != nil {
		return nil // an anchor that cannot be shown is still one
	}
	a.Certificate, a.Subject, a.NotAfter, a.PEM = c, certificate.Subject(c), c.NotAfter.UTC(), string(certificate.EncodePEM(c))
	return nil
}

func (f *Fleet) external(ctx context.Context, q state.Querier, where string, args ...any) ([]Anchor, error) {
	now := f.clock.Now()
	return collect(ctx, q, func(r *sql.Rows) (Anchor, error) {
		a := Anchor{Kind: "external", State: "active"}
		var der []byte
		var rule string
		var expires, created int64
		if err := r.Scan(&a.TrustDomain, &a.Cluster, &der, &a.Owner, &a.Reason, &rule, &expires, &a.Creator, &created, &a.Revision); err != nil {
			return a, err
		}
		a.Expires, a.Created = at(expires), at(created)
		if !now.Before(a.Expires) {
			a.State = "expired"
		}
		x, err := ruleFrom(rule)
		if err != nil {
			return a, err
		}
		a.Rule = &x
		return a, a.read(der)
	}, `SELECT trust_domain, cluster, der, owner, reason, rule, expires_ms, creator, created_ms, revision FROM external_anchors WHERE `+where+` ORDER BY name LIMIT 1000`, args...)
}

// GetAnchor reads one anchor.
func (f *Fleet) GetAnchor(ctx context.Context, name string) (Anchor, error) {
	d, err := f.GetTrustDomain(ctx, resource.Parent(name))
	if err != nil {
		return Anchor{}, err
	}
	for _, a := range d.Anchors {
		if a.Name == name {
			return a, nil
		}
	}
	return Anchor{}, noAnchor(name)
}

// JoinAnchors are the external anchors by which an agent may join the cluster that it names, by full name or id.
func (f *Fleet) JoinAnchors(ctx context.Context, cluster string) ([]Anchor, error) {
	return view(ctx, f.read, func(ctx context.Context, q state.Querier) ([]Anchor, error) {
		return f.external(ctx, q, `cluster = ?1 OR substr(cluster, -length(?2)) = ?2`, cluster, "/clusters/"+cluster)
	})
}

func noAnchor(name string) error {
	return fault.New(fault.NotFound, "no-anchor", "there is no external anchor %.300q", name).Do("see `csm trust get`")
}

func applyAddExternalAnchor(a *state.Apply, c *clusterv1.AddExternalAnchor) (*clusterv1.Empty, error) {
	var trust string
	var held int
	if ok, err := found(a.QueryRow(`SELECT trust_domain, (SELECT count(*) FROM external_anchors e WHERE e.cluster = c.name) FROM clusters c WHERE name = ?`, c.Cluster).Scan(&trust, &held)); err != nil {
		return nil, err
	} else if !ok {
		return nil, noCluster(c.Cluster)
	}
	sum := sha256.Sum256(c.Der)
	name := resource.Anchor(trust, hexOf(sum[:]))
	rule, err := json.Marshal(ruleOf(c.Rule))
	switch {
	case err != nil:
		return nil, err
	case c.ExpiresMs <= a.Now.UnixMilli():
		return nil, fault.New(fault.Invalid, "bad-expiry", "the registration would have ended before it began")
	case held >= maxAnchors:
		return nil, fault.New(fault.Exhausted, "too-many-anchors", "%s has %d external anchors, at most %d are kept", short(c.Cluster), held, maxAnchors).
			Do("remove one that is no longer needed: `csm trust anchor-remove`")
	}
	now := a.Now.UnixMilli()
	if _, err := a.Exec(`INSERT INTO external_anchors (name, trust_domain, cluster, sha256, der, owner, reason, rule, expires_ms, creator, created_ms, revision)
		VALUES (?,?,?,?,?,?,?,?,?,?,?,?) ON CONFLICT (name) DO UPDATE SET owner = excluded.owner, reason = excluded.reason, rule = excluded.rule,
		expires_ms = excluded.expires_ms, creator = excluded.creator, revision = excluded.revision`,
		name, trust, c.Cluster, sum[:], c.Der, c.Owner, c.Reason, string(rule), c.ExpiresMs, a.Envelope.GetActor(), now, a.Index); err != nil {
		return nil, err
	}
	a.Touch(state.Updated, name)
	a.Touch(state.Updated, trust)
	return &clusterv1.Empty{}, nil
}

func applyRemoveExternalAnchor(a *state.Apply, c *clusterv1.RemoveExternalAnchor) (*clusterv1.Empty, error) {
	res, err := a.Exec(`DELETE FROM external_anchors WHERE name = ?`, c.Name)
	if err != nil {
		return nil, err
	}
	if n, err := res.RowsAffected(); err != nil || n == 0 {
		if err != nil {
			return nil, err
		}
		return nil, noAnchor(c.Name)
	}
	a.Touch(state.Deleted, c.Name)
	a.Touch(state.Updated, resource.Parent(c.Name))
	return &clusterv1.Empty{}, nil
}
