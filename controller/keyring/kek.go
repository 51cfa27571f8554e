package keyring

import (
	"bytes"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/tink-crypto/tink-go/v2/hybrid"
	"github.com/tink-crypto/tink-go/v2/hybrid/hpke"
	"github.com/tink-crypto/tink-go/v2/insecurecleartextkeyset"
	"github.com/tink-crypto/tink-go/v2/keyset"

	"github.com/cassandra-security-manager/csm/shared/fault"
)

// KEK is a key encryption key: an HPKE key pair (RFC 9180: DHKEM(P-384, HKDF-SHA384), HKDF-SHA384, AES-256-GCM).
type KEK struct {
	handle *keyset.Handle
	public []byte
}

// kekFile is <dir>/kek.json: the private key set sealed by the Sealer, the public one beside it.
type kekFile struct {
	Format int    `json:"format"`
	Sealer string `json:"sealer"`
	Public []byte `json:"public"`
	Sealed []byte `json:"sealed"`
}

const kekName = "kek.json"

func newKEK() (*KEK, error) {
	params, err := hpke.NewParameters(hpke.ParametersOpts{KEMID: hpke.DHKEM_P384_HKDF_SHA384, KDFID: hpke.HKDFSHA384,
		AEADID: hpke.AES256GCM, Variant: hpke.VariantTink})
	if err != nil {
		return nil, fmt.Errorf("keyring: HPKE parameters: %w", err)
	}
	m := keyset.NewManager()
	id, err := m.AddNewKeyFromParameters(params)
	if err != nil {
		return nil, fmt.Errorf("keyring: make key encryption key: %w", err)
	}
	if err := m.SetPrimary(id); err != nil {
		return nil, fmt.Errorf("keyring: make key encryption key: %w", err)
	}
	h, err := m.Handle()
	if err != nil {
		return nil, fmt.Errorf("keyring: make key encryption key: %w", err)
	}
	return kekOf(h)
}

func kekOf(h *keyset.Handle) (*KEK, error) {
	pub, err := h.Public()
	if err != nil {
		return nil, fmt.Errorf("keyring: public part: %w", err)
	}
	var b bytes.Buffer
	if err := pub.WriteWithNoSecrets(keyset.NewBinaryWriter(&b)); err != nil {
		return nil, fmt.Errorf("keyring: public part: %w", err)
	}
	return &KEK{handle: h, public: b.Bytes()}, nil
}

// Public is the public key set (tink, binary), under 1 KiB.
func (k *KEK) Public() []byte { return bytes.Clone(k.public) }

// Fingerprint is the SHA-256 of a public key set in hex: what two people compare before a DEK is wrapped to it.
func Fingerprint(public []byte) string {
	sum := sha256.Sum256(public)
	return hex.EncodeToString(sum[:])
}

func (k *KEK) private() (Secret, error) {
	var b bytes.Buffer
	if err := insecurecleartextkeyset.Write(k.handle, keyset.NewBinaryWriter(&b)); err != nil {
		return Secret{}, fmt.Errorf("keyring: encode key encryption key: %w", err)
	}
	return NewSecret(b.Bytes()), nil
}

func kekFrom(private Secret) (*KEK, error) {
	h, err := insecurecleartextkeyset.Read(keyset.NewBinaryReader(bytes.NewReader(private.b())))
	if err != nil {
		return nil, errors.New("not a key encryption key") // tink's own error could quote the bytes
	}
	return kekOf(h)
}

// CreateKEK makes a controller's KEK in dir (made with mode 0700), sealed by s. An existing one is never overwritten.
func CreateKEK(dir string, s Sealer) (*KEK, error) {
	path := filepath.Join(dir, kekName)
	if _, err := os.Lstat(path); !errors.Is(err, fs.ErrNotExist) {
		return nil, fault.New(fault.Conflict, "kek-exists", "there is a key encryption key at %s", path).
			Do("keep it: what is wrapped to it opens with nothing else")
	}
	k, err := newKEK()
	if err != nil {
		return nil, err
	}
	private, err := k.private()
	if err != nil {
		return nil, err
	}
	defer private.Zero()
	blob, err := s.Seal(private, k.public)
	if err != nil {
		return nil, err
	}
	data, err := json.MarshalIndent(kekFile{Format: 1, Sealer: s.Kind(), Public: k.public, Sealed: blob}, "", "  ")
	if err != nil {
		return nil, fmt.Errorf("keyring: encode %s: %w", path, err)
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fault.Wrap(err, fault.Internal, "kek-write", "the folder of the key encryption key cannot be made")
	}
	if err := writeNew(path, append(data, '\n')); err != nil {
		return nil, err
	}
	return LoadKEK(dir, s) // read back what was written before anything depends on it
}

