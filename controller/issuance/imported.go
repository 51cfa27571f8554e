package issuance

import (
	"bytes"
	"context"
	"crypto/sha256"
	"crypto/x509"

	"google.golang.org/protobuf/proto"

	"github.com/cassandra-security-manager/csm/controller/state"
	clusterv1 "github.com/cassandra-security-manager/csm/protocol/cluster/v1"
	"github.com/cassandra-security-manager/csm/shared/certificate"
	"github.com/cassandra-security-manager/csm/shared/fault"
	"github.com/cassandra-security-manager/csm/shared/resource"
)

// Import records a certificate that was signed while no controller was alive (`csm offline issue`), so that nothing stays unrecorded:
// it can be found and revoked from then on. The entry proves itself: its certificate must be signed by an issuer of this system, and
// what it says about the certificate is compared with the certificate. It returns the certificate's name; a second import is answered
// the same.
func (s *Issuance) Import(ctx context.Context, tenant string, record []byte, actor string) (string, error) {
	c := &clusterv1.RecordCertificate{}
	if err := proto.Unmarshal(record, c); err != nil {
		return "", notAnEntry("it cannot be read")
	}
	cert, err := certificate.Parse(c.Der)
	if err != nil {
		return "", notAnEntry("it holds no certificate")
	}
	if c.Tenant != tenant || resource.Segment(c.Issuer, "tenants") != tenant {
		return "", fault.New(fault.Refused, "wrong-tenant", "the entry is not of tenant %.63q", tenant).Do("import it with --tenant of the authority that signed it")
	}
	issuer, err := s.authorities.Issuer(ctx, c.Issuer)
	if err != nil {
		return "", err
	}
	if err := agrees(c, cert, issuer.Certificate); err != nil {
		return "", err
	}
	// Bound to no node: a node's certificate is recorded under its open claim only. And of no time: the entry may be days old.
	c.Node, c.Store, c.Claim, c.Incarnation, c.SignedAtMs, c.HourlyCap, c.Identity = "", "", "", 0, 0, 0, ""
	c.Scope, c.RequestId = "offline/"+tenant, certificate.Hex(certificate.Fingerprint(c.Der))[:64]
	res, err := s.log.Propose(ctx, state.Proposal{Command: c, Actor: actor, Tenant: tenant, Zone: c.Zone, Reason: "signed offline, imported"})
	if err != nil {
		return "", err
	}
	rec, ok := res.Reply.(*clusterv1.RecordedCertificate)
	if !ok {
		return "", notAnEntry("it was not recorded")
	}
	return rec.Name, nil
}

func notAnEntry(why string) error {
	return fault.New(fault.Invalid, "bad-entry", "this is no entry of an offline certificate: %s", why).Do("give the file that `csm offline issue --entry` wrote, unchanged")
}

// agrees compares what the entry says with the certificate itself.
func agrees(c *clusterv1.RecordCertificate, cert, issuer *x509.Certificate) error {
	parent, key := certificate.Fingerprint(issuer.Raw), sha256.Sum256(cert.RawSubjectPublicKeyInfo)
	if err := cert.CheckSignatureFrom(issuer); err != nil || !bytes.Equal(c.IssuerSha256, parent[:]) {
		return fault.New(fault.Refused, "foreign-entry", "the certificate is not signed by %s of this system", c.Issuer).Do("import it into the system whose recovery share signed it")
	}
	switch {
	case !bytes.Equal(bytes.TrimLeft(c.Serial, "\x00"), cert.SerialNumber.Bytes()), !bytes.Equal(c.KeySha256, key[:]),
		c.NotAfterMs != cert.NotAfter.UnixMilli(), c.NotBeforeMs != cert.NotBefore.UnixMilli():
		return notAnEntry("what it says differs from its certificate")
	case cert.IsCA || c.Identity != "":
		return notAnEntry("it is not the certificate of a node or application")
	}
	for _, n := range c.Names {
		if n.Kind == "dns" && !contains(cert.DNSNames, n.Value) {
			return notAnEntry("a name is not in its certificate")
		}
	}
	return nil
}

func contains(all []string, s string) bool {
	for _, x := range all {
		if x == s {
			return true
		}
	}
	return false
}
