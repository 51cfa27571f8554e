package keyring

import (
	"crypto/aes"
	"crypto/cipher"
	"crypto/hkdf"
	"crypto/rand"
	"crypto/sha512"
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/crypto/argon2"

	"github.com/cassandra-security-manager/csm/shared/fault"
)

// Sealer protects the KEK file of one controller on its disk. aad is bound to the sealed bytes.
type Sealer interface {
	// Kind is the word for it in the configuration (seal.type).
	Kind() string
	Seal(plain Secret, aad []byte) ([]byte, error)
	// Open fails with reason "wrong-kek-seal" for a wrong secret and for changed bytes.
	Open(sealed, aad []byte) (Secret, error)
}

// SealConfig is the seal section of controller.yaml.
type SealConfig struct {
	// Type is "file", "systemd-credential" or "passphrase".
	Type string
	// Path of the master key file or passphrase file.
	Path string
	// Name of the systemd credential.
	Name string
}

// NewSealer makes the Sealer of a configuration.
func NewSealer(c SealConfig) (Sealer, error) {
	switch c.Type {
	case "file":
		if c.Path != "" {
			return FileSealer{Path: c.Path}, nil
		}
		return nil, fault.New(fault.Invalid, "bad-seal", "seal.type file needs seal.path").Do("set seal.path to a file outside of data_dir; it is made if it does not exist")
	case "systemd-credential":
		if c.Name != "" && c.Name == filepath.Base(c.Name) {
			return CredentialSealer{Name: c.Name}, nil
		}
		return nil, fault.New(fault.Invalid, "bad-seal", "seal.type systemd-credential needs seal.name").Do("set seal.name to the name in LoadCredentialEncrypted= of the unit")
	case "passphrase":
		if c.Path != "" {
			return PassphraseSealer{Path: c.Path}, nil
		}
		return nil, fault.New(fault.Invalid, "bad-seal", "seal.type passphrase needs seal.path").Do("set seal.path to a file with mode 0600 that holds the passphrase")
	}
	return nil, fault.New(fault.Invalid, "bad-seal", "seal.type %.40q is not known", c.Type).Do("use file, systemd-credential or passphrase")
}

// FileSealer seals by 32 random bytes in a file of mode 0600, made at the first Seal. It protects a stolen backup of the
// data folder, not a stolen machine.
type FileSealer struct{ Path string }

// Kind is "file".
func (FileSealer) Kind() string { return "file" }

// Seal makes the master key if there is none.
func (s FileSealer) Seal(plain Secret, aad []byte) ([]byte, error) {
	if _, err := os.Lstat(s.Path); errors.Is(err, fs.ErrNotExist) {
		key := make([]byte, 32)
		_, _ = rand.Read(key) // never fails (crypto/rand, Go 1.24)
		defer clear(key)
		if err := os.MkdirAll(filepath.Dir(s.Path), 0o700); err != nil {
			return nil, fault.Wrap(err, fault.Internal, "kek-write", "the folder of the master key cannot be made")
		}
		if err := writeNew(s.Path, key); err != nil {
			return nil, err
		}
	}
	key, err := s.key()
	if err != nil {
		return nil, err
	}
	defer key.Zero()
	return gcmSeal(key.b(), plain.b(), aad)
}

// Open reads the master key file, which must be mode 0600 or tighter.
func (s FileSealer) Open(sealed, aad []byte) (Secret, error) {
	key, err := s.key()
	if err != nil {
		return Secret{}, err
	}
	defer key.Zero()
	return gcmOpen(key.b(), sealed, aad)
}

func (s FileSealer) key() (Secret, error) {
	b, err := readPrivate(s.Path)
	if err != nil {
		return Secret{}, err
	}
	if len(b) != 32 {
		return Secret{}, fault.New(fault.Invalid, "bad-master-key", "%s does not hold 32 bytes", s.Path).Do("restore the master key file; it cannot be made again")
	}
	return NewSecret(b), nil
}

// CredentialSealer seals by a systemd credential of at least 32 bytes (systemd.exec(5), LoadCredentialEncrypted=), which systemd
// can bind to the TPM.
type CredentialSealer struct{ Name string }

// Kind is "systemd-credential".
func (CredentialSealer) Kind() string { return "systemd-credential" }

// Seal derives a key from the credential by HKDF-SHA512.
func (s CredentialSealer) Seal(plain Secret, aad []byte) ([]byte, error) {
	key, err := s.key()
	if err != nil {
		return nil, err
	}
	defer key.Zero()
	return gcmSeal(key.b(), plain.b(), aad)
}

// Open as Seal.
func (s CredentialSealer) Open(sealed, aad []byte) (Secret, error) {
	key, err := s.key()
	if err != nil {
		return Secret{}, err
	}
	defer key.Zero()
	return gcmOpen(key.b(), sealed, aad)
}

