package issuance

import (
	"crypto/x509"
	"strings"
	"time"

	zx509 "github.com/zmap/zcrypto/x509"
	"github.com/zmap/zlint/v3/lint"
	_ "github.com/zmap/zlint/v3/lints/rfc" // registers the lints of the RFCs; those of the web PKI are not linked at all

	"github.com/cassandra-security-manager/csm/shared/algorithm"
	"github.com/cassandra-security-manager/csm/shared/certificate"
	"github.com/cassandra-security-manager/csm/shared/fault"
)

// linter runs the chosen lints: those of RFC 5280, 3279, 5480, 5891 and 8813 that can apply to a leaf of ours, and our own. Only
// errors refuse, so lints that give no more than a warning (w_) or a notice (n_) are not run: those of zlint are for the web.
type linter struct {
	rules []rule
}

// rule is a lint made once: those that are chosen take no configuration and keep nothing from one certificate to the next.
type rule struct {
	*lint.CertificateLint
	lint lint.CertificateLintInterface
}

// broken is what (*lint.CertificateLint).Execute does with a lint made anew.
func (r rule) broken(c *zx509.Certificate) bool {
	return r.lint.CheckApplies(c) && r.CheckEffective(c) && r.lint.Execute(c).Status >= lint.Error
}

// inapplicable are prefixes of lints about what our leaves never hold: extensions that the builder does not write, and
// properties of CA certificates. Left out for speed, not because they would fire.
var inapplicable = []string{"e_ext_cert_policy", "e_ext_ian", "e_ext_policy", "e_name_constraint", "e_ext_name_constraints",
	"e_rsa_allowed_ku_ca", "e_ext_freshest", "e_inhibit_any", "e_subject_info_access", "e_ext_subject_directory", "e_subject_surname",
	"e_subject_given", "e_subject_postal", "e_subject_street", "e_subject_state", "e_subject_locality", "e_subject_email",
	"e_subject_dn_serial", "e_ext_san_rfc822"}

// unwanted is a prefix of rules that real clusters break lawfully: container networks name hosts with underscores, and
// resolvers, JVMs and crypto/x509 take them. Package certificate decides what a host name is.
const unwanted = "e_rfc_dnsname_underscore"

func newLinter() *linter {
	l := &linter{}
	for _, x := range lint.GlobalRegistry().CertificateLints().Lints() {
		if chosen(x.Name, x.Source) {
			l.rules = append(l.rules, rule{x, x.Lint()})
		}
	}
	return l
}

func chosen(name string, source lint.LintSource) bool {
	switch source {
	case lint.RFC3279, lint.RFC5280, lint.RFC5480, lint.RFC5891, lint.RFC8813:
	default:
		return false
	}
	for _, p := range inapplicable {
		if strings.HasPrefix(name, p) {
			return false
		}
	}
	return strings.HasPrefix(name, "e_") && !strings.HasPrefix(name, unwanted)
}

// check lints a rehearsed certificate; the first error refuses it.
func (l *linter) check(der []byte, e expected) error {
	c, err := zx509.ParseCertificate(der)
	if err != nil {
		return linted("unreadable", err.Error())
	}
	for _, r := range l.rules {
		if r.broken(c) {
			return linted(r.Name, r.Description)
		}
	}
	return e.check(der)
}

func linted(rule, why string) error {
	return fault.New(fault.Refused, "lint", "the certificate would break the rule %s: %.300s", rule, why).Do("change the names or the subject that are asked for")
}

// expected is what a leaf must look like, stated a second time and apart from the code that builds it.
type expected struct {
	template  Template
	names     certificate.Names
	spki      []byte
	now       time.Time
	issuer    *x509.Certificate
	signature x509.SignatureAlgorithm
	pointed   bool
}

// maxLeaf keeps the chain that Cassandra sends well under 12 KB.
const maxLeaf = 6 << 10

func (e expected) check(der []byte) error {
	c, err := certificate.Parse(der)
	if err != nil {
		return linted("csm_readable", err.Error())
	}
	rules := []struct {
		name string
		ok   bool
		why  string
	}{
		{"csm_size", len(der) <= maxLeaf, "a leaf has at most 6 KiB, or links between nodes could fail"},
		{"csm_version", c.Version == 3, "X.509 version 3"},
		{"csm_not_ca", c.BasicConstraintsValid && !c.IsCA, "a leaf is no CA"},
		{"csm_serial", c.SerialNumber.Sign() > 0 && c.SerialNumber.BitLen() <= 159, "a positive serial of at most 159 bits"},
		{"csm_serial_random", c.SerialNumber.BitLen() > 64, "a serial with at least 64 random bits"},
		{"csm_key", string(c.RawSubjectPublicKeyInfo) == string(e.spki) && algorithm.CheckFloor(c.PublicKey) == nil, "the key of the request, above the floor"},
		{"csm_signature", c.SignatureAlgorithm == e.signature && algorithm.CheckSignature(c.SignatureAlgorithm) == nil, "SHA-384 or better"},
		{"csm_usages", sameUsages(c.ExtKeyUsage, e.template.Usages) && len(c.UnknownExtKeyUsage) == 0, "exactly the extended key usages of the template"},
		{"csm_key_usage", c.KeyUsage&x509.KeyUsageDigitalSignature != 0 && c.KeyUsage&(x509.KeyUsageCertSign|x509.KeyUsageCRLSign) == 0, "signs handshakes, not certificates"},
		{"csm_names", certificate.OfCertificate(c).Equal(e.names) && len(c.EmailAddresses) == 0, "exactly the names that are allowed"},
		{"csm_begin", !c.NotBefore.After(e.now) && e.now.Sub(c.NotBefore) <= time.Hour, "valid from ten minutes ago"},
		{"csm_end", !c.NotAfter.After(e.issuer.NotAfter) && c.NotAfter.Sub(e.now) >= e.template.Min-time.Minute && c.NotAfter.Sub(e.now) <= e.template.Max, "a validity within the template and the issuer"},
		{"csm_issuer", string(c.RawIssuer) == string(e.issuer.RawSubject) && string(c.AuthorityKeyId) == string(e.issuer.SubjectKeyId) && len(c.SubjectKeyId) > 0, "the name and key id of its issuer"},
		{"csm_points", !e.pointed || (len(c.CRLDistributionPoints) > 0 && len(c.IssuingCertificateURL) > 0), "pointers to the revocation list and the issuer"},
	}
	for _, r := range rules {
		if !r.ok {
			return linted(r.name, r.why)
		}
	}
	return nil
}
