package scan_test

import (
	"context"
	"crypto"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/cassandra-security-manager/csm/shared/algorithm"
	"github.com/cassandra-security-manager/csm/shared/certificate"
	"github.com/cassandra-security-manager/csm/shared/keystore"
	"github.com/cassandra-security-manager/csm/shared/scan"
)

var now = time.Date(2026, 11, 22, 0, 0, 0, 0, time.UTC)

func self(t *testing.T, key crypto.Signer, cn string, notAfter time.Time) *x509.Certificate {
	t.Helper()
	serial, _ := certificate.Serial(rand.Reader)
	tmpl := &x509.Certificate{SerialNumber: serial, Subject: pkix.Name{CommonName: cn}, DNSNames: []string{cn}, NotBefore: now.Add(-time.Hour), NotAfter: notAfter}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	c, _ := x509.ParseCertificate(der)
	return c
}

func newKey(t *testing.T) crypto.Signer {
	k, err := algorithm.Generate(algorithm.P384, rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return k
}

func write(t *testing.T, path string, data []byte, mode os.FileMode) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, data, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(path, mode); err != nil {
		t.Fatal(err)
	}
}

func codes(f scan.Found) (out []string) {
	for _, w := range f.Weak {
		out = append(out, w.Code)
	}
	return out
}

func TestCertificatesAreFoundInEachFormat(t *testing.T) {
	dir, key := t.TempDir(), newKey(t)
	c := self(t, key, "n1", now.AddDate(1, 0, 0))
	pw := []byte("changeit")
	for f, name := range map[keystore.Format]string{keystore.PKCS12: "a/keystore.p12", keystore.JKS: "b/.keystore", keystore.PEM: "c/n1.pem"} {
		p := pw
		if f == keystore.PEM {
			p = nil
		}
		data, err := keystore.EncodeKeyStore(f, key, []*x509.Certificate{c}, p)
		if err != nil {
			t.Fatal(err)
		}
		write(t, filepath.Join(dir, name), data, 0o600)
	}
	ts, err := keystore.EncodeTrustStore(keystore.PKCS12, []*x509.Certificate{c}, pw)
	if err != nil {
		t.Fatal(err)
	}
	write(t, filepath.Join(dir, "ts.p12"), ts, 0o644)
	write(t, filepath.Join(dir, "n1.der"), c.Raw, 0o644)
	write(t, filepath.Join(dir, "notes.txt"), []byte("nothing"), 0o644)
	write(t, filepath.Join(dir, "locked.jks"), append([]byte{0xfe, 0xed, 0xfe, 0xed}, 1, 2, 3), 0o644)
	r, err := scan.Files(context.Background(), []string{dir, filepath.Join(dir, "a"), filepath.Join(dir, "absent")}, scan.Options{Now: now, Passwords: [][]byte{[]byte("wrong!"), pw}})
	if err != nil {
		t.Fatal(err)
	}
	got := map[string]bool{}
	for _, f := range r.Found {
		if !f.Certificate.Equal(c) || string(f.DER) != string(c.Raw) {
			t.Errorf("%s holds another certificate", f.Path)
		}
		rel, _ := filepath.Rel(dir, f.Path)
		got[rel+" "+f.Format] = f.HasPrivateKey
	}
	want := map[string]bool{"a/keystore.p12 PKCS12": true, "b/.keystore JKS": true, "c/n1.pem PEM": true, "ts.p12 PKCS12": false, "n1.der DER": false}
	if len(r.Found) != len(want) {
		t.Errorf("found %d: %v", len(r.Found), got)
	}
	for k, v := range want {
		if g, ok := got[k]; !ok || g != v {
			t.Errorf("%s: found %v, with key %v", k, ok, g)
		}
	}
	if len(r.Unread) != 1 || filepath.Base(r.Unread[0].Path) != "locked.jks" {
		t.Errorf("unread = %v", r.Unread)
	}
}

func TestWeaknessesAreSaid(t *testing.T) {
	dir, shared := t.TempDir(), newKey(t)
	put := func(name string, key crypto.Signer, notAfter time.Time, mode os.FileMode) {
		data, _ := certificate.EncodeKeyPEM(key)
		write(t, filepath.Join(dir, name), append(data, certificate.EncodePEM(self(t, key, "n", notAfter))...), mode)
	}
	put("expired.pem", newKey(t), now.Add(-time.Minute), 0o600)
	put("near.pem", newKey(t), now.AddDate(0, 0, 20), 0o600)
	put("open.pem", newKey(t), now.AddDate(1, 0, 0), 0o644)
	put("one.pem", shared, now.AddDate(1, 0, 0), 0o600)
	put("two.pem", shared, now.AddDate(1, 0, 0), 0o600)
	put("good.pem", newKey(t), now.AddDate(1, 0, 0), 0o600)
	r, err := scan.Files(context.Background(), []string{dir}, scan.Options{Now: now})
	if err != nil {
		t.Fatal(err)
	}
	want := map[string][]string{"expired.pem": {"expired"}, "near.pem": {"near-expiry"}, "open.pem": {"world-readable-key"},
		"one.pem": {"shared-key"}, "two.pem": {"shared-key"}, "good.pem": nil}
	for _, f := range r.Found {
		if got := codes(f); !slices.Equal(got, want[filepath.Base(f.Path)]) {
			t.Errorf("%s: %v, want %v", filepath.Base(f.Path), got, want[filepath.Base(f.Path)])
		}
	}
}

func TestLinksAreNotFollowedOutOfTheRoots(t *testing.T) {
	outside, dir := t.TempDir(), t.TempDir()
	c := certificate.EncodePEM(self(t, newKey(t), "n", now.AddDate(1, 0, 0)))
	write(t, filepath.Join(outside, "out.pem"), c, 0o644)
	write(t, filepath.Join(dir, "sub", "in.pem"), c, 0o644)
	for link, target := range map[string]string{"out": outside, "out.pem": filepath.Join(outside, "out.pem"), "in.pem": filepath.Join(dir, "sub", "in.pem"), "loop": dir, "broken": "/nowhere"} {
		if err := os.Symlink(target, filepath.Join(dir, link)); err != nil {
			t.Fatal(err)
		}
	}
	r, err := scan.Files(context.Background(), []string{dir}, scan.Options{Now: now})
	if err != nil || len(r.Found) != 1 || filepath.Base(r.Found[0].Path) != "in.pem" {
		t.Errorf("found %+v, %v", r.Found, err)
	}
}

func TestAScanIsBounded(t *testing.T) {
	dir := t.TempDir()
	c := certificate.EncodePEM(self(t, newKey(t), "n", now.AddDate(1, 0, 0)))
	for _, n := range []string{"a.pem", "b.pem", "c.pem"} {
		write(t, filepath.Join(dir, n), c, 0o644)
	}
	r, err := scan.Files(context.Background(), []string{dir}, scan.Options{Now: now, MaxFiles: 2})
	if err != nil || !r.Truncated || len(r.Found) != 2 {
		t.Errorf("%d found, truncated %v, %v", len(r.Found), r.Truncated, err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if _, err := scan.Files(ctx, []string{dir}, scan.Options{Now: now}); err == nil {
		t.Error("a cancelled scan goes on")
	}
}
