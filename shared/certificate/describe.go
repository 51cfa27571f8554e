package certificate

import (
	"crypto/x509"
	"encoding/hex"
	"time"

	"github.com/cassandra-security-manager/csm/shared/algorithm"
)

// Description is a certificate for people and for JSON. Times are UTC.
type Description struct {
	SHA256             string    `json:"sha256"`
	Serial             string    `json:"serial"`
	Subject            string    `json:"subject"`
	Issuer             string    `json:"issuer"`
	DNS                []string  `json:"dns,omitempty"`
	IPs                []string  `json:"ips,omitempty"`
	URIs               []string  `json:"uris,omitempty"`
	NotBefore          time.Time `json:"notBefore"`
	NotAfter           time.Time `json:"notAfter"`
	KeyAlgorithm       string    `json:"keyAlgorithm"`
	SignatureAlgorithm string    `json:"signatureAlgorithm"`
	ExtKeyUsage        []string  `json:"extKeyUsage,omitempty"`
	CA                 bool      `json:"ca,omitempty"`
	SubjectKeyID       string    `json:"subjectKeyId,omitempty"`
	AuthorityKeyID     string    `json:"authorityKeyId,omitempty"`
	CRL                []string  `json:"crl,omitempty"`
}

var ekuNames = map[x509.ExtKeyUsage]string{x509.ExtKeyUsageAny: "any", x509.ExtKeyUsageServerAuth: "serverAuth",
	x509.ExtKeyUsageClientAuth: "clientAuth", x509.ExtKeyUsageCodeSigning: "codeSigning", x509.ExtKeyUsageEmailProtection: "emailProtection",
	x509.ExtKeyUsageTimeStamping: "timeStamping", x509.ExtKeyUsageOCSPSigning: "ocspSigning"}

// UsageName is the name of an extended key usage as RFC 5280 writes it without "id-kp-".
func UsageName(u x509.ExtKeyUsage) string {
	if n, ok := ekuNames[u]; ok {
		return n
	}
	return "other"
}

// Describe reads what people ask of a certificate.
func Describe(c *x509.Certificate) Description {
	n := OfCertificate(c)
	d := Description{SHA256: Hex(Fingerprint(c.Raw)), Subject: c.Subject.String(), Issuer: c.Issuer.String(),
		DNS: n.DNS, IPs: n.IPStrings(), URIs: n.URIs, NotBefore: c.NotBefore.UTC(), NotAfter: c.NotAfter.UTC(),
		KeyAlgorithm: algorithm.Name(c.PublicKey), SignatureAlgorithm: c.SignatureAlgorithm.String(), CA: c.IsCA,
		SubjectKeyID: hex.EncodeToString(c.SubjectKeyId), AuthorityKeyID: hex.EncodeToString(c.AuthorityKeyId), CRL: c.CRLDistributionPoints}
	if c.SerialNumber != nil {
		d.Serial = hex.EncodeToString(c.SerialNumber.Bytes()) // whole bytes, as openssl writes it
	}
	for _, u := range c.ExtKeyUsage {
		d.ExtKeyUsage = append(d.ExtKeyUsage, UsageName(u))
	}
	for _, o := range c.UnknownExtKeyUsage {
		d.ExtKeyUsage = append(d.ExtKeyUsage, o.String())
	}
	return d
}

// Subject names a certificate in a message: its subject, else its names, else its fingerprint.
func Subject(c *x509.Certificate) string {
	if s := c.Subject.String(); s != "" {
		return s
	}
	if s := OfCertificate(c).String(); s != "" {
		return s
	}
	return Hex(Fingerprint(c.Raw))
}
