package keyring_test

import (
	"bytes"
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/rand"
	"crypto/sha512"
	"encoding/json"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/cassandra-security-manager/csm/controller/keyring"
	"github.com/cassandra-security-manager/csm/controller/state"
	"github.com/cassandra-security-manager/csm/controller/state/statetest"
	clusterv1 "github.com/cassandra-security-manager/csm/protocol/cluster/v1"
	"github.com/cassandra-security-manager/csm/shared/algorithm"
	"github.com/cassandra-security-manager/csm/shared/fault"
)

var ctx = context.Background()

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func wantReason(t testing.TB, err error, reason string) {
	t.Helper()
	if !fault.HasReason(err, reason) {
		t.Fatalf("error = %v, want reason %s", err, reason)
	}
}

func kek(t testing.TB) *keyring.KEK {
	t.Helper()
	k, err := keyring.CreateKEK(t.TempDir(), keyring.FileSealer{Path: filepath.Join(t.TempDir(), "master")})
	must(t, err)
	return k
}

// ring is an initialised keyring of controller c1, and its recovery share.
func ring(t testing.TB) (*statetest.Log, *keyring.Keyring, keyring.Secret) {
	t.Helper()
	l := statetest.New(t, keyring.Module())
	r := keyring.New(l.Store, l, kek(t), "c1")
	public, share, err := keyring.NewRecovery()
	must(t, err)
	must(t, r.Initialise(ctx, "test", public))
	return l, r, share
}

func signs(t testing.TB, r *keyring.Keyring, name string) {
	t.Helper()
	s, err := r.Signer(ctx, name)
	must(t, err)
	digest := sha512.Sum384([]byte("x"))
	sig, err := s.Sign(rand.Reader, digest[:], crypto.SHA384)
	must(t, err)
	if !ecdsa.VerifyASN1(s.Public().(*ecdsa.PublicKey), digest[:], sig) || s.Key() != name {
		t.Fatal("the signature does not verify")
	}
}

func TestAKeySignsOnEveryControllerThatItsDEKIsWrappedTo(t *testing.T) {
	l, one, _ := ring(t)
	info, err := one.CreateKey(ctx, "k1", algorithm.P384, "test")
	must(t, err)
	signs(t, one, "k1")

	two := keyring.New(l.Store, l, kek(t), "c2")
	wantReason(t, two.Unseal(ctx), "not-wrapped")
	_, err = two.Signer(ctx, "k1")
	wantReason(t, err, "sealed")
	wantReason(t, two.WrapFor(ctx, "c3", two.Public(), "test"), "sealed")
	must(t, one.WrapFor(ctx, "c2", two.Public(), "test"))
	must(t, two.Unseal(ctx))
	signs(t, two, "k1")
	s, err := two.Signer(ctx, "k1")
	must(t, err)
	if !s.Public().(*ecdsa.PublicKey).Equal(info.Public) {
		t.Error("another key came out")
	}
	must(t, one.WrapFor(ctx, "c2", two.Public(), "test"))
	wantReason(t, one.WrapFor(ctx, "c2", kek(t).Public(), "test"), "kek-changed")
	wantReason(t, one.WrapFor(ctx, "c3", []byte("rubbish"), "test"), "bad-kek")
}

func TestAKeyringIsInitialisedOnceAndAKeysNameIsUsedOnce(t *testing.T) {
	l, one, _ := ring(t)
	public, _, err := keyring.NewRecovery()
	must(t, err)
	wantReason(t, keyring.New(l.Store, l, kek(t), "c9").Initialise(ctx, "test", public), "keyring-initialised")
	_, err = one.CreateKey(ctx, "k", algorithm.P384, "test")
	must(t, err)
	_, err = one.CreateKey(ctx, "k", algorithm.P384, "test")
	wantReason(t, err, "key-exists")
	_, err = one.CreateKey(ctx, "weak", "P-224", "test")
	wantReason(t, err, "unknown-algorithm")
	_, err = one.Signer(ctx, "nobody")
	wantReason(t, err, "no-key")
}

