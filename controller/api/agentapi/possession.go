package agentapi

import (
	"context"
	"crypto/sha256"
	"crypto/x509"
	"time"

	agentv1 "github.com/cassandra-security-manager/csm/protocol/agent/v1"

	"github.com/cassandra-security-manager/csm/controller/fleet"
	"github.com/cassandra-security-manager/csm/shared/certificate"
	"github.com/cassandra-security-manager/csm/shared/fault"
	"github.com/cassandra-security-manager/csm/shared/possession"
)

// byPossession checks that the caller holds the key that Cassandra uses today: its chain verifies to an anchor that was
// registered for the cluster, and the leaf's key signed for this connection and this new key. Fleet decides the rest.
func (s *Server) byPossession(ctx context.Context, r *agentv1.JoinRequest, csr *x509.CertificateRequest) (fleet.Joined, string, error) {
	none := fleet.Joined{}
	p := r.GetPossession()
	if len(p.GetChain()) == 0 || len(p.GetSignature()) == 0 {
		return none, "", fault.New(fault.Invalid, "no-evidence", "the request carries no proof of possession").Do("compare the versions of agent and controller")
	}
	host, info := s.transport(ctx)
	binding, err := possession.BindingOf(info.State)
	if err != nil {
		return none, "", err
	}
	chain, err := certificate.ParseChain(p.Chain)
	if err != nil {
		return none, "", err
	}
	leaf := chain[0]
	if err := possession.Verify(leaf, possession.Statement(binding, csr.RawSubjectPublicKeyInfo, r.Cluster), p.Signature); err != nil {
		return none, "", err
	}
	anchor, err := s.anchorFor(ctx, r.Cluster, chain)
	if err != nil {
		return none, "", err
	}
	attested := certificate.OfCertificate(leaf)
	key, inUse := keyHash(csr), sha256.Sum256(leaf.RawSubjectPublicKeyInfo)
	j, err := s.Fleet.JoinByPossession(ctx, fleet.PossessionSpec{Anchor: anchor, Key: key, CassandraKey: inUse, Challenge: binding.Challenge(), NotAfter: leaf.NotAfter,
		Attested: fleet.Names{DNS: attested.DNS, IPs: attested.IPStrings()}, Node: r.Node, Names: fleet.Names{DNS: r.GetNames().GetDns(), IPs: r.GetNames().GetIps()},
		Agent: r.Agent, Instance: r.Instance, Peer: host})
	return j, joinID(inUse, key), err
}

// anchorFor finds the registered anchor that the chain verifies against. One that was registered a moment ago on another
// controller is known once this one has caught up.
func (s *Server) anchorFor(ctx context.Context, cluster string, chain []*x509.Certificate) (fleet.Anchor, error) {
	anchors, err := s.Fleet.JoinAnchors(ctx, cluster)
	if err == nil && len(anchors) == 0 {
		if err = s.Linearize(ctx); err == nil {
			anchors, err = s.Fleet.JoinAnchors(ctx, cluster)
		}
	}
	if err != nil {
		return fleet.Anchor{}, err
	}
	return chooseAnchor(anchors, cluster, chain, s.Clock.Now())
}

// chooseAnchor takes the anchor that the chain verifies against, the one that lasts longest of several. Pure.
func chooseAnchor(anchors []fleet.Anchor, cluster string, chain []*x509.Certificate, now time.Time) (fleet.Anchor, error) {
	leaf := chain[0]
	if !now.Before(leaf.NotAfter) {
		return fleet.Anchor{}, fault.New(fault.Refused, "leaf-expired", "the certificate that Cassandra uses expired at %s, so it proves nothing", leaf.NotAfter.UTC().Format(time.RFC3339)).
			Do("join this node by a token: `csm cluster join-command`")
	}
	var best fleet.Anchor
	for _, a := range anchors {
		if a.Certificate == nil || certificate.VerifyChain(leaf, chain[1:], []*x509.Certificate{a.Certificate}, now) != nil {
			continue
		}
		if best.Cluster != "" && best.Cluster != a.Cluster {
			return fleet.Anchor{}, fault.New(fault.Invalid, "cluster-ambiguous", "clusters of several tenants are called %.100q and know this CA", cluster).
				Do("write the full name into agent.yaml: cluster: %s", a.Cluster)
		}
		if best.Name == "" || a.Expires.After(best.Expires) {
			best = a
		}
	}
	switch {
	case best.Name == "":
		return best, fault.New(fault.Refused, "anchor-unknown", "the certificate of %s chains to no CA that is registered for the cluster %.100q", certificate.Subject(leaf), cluster).
			Do("register its CA with `csm trust anchor-add`, or join by a token")
	case best.State != "active":
		return best, fault.New(fault.Refused, "anchor-expired", "the registration of the CA ended at %s", best.Expires.Format(time.RFC3339)).
			Do("register it again with `csm trust anchor-add`, or join by a token")
	}
	return best, nil
}
