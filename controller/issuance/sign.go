package issuance

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"io"
	"sync"

	"golang.org/x/crypto/cryptobyte"
	cbasn1 "golang.org/x/crypto/cryptobyte/asn1"

	"github.com/cassandra-security-manager/csm/controller/authority"
	"github.com/cassandra-security-manager/csm/controller/keyring"
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

// gate stands between crypto/x509 and the issuer's key. It is handed the very bytes that are to be signed, puts a throw-away
// signature under them, lints that certificate, and only then lets the issuer's key at them. crypto/x509 verifies the
// signature that comes out with the public key of the issuer's certificate, so a broken token shows before anything is
// recorded.
type gate struct {
	ctx    context.Context
	issuer *authority.Issuer
	signer func(context.Context, *authority.Issuer) (keyring.Signer, error)
	lint   func(rehearsed []byte) error
}

var _ crypto.MessageSigner = (*gate)(nil)

// Public is the key that the signature will be verified with.
func (g *gate) Public() crypto.PublicKey { return g.issuer.Certificate.PublicKey }

// Sign of a bare digest is refused: what is not seen cannot be linted.
func (g *gate) Sign(io.Reader, []byte, crypto.SignerOpts) ([]byte, error) {
	return nil, fault.New(fault.Internal, "sign", "a digest alone is not signed")
}

// SignMessage rehearses, lints and signs.
func (g *gate) SignMessage(random io.Reader, tbs []byte, opts crypto.SignerOpts) ([]byte, error) {
	rehearsed, err := rehearse(tbs)
	if err != nil {
		return nil, err
	}
	if err := g.lint(rehearsed); err != nil {
		return nil, err
	}
	key, err := g.signer(g.ctx, g.issuer)
	if err != nil {
		return nil, err
	}
	if !certificate.SameKey(key.Public(), g.Public()) {
		return nil, fault.New(fault.Internal, "sign", "the key of %s is not the one in its certificate; nothing was issued", g.issuer.Name).
			Do("compare the key of this issuer with its certificate before it signs again")
	}
	h := opts.HashFunc().New()
	h.Write(tbs)
	sig, err := key.Sign(random, h.Sum(nil), opts)
	if err != nil {
		return nil, fault.Wrap(err, fault.Unavailable, "signer", "the key of %s could not sign", g.issuer.Name).Do("try again; with a token, check that it is there and open")
	}
	return sig, nil
}

// rehearse makes a certificate of the bytes to be signed with a signature that fits nothing (RFC 5280, 4.1).
func rehearse(tbs []byte) ([]byte, error) {
	inner, body := cryptobyte.String(tbs), cryptobyte.String{}
	var alg cryptobyte.String
	if !inner.ReadASN1(&body, cbasn1.SEQUENCE) || !body.SkipOptionalASN1(cbasn1.Tag(0).ContextSpecific().Constructed()) ||
		!body.SkipASN1(cbasn1.INTEGER) || !body.ReadASN1Element(&alg, cbasn1.SEQUENCE) {
		return nil, fault.New(fault.Internal, "sign", "the bytes to be signed are not a certificate")
	}
	var b cryptobyte.Builder
	b.AddASN1(cbasn1.SEQUENCE, func(b *cryptobyte.Builder) {
		b.AddBytes(tbs)
		b.AddBytes(alg)
		b.AddASN1BitString(unfit())
	})
	return b.Bytes()
}

// sign builds the certificate of a template under an issuer through the gate.
func (s *Issuance) sign(ctx context.Context, tmpl *x509.Certificate, i *authority.Issuer, pub crypto.PublicKey, e expected) ([]byte, error) {
	g := &gate{ctx: ctx, issuer: i, signer: s.authorities.Signer, lint: func(der []byte) error { return s.linter.check(der, e) }}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, i.Certificate, pub, g)
	if err == nil {
		return der, nil
	}
	if f := fault.From(err); f.Reason != "internal" {
		return nil, f
	}
	return nil, fault.Wrap(err, fault.Internal, "sign", "the certificate could not be made by %s; nothing was issued", i.Name).
		Do("compare the key of this issuer with its certificate before it signs again")
}

// verifyIssuer checks the chain above the leaf, once for each issuer certificate: crypto/x509 verifies the leaf's own
// signature when it is made, so together the whole chain is verified without a second public-key operation per leaf.
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