func TestAnotherMachinesKEKDoesNotUnseal(t *testing.T) {
	l, _, _ := ring(t)
	impostor := keyring.New(l.Store, l, kek(t), "c1")
	wantReason(t, impostor.Unseal(ctx), "wrong-kek")
	if impostor.Unsealed() {
		t.Error("it says that it is unsealed")
	}
}

func TestTheRecoveryShareAloneOpensEverything(t *testing.T) {
	l, one, share := ring(t)
	_, err := one.CreateKey(ctx, "k", algorithm.P384, "test")
	must(t, err)
	written := keyring.NewSecret(append([]byte("  "), append(bytes.Clone(share.Reveal()), '\n')...))
	k, err := keyring.OpenRecovery(written)
	must(t, err)
	recovered := keyring.New(l.Store, l, k, keyring.RecoveryRecipient)
	must(t, recovered.Unseal(ctx))
	signs(t, recovered, "k")
	fresh := keyring.New(l.Store, l, kek(t), "c7")
	must(t, recovered.WrapFor(ctx, "c7", fresh.Public(), "test"))
	must(t, fresh.Unseal(ctx))
	signs(t, fresh, "k")
	for _, bad := range []string{"", "x", string(share.Reveal()[:40])} {
		_, err := keyring.OpenRecovery(keyring.NewSecret([]byte(bad)))
		wantReason(t, err, "bad-recovery-share")
	}
}

func TestSealedBytesOpenOnlyWholeAndAsWhatTheyAre(t *testing.T) {
	_, r, _ := ring(t)
	blob, err := r.Seal(ctx, "ticket key", keyring.NewSecret([]byte("plain")))
	must(t, err)
	got, err := r.Open(ctx, "ticket key", blob)
	must(t, err)
	if string(got.Reveal()) != "plain" || bytes.Contains(blob, []byte("plain")) {
		t.Fatalf("opened %q", got.Reveal())
	}
	_, err = r.Open(ctx, "another thing", blob)
	wantReason(t, err, "unsealable")
	for i := range blob {
		bad := bytes.Clone(blob)
		bad[i] ^= 1
		_, err := r.Open(ctx, "ticket key", bad)
		wantReason(t, err, "unsealable")
	}
	for n := range blob {
		_, err := r.Open(ctx, "ticket key", blob[:n])
		wantReason(t, err, "unsealable")
	}
}

func TestASealedKeyMovedToAnotherNameDoesNotOpen(t *testing.T) {
	l, one, _ := ring(t)
	_, err := one.CreateKey(ctx, "root", algorithm.P384, "test")
	must(t, err)
	var dek string
	var blob []byte
	must(t, l.Store.View(ctx, func(ctx context.Context, q state.Querier) error {
		return q.QueryRowContext(ctx, `SELECT dek, sealed FROM keys`).Scan(&dek, &blob)
	}))
	_, err = l.Propose(ctx, state.Proposal{Actor: "thief", Command: &clusterv1.CreateKey{Kind: "software", Algorithm: "P-384", Public: []byte{1},
		Key: &clusterv1.SealedKey{Name: "mine", Dek: dek, Sealed: blob}}})
	must(t, err)
	_, err = one.Signer(ctx, "mine")
	wantReason(t, err, "unsealable")
}

