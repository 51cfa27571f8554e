package issuance

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"fmt"
	"sync"

	"github.com/cassandra-security-manager/csm/controller/authority"
	"github.com/cassandra-security-manager/csm/shared/certificate"
	"github.com/cassandra-security-manager/csm/shared/fault"
)

// unfit is a signature of a throw-away key over nothing, made once: it has the form of one and fits no certificate. What is
// linted never carries a signature that could be taken for an issuer's. P-256 stands in for larger curves too.
var unfit = sync.OnceValue(func() []byte {
	k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		panic(err) // crypto/rand does not fail
	}
	sig, err := k.Sign(rand.Reader, make([]byte, 32), crypto.SHA256)
	if err != nil {
		panic(err)
	}
	return sig
})

// sign encodes the certificate of a template, puts a signature that fits nothing under the very bytes that are to be signed,
// lints that certificate, and only then lets the issuer's key at them. What comes out is verified with the public key of the
// issuer's certificate, so a broken token shows before anything is recorded.
func (s *Issuance) sign(ctx context.Context, tmpl *x509.Certificate, i *authority.Issuer, e expected) ([]byte, error) {
	how, ok := signings[tmpl.SignatureAlgorithm]
	if !ok {
		return nil, unmade(fmt.Errorf("nothing is signed by %s", tmpl.SignatureAlgorithm), i)
	}
	tbs, err := toBeSigned(tmpl, i.Certificate, how.identifier, e.spki)
	if err != nil {
		return nil, unmade(err, i)
	}
	rehearsed, err := assemble(tbs, how.identifier, unfit())
	if err != nil {
		return nil, unmade(err, i)
	}
	if err := s.linter.check(rehearsed, e); err != nil {
		return nil, err
	}
	key, err := s.authorities.Signer(ctx, i)
	if err != nil {
		return nil, err
	}
	if !certificate.SameKey(key.Public(), i.Certificate.PublicKey) {
		return nil, fault.New(fault.Internal, "sign", "the key of %s is not the one in its certificate; nothing was issued", i.Name).
			Do("compare the key of this issuer with its certificate before it signs again")
	}
	h := how.hash.New()
	h.Write(tbs)
	signature, err := key.Sign(rand.Reader, h.Sum(nil), how.hash)
	if err != nil {
		return nil, fault.Wrap(err, fault.Unavailable, "signer", "the key of %s could not sign", i.Name).Do("try again; with a token, check that it is there and open")
	}
	if err := i.Certificate.CheckSignature(tmpl.SignatureAlgorithm, tbs, signature); err != nil {
		return nil, unmade(err, i)
	}
	der, err := assemble(tbs, how.identifier, signature)
	if err != nil {
		return nil, unmade(err, i)
	}
	return der, nil
}

func unmade(err error, i *authority.Issuer) error {
	if f := fault.From(err); f.Reason != "internal" {
		return f
	}
	return fault.Wrap(err, fault.Internal, "sign", "the certificate could not be made by %s; nothing was issued", i.Name).
		Do("compare the key of this issuer with its certificate before it signs again")
}

// verifyIssuer checks the chain above the leaf, once for each issuer certificate: the leaf's own signature is verified when
// it is made, so together the whole chain is verified without a second public-key operation per leaf.
func (s *Issuance) verifyIssuer(i *authority.Issuer, chain []*x509.Certificate, root *x509.Certificate) error {
	sum := certificate.Fingerprint(i.Certificate.Raw)
	if _, done := s.verified.Load(sum); done {
		return nil
	}
	var above []*x509.Certificate
	if len(chain) > 1 {
		above = chain[1:]
	}
	if err := certificate.VerifyChain(i.Certificate, above, []*x509.Certificate{root}, s.clock.Now()); err != nil {
		return err
	}
	if !i.Certificate.IsCA || i.Certificate.KeyUsage&x509.KeyUsageCertSign == 0 {
		return fault.New(fault.Internal, "not-a-ca", "the certificate of %s may not sign", i.Name)
	}
	s.verified.Store(sum, struct{}{})
	return nil
}
