// Package keyring owns where private keys live. A software key is sealed under a data encryption key (DEK, AES-256-GCM);
// the DEK is wrapped (HPKE) to a key encryption key (KEK) that was born on each controller and never leaves it, and to
// one offline recovery recipient. Only sealed bytes and public keys reach the log.
//
// It refuses to seal or sign before it has opened a canary with each DEK, and it never returns a private key: callers
// get a Signer. Its invariant: whatever stands in the replicated state opens only on a machine that holds a KEK to
// which an administrator had the DEK wrapped.
package keyring

import (
	"context"
	"crypto"
	"crypto/rand"
	"crypto/x509"
	"database/sql"
	"encoding/hex"
	"errors"
	"fmt"
	"sync"

	"github.com/tink-crypto/tink-go/v2/tink"

	"github.com/cassandra-security-manager/csm/controller/state"
	clusterv1 "github.com/cassandra-security-manager/csm/protocol/cluster/v1"
	"github.com/cassandra-security-manager/csm/shared/algorithm"
	"github.com/cassandra-security-manager/csm/shared/fault"
	"github.com/cassandra-security-manager/csm/shared/resource"
)

// RecoveryRecipient is the name under which a DEK is wrapped to the offline recovery key.
const RecoveryRecipient = "recovery"

// Store is what the keyring needs of the state machine.
type Store interface {
	View(ctx context.Context, fn func(ctx context.Context, q state.Querier) error) error
}

// Signer signs with a key of the ring. The software kind holds the opened key in memory; a token or a vault is asked at
// each signature and may fail.
type Signer interface {
	crypto.Signer
	// Key is the name of the key in the ring.
	Key() string
}

// KeyInfo is what may be known of a key.
type KeyInfo struct {
	Name      string
	Kind      string
	Algorithm algorithm.Key
	Public    crypto.PublicKey
}

// Keyring opens and uses the keys of one controller.
type Keyring struct {
	store     Store
	log       state.Log
	kek       *KEK
	recipient string

	mu      sync.RWMutex
	deks    map[string]dek
	signers map[string]Signer
}

type dek struct {
	aead tink.AEAD
	raw  Secret
}

// New makes the keyring of a controller, sealed. recipient is the controller's name, or RecoveryRecipient for a ring that
// is opened with the recovery share.
func New(store Store, log state.Log, kek *KEK, recipient string) *Keyring {
	return &Keyring{store: store, log: log, kek: kek, recipient: recipient, deks: map[string]dek{}, signers: map[string]Signer{}}
}

// Public is this controller's KEK, public part: what WrapFor takes on an unsealed controller.
func (k *Keyring) Public() []byte { return k.kek.Public() }

func (k *Keyring) propose(ctx context.Context, p state.Proposal) error {
	_, err := k.log.Propose(ctx, p)
	return err
}

// Initialise makes the first DEK with its canary, wraps it to this controller and to the recovery recipient, and opens the
// ring. A second call is refused with reason "keyring-initialised".
func (k *Keyring) Initialise(ctx context.Context, actor string, recoveryPublic []byte) error {
	id, raw, err := newDEK()
	if err != nil {
		return err
	}
	defer raw.Zero()
	canary, err := sealCanary(id, raw)
	if err != nil {
		return err
	}
	cmd := &clusterv1.InitialiseKeyring{Dek: id, Canary: canary}
	for recipient, public := range map[string][]byte{k.recipient: k.kek.Public(), RecoveryRecipient: recoveryPublic} {
		w, err := wrap(id, raw, recipient, public)
		if err != nil {
			return err
		}
		cmd.Wraps = append(cmd.Wraps, w)
	}
	if err := k.propose(ctx, state.Proposal{Command: cmd, Actor: actor, Reason: "first data encryption key"}); err != nil {
		return err
	}
	return k.Unseal(ctx)
}

// Unsealed says whether keys can be used now.
func (k *Keyring) Unsealed() bool {
	k.mu.RLock()
	defer k.mu.RUnlock()
	return len(k.deks) > 0
}