// LoadKEK opens the KEK in dir. Reasons: "no-kek", "wrong-sealer", "wrong-kek-seal" (a wrong passphrase or master key, or a
// changed file; these cannot be told apart).
func LoadKEK(dir string, s Sealer) (*KEK, error) {
	path := filepath.Join(dir, kekName)
	data, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fault.New(fault.NotFound, "no-kek", "there is no key encryption key at %s", path).
			Do("a new controller makes one with `csm-controller init` or `join`; a lost one means removing this controller and joining again")
	}
	if err != nil {
		return nil, fault.Wrap(err, fault.Internal, "kek-read", "the key encryption key cannot be read")
	}
	var f kekFile
	if err := json.Unmarshal(data, &f); err != nil || f.Format != 1 {
		return nil, fault.New(fault.Internal, "kek-broken", "%s is not a key encryption key of this version", path).Do("restore the file, or remove this controller and join again")
	}
	if f.Sealer != s.Kind() {
		return nil, fault.New(fault.Invalid, "wrong-sealer", "%s is sealed by %q, the configuration says %q", path, f.Sealer, s.Kind()).
			Do("set seal.type to %s", f.Sealer)
	}
	private, err := s.Open(f.Sealed, f.Public)
	if err != nil {
		return nil, err
	}
	defer private.Zero()
	k, err := kekFrom(private)
	if err != nil || !bytes.Equal(k.public, f.Public) {
		return nil, wrongSeal(path)
	}
	return k, nil
}

func wrongSeal(what string) error {
	return fault.New(fault.Refused, "wrong-kek-seal", "%s does not open: wrong master key or passphrase, or the file was changed", what).
		Do("check seal.* in the configuration and the file that it names")
}

// context binds a wrapped DEK to its id and recipient.
func wrapContext(id, recipient string) []byte {
	return []byte("csm dek v1\x00" + id + "\x00" + recipient)
}

func (k *KEK) unwrap(id, recipient string, wrapped []byte) (Secret, error) {
	d, err := hybrid.NewHybridDecrypt(k.handle)
	if err != nil {
		return Secret{}, fmt.Errorf("keyring: HPKE: %w", err)
	}
	raw, err := d.Decrypt(wrapped, wrapContext(id, recipient))
	if err != nil {
		return Secret{}, fault.New(fault.Refused, "wrong-kek", "the data encryption key %s is not wrapped to the key encryption key of this machine", id).
			Do("if its kek folder was restored or made anew, remove this controller and join again")
	}
	return NewSecret(raw), nil
}

const recoveryPrefix = "csm-recovery-1:"

// NewRecovery makes the offline recovery key. public goes to Initialise; share is one line of text to be written down and
// kept away from every controller: with a copy of the state it opens everything.
func NewRecovery() (public []byte, share Secret, err error) {
	k, err := newKEK()
	if err != nil {
		return nil, Secret{}, err
	}
	private, err := k.private()
	if err != nil {
		return nil, Secret{}, err
	}
	defer private.Zero()
	return k.Public(), NewSecret([]byte(recoveryPrefix + base64.RawURLEncoding.EncodeToString(private.b()))), nil
}

// OpenRecovery turns a share back into a key: New(store, log, kek, RecoveryRecipient) is a keyring that unseals by it.
func OpenRecovery(share Secret) (*KEK, error) {
	text, ok := bytes.CutPrefix(bytes.TrimSpace(share.b()), []byte(recoveryPrefix))
	raw := make([]byte, base64.RawURLEncoding.DecodedLen(len(text)))
	n, err := base64.RawURLEncoding.Decode(raw, text)
	private := NewSecret(raw[:n])
	defer private.Zero()
	if ok && err == nil {
		if k, err := kekFrom(private); err == nil {
			return k, nil
		}
	}
	return nil, fault.New(fault.Invalid, "bad-recovery-share", "this is not a recovery share").Do("it is one line beginning with %s", recoveryPrefix)
}

// WrapFor encrypts a short secret to a public key set (HPKE). purpose is bound to it: Unwrap with another one fails.
func WrapFor(public []byte, purpose string, secret []byte) ([]byte, error) {
	h, err := keyset.ReadWithNoSecrets(keyset.NewBinaryReader(bytes.NewReader(public)))
	if err != nil {
		return nil, fault.New(fault.Invalid, "bad-kek", "a public key of the keyring cannot be read").Do("compare the state of all controllers with `csm status --verify`")
	}
	e, err := hybrid.NewHybridEncrypt(h)
	if err != nil {
		return nil, fmt.Errorf("keyring: HPKE: %w", err)
	}
	return e.Encrypt(secret, []byte("csm wrap v1\x00"+purpose))
}

// Unwrap reverses WrapFor.
func (k *KEK) Unwrap(purpose string, wrapped []byte) ([]byte, error) {
	d, err := hybrid.NewHybridDecrypt(k.handle)
	if err != nil {
		return nil, fmt.Errorf("keyring: HPKE: %w", err)
	}
	return d.Decrypt(wrapped, []byte("csm wrap v1\x00"+purpose))
}
