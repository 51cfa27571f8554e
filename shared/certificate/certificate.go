// Package certificate builds, reads, prints and verifies X.509 certificates and requests (RFC 5280, RFC 2986). It owns the
// names of a certificate and their normal form, and the bounds of everything read from outside. It issues nothing and
// keeps no state; which key is good enough is package algorithm's word.
package certificate

import (
	"bytes"
	"crypto"
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"encoding/pem"
	"io"
	"math/big"
	"time"

	"github.com/cassandra-security-manager/csm/shared/fault"
)

// Bounds of what is read from outside, in bytes and certificates.
const (
	MaxCertificate = 64 << 10
	MaxChain       = 10
	MaxPEM         = 1 << 20
)

// Fingerprint is the SHA-256 of a certificate's DER: its id everywhere in CSM.
func Fingerprint(der []byte) [32]byte { return sha256.Sum256(der) }

// Hex is a fingerprint as 64 lower-case hex digits.
func Hex(f [32]byte) string { return hex.EncodeToString(f[:]) }

// Serial draws 159 random bits (RFC 5280, 4.1.2.2 allows 20 octets, so the sign bit stays clear); never zero.
func Serial(rand io.Reader) (*big.Int, error) {
	for {
		b := make([]byte, 20)
		if _, err := io.ReadFull(rand, b); err != nil {
			return nil, fault.Wrap(err, fault.Internal, "randomness", "no random bytes for a serial number")
		}
		b[0] &= 0x7f
		if n := new(big.Int).SetBytes(b); n.Sign() > 0 {
			return n, nil
		}
	}
}

// Parse reads one certificate in DER.
func Parse(der []byte) (*x509.Certificate, error) {
	if len(der) > MaxCertificate {
		return nil, fault.New(fault.Invalid, "certificate-too-large", "a certificate of %d bytes is not taken", len(der))
	}
	c, err := x509.ParseCertificate(der)
	if err != nil {
		return nil, fault.Wrap(err, fault.Invalid, "bad-certificate", "the certificate cannot be read")
	}
	return c, nil
}

// ParseChain reads 1 to MaxChain certificates in DER, in the order given.
func ParseChain(chain [][]byte) ([]*x509.Certificate, error) {
	if len(chain) == 0 || len(chain) > MaxChain {
		return nil, fault.New(fault.Invalid, "bad-chain", "a chain of %d certificates is not taken", len(chain)).Do("send 1 to %d, leaf first", MaxChain)
	}
	return ParseAll(chain)
}

// ParseAll reads any number of certificates in DER.
func ParseAll(ders [][]byte) ([]*x509.Certificate, error) {
	out := make([]*x509.Certificate, 0, len(ders))
	for _, d := range ders {
		c, err := Parse(d)
		if err != nil {
			return nil, err
		}
		out = append(out, c)
	}
	return out, nil
}

// Raw is the DER of each certificate.
func Raw(cs []*x509.Certificate) [][]byte {
	out := make([][]byte, len(cs))
	for i, c := range cs {
		out[i] = c.Raw
	}
	return out
}

// VerifyChain checks that leaf chains over inter to one of roots at now, and that the chain is good for **each** of the
// extended key usages in eku (crypto/x509 alone is content with one of them). No eku means any usage.
func VerifyChain(leaf *x509.Certificate, inter, roots []*x509.Certificate, now time.Time, eku ...x509.ExtKeyUsage) error {
	rp, ip := x509.NewCertPool(), x509.NewCertPool()
	for _, c := range roots {
		rp.AddCert(c)
	}
	for _, c := range inter {
		ip.AddCert(c)
	}
	if len(eku) == 0 {
		eku = []x509.ExtKeyUsage{x509.ExtKeyUsageAny}
	}
	for _, u := range eku {
		_, err := leaf.Verify(x509.VerifyOptions{Roots: rp, Intermediates: ip, CurrentTime: now, KeyUsages: []x509.ExtKeyUsage{u}})
		if err != nil {
			return fault.Wrap(err, fault.Refused, "untrusted-chain", "the certificate of %s does not verify", Subject(leaf))
		}
	}
	return nil
}

