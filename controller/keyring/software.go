package keyring

import (
	"context"
	"crypto"
	"crypto/x509"

	"github.com/cassandra-security-manager/csm/shared/certificate"
)

const kindSoftware = "software"

// keyAAD binds a sealed key to its name: a blob moved to another row does not open.
func keyAAD(name string) string { return "csm key v1\x00" + name }

// software signs in this process.
type software struct {
	crypto.Signer
	name string
}

func (s *software) Key() string { return s.name }

// String keeps the key out of prints of a signer.
func (s *software) String() string { return "key " + s.name + " " + redacted }

// GoString as String.
func (s *software) GoString() string { return s.String() }

// openSoftware opens a sealed key and compares it with the public key that stands beside it.
func (k *Keyring) openSoftware(ctx context.Context, name string, blob, public []byte) (Signer, error) {
	plain, err := k.Open(ctx, keyAAD(name), blob)
	if err != nil {
		return nil, err
	}
	defer plain.Zero()
	key, err := certificate.ParseKey(plain.b())
	if err != nil {
		return nil, unsealable(name)
	}
	pub, err := x509.ParsePKIXPublicKey(public)
	if err != nil || !certificate.SameKey(pub, key.Public()) {
		return nil, unsealable(name)
	}
	return &software{Signer: key, name: name}, nil
}