func sealed() error {
	return fault.New(fault.Unavailable, "sealed", "this controller is sealed: no data encryption key is wrapped to it or its key encryption key does not open").
		Do("on an unsealed controller approve this one with `csm system controllers`, then `csm-controller unseal` here")
}

// Unseal loads every DEK that is wrapped to this controller and opens the canary of each. It fails with reason "not-wrapped"
// while none is, and with "wrong-kek" when one does not open. It may be called again at any time.
func (k *Keyring) Unseal(ctx context.Context) error {
	type row struct {
		id              string
		wrapped, canary []byte
	}
	var rows []row
	err := k.store.View(ctx, func(ctx context.Context, q state.Querier) error {
		rs, err := q.QueryContext(ctx, `SELECT d.id, w.wrapped, d.canary FROM dek_wraps w JOIN deks d ON d.id = w.dek WHERE w.recipient = ? ORDER BY d.id`, k.recipient)
		if err != nil {
			return err
		}
		defer rs.Close()
		for rs.Next() {
			var r row
			if err := rs.Scan(&r.id, &r.wrapped, &r.canary); err != nil {
				return err
			}
			rows = append(rows, r)
		}
		return rs.Err()
	})
	if err != nil {
		return err
	}
	if len(rows) == 0 {
		return fault.New(fault.Unavailable, "not-wrapped", "no data encryption key is wrapped to %s", k.recipient).
			Do("approve this controller on an unsealed one: `csm system controllers`")
	}
	opened := map[string]dek{}
	for _, r := range rows {
		raw, err := k.kek.unwrap(r.id, k.recipient, r.wrapped)
		if err != nil {
			return err
		}
		a, err := openCanary(r.id, raw, r.canary)
		if err != nil {
			return err
		}
		opened[r.id] = dek{aead: a, raw: raw}
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	k.deks = opened
	return nil
}

// Seal encrypts plaintext under the active DEK. aad says what it is and must be given again to Open. The result names its DEK.
func (k *Keyring) Seal(ctx context.Context, aad string, plaintext Secret) ([]byte, error) {
	id, d, err := k.active(ctx)
	if err != nil {
		return nil, err
	}
	return d.seal(id, aad, plaintext.b())
}

// Open reverses Seal. A changed byte, another aad and an unknown DEK are refused alike, with reason "unsealable".
func (k *Keyring) Open(ctx context.Context, aad string, blob []byte) (Secret, error) {
	id, ciphertext, err := split(blob)
	if err != nil {
		return Secret{}, err
	}
	d, err := k.dek(ctx, id)
	if err != nil {
		return Secret{}, err
	}
	plain, err := d.aead.Decrypt(ciphertext, []byte(aad))
	if err != nil {
		return Secret{}, unsealable(aad)
	}
	return NewSecret(plain), nil
}

// Current says whether a blob is sealed under the active data encryption key, which is replaced when a controller is removed.
func (k *Keyring) Current(ctx context.Context, blob []byte) (bool, error) {
	id, _, err := split(blob)
	if err != nil {
		return false, err
	}
	active, _, err := k.active(ctx)
	return id == active, err
}

func unsealable(what string) error {
	return fault.New(fault.Internal, "unsealable", "what is sealed as %.200q does not open: it was changed, moved, or sealed under another key", what).
		Do("compare the state of all controllers with `csm status --verify`")
}

func (d dek) seal(id, aad string, plaintext []byte) ([]byte, error) {
	c, err := d.aead.Encrypt(plaintext, []byte(aad))
	if err != nil {
		return nil, fmt.Errorf("keyring: seal: %w", err)
	}
	return append(append([]byte{byte(len(id))}, id...), c...), nil
}

func split(blob []byte) (id string, ciphertext []byte, err error) {
	if len(blob) == 0 || len(blob) < 1+int(blob[0]) {
		return "", nil, unsealable("a blob that is too short")
	}
	return string(blob[1 : 1+blob[0]]), blob[1+blob[0]:], nil
}

// dek finds a DEK, looking again in the state if another controller has made it since.
func (k *Keyring) dek(ctx context.Context, id string) (dek, error) {
	k.mu.RLock()
	d, ok := k.deks[id]
	k.mu.RUnlock()
	if ok {
		return d, nil
	}
	if err := k.Unseal(ctx); err != nil {
		return dek{}, err
	}
	k.mu.RLock()
	defer k.mu.RUnlock()
	if d, ok = k.deks[id]; !ok {
		return dek{}, unsealable("data encryption key " + id)
	}
	return d, nil
}

func (k *Keyring) active(ctx context.Context) (string, dek, error) {
	if !k.Unsealed() {
		return "", dek{}, sealed()
	}
	var id string
	err := k.store.View(ctx, func(ctx context.Context, q state.Querier) error {
		return q.QueryRowContext(ctx, `SELECT id FROM deks WHERE state = 'active'`).Scan(&id)
	})
	if err != nil {
		return "", dek{}, err
	}
	d, err := k.dek(ctx, id)
	return id, d, err
}

// CreateKey makes a software key under a name that was never used, records it sealed, and keeps it ready to sign.
func (k *Keyring) CreateKey(ctx context.Context, name string, alg algorithm.Key, actor string) (KeyInfo, error) {
	key, err := algorithm.Generate(alg, rand.Reader)
	if err != nil {
		return KeyInfo{}, err
	}
	if alg, err = algorithm.OfPublic(key.Public()); err != nil {
		return KeyInfo{}, err
	}
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return KeyInfo{}, fmt.Errorf("keyring: encode key: %w", err)
	}
	defer clear(der)
	public, err := x509.MarshalPKIXPublicKey(key.Public())
	if err != nil {
		return KeyInfo{}, fmt.Errorf("keyring: encode public key: %w", err)
	}
	for attempt := 0; ; attempt++ {
		id, d, err := k.active(ctx)
		if err != nil {
			return KeyInfo{}, err
		}
		blob, err := d.seal(id, keyAAD(name), der)
		if err != nil {
			return KeyInfo{}, err
		}
		err = k.propose(ctx, state.Proposal{Actor: actor, Tenant: resource.Segment(name, "tenants"), Reason: "new signing key",
			Command: &clusterv1.CreateKey{Key: &clusterv1.SealedKey{Name: name, Dek: id, Sealed: blob}, Kind: kindSoftware,
				Algorithm: string(alg), Public: public, Tenant: resource.Segment(name, "tenants")}})
		if fault.HasReason(err, "dek-rotated") && attempt < 3 {
			continue
		}
		if err != nil {
			return KeyInfo{}, err
		}
		break
	}
	k.mu.Lock()
	k.signers[name] = &software{Signer: key, name: name}
	k.mu.Unlock()
	return KeyInfo{Name: name, Kind: kindSoftware, Algorithm: alg, Public: key.Public()}, nil
}

