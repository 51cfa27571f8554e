package issuance

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/asn1"
	"fmt"
	"sync"

	"github.com/cassandra-security-manager/csm/controller/authority"
	"github.com/cassandra-security-manager/csm/controller/keyring"
	"github.com/cassandra-security-manager/csm/shared/algorithm"
	"github.com/cassandra-security-manager/csm/shared/certificate"
	"github.com/cassandra-security-manager/csm/shared/fault"
)

// signedObject is the outer form of a certificate (RFC 5280, 4.1).
type signedObject struct {
	TBS       asn1.RawValue
	Algorithm asn1.RawValue
	Signature asn1.BitString
}

// throwAway signs what is only ever linted. P-256 also stands in for P-384 and P-521: the bytes to be signed do not
// depend on the curve of the issuer's key, only on the signature algorithm, which a P-256 key can carry as well.
var throwAway = struct {
	ecdsa func() crypto.Signer
	rsa   func() crypto.Signer
}{
	ecdsa: sync.OnceValue(func() crypto.Signer {
		k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
		if err != nil {
			panic(err) // crypto/rand does not fail
		}
		return k
	}),
	rsa: sync.OnceValue(func() crypto.Signer {
		k, err := rsa.GenerateKey(rand.Reader, 2048)
		if err != nil {
			panic(err)
		}
		return k
	}),
}

// rehearse builds the certificate of a template and signs it with a throw-away key: the result has the very bytes that
// the issuer will sign, so what is linted is what is signed.
func rehearse(tmpl *x509.Certificate, i *authority.Issuer, pub crypto.PublicKey) ([]byte, error) {
	key := throwAway.ecdsa
	if _, isRSA := i.Certificate.PublicKey.(*rsa.PublicKey); isRSA {
		key = throwAway.rsa
	}
	stand := *i.Certificate
	stand.PublicKey = key().Public()
	der, err := x509.CreateCertificate(rand.Reader, tmpl, &stand, pub, key())
	if err != nil {
		return nil, fault.Wrap(err, fault.Invalid, "bad-certificate", "the certificate cannot be built")
	}
	return der, nil
}

// sign puts the issuer's signature in the place of the rehearsed one, and verifies it with the issuer's certificate: a
// broken token or a key that is not the certificate's shows here, before anything is recorded.
func sign(rehearsed []byte, i *authority.Issuer, signer keyring.Signer) ([]byte, error) {
	var o signedObject
	if rest, err := asn1.Unmarshal(rehearsed, &o); err != nil || len(rest) != 0 {
		return nil, fault.New(fault.Internal, "sign", "the built certificate does not come apart")
	}
	alg, err := algorithm.Signature(i.Certificate.PublicKey)
	if err != nil {
		return nil, err
	}
	hash, err := hashOf(alg)
	if err != nil {
		return nil, err
	}
	h := hash.New()
	h.Write(o.TBS.FullBytes)
	sig, err := signer.Sign(rand.Reader, h.Sum(nil), hash)
	if err != nil {
		return nil, fault.Wrap(err, fault.Unavailable, "signer", "the key of %s could not sign", i.Name).Do("try again; with a token, check that it is there and open")
	}
	if err := i.Certificate.CheckSignature(alg, o.TBS.FullBytes, sig); err != nil {
		return nil, fault.New(fault.Internal, "sign", "the signature of %s does not verify with its certificate; nothing was issued", i.Name).
			Do("compare the key of this issuer with its certificate before it signs again")
	}
	o.Signature = asn1.BitString{Bytes: sig, BitLength: 8 * len(sig)}
	der, err := asn1.Marshal(o)
	if err != nil {
		return nil, fmt.Errorf("issuance: encode certificate: %w", err)
	}
	var back signedObject
	if rest, err := asn1.Unmarshal(der, &back); err != nil || len(rest) != 0 || !bytes.Equal(back.TBS.FullBytes, o.TBS.FullBytes) {
		return nil, fault.New(fault.Internal, "sign", "the certificate of %s came out wrong", i.Name)
	}
	return der, nil
}

func hashOf(a x509.SignatureAlgorithm) (crypto.Hash, error) {
	switch a {
	case x509.ECDSAWithSHA384, x509.SHA384WithRSA:
		return crypto.SHA384, nil
	case x509.ECDSAWithSHA512, x509.SHA512WithRSA:
		return crypto.SHA512, nil
	case x509.ECDSAWithSHA256:
		return crypto.SHA256, nil
	}
	return 0, fault.New(fault.Internal, "sign", "signature algorithm %s has no hash here", a)
}

// verifyIssuer checks the chain above the leaf, once for each issuer certificate: the leaf's own signature is verified by
// sign, so together the whole chain is, without a second public-key operation per leaf.
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