func (s CredentialSealer) key() (Secret, error) {
	dir := os.Getenv("CREDENTIALS_DIRECTORY")
	if dir == "" {
		return Secret{}, fault.New(fault.Unavailable, "no-credential", "systemd gave no credentials to this process").
			Do("run it from its unit with LoadCredentialEncrypted=%s:…", s.Name)
	}
	b, err := os.ReadFile(filepath.Join(dir, s.Name))
	if err != nil {
		return Secret{}, fault.Wrap(err, fault.Unavailable, "no-credential", "the credential %s cannot be read", s.Name).Do("name it in the unit: LoadCredentialEncrypted=%s:…", s.Name)
	}
	defer clear(b)
	if len(b) < 32 {
		return Secret{}, fault.New(fault.Invalid, "weak-credential", "the credential %s has %d bytes, 32 are needed", s.Name, len(b)).
			Do("make it with `head -c 32 /dev/urandom | systemd-creds encrypt --name=%s - …`", s.Name)
	}
	key, err := hkdf.Key(sha512.New, b, nil, "csm kek v1", 32)
	if err != nil {
		return Secret{}, fmt.Errorf("keyring: derive: %w", err)
	}
	return NewSecret(key), nil
}

// PassphraseSealer seals by a passphrase in a file of mode 0600, stretched by argon2id (RFC 9106, second recommended option:
// 3 passes, 64 MiB, 4 lanes).
type PassphraseSealer struct{ Path string }

// Kind is "passphrase".
func (PassphraseSealer) Kind() string { return "passphrase" }

const (
	saltLen      = 16
	argonTime    = 3
	argonMemory  = 64 << 10 // KiB
	argonThreads = 4
	minPhrase    = 12
)

// Seal writes the parameters and the salt before the sealed bytes.
func (s PassphraseSealer) Seal(plain Secret, aad []byte) ([]byte, error) {
	head := make([]byte, 9+saltLen)
	binary.BigEndian.PutUint32(head, argonTime)
	binary.BigEndian.PutUint32(head[4:], argonMemory)
	head[8] = argonThreads
	_, _ = rand.Read(head[9:]) // never fails (crypto/rand, Go 1.24)
	key, err := s.key(head)
	if err != nil {
		return nil, err
	}
	defer key.Zero()
	blob, err := gcmSeal(key.b(), plain.b(), append(head[:len(head):len(head)], aad...))
	return append(head, blob...), err
}

// Open reads the parameters from the sealed bytes and refuses absurd ones before it spends memory on them.
func (s PassphraseSealer) Open(sealed, aad []byte) (Secret, error) {
	if len(sealed) < 9+saltLen {
		return Secret{}, wrongSeal("the key encryption key")
	}
	head := sealed[: 9+saltLen : 9+saltLen]
	t, m := binary.BigEndian.Uint32(head), binary.BigEndian.Uint32(head[4:])
	if t == 0 || t > 16 || m < 8<<10 || m > 1<<20 || head[8] == 0 || head[8] > 16 {
		return Secret{}, wrongSeal("the key encryption key")
	}
	key, err := s.key(head)
	if err != nil {
		return Secret{}, err
	}
	defer key.Zero()
	return gcmOpen(key.b(), sealed[9+saltLen:], append(head, aad...))
}

func (s PassphraseSealer) key(head []byte) (Secret, error) {
	b, err := readPrivate(s.Path)
	if err != nil {
		return Secret{}, err
	}
	defer clear(b)
	phrase := []byte(strings.TrimRight(string(b), "\r\n"))
	defer clear(phrase)
	if len(phrase) < minPhrase {
		return Secret{}, fault.New(fault.Invalid, "weak-passphrase", "the passphrase in %s has %d characters, %d are needed", s.Path, len(phrase), minPhrase).
			Do("use a longer one before the first start")
	}
	return NewSecret(argon2.IDKey(phrase, head[9:9+saltLen], binary.BigEndian.Uint32(head), binary.BigEndian.Uint32(head[4:]), head[8], 32)), nil
}

func gcm(key []byte) (cipher.AEAD, error) {
	b, err := aes.NewCipher(key)
	if err != nil {
		return nil, fmt.Errorf("keyring: AES: %w", err)
	}
	return cipher.NewGCMWithRandomNonce(b)
}

func gcmSeal(key, plain, aad []byte) ([]byte, error) {
	g, err := gcm(key)
	if err != nil {
		return nil, err
	}
	return g.Seal(nil, nil, plain, aad), nil
}

func gcmOpen(key, sealed, aad []byte) (Secret, error) {
	g, err := gcm(key)
	if err != nil {
		return Secret{}, err
	}
	plain, err := g.Open(nil, nil, sealed, aad)
	if err != nil {
		return Secret{}, wrongSeal("the key encryption key")
	}
	return NewSecret(plain), nil
}