// Signer gives the signer of a key. The first call opens the key; later ones take a read lock only.
func (k *Keyring) Signer(ctx context.Context, name string) (Signer, error) {
	k.mu.RLock()
	s, ok := k.signers[name]
	k.mu.RUnlock()
	if ok {
		return s, nil
	}
	if !k.Unsealed() {
		return nil, sealed()
	}
	var (
		kind         string
		blob, public []byte
	)
	err := k.store.View(ctx, func(ctx context.Context, q state.Querier) error {
		return q.QueryRowContext(ctx, `SELECT kind, sealed, public FROM keys WHERE name = ?`, name).Scan(&kind, &blob, &public)
	})
	if errors.Is(err, sql.ErrNoRows) {
		return nil, fault.New(fault.NotFound, "no-key", "there is no key %.200q", name)
	}
	if err != nil {
		return nil, err
	}
	if kind != kindSoftware {
		return nil, fault.New(fault.Unavailable, "key-kind", "key %s is of kind %q, which this controller cannot reach", name, kind)
	}
	s, err = k.openSoftware(ctx, name, blob, public)
	if err != nil {
		return nil, err
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	k.signers[name] = s
	return s, nil
}

func newID() string {
	var b [8]byte
	_, _ = rand.Read(b[:]) // never fails (crypto/rand, Go 1.24)
	return hex.EncodeToString(b[:])
}
