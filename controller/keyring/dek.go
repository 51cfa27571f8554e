package keyring

import (
	"bytes"
	"fmt"

	"github.com/tink-crypto/tink-go/v2/aead"
	"github.com/tink-crypto/tink-go/v2/hybrid"
	"github.com/tink-crypto/tink-go/v2/insecurecleartextkeyset"
	"github.com/tink-crypto/tink-go/v2/keyset"
	"github.com/tink-crypto/tink-go/v2/tink"

	clusterv1 "github.com/cassandra-security-manager/csm/protocol/cluster/v1"
	"github.com/cassandra-security-manager/csm/shared/fault"
)

const canaryText = "csm canary: who reads this holds the data encryption key"

func newDEK() (id string, raw Secret, err error) {
	h, err := keyset.NewHandle(aead.AES256GCMKeyTemplate())
	if err != nil {
		return "", Secret{}, fmt.Errorf("keyring: make data encryption key: %w", err)
	}
	var b bytes.Buffer
	if err := insecurecleartextkeyset.Write(h, keyset.NewBinaryWriter(&b)); err != nil {
		return "", Secret{}, fmt.Errorf("keyring: encode data encryption key: %w", err)
	}
	return newID(), NewSecret(b.Bytes()), nil
}

func aeadOf(raw Secret) (tink.AEAD, error) {
	h, err := insecurecleartextkeyset.Read(keyset.NewBinaryReader(bytes.NewReader(raw.b())))
	if err != nil {
		return nil, fault.New(fault.Internal, "bad-dek", "a data encryption key has an unknown form").Do("compare the versions of all controllers")
	}
	a, err := aead.New(h)
	if err != nil {
		return nil, fmt.Errorf("keyring: AEAD: %w", err)
	}
	return a, nil
}

func canaryAAD(id string) []byte { return []byte("csm canary v1\x00" + id) }

func sealCanary(id string, raw Secret) ([]byte, error) {
	a, err := aeadOf(raw)
	if err != nil {
		return nil, err
	}
	return a.Encrypt([]byte(canaryText), canaryAAD(id))
}

func openCanary(id string, raw Secret, canary []byte) (tink.AEAD, error) {
	a, err := aeadOf(raw)
	if err != nil {
		return nil, err
	}
	text, err := a.Decrypt(canary, canaryAAD(id))
	if err != nil || string(text) != canaryText {
		return nil, fault.New(fault.Internal, "canary", "the canary of data encryption key %s does not open", id).
			Do("this controller's state differs from what was wrapped: compare with `csm status --verify`")
	}
	return a, nil
}

func wrap(id string, raw Secret, recipient string, public []byte) (*clusterv1.DekWrap, error) {
	h, err := keyset.ReadWithNoSecrets(keyset.NewBinaryReader(bytes.NewReader(public)))
	if err != nil || len(public) > 1024 {
		return nil, fault.New(fault.Invalid, "bad-kek", "the key encryption key of %s cannot be read", recipient).Do("send the public key set as `Keyring.Public` gives it")
	}
	e, err := hybrid.NewHybridEncrypt(h)
	if err != nil {
		return nil, fault.New(fault.Invalid, "bad-kek", "the key encryption key of %s is not an HPKE key", recipient).Do("send the public key set as `Keyring.Public` gives it")
	}
	w, err := e.Encrypt(raw.b(), wrapContext(id, recipient))
	if err != nil {
		return nil, fmt.Errorf("keyring: wrap for %s: %w", recipient, err)
	}
	return &clusterv1.DekWrap{Dek: id, Recipient: recipient, RecipientPublic: public, Wrapped: w}, nil
}
