// Package algorithm is the catalogue of key and signature algorithms and the one floor under them: what is not in the
// catalogue is neither generated, nor requested, nor issued. It keeps no state.
//
// The floor (CNSA 1.0 and ETSI TS 119 312 agree on it): NIST P-384, P-521 or RSA with 4096 bits, with SHA-384 or better.
// P-256 exists only for benchmarks, behind AllowBenchmark, because the peers that we measure against use it.
package algorithm

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rsa"
	"crypto/x509"
	"fmt"
	"io"
	"sync/atomic"

	"github.com/cassandra-security-manager/csm/shared/fault"
)

// Key names a key algorithm with its size.
type Key string

// The catalogue.
const (
	P384    Key = "P-384"
	P521    Key = "P-521"
	RSA4096 Key = "RSA-4096"
	// P256 is below the floor; it passes only after AllowBenchmark.
	P256 Key = "P-256"
)

// Default is what an agent makes unless a target asks otherwise: 0.1 ms a key, where RSA-4096 takes half a second.
const Default = P384

var benchmark atomic.Bool

// AllowBenchmark lets P-256 pass the floor in this process. Only benchmarks call it, and nothing undoes it.
func AllowBenchmark() { benchmark.Store(true) }

// All lists the catalogue, the default first.
func All() []Key { return []Key{P384, P521, RSA4096} }

// Parse reads a name of the catalogue; the empty string is Default.
func Parse(s string) (Key, error) {
	if s == "" {
		return Default, nil
	}
	switch k := Key(s); k {
	case P384, P521, RSA4096:
		return k, nil
	case P256:
		if benchmark.Load() {
			return k, nil
		}
	}
	return "", fault.New(fault.Invalid, "unknown-algorithm", "%.60q is not a key algorithm that may be used", s).
		Do("use one of %v", All())
}

// Generate makes a key. rand is the source of randomness (crypto/rand.Reader outside tests; crypto/ecdsa and crypto/rsa
// of Go 1.26 use the system's source whatever they are given).
func Generate(k Key, rand io.Reader) (crypto.Signer, error) {
	k, err := Parse(string(k))
	if err != nil {
		return nil, err
	}
	var s crypto.Signer
	switch k {
	case P384:
		s, err = ecdsa.GenerateKey(elliptic.P384(), rand)
	case P521:
		s, err = ecdsa.GenerateKey(elliptic.P521(), rand)
	case P256:
		s, err = ecdsa.GenerateKey(elliptic.P256(), rand)
	default:
		s, err = rsa.GenerateKey(rand, 4096)
	}
	if err != nil {
		return nil, fault.Wrap(err, fault.Internal, "keygen", "a %s key could not be made", k)
	}
	return s, nil
}

// OfPublic says which algorithm of the catalogue a public key has. A key outside of it is a fault with reason "weak-key".
func OfPublic(pub crypto.PublicKey) (Key, error) {
	switch p := pub.(type) {
	case *ecdsa.PublicKey:
		switch p.Curve {
		case elliptic.P384():
			return P384, nil
		case elliptic.P521():
			return P521, nil
		case elliptic.P256():
			if benchmark.Load() {
				return P256, nil
			}
		}
	case *rsa.PublicKey:
		// FIPS 186-5, A.1.1: the exponent is odd and greater than 2^16.
		if p.N.BitLen() == 4096 && p.E > 1<<16 && p.E&1 == 1 {
			return RSA4096, nil
		}
	}
	return "", fault.New(fault.Refused, "weak-key", "a key of kind %s is not allowed", Name(pub)).Do("make a key of one of %v", All())
}

// CheckFloor refuses each public key that is not in the catalogue.
func CheckFloor(pub crypto.PublicKey) error {
	_, err := OfPublic(pub)
	return err
}

// Name describes any public key for people, in the catalogue or not: "P-256", "RSA-2048", "Ed25519".
func Name(pub crypto.PublicKey) string {
	switch p := pub.(type) {
	case *ecdsa.PublicKey:
		if p.Curve != nil {
			return p.Curve.Params().Name
		}
	case *rsa.PublicKey:
		if p.N != nil {
			return fmt.Sprintf("RSA-%d", p.N.BitLen())
		}
	case ed25519.PublicKey:
		return "Ed25519"
	case nil:
		return "unknown"
	}
	return fmt.Sprintf("%T", pub)
}

// Signature is the signature algorithm that a key of the catalogue signs with: SHA-384 for P-384 and RSA-4096, SHA-512
// for P-521. RSA signs by PKCS #1 v1.5, which each JVM that runs Cassandra verifies.
func Signature(pub crypto.PublicKey) (x509.SignatureAlgorithm, error) {
	k, err := OfPublic(pub)
	if err != nil {
		return x509.UnknownSignatureAlgorithm, err
	}
	return map[Key]x509.SignatureAlgorithm{P384: x509.ECDSAWithSHA384, P521: x509.ECDSAWithSHA512,
		RSA4096: x509.SHA384WithRSA, P256: x509.ECDSAWithSHA256}[k], nil
}

// CheckSignature refuses a signature algorithm below SHA-384 (SHA-256 passes only in benchmarks).
func CheckSignature(a x509.SignatureAlgorithm) error {
	switch a {
	case x509.ECDSAWithSHA384, x509.ECDSAWithSHA512, x509.SHA384WithRSA, x509.SHA512WithRSA,
		x509.SHA384WithRSAPSS, x509.SHA512WithRSAPSS:
		return nil
	case x509.ECDSAWithSHA256:
		if benchmark.Load() {
			return nil
		}
	}
	return fault.New(fault.Refused, "weak-signature", "signature algorithm %s is not allowed", a).Do("sign with SHA-384 or SHA-512")
}
