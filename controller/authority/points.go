package authority

import (
	"crypto/x509"
	"math/big"
	"strconv"
)

// CertificateURLs are where the issuer's own certificate is served.
func (i *Issuer) CertificateURLs() []string {
	var out []string
	for _, u := range i.BaseURLs {
		out = append(out, u+"/ca/"+i.PublicID+".crt")
	}
	return out
}

// CRLURLs are where the shard of the issuer's revocation list is served.
func (i *Issuer) CRLURLs(shard int) []string {
	var out []string
	for _, u := range i.BaseURLs {
		out = append(out, u+"/crl/"+i.PublicID+"/"+strconv.Itoa(shard)+".crl")
	}
	return out
}

// Shard is the revocation list that a serial belongs to.
func (i *Issuer) Shard(serial *big.Int) int {
	return int(new(big.Int).Mod(serial, big.NewInt(int64(i.Shards))).Int64())
}

// Point writes the URLs of the revocation list and of the issuer's certificate into the template of a certificate that the
// issuer signs (RFC 5280, 4.2.1.13 and 4.2.2.1).
func (i *Issuer) Point(tmpl *x509.Certificate) {
	tmpl.CRLDistributionPoints = i.CRLURLs(i.Shard(tmpl.SerialNumber))
	tmpl.IssuingCertificateURL = i.CertificateURLs()
}
