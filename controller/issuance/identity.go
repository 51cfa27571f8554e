package issuance

import (
	"context"
	"crypto/sha256"
	"crypto/x509/pkix"
	"encoding/hex"

	"github.com/cassandra-security-manager/csm/controller/authority"
	clusterv1 "github.com/cassandra-security-manager/csm/protocol/cluster/v1"
	"github.com/cassandra-security-manager/csm/shared/certificate"
	"github.com/cassandra-security-manager/csm/shared/fault"
	"github.com/cassandra-security-manager/csm/shared/identity"
)

// IssueIdentity signs a system identity (30 days, the SPIFFE ID as its only name) under the system CA, through the same
// door and recorded like all others. chain is DER, leaf first; bundle are the system CAs to trust. Servers send both,
// so that who holds only the pin of the system CA can check the whole.
func (s *Issuance) IssueIdentity(ctx context.Context, id identity.ID, csr []byte, actor, requestID string) (chain, bundle [][]byte, err error) {
	began := s.clock.Now()
	issued, err := s.issueIdentity(ctx, id, csr, actor, requestID)
	s.observe("identity", err, began)
	if err != nil {
		return nil, nil, err
	}
	roots, err := s.authorities.SystemBundle(ctx)
	if err != nil {
		return nil, nil, err
	}
	return issued.Chain, certificate.Raw(roots), nil
}

func (s *Issuance) issueIdentity(ctx context.Context, id identity.ID, csr []byte, actor, requestID string) (*Issued, error) {
	t, err := identityTemplate(id.Kind)
	if err != nil {
		return nil, err
	}
	if requestID == "" || len(requestID) > 64 {
		return nil, fault.New(fault.Invalid, "bad-request-id", "a request id has 1 to 64 bytes").Do("use a fresh UUID, and the same one when asking again")
	}
	td, err := s.authorities.TrustDomain(ctx)
	if err != nil {
		return nil, err
	}
	if err := id.Require(td, identity.Controller, identity.Agent, identity.Admin); err != nil {
		return nil, err
	}
	if again, err := identity.Parse(id.String()); err != nil || again != id {
		return nil, fault.New(fault.Invalid, "bad-identity", "%.200s is not a well-formed identity", id.String())
	}
	w, err := s.examine(csr)
	if err != nil {
		return nil, err
	}
	names, err := grant(w.names, certificate.Names{URIs: []string{id.String()}}, false)
	if err != nil {
		return nil, err
	}
	var incarnation uint64
	if id.Kind == identity.Agent {
		if _, incarnation, err = id.AgentParts(); err != nil {
			return nil, err
		}
	}
	cn := id.Path
	if len(cn) > maxCommonName {
		cn = cn[:maxCommonName]
	}
	o := order{template: t, wish: w, names: names, authority: authority.SystemName, actor: actor, reason: "identity of " + string(id.Kind) + " " + id.Path,
		subject: pkix.Name{CommonName: cn, OrganizationalUnit: []string{string(id.Kind)}, Organization: []string{"Cassandra Security Manager"}},
		record:  &clusterv1.RecordCertificate{RequestId: requestID, Scope: id.String(), Identity: id.String(), Incarnation: incarnation}}
	issued, err := s.produce(ctx, o)
	if err != nil || !issued.Repeated {
		return issued, err
	}
	signing, err := s.authorities.IssuerFor(ctx, authority.SystemName, "")
	if err != nil || signing.Name == issued.Issuer {
		return issued, err
	}
	// The answer that was lost is of a root that signs no more, and soon nobody may trust: it is another request now.
	sum := sha256.Sum256([]byte(requestID + " " + signing.Name))
	o.record.RequestId = hex.EncodeToString(sum[:20])
	return s.produce(ctx, o)
}
