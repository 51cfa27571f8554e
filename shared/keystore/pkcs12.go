package keystore

import (
	"crypto"
	"crypto/x509"
	"encoding/asn1"
	"errors"
	"math/big"
	"strings"

	"software.sslmate.com/src/go-pkcs12"

	"github.com/cassandra-security-manager/csm/shared/certificate"
	"github.com/cassandra-security-manager/csm/shared/fault"
)

// maxIterations bounds the key derivation rounds that all parts of a file together may ask for: keytool writes 10,000 for
// each, and a hostile file could ask for 2^31.
const maxIterations = 5_000_000

// encodeKeyP12 writes Modern2023 (AES-256-CBC, PBKDF2 with SHA-256), which JDK 8u301, 11.0.12 and newer read.
func encodeKeyP12(key crypto.Signer, chain []*x509.Certificate, password []byte) ([]byte, error) {
	data, err := pkcs12.Modern2023.Encode(key, chain[0], chain[1:], string(password))
	if err != nil {
		return nil, fault.Wrap(err, fault.Internal, "keystore-encode", "the PKCS#12 keystore could not be made")
	}
	return data, nil
}

// encodeTrustP12 marks each anchor with Java's trustedKeyUsage attribute (2.16.840.1.113894.746875.1.1); without it a JVM
// loads no entry at all, as with `openssl pkcs12 -export -nokeys`.
func encodeTrustP12(anchors []*x509.Certificate, password []byte) ([]byte, error) {
	entries := make([]pkcs12.TrustStoreEntry, len(anchors))
	for i, c := range anchors {
		entries[i] = pkcs12.TrustStoreEntry{Cert: c, FriendlyName: anchorAlias(c)}
	}
	data, err := pkcs12.Modern2023.EncodeTrustStoreEntries(entries, string(password))
	if err != nil {
		return nil, fault.Wrap(err, fault.Internal, "keystore-encode", "the PKCS#12 truststore could not be made")
	}
	return data, nil
}

// anchorAlias names an anchor by its fingerprint: unique in a store, the same on each node.
func anchorAlias(c *x509.Certificate) string {
	return "csm-" + certificate.Hex(certificate.Fingerprint(c.Raw))[:16]
}

func decodeKeyP12(data, password []byte) (ks *KeyStore, err error) {
	defer guard("PKCS#12", &err)
	if err := boundP12(data); err != nil {
		return nil, err
	}
	key, leaf, rest, err := pkcs12.DecodeChain(data, string(password))
	if err != nil {
		return nil, p12Fault(err)
	}
	s, ok := key.(crypto.Signer)
	if !ok {
		return nil, fault.New(fault.Invalid, "bad-keystore", "the PKCS#12 store holds a private key of type %T", key)
	}
	return &KeyStore{Key: s, Chain: append([]*x509.Certificate{leaf}, rest...), Alias: AliasPKCS12}, nil
}

func decodeTrustP12(data, password []byte) (cs []*x509.Certificate, err error) {
	defer guard("PKCS#12", &err)
	if err := boundP12(data); err != nil {
		return nil, err
	}
	cs, err = pkcs12.DecodeTrustStore(data, string(password))
	if err != nil {
		return nil, p12Fault(err)
	}
	return cs, nil
}

func p12Fault(err error) error {
	m := err.Error()
	switch {
	case errors.Is(err, pkcs12.ErrIncorrectPassword), errors.Is(err, pkcs12.ErrDecryption):
		return fault.New(fault.Invalid, "wrong-password", "the password does not open the PKCS#12 store").Do("compare it with keystore_password or truststore_password in cassandra.yaml")
	case strings.Contains(m, "exactly one key bag"):
		return fault.New(fault.Invalid, "several-keys", "the PKCS#12 keystore holds more than one private key").
			Do("keep exactly one: a JVM takes the first that matches, whichever that is")
	case strings.Contains(m, "private key missing"), strings.Contains(m, "certificate missing"):
		return fault.New(fault.Invalid, "no-key", "the PKCS#12 keystore holds no private key with a certificate")
	case strings.Contains(m, "not marked as trusted"):
		return fault.New(fault.Invalid, "untrusted-entries", "the PKCS#12 truststore holds certificates that are not marked as trusted, so a JVM does not see them").
			Do("import them with `keytool -importcert -trustcacerts`; openssl cannot make a Java truststore")
	}
	return fault.Wrap(err, fault.Invalid, "bad-keystore", "the PKCS#12 store cannot be read")
}

// looksLikeP12 sees SEQUENCE { INTEGER 3, ... }.
func looksLikeP12(data []byte) bool {
	var outer asn1.RawValue
	if len(data) < 8 || data[0] != 0x30 {
		return false
	}
	if _, err := asn1.Unmarshal(data, &outer); err != nil {
		// Truncated or with trailing bytes: look behind the length only.
		i := 2
		if data[1] > 0x80 {
			i += int(data[1] & 0x7f)
		}
		return i+3 <= len(data) && data[i] == 2 && data[i+1] == 1 && data[i+2] == 3
	}
	b := outer.Bytes
	return len(b) > 3 && b[0] == 2 && b[1] == 1 && b[2] == 3
}

// boundP12 adds up the derivation rounds before any is run. In each structure that has some (PBES1, PBKDF2, MacData) the
// count is the INTEGER right behind the salt, an OCTET STRING.
func boundP12(data []byte) error {
	sum, nodes := new(big.Int), 0
	sumIterations(data, sum, &nodes, 0)
	if sum.Cmp(big.NewInt(maxIterations)) > 0 || nodes > 200_000 {
		return fault.New(fault.Invalid, "keystore-too-costly", "the PKCS#12 store asks for %s rounds of key derivation, at most %d are run", sum, maxIterations).
			Do("make it again with keytool's defaults")
	}
	return nil
}

func sumIterations(data []byte, sum *big.Int, nodes *int, depth int) {
	afterSalt := false
	for len(data) > 0 && depth < 24 && *nodes <= 200_000 {
		*nodes++
		var v asn1.RawValue
		rest, err := asn1.Unmarshal(data, &v)
		if err != nil {
			return
		}
		switch {
		case v.Class == asn1.ClassUniversal && v.Tag == asn1.TagInteger:
			if afterSalt {
				sum.Add(sum, new(big.Int).Abs(new(big.Int).SetBytes(v.Bytes)))
			}
		case v.IsCompound, v.Class == asn1.ClassUniversal && v.Tag == asn1.TagOctetString && len(v.Bytes) > 2 && v.Bytes[0] == 0x30:
			sumIterations(v.Bytes, sum, nodes, depth+1)
		}
		afterSalt = v.Class == asn1.ClassUniversal && v.Tag == asn1.TagOctetString
		data = rest
	}
}
