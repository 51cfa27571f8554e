// Package keystore reads and writes the stores that a JVM loads: PKCS#12 (RFC 7292), Java's JKS, and PEM for Cassandra's
// PEMBasedSslContextFactory. It also says what is wrong with a pair of stores, because Cassandra itself takes an expired
// leaf, an empty truststore or a keystore without a key without a word (facts seen on 5.0.8; see Check).
//
// What it keeps: each encoder reads its own result back and compares it before returning; there is exactly one private key,
// the key's password is the store's (Cassandra passes only one, and a JVM then says "Cannot recover key"); each decoder
// takes at most MaxSize bytes and bounded work and never panics. It holds no state and writes no file.
package keystore

import (
	"bytes"
	"crypto"
	"crypto/x509"
	"fmt"

	"github.com/cassandra-security-manager/csm/shared/certificate"
	"github.com/cassandra-security-manager/csm/shared/fault"
)

// MaxSize is the most bytes that a store may have.
const MaxSize = 1 << 20

// MaxEntries is the most entries that a store may have.
const MaxEntries = 1000

// Alias is the name of the one key entry in a JKS store. In PKCS#12 the entry has no name, and a JVM calls it "1".
const (
	Alias       = "csm"
	AliasPKCS12 = "1"
)

// Format of a store. Its text is what cassandra.yaml's store_type says.
type Format string

// The formats.
const (
	PKCS12 Format = "PKCS12"
	JKS    Format = "JKS"
	PEM    Format = "PEM"
)

// KeyStore is one private key with its certificate chain, leaf first, without the root if that was not in the store.
type KeyStore struct {
	Key   crypto.Signer
	Chain []*x509.Certificate
	Alias string
	// Others are certificates of the store that are no part of the key's chain.
	Others []*x509.Certificate
}

// Leaf is the certificate of the key; nil when the chain is empty.
func (k *KeyStore) Leaf() *x509.Certificate {
	if len(k.Chain) == 0 {
		return nil
	}
	return k.Chain[0]
}

// EncodeKeyStore writes key and chain (leaf first) in the format. PKCS12 and JKS need an ASCII password of six characters
// or more (keytool's own rule); PEM takes none, because its key stands in PKCS#8 as it is and file mode protects it.
func EncodeKeyStore(f Format, key crypto.Signer, chain []*x509.Certificate, password []byte) ([]byte, error) {
	if key == nil || len(chain) == 0 {
		return nil, fault.New(fault.Invalid, "no-key", "a keystore needs a private key and its certificate")
	}
	if !certificate.SameKey(key.Public(), chain[0].PublicKey) {
		return nil, fault.New(fault.Invalid, "key-mismatch", "the private key does not belong to the first certificate of the chain")
	}
	if err := checkPassword(f, password); err != nil {
		return nil, err
	}
	var data []byte
	var err error
	switch f {
	case PKCS12:
		data, err = encodeKeyP12(key, chain, password)
	case JKS:
		data, err = encodeKeyJKS(key, chain, password)
	default:
		data, err = encodeKeyPEM(key, chain)
	}
	if err != nil {
		return nil, err
	}
	back, err := DecodeKeyStore(f, data, password)
	if err != nil {
		return nil, fault.Wrap(err, fault.Internal, "keystore-readback", "the %s keystore just made cannot be read", f)
	}
	if !certificate.SameKey(back.Key.Public(), key.Public()) || !sameCertificates(back.Chain, chain) {
		return nil, fault.New(fault.Internal, "keystore-readback", "the %s keystore just made holds something else than it should", f)
	}
	return data, nil
}

// EncodeTrustStore writes anchors in the format. An empty list is refused: every handshake would fail.
func EncodeTrustStore(f Format, anchors []*x509.Certificate, password []byte) ([]byte, error) {
	if len(anchors) == 0 {
		return nil, fault.New(fault.Invalid, "empty-truststore", "a truststore without anchors makes every handshake fail")
	}
	if len(anchors) > MaxEntries {
		return nil, fault.New(fault.Invalid, "truststore-too-large", "%d anchors, at most %d", len(anchors), MaxEntries)
	}
	if err := checkPassword(f, password); err != nil {
		return nil, err
	}
	anchors = unique(anchors)
	var data []byte
	var err error
	switch f {
	case PKCS12:
		data, err = encodeTrustP12(anchors, password)
	case JKS:
		data, err = encodeTrustJKS(anchors, password)
	default:
		data = certificate.EncodePEM(anchors...)
	}
	if err != nil {
		return nil, err
	}
	back, err := DecodeTrustStore(f, data, password)
	if err != nil {
		return nil, fault.Wrap(err, fault.Internal, "keystore-readback", "the %s truststore just made cannot be read", f)
	}
	if !sameSet(back, anchors) {
		return nil, fault.New(fault.Internal, "keystore-readback", "the %s truststore just made holds something else than it should", f)
	}
	return data, nil
}

// DecodeKeyStore reads a keystore. Reasons of its faults: "wrong-password", "bad-keystore", "no-key", "several-keys",
// "keystore-too-large", "wrong-format".
func DecodeKeyStore(f Format, data, password []byte) (*KeyStore, error) {
	if err := checkInput(f, data); err != nil {
		return nil, err
	}
	var ks *KeyStore
	var err error
	switch f {
	case PKCS12:
		ks, err = decodeKeyP12(data, password)
	case JKS:
		ks, err = decodeKeyJKS(data, password)
	default:
		ks, err = decodeKeyPEM(data)
	}
	if err != nil {
		return nil, err
	}
	ks.arrange()
	return ks, nil
}

