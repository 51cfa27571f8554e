package authority

import (
	"context"
	"crypto"
	"crypto/x509"
	"crypto/x509/pkix"
	"net/url"
	"strconv"

	"github.com/cassandra-security-manager/csm/controller/state"
	clusterv1 "github.com/cassandra-security-manager/csm/protocol/cluster/v1"
	"github.com/cassandra-security-manager/csm/shared/algorithm"
	"github.com/cassandra-security-manager/csm/shared/certificate"
	"github.com/cassandra-security-manager/csm/shared/fault"
	"github.com/cassandra-security-manager/csm/shared/resource"
)

// systemSubject names the n-th root of a system: two roots never share a name, which relying parties tell CAs by.
func systemSubject(systemID string, n int) pkix.Name {
	cn := "CSM system CA " + systemID
	if n > 1 {
		cn += " " + strconv.Itoa(n)
	}
	return pkix.Name{CommonName: cn, Organization: []string{"Cassandra Security Manager"}}
}

// systemRoot is what a root of the system authority may do: sign identities, and its successor's name and key once.
func systemRoot(tmpl *x509.Certificate, trustDomain string) {
	tmpl.MaxPathLen = 1
	tmpl.URIs = []*url.URL{{Scheme: "spiffe", Host: trustDomain}}
}

// Succession is a root that comes, with the certificates that lead from each of the two roots to the other (RFC 4210, 4.4).
type Succession struct {
	Root *clusterv1.IssuerRecord
	// NewWithOld is the name and key of the root that comes, signed by the one before; OldWithNew the other way round.
	NewWithOld, OldWithNew []byte
}

// Succeed makes the root that comes after the active one of the system authority. Nothing is recorded but its key, sealed beside the
// others: the command of package systemca records the rest.
func (s *Authorities) Succeed(ctx context.Context, actor string) (*Succession, error) {
	a, err := s.Get(ctx, SystemName)
	if err != nil {
		return nil, err
	}
	old := newestRoot(a)
	if old == nil {
		return nil, fault.New(fault.Unavailable, "no-root", "the system authority has no active root")
	}
	n := 1 + len(a.Issuers)
	rec, pub, err := s.newKey(ctx, resource.Issuer(SystemName, "root-"+strconv.Itoa(n)), a.Algorithm, actor)
	if err != nil {
		return nil, err
	}
	rec.Kind, rec.Parent = string(Root), rec.Name
	tmpl, err := s.caTemplate(systemSubject(a.TrustDomain[:len(a.TrustDomain)-len(".csm")], n), pub, RootValidity)
	if err != nil {
		return nil, err
	}
	systemRoot(tmpl, a.TrustDomain)
	next, err := s.keys.Signer(ctx, rec.Key)
	if err != nil {
		return nil, err
	}
	if err := s.sign(rec, tmpl, tmpl, next, pub); err != nil {
		return nil, err
	}
	now, err := certificate.Parse(rec.Certificate)
	if err != nil {
		return nil, err
	}
	before, err := s.keys.Signer(ctx, old.Key)
	if err != nil {
		return nil, err
	}
	out := &Succession{Root: rec}
	if out.NewWithOld, err = s.cross(now, old.Certificate, before); err == nil {
		out.OldWithNew, err = s.cross(old.Certificate, now, next)
	}
	return out, err
}

// cross signs the name and the key of one root by another one, until the first of the two ends.
func (s *Authorities) cross(subject, issuer *x509.Certificate, signer crypto.Signer) ([]byte, error) {
	serial, err := certificate.Serial(s.rand)
	if err != nil {
		return nil, err
	}
	tmpl := &x509.Certificate{SerialNumber: serial, RawSubject: subject.RawSubject, NotBefore: subject.NotBefore, NotAfter: subject.NotAfter, KeyUsage: subject.KeyUsage,
		BasicConstraintsValid: true, IsCA: true, MaxPathLenZero: true, SubjectKeyId: subject.SubjectKeyId, AuthorityKeyId: issuer.SubjectKeyId, URIs: subject.URIs}
	if issuer.NotBefore.After(tmpl.NotBefore) {
		tmpl.NotBefore = issuer.NotBefore
	}
	if issuer.NotAfter.Before(tmpl.NotAfter) {
		tmpl.NotAfter = issuer.NotAfter
	}
	if tmpl.SignatureAlgorithm, err = algorithm.Signature(signer.Public()); err != nil {
		return nil, err
	}
	der, err := x509.CreateCertificate(s.rand, tmpl, issuer, subject.PublicKey, signer)
	if err != nil {
		return nil, fault.Wrap(err, fault.Internal, "sign-ca", "the cross-certificate of %s could not be signed", subject.Subject)
	}
	return der, CheckCross(der, subject, issuer)
}

// CheckCross says whether a certificate leads from one root to another: the name and key of subject, signed by issuer.
func CheckCross(der []byte, subject, issuer *x509.Certificate) error {
	bad := func(why string) error {
		return fault.New(fault.Invalid, "bad-cross-certificate", "the cross-certificate of %s by %s is none: %s", subject.Subject, issuer.Subject, why)
	}
	c, err := certificate.Parse(der)
	switch {
	case err != nil:
		return bad(err.Error())
	case string(c.RawSubject) != string(subject.RawSubject) || !certificate.SameKey(c.PublicKey, subject.PublicKey):
		return bad("another name or key")
	case !c.IsCA || c.NotAfter.After(issuer.NotAfter):
		return bad("it may not sign, or outlives who signed it")
	case issuer.MaxPathLenZero:
		return bad("a path length of 0 lets nobody follow")
	}
	if err := c.CheckSignatureFrom(issuer); err != nil {
		return bad(err.Error())
	}
	return nil
}

// byRotation refuses what only a rotation may do.
func byRotation() error {
	return fault.New(fault.Refused, "system-root", "which roots of the system authority are trusted, and which one signs, changes by a rotation only").
		Do("see `csm rotation plan --system`")
}

// AddSystemRoot records a root of the system authority that is trusted and does not sign yet. For package systemca, in Apply.
func AddSystemRoot(a *state.Apply, i *clusterv1.IssuerRecord) error {
	sys, err := InState(a.Context(), a.Querier(), SystemName)
	if err != nil {
		return err
	}
	if err := checkRoot(i); err != nil {
		return err
	}
	a.Touch(state.Updated, SystemName)
	return insertIssuer(a, SystemName, sys.Tenant, string(sys.Algorithm), i, Trusted)
}

func checkRoot(i *clusterv1.IssuerRecord) error {
	c, err := certificate.Parse(i.GetCertificate())
	if err != nil {
		return err
	}
	if err := c.CheckSignatureFrom(c); err != nil || !c.IsCA || i.Kind != string(Root) || i.Parent != i.Name || resource.Parent(i.Name) != SystemName {
		return fault.New(fault.Invalid, "bad-root", "%.100s is not a root of the system authority", i.GetName())
	}
	return nil
}

// SetSystemRoot says whether a root of the system authority signs, is trusted, or neither. For package systemca, in Apply.
func SetSystemRoot(a *state.Apply, issuer string, to State) error {
	a.Touch(state.Updated, SystemName)
	return setState(a, issuer, to)
}