func TestRotationLocksTheRemovedControllerOutAndLosesNothing(t *testing.T) {
	l, one, share := ring(t)
	two := keyring.New(l.Store, l, kek(t), "c2")
	must(t, one.WrapFor(ctx, "c2", two.Public(), "test"))
	must(t, two.Unseal(ctx))
	for i := range 120 { // more than one command's worth
		_, err := one.CreateKey(ctx, fmt.Sprintf("k%03d", i), algorithm.P384, "test")
		must(t, err)
	}
	old, err := one.Seal(ctx, "x", keyring.NewSecret([]byte("old")))
	must(t, err)
	rot, err := one.Rotate(ctx, "c2", "test", "c2 was stolen")
	must(t, err)
	if rot.Resealed != 120 || len(rot.Exposed) != 120 {
		t.Errorf("rotation = %d resealed, %d exposed", rot.Resealed, len(rot.Exposed))
	}
	wantReason(t, keyring.New(l.Store, l, kek(t), "c2").Unseal(ctx), "not-wrapped")
	if _, err := two.Open(ctx, "x", old); err != nil { // what it had in memory it knows: said in the README, and by Exposed
		t.Error(err)
	}
	fresh, err := one.Seal(ctx, "x", keyring.NewSecret([]byte("new")))
	must(t, err)
	_, err = two.Open(ctx, "x", fresh)
	wantReason(t, err, "not-wrapped")
	for _, b := range [][]byte{old, fresh} {
		_, err := one.Open(ctx, "x", b)
		must(t, err)
	}
	k, err := keyring.OpenRecovery(share)
	must(t, err)
	again := keyring.New(l.Store, l, k, keyring.RecoveryRecipient)
	must(t, again.Unseal(ctx))
	signs(t, again, "k119")
	_, err = one.Rotate(ctx, "c1", "test", "")
	wantReason(t, err, "bad-recipient")
}

func TestARotationThatWouldForgetAMemberIsRefused(t *testing.T) {
	l, one, _ := ring(t)
	var dek string
	must(t, l.Store.View(ctx, func(ctx context.Context, q state.Querier) error {
		return q.QueryRowContext(ctx, `SELECT id FROM deks`).Scan(&dek)
	}))
	w := []*clusterv1.DekWrap{{Dek: "new", Recipient: "c1", RecipientPublic: one.Public(), Wrapped: []byte{1}}}
	_, err := l.Propose(ctx, state.Proposal{Actor: "t", Command: &clusterv1.RotateDek{Dek: "new", Previous: dek, Canary: []byte{1}, Wraps: w}})
	wantReason(t, err, "dek-rotated") // the recovery recipient is missing
	_, err = l.Propose(ctx, state.Proposal{Actor: "t", Command: &clusterv1.RotateDek{Dek: "new", Previous: "older", Canary: []byte{1}, Wraps: w}})
	wantReason(t, err, "dek-rotated")
	_, err = one.CreateKey(ctx, "k", algorithm.P384, "test")
	must(t, err)
}

func TestTheKEKFileOpensOnlyWithItsOwnSecret(t *testing.T) {
	secret := func(content string) string {
		p := filepath.Join(t.TempDir(), "secret")
		must(t, os.WriteFile(p, []byte(content), 0o600))
		return p
	}
	creds := t.TempDir()
	must(t, os.WriteFile(filepath.Join(creds, "csm-kek"), bytes.Repeat([]byte("k"), 32), 0o600))
	must(t, os.WriteFile(filepath.Join(creds, "other"), bytes.Repeat([]byte("o"), 32), 0o600))
	must(t, os.WriteFile(filepath.Join(creds, "short"), []byte("k"), 0o600))
	t.Setenv("CREDENTIALS_DIRECTORY", creds)
	for name, c := range map[string]struct{ right, wrong keyring.Sealer }{
		"file":       {keyring.FileSealer{Path: filepath.Join(t.TempDir(), "new", "master")}, keyring.FileSealer{Path: secret(strings.Repeat("w", 32))}},
		"passphrase": {keyring.PassphraseSealer{Path: secret("a long passphrase\n")}, keyring.PassphraseSealer{Path: secret("a long passphrasf\n")}},
		"credential": {keyring.CredentialSealer{Name: "csm-kek"}, keyring.CredentialSealer{Name: "other"}},
	} {
		dir := filepath.Join(t.TempDir(), "kek")
		k, err := keyring.CreateKEK(dir, c.right)
		must(t, err)
		again, err := keyring.LoadKEK(dir, c.right)
		must(t, err)
		if !bytes.Equal(k.Public(), again.Public()) || keyring.Fingerprint(k.Public()) == "" {
			t.Errorf("%s: another key came back", name)
		}
		_, err = keyring.LoadKEK(dir, c.wrong)
		wantReason(t, err, "wrong-kek-seal")
		_, err = keyring.CreateKEK(dir, c.right)
		wantReason(t, err, "kek-exists")
		path := filepath.Join(dir, "kek.json")
		whole, err := os.ReadFile(path)
		must(t, err)
		if info, _ := os.Stat(path); info.Mode().Perm() != 0o600 {
			t.Errorf("%s: the file has mode %v", name, info.Mode())
		}
		var f map[string]any
		must(t, json.Unmarshal(whole, &f))
		sealed := f["sealed"].(string)
		f["sealed"] = sealed[:60] + flip(sealed[60]) + sealed[61:]
		broken, err := json.Marshal(f)
		must(t, err)
		must(t, os.WriteFile(path, broken, 0o600))
		_, err = keyring.LoadKEK(dir, c.right)
		wantReason(t, err, "wrong-kek-seal")
	}
	_, err := keyring.LoadKEK(t.TempDir(), keyring.FileSealer{Path: "x"})
	wantReason(t, err, "no-kek")
	_, err = keyring.CreateKEK(t.TempDir(), keyring.PassphraseSealer{Path: secret("short")})
	wantReason(t, err, "weak-passphrase")
	_, err = keyring.CreateKEK(t.TempDir(), keyring.CredentialSealer{Name: "short"})
	wantReason(t, err, "weak-credential")
	_, err = keyring.CreateKEK(t.TempDir(), keyring.CredentialSealer{Name: "none"})
	wantReason(t, err, "no-credential")
}