// DecodeTrustStore reads the anchors of a truststore as a JVM would see them: certificates that are not marked as trusted
// do not count. A store that is well-formed but empty is no fault here; Check reports it.
func DecodeTrustStore(f Format, data, password []byte) ([]*x509.Certificate, error) {
	if err := checkInput(f, data); err != nil {
		return nil, err
	}
	switch f {
	case PKCS12:
		return decodeTrustP12(data, password)
	case JKS:
		return decodeTrustJKS(data, password)
	}
	return certificate.DecodePEM(data)
}

// Sniff guesses the format from the first bytes; empty when it is none of them. A DER sequence is taken for PKCS#12 only
// if it begins like one (version 3), so that a bare certificate is not.
func Sniff(data []byte) Format {
	switch {
	case bytes.HasPrefix(data, jksMagic):
		return JKS
	case looksLikeP12(data):
		return PKCS12
	case bytes.Contains(data[:min(len(data), MaxSize)], []byte("-----BEGIN ")):
		return PEM
	}
	return ""
}

func checkInput(f Format, data []byte) error {
	if f != PKCS12 && f != JKS && f != PEM {
		return fault.New(fault.Invalid, "unknown-format", "%.40q is not a store format", string(f)).Do("use PKCS12, JKS or PEM")
	}
	if len(data) > MaxSize {
		return fault.New(fault.Invalid, "keystore-too-large", "a store of %d bytes is not read, at most %d are", len(data), MaxSize)
	}
	if len(data) == 0 {
		return fault.New(fault.Invalid, "bad-keystore", "the store is an empty file")
	}
	if s := Sniff(data); s != "" && s != f {
		return fault.New(fault.Invalid, "wrong-format", "the store is %s, not %s", s, f).Do("make store_type in cassandra.yaml agree with the file")
	}
	return nil
}

func checkPassword(f Format, password []byte) error {
	switch f {
	case PEM:
		if len(password) > 0 {
			return fault.New(fault.Invalid, "pem-password", "a PEM keystore is written without a password").
				Do("remove keystore_password and truststore_password from the TLS sections of cassandra.yaml")
		}
		return nil
	case PKCS12, JKS:
	default:
		return fault.New(fault.Invalid, "unknown-format", "%.40q is not a store format", string(f)).Do("use PKCS12, JKS or PEM")
	}
	if len(password) < 6 {
		return fault.New(fault.Invalid, "short-password", "a %s store needs a password of at least six characters", f).
			Do("set keystore_password and truststore_password in cassandra.yaml; with an empty one a JVM reads no entry at all")
	}
	for _, b := range password {
		if b < 0x20 || b > 0x7e {
			return fault.New(fault.Invalid, "bad-password", "the store password holds a character outside of ASCII").Do("choose printable ASCII: JVMs encode others differently")
		}
	}
	return nil
}

// arrange puts the leaf of the key first and follows its issuers; what does not belong to the chain goes to Others.
func (k *KeyStore) arrange() {
	rest := append([]*x509.Certificate(nil), k.Chain...)
	var chain []*x509.Certificate
	for i, c := range rest {
		if certificate.SameKey(k.Key.Public(), c.PublicKey) {
			chain, rest = append(chain, c), append(rest[:i:i], rest[i+1:]...)
			break
		}
	}
	if len(chain) == 0 {
		return // key mismatch: left as found, Check says so
	}
	for last := chain[0]; !certificate.SelfIssued(last); {
		found := -1
		for i, c := range rest {
			if bytes.Equal(c.RawSubject, last.RawIssuer) && last.CheckSignatureFrom(c) == nil {
				found = i
				break
			}
		}
		if found < 0 || len(chain) > certificate.MaxChain {
			break
		}
		last = rest[found]
		chain, rest = append(chain, last), append(rest[:found:found], rest[found+1:]...)
	}
	k.Chain, k.Others = chain, rest
}

func unique(cs []*x509.Certificate) (out []*x509.Certificate) {
	seen := map[[32]byte]bool{}
	for _, c := range cs {
		if f := certificate.Fingerprint(c.Raw); !seen[f] {
			seen[f] = true
			out = append(out, c)
		}
	}
	return out
}

func sameCertificates(a, b []*x509.Certificate) bool {
	if len(a) != len(b) {
		return false
	}
	for i := range a {
		if !bytes.Equal(a[i].Raw, b[i].Raw) {
			return false
		}
	}
	return true
}

func sameSet(a, b []*x509.Certificate) bool {
	if len(a) != len(b) {
		return false
	}
	want := map[string]bool{}
	for _, c := range a {
		want[string(c.Raw)] = true
	}
	for _, c := range b {
		if !want[string(c.Raw)] {
			return false
		}
	}
	return true
}

// guard turns a panic of a parser library into a fault: a damaged file must never end the agent.
func guard(what string, err *error) {
	if r := recover(); r != nil {
		*err = fault.New(fault.Invalid, "bad-keystore", "the %s store cannot be read: %s", what, fmt.Sprint(r))
	}
}
