package certificate

import (
	"crypto"
	"crypto/rand"
	"crypto/x509"
	"net"
	"net/url"

	"github.com/cassandra-security-manager/csm/shared/algorithm"
	"github.com/cassandra-security-manager/csm/shared/fault"
)

// MaxRequest is the most bytes that a certificate request may have.
const MaxRequest = 16 << 10

// NewRequest builds a PKCS#10 request (RFC 2986), DER, for the key and names. The subject is empty: names are the SANs.
func NewRequest(key crypto.Signer, n Names) ([]byte, error) {
	n, err := n.Normalise()
	if err != nil {
		return nil, err
	}
	sig, err := algorithm.Signature(key.Public())
	if err != nil {
		return nil, err
	}
	t := &x509.CertificateRequest{SignatureAlgorithm: sig, DNSNames: n.DNS}
	if t.IPAddresses, t.URIs, err = n.X509(); err != nil {
		return nil, err
	}
	der, err := x509.CreateCertificateRequest(rand.Reader, t, key)
	if err != nil {
		return nil, fault.Wrap(err, fault.Internal, "csr", "the certificate request could not be made")
	}
	return der, nil
}

// X509 gives addresses and URIs in the types of crypto/x509 templates.
func (n Names) X509() ([]net.IP, []*url.URL, error) {
	var ips []net.IP
	for _, a := range n.IPs {
		ips = append(ips, a.Unmap().AsSlice())
	}
	var uris []*url.URL
	for _, s := range n.URIs {
		u, err := url.Parse(s)
		if err != nil {
			return nil, nil, fault.Wrap(err, fault.Invalid, "bad-name", "%.80q is not a URI", s)
		}
		uris = append(uris, u)
	}
	return ips, uris, nil
}

// ParseRequest reads a PKCS#10 request and refuses one that is too long, broken, not signed by its own key (proof of
// possession), signed by MD5 or SHA-1, or of a key below the floor. Its names are wishes: who issues decides.
func ParseRequest(der []byte) (*x509.CertificateRequest, error) {
	r, err := ReadRequest(der)
	if err != nil {
		return nil, err
	}
	return r, ProveRequest(r)
}

// ReadRequest is ParseRequest without the proof of possession, which costs as much as a signature: for who may be sent away before it.
func ReadRequest(der []byte) (*x509.CertificateRequest, error) {
	if len(der) > MaxRequest {
		return nil, fault.New(fault.Invalid, "csr-too-large", "the certificate request has %d bytes, at most %d are taken", len(der), MaxRequest)
	}
	r, err := x509.ParseCertificateRequest(der)
	if err != nil {
		return nil, fault.Wrap(err, fault.Invalid, "bad-csr", "the certificate request cannot be read").Do("send a PKCS#10 request in DER")
	}
	if err := algorithm.CheckFloor(r.PublicKey); err != nil {
		return nil, err
	}
	switch r.SignatureAlgorithm {
	case x509.MD2WithRSA, x509.MD5WithRSA, x509.SHA1WithRSA, x509.DSAWithSHA1, x509.ECDSAWithSHA1:
		return nil, fault.New(fault.Refused, "weak-signature", "the certificate request is signed with %s", r.SignatureAlgorithm).Do("sign it with SHA-384")
	}
	return r, nil
}

// ProveRequest refuses a request that its own key has not signed. Nothing may be issued for one that did not pass.
func ProveRequest(r *x509.CertificateRequest) error {
	if err := r.CheckSignature(); err != nil {
		return fault.Wrap(err, fault.Invalid, "bad-csr-signature", "the certificate request is not signed by its own key").
			Do("make the request again with the key that it is for")
	}
	return nil
}
