package issuance

import (
	"crypto"
	"crypto/x509"
	"strings"

	"github.com/cassandra-security-manager/csm/shared/algorithm"
	"github.com/cassandra-security-manager/csm/shared/certificate"
	"github.com/cassandra-security-manager/csm/shared/fault"
	"github.com/cassandra-security-manager/csm/shared/resource"
)

// wish is what a certificate request asks for, once everything about it was checked that needs no state but its proof of possession.
type wish struct {
	request   *x509.CertificateRequest
	proved    bool
	public    crypto.PublicKey
	spki      []byte
	algorithm algorithm.Key
	names     certificate.Names
	subject   string
}

// examine reads a request from outside: size, form, key floor, names in normal form.
func (s *Issuance) examine(csr []byte) (*wish, error) {
	r, err := certificate.ReadRequest(csr)
	if err != nil {
		return nil, err
	}
	alg, err := algorithm.OfPublic(r.PublicKey)
	if err != nil {
		return nil, err
	}
	if alg == algorithm.P256 && !s.options.AllowBenchmark {
		return nil, fault.New(fault.Refused, "weak-key", "P-256 keys are for benchmarks only").Do("make a %s key", algorithm.Default)
	}
	if len(r.EmailAddresses) > 0 {
		return nil, fault.New(fault.Refused, "name-not-allowed", "the request asks for an e-mail address").Do("leave it out")
	}
	names, err := certificate.OfRequest(r).Normalise()
	if err != nil {
		return nil, err
	}
	return &wish{request: r, public: r.PublicKey, spki: r.RawSubjectPublicKeyInfo, algorithm: alg, names: names, subject: r.Subject.CommonName}, nil
}

// prove refuses a request that its own key has not signed. It does so once, whatever is tried again.
func (w *wish) prove() error {
	if w.proved {
		return nil
	}
	err := certificate.ProveRequest(w.request)
	w.proved = err == nil
	return err
}

// grant decides the names of the certificate: exactly the allowed ones, and a request may not ask for any other.
func grant(wished, allowed certificate.Names, fromCSR bool) (certificate.Names, error) {
	if fromCSR && allowed.Empty() {
		return wished, nil
	}
	allowed, err := allowed.Normalise()
	if err != nil {
		return certificate.Names{}, err
	}
	if !allowed.Contains(wished) {
		return certificate.Names{}, fault.New(fault.Refused, "name-not-allowed", "the request asks for %.300s, which is not a name of this node or application",
			allowed.Missing(wished)).Do("ask for no names, or set the node's names with `csm node`")
	}
	return allowed, nil
}

const maxCommonName = 64 // ub-common-name, RFC 5280, A.1

func (r *Request) check(t Template) error {
	if len(r.RequestID) > 64 || (r.RequestID == "" && t.Name != appTemplate.Name) {
		return fault.New(fault.Invalid, "bad-request-id", "a request id has 1 to 64 bytes; only who asks for an application may do without").Do("use a fresh UUID, and the same one when asking again")
	}
	if resource.Segment(r.Authority, "tenants") != r.Tenant || r.Tenant == "" {
		return fault.New(fault.Refused, "wrong-tenant", "%.200s is not an authority of tenant %.63q", r.Authority, r.Tenant).Do("use an authority of the same tenant")
	}
	if r.Node != "" && resource.Segment(r.Node, "tenants") != r.Tenant {
		return fault.New(fault.Refused, "wrong-tenant", "%.200s is not a node of tenant %.63q", r.Node, r.Tenant)
	}
	if t.Name != appTemplate.Name && r.Node == "" {
		return fault.New(fault.Invalid, "no-node", "template %s needs a node", t.Name).Do("use template application for what is not a node")
	}
	if (t.Name == probeTemplate.Name) != (r.Task != "") {
		return fault.New(fault.Invalid, "no-task", "a probe is for a task, and nothing else is").Do("ask through the agents' protocol")
	}
	if len(r.Subject) > maxCommonName || strings.ContainsFunc(r.Subject, func(c rune) bool { return c < ' ' || c == 0x7f || c == 0xFFFD }) {
		return fault.New(fault.Invalid, "bad-subject", "the common name is longer than %d bytes or holds control characters", maxCommonName).Do("use a shorter one; names belong among the DNS names")
	}
	return nil
}

// commonName of a certificate that was not given one: the node's id, else the shortest name that fits.
func (r *Request) commonName(n certificate.Names) string {
	if r.Subject != "" {
		return r.Subject
	}
	candidates := append([]string{}, n.DNS...)
	candidates = append(append(candidates, n.IPStrings()...), n.URIs...)
	if r.Node != "" {
		candidates = append([]string{resource.Last(r.Node)}, candidates...)
	}
	for _, c := range candidates {
		if c != "" && len(c) <= maxCommonName {
			return c
		}
	}
	return ""
}

func checkHost(t Template, n certificate.Names, cn string) error {
	if t.NeedsHost && len(n.DNS)+len(n.IPs) == 0 {
		return fault.New(fault.Refused, "no-names", "the certificate of a node needs a DNS name or an address").Do("set them with `csm node`")
	}
	if n.Empty() && cn == "" {
		return fault.New(fault.Invalid, "no-names", "the certificate would name nobody").Do("give a subject or names")
	}
	return nil
}

// usages as a set.
func sameUsages(a, b []x509.ExtKeyUsage) bool {
	if len(a) != len(b) {
		return false
	}
	for i := range a {
		if a[i] != b[i] {
			return false
		}
	}
	return true
}