func flip(c byte) string {
	if c == 'A' {
		return "B"
	}
	return "A"
}

func TestASecretFileThatOthersMayReadIsRefused(t *testing.T) {
	p := filepath.Join(t.TempDir(), "master")
	must(t, os.WriteFile(p, bytes.Repeat([]byte("k"), 32), 0o644))
	_, err := keyring.CreateKEK(t.TempDir(), keyring.FileSealer{Path: p})
	wantReason(t, err, "seal-file-open")
	must(t, os.Chmod(p, 0o600))
	dir := t.TempDir()
	_, err = keyring.CreateKEK(dir, keyring.FileSealer{Path: p})
	must(t, err)
	_, err = keyring.LoadKEK(dir, keyring.PassphraseSealer{Path: p})
	wantReason(t, err, "wrong-sealer")
}

func TestTheConfigurationNamesASealerOrIsRefused(t *testing.T) {
	for _, c := range []keyring.SealConfig{{Type: "file", Path: "/x"}, {Type: "systemd-credential", Name: "n"}, {Type: "passphrase", Path: "/x"}} {
		s, err := keyring.NewSealer(c)
		must(t, err)
		if s.Kind() != c.Type {
			t.Errorf("%v became %s", c, s.Kind())
		}
	}
	for _, c := range []keyring.SealConfig{{}, {Type: "file"}, {Type: "systemd-credential", Name: "../x"}, {Type: "passphrase"}, {Type: "plain", Path: "/x"}} {
		_, err := keyring.NewSealer(c)
		wantReason(t, err, "bad-seal")
	}
}

func TestASecretIsNeverPrinted(t *testing.T) {
	s := keyring.NewSecret([]byte("hunter2"))
	j, err := json.Marshal(map[string]any{"s": s})
	must(t, err)
	var log bytes.Buffer
	slog.New(slog.NewJSONHandler(&log, nil)).Info("x", "s", s, "in", struct{ S keyring.Secret }{s})
	_, r, _ := ring(t)
	_, err = r.CreateKey(ctx, "k", algorithm.P384, "t")
	must(t, err)
	signer, err := r.Signer(ctx, "k")
	must(t, err)
	all := fmt.Sprintf("%v %s %q %x %d %+v %#v %v %+v", s, s, s, s, s, s, s, struct{ S keyring.Secret }{s}, signer) + string(j) + log.String()
	if strings.Contains(all, "hunter2") || strings.Contains(all, fmt.Sprintf("%x", "hunter2")) || !strings.Contains(all, "[redacted]") || strings.Contains(all, "D:") {
		t.Error(all)
	}
	copied := s
	s.Zero()
	if copied.Len() != 0 {
		t.Error("a copy outlived Zero")
	}
}