// SameKey says whether two public keys are equal.
func SameKey(a, b crypto.PublicKey) bool {
	k, ok := a.(interface{ Equal(crypto.PublicKey) bool })
	return ok && k.Equal(b)
}

// SelfIssued says whether subject and issuer of a certificate are the same name.
func SelfIssued(c *x509.Certificate) bool { return bytes.Equal(c.RawSubject, c.RawIssuer) }

// EncodePEM writes certificates one after the other.
func EncodePEM(cs ...*x509.Certificate) []byte { return EncodeDER(Raw(cs)...) }

// EncodeDER writes certificates that nobody needs to read first.
func EncodeDER(ders ...[]byte) []byte {
	var b bytes.Buffer
	for _, der := range ders {
		_ = pem.Encode(&b, &pem.Block{Type: "CERTIFICATE", Bytes: der})
	}
	return b.Bytes()
}

// DecodePEM reads all certificates of a PEM file (at most MaxPEM bytes), skipping other blocks. None at all is a fault.
func DecodePEM(data []byte) ([]*x509.Certificate, error) {
	if len(data) > MaxPEM {
		return nil, fault.New(fault.Invalid, "pem-too-large", "a PEM file of %d bytes is not taken", len(data))
	}
	var out []*x509.Certificate
	for {
		var b *pem.Block
		if b, data = pem.Decode(data); b == nil {
			break
		}
		if b.Type != "CERTIFICATE" {
			continue
		}
		c, err := Parse(b.Bytes)
		if err != nil {
			return nil, err
		}
		out = append(out, c)
	}
	if len(out) == 0 {
		return nil, fault.New(fault.Invalid, "no-certificate", "there is no certificate in the PEM text")
	}
	return out, nil
}

// EncodeKeyPEM writes a private key as PKCS#8 (RFC 5958), unencrypted.
func EncodeKeyPEM(key crypto.Signer) ([]byte, error) {
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return nil, fault.Wrap(err, fault.Invalid, "bad-key", "the private key cannot be written")
	}
	defer clear(der)
	return pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}), nil
}

// DecodeKeyPEM reads the one PKCS#8 private key of a PEM file. Other key formats (PKCS#1, SEC 1, encrypted) are refused
// with the command that converts them; several keys are refused, because the reader could not know which is meant.
func DecodeKeyPEM(data []byte) (crypto.Signer, error) {
	if len(data) > MaxPEM {
		return nil, fault.New(fault.Invalid, "pem-too-large", "a PEM file of %d bytes is not taken", len(data))
	}
	var key crypto.Signer
	for {
		var b *pem.Block
		if b, data = pem.Decode(data); b == nil {
			break
		}
		switch b.Type {
		case "RSA PRIVATE KEY", "EC PRIVATE KEY", "DSA PRIVATE KEY", "ENCRYPTED PRIVATE KEY":
			return nil, fault.New(fault.Invalid, "bad-key", "a key of kind %q is not read, only PKCS#8", b.Type).Do("convert it with `openssl pkcs8 -topk8 -nocrypt`")
		case "PRIVATE KEY":
			k, err := ParseKey(b.Bytes)
			if err != nil {
				return nil, err
			}
			if key != nil {
				return nil, fault.New(fault.Invalid, "several-keys", "there is more than one private key")
			}
			key = k
		}
	}
	if key == nil {
		return nil, fault.New(fault.Invalid, "no-key", "there is no private key")
	}
	return key, nil
}

// ParseKey reads a private key in PKCS#8, DER.
func ParseKey(der []byte) (crypto.Signer, error) {
	k, err := x509.ParsePKCS8PrivateKey(der)
	if err != nil {
		return nil, fault.Wrap(err, fault.Invalid, "bad-key", "the private key cannot be read")
	}
	s, ok := k.(crypto.Signer)
	if !ok {
		return nil, fault.New(fault.Invalid, "bad-key", "a private key of type %T cannot sign", k)
	}
	return s, nil
}
