package server_test

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/cassandra-security-manager/csm/controller/keyring"
	"github.com/cassandra-security-manager/csm/controller/server"
	"github.com/cassandra-security-manager/csm/shared/fault"
)

func csrOf(t *testing.T, name string) []byte {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{DNSNames: []string{name}}, key)
	if err != nil {
		t.Fatal(err)
	}
	return der
}

func post(t *testing.T, cfg server.Config, admin, path string, in any) (int, string) {
	t.Helper()
	cert, err := tls.LoadX509KeyPair(admin, admin)
	if err != nil {
		t.Fatal(err)
	}
	body, err := json.Marshal(in)
	if err != nil {
		t.Fatal(err)
	}
	client := &http.Client{Timeout: 20 * time.Second, Transport: &http.Transport{TLSClientConfig: &tls.Config{InsecureSkipVerify: true, Certificates: []tls.Certificate{cert}}}}
	defer client.CloseIdleConnections()
	res, err := client.Post("https://"+cfg.Listen.API+path, "application/json", bytes.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	b, _ := io.ReadAll(res.Body)
	return res.StatusCode, string(b)
}

func TestACertificateIsSignedWithEveryControllerDeadAndRecordedLater(t *testing.T) {
	ctx, cfg := context.Background(), configure(t)
	opt := options(cfg)
	if _, err := server.Init(ctx, cfg, opt, silent()); err != nil {
		t.Fatal(err)
	}
	share, err := os.ReadFile(opt.RecoveryOut)
	if err != nil {
		t.Fatal(err)
	}
	o := server.OfflineOptions{DataDir: cfg.DataDir, Share: keyring.NewSecret(bytes.Clone(share)), Node: "tenants/default/clusters/prod/nodes/n7", Authority: "tenants/default/authorities/root",
		CSR: csrOf(t, "n7.example"), Validity: 7 * 24 * time.Hour, Reason: "INC-4711"}
	before := files(t, cfg.DataDir)
	for name, c := range map[string]struct {
		change func(*server.OfflineOptions)
		reason string
	}{
		"too long":    {func(o *server.OfflineOptions) { o.Validity = 31 * 24 * time.Hour }, "bad-validity"},
		"no share":    {func(o *server.OfflineOptions) { o.Share = keyring.NewSecret([]byte("x")) }, "bad-recovery-share"},
		"no folder":   {func(o *server.OfflineOptions) { o.DataDir = t.TempDir() }, "not-initialised"},
		"no CA":       {func(o *server.OfflineOptions) { o.Authority = "tenants/default/authorities/none" }, "no-authority"},
		"wrong share": {func(o *server.OfflineOptions) { _, s, _ := keyring.NewRecovery(); o.Share = s }, "wrong-kek"},
	} {
		bad := o
		c.change(&bad)
		if _, err := server.OfflineIssue(ctx, bad); !fault.HasReason(err, c.reason) {
			t.Errorf("%s: %v", name, err)
		}
		o.Share = keyring.NewSecret(bytes.Clone(share))
	}
	res, err := server.OfflineIssue(ctx, o)
	if err != nil {
		t.Fatal(err)
	}
	if after := files(t, cfg.DataDir); after != before {
		t.Errorf("the data folder was changed:\n%s\n%s", before, after)
	}
	leaf, err := x509.ParseCertificate(res.Chain[0])
	if err != nil {
		t.Fatal(err)
	}
	roots, inter := x509.NewCertPool(), x509.NewCertPool()
	roots.AddCert(res.Roots[0])
	for _, der := range res.Chain[1:] {
		c, err := x509.ParseCertificate(der)
		if err != nil {
			t.Fatal(err)
		}
		inter.AddCert(c)
	}
	if _, err := leaf.Verify(x509.VerifyOptions{DNSName: "n7.example", Roots: roots, Intermediates: inter, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}}); err != nil {
		t.Fatal(err)
	}
	var entry server.OfflineEntry
	if err := json.Unmarshal(res.Entry, &entry); err != nil || entry.Kind != server.EntryKind || entry.Node != o.Node {
		t.Fatalf("%v %s", err, res.Entry)
	}

	defer start(t, cfg)()
	o.Share = keyring.NewSecret(bytes.Clone(share))
	if _, err := server.OfflineIssue(ctx, o); !fault.HasReason(err, "controller-runs") {
		t.Errorf("beside a running controller: %v", err)
	}
	const path = "/v1/tenants/default/certificates:import"
	spoilt := bytes.Replace(entry.Record, []byte("n7.example"), []byte("n8.example"), 1)
	for _, bad := range [][]byte{{1, 2, 3}, spoilt, entry.Record[:len(entry.Record)/2]} {
		if code, body := post(t, cfg, opt.AdminOut, path, map[string]any{"record": bad}); code < 400 || code >= 500 {
			t.Errorf("a broken entry: %d %s", code, body)
		}
	}
	for range 2 {
		code, body := post(t, cfg, opt.AdminOut, path, map[string]any{"record": entry.Record})
		if code != http.StatusOK || !strings.Contains(body, `"state":"active"`) {
			t.Fatalf("import: %d %s", code, body)
		}
	}
	if code, body := ask(t, cfg, opt.AdminOut, "/v1/tenants/default/certificates:search?query=n7.example"); code != http.StatusOK || strings.Count(body, `"serial"`) != 1 {
		t.Errorf("it stands in the ledger once: %d %s", code, body)
	}
}

// files are the names and sizes in a folder.
func files(t *testing.T, dir string) string {
	t.Helper()
	var b strings.Builder
	err := filepath.Walk(dir, func(path string, info os.FileInfo, err error) error {
		if err == nil {
			b.WriteString(path + " " + info.ModTime().String() + "\n")
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return b.String()
}
