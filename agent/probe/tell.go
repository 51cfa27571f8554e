package probe

import (
	"crypto/sha256"
	"crypto/x509"

	agentv1 "github.com/cassandra-security-manager/csm/protocol/agent/v1"
)

// Tell writes into a proof whether a certificate was asked for and where the served chain leads.
func (r Result) Tell(p *agentv1.Proof) {
	p.Asked, p.IssuerSha256, p.AnchorSha256 = r.Asked, sumOf(r.Issuer()), sumOf(r.Anchor)
}

func sumOf(c *x509.Certificate) []byte {
	if c == nil {
		return nil
	}
	s := sha256.Sum256(c.Raw)
	return s[:]
}
