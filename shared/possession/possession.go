// Package possession is the proof that who asks for an identity holds a private key that is in use already: a signature
// by that key over what ties it to one TLS connection, one new key and one cluster.
//
// It owns the bytes that are signed. A signature that was overheard or handed on is worth nothing: on another connection
// the exporter is another (RFC 8446, 7.5), and for another new key or cluster the statement is.
package possession

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/binary"

	"github.com/cassandra-security-manager/csm/shared/fault"
)

// Label of the TLS exporter (RFC 5705), in the range that needs no registration.
const Label = "EXPERIMENTAL-csm-join-possession"

// prefix begins every statement, so that no other protocol's signature is one.
const prefix = "csm join by possession, version 1\x00"

// Binding is the value that both ends of one TLS connection know and nobody else.
type Binding [32]byte

// BindingOf exports the binding of an established connection of TLS 1.3.
func BindingOf(cs tls.ConnectionState) (b Binding, err error) {
	if cs.Version < tls.VersionTLS13 {
		return b, fault.New(fault.Refused, "no-binding", "the connection is older than TLS 1.3")
	}
	v, err := cs.ExportKeyingMaterial(Label, nil, len(b))
	if err != nil {
		return b, fault.Wrap(err, fault.Internal, "no-binding", "the connection gives no exporter")
	}
	copy(b[:], v)
	return b, nil
}

// Challenge is what may be told and stored of a binding.
func (b Binding) Challenge() [32]byte { return sha256.Sum256(b[:]) }

// Statement is what is signed: the binding, the SubjectPublicKeyInfo of the new key, and the cluster as the request names it.
func Statement(b Binding, newKey []byte, cluster string) []byte {
	key := sha256.Sum256(newKey)
	out := append([]byte(prefix), b[:]...)
	out = append(out, key[:]...)
	out = binary.BigEndian.AppendUint32(out, uint32(len(cluster)))
	return append(out, cluster...)
}

// Sign signs a statement: ECDSA or RSA-PSS with SHA-256, or Ed25519.
func Sign(key crypto.Signer, statement []byte) ([]byte, error) {
	sum := sha256.Sum256(statement)
	var sig []byte
	var err error
	switch key.Public().(type) {
	case *rsa.PublicKey:
		sig, err = key.Sign(rand.Reader, sum[:], &rsa.PSSOptions{SaltLength: rsa.PSSSaltLengthEqualsHash, Hash: crypto.SHA256})
	case *ecdsa.PublicKey:
		sig, err = key.Sign(rand.Reader, sum[:], crypto.SHA256)
	case ed25519.PublicKey:
		sig, err = key.Sign(rand.Reader, statement, crypto.Hash(0))
	default:
		return nil, unusable()
	}
	if err != nil {
		return nil, fault.Wrap(err, fault.Internal, "no-signature", "Cassandra's key does not sign")
	}
	return sig, nil
}

func unusable() error {
	return fault.New(fault.Refused, "key-unusable", "Cassandra's key is neither RSA nor ECDSA nor Ed25519").Do("join this node by a token: `csm cluster join-command`")
}

// Verify refuses a signature that the certificate's key did not make over the statement.
func Verify(leaf *x509.Certificate, statement, signature []byte) error {
	algorithms := map[x509.PublicKeyAlgorithm]x509.SignatureAlgorithm{x509.RSA: x509.SHA256WithRSAPSS, x509.ECDSA: x509.ECDSAWithSHA256, x509.Ed25519: x509.PureEd25519}
	a, ok := algorithms[leaf.PublicKeyAlgorithm]
	if !ok {
		return unusable()
	}
	if err := leaf.CheckSignature(a, statement, signature); err != nil {
		return fault.New(fault.Refused, "not-possessed", "the signature was not made by the key of that certificate on this connection for this request").
			Do("the agent must read the keystore that Cassandra uses; it tries again on a new connection")
	}
	return nil
}
