package server_test

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/cassandra-security-manager/csm/controller/server"
	"github.com/cassandra-security-manager/csm/shared/config"
	"github.com/cassandra-security-manager/csm/shared/fault"
	"github.com/cassandra-security-manager/csm/test/port"
)

// address is a loopback address with a port that nobody uses now.
func address(t *testing.T) string {
	t.Helper()
	l, err := port.Listen()
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().String()
}

func configure(t *testing.T) server.Config {
	t.Helper()
	dir := t.TempDir()
	file := filepath.Join(dir, "controller.yaml")
	text := fmt.Sprintf("name: csm1\nregion: eu-west\nadvertise: 127.0.0.1\ndata_dir: %s\nlisten: {api: %q, agents: %q, cluster: %q, pki: %q}\nmetrics: %q\n",
		filepath.Join(dir, "d"), address(t), address(t), address(t), address(t), address(t))
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	cfg, err := config.Load(server.DefaultConfig(), config.Options{Path: file, Environ: []string{}})
	if err != nil {
		t.Fatal(err)
	}
	return cfg
}

func options(cfg server.Config) server.InitOptions {
	dir := filepath.Dir(cfg.DataDir)
	return server.InitOptions{Admin: "alice", AdminOut: filepath.Join(dir, "alice.pem"), RecoveryOut: filepath.Join(dir, "recovery.key"), Root: "lab"}
}

func silent() *slog.Logger { return slog.New(slog.DiscardHandler) }

// start runs a controller until the test ends; the function stops it and gives its error.
func start(t *testing.T, cfg server.Config) (stop func() error) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	ready, ended := make(chan struct{}), make(chan error, 1)
	go func() { ended <- server.Run(ctx, cfg, silent(), func() { close(ready) }) }()
	t.Cleanup(cancel)
	select {
	case <-ready:
	case err := <-ended:
		t.Fatalf("the controller did not start: %v", err)
	}
	return func() error {
		cancel()
		return <-ended
	}
}

func ask(t *testing.T, cfg server.Config, admin, path string) (int, string) {
	t.Helper()
	cert, err := tls.LoadX509KeyPair(admin, admin)
	if err != nil {
		t.Fatal(err)
	}
	client := &http.Client{Timeout: 10 * time.Second, Transport: &http.Transport{TLSClientConfig: &tls.Config{InsecureSkipVerify: true, Certificates: []tls.Certificate{cert}}}}
	defer client.CloseIdleConnections()
	res, err := client.Get("https://" + cfg.Listen.API + path)
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	b, _ := io.ReadAll(res.Body)
	return res.StatusCode, string(b)
}

func TestAControllerIsMadeRunsAndComesBack(t *testing.T) {
	ctx, cfg := context.Background(), configure(t)
	opt := options(cfg)
	made, err := server.Init(ctx, cfg, opt, silent())
	if err != nil {
		t.Fatal(err)
	}
	if made.Pin == "" || made.Issuer != "tenants/default/authorities/root/issuers/eu-west-1" {
		t.Fatalf("made %+v", made)
	}
	for _, f := range []string{opt.AdminOut, opt.RecoveryOut, filepath.Join(cfg.DataDir, "identity", "key.pem")} {
		if info, err := os.Stat(f); err != nil || info.Mode().Perm() != 0o600 {
			t.Errorf("%s holds a key and must be 0600: %v %v", f, info, err)
		}
	}
	stop := start(t, cfg)
	if code, body := ask(t, cfg, opt.AdminOut, "/v1/whoami"); code != http.StatusOK {
		t.Fatalf("the first administrator: %d %s", code, body)
	}
	bob := filepath.Join(filepath.Dir(cfg.DataDir), "bob.pem")
	if _, err := server.AddAdmin(ctx, cfg, "bob", bob); err != nil {
		t.Fatal(err)
	}
	if _, err := server.AddAdmin(ctx, cfg, "bob", bob); !fault.HasReason(err, "file-exists") {
		t.Errorf("a file with a key was overwritten: %v", err)
	}
	if code, body := ask(t, cfg, bob, "/v1/tenants/default/authorities"); code != http.StatusOK {
		t.Fatalf("the second administrator: %d %s", code, body)
	}
	if err := server.RevokeAdmin(ctx, cfg, "bob", "test"); err != nil {
		t.Fatal(err)
	}
	if code, _ := ask(t, cfg, bob, "/v1/whoami"); code != http.StatusForbidden && code != http.StatusUnauthorized {
		t.Errorf("a revoked administrator got %d", code)
	}
	if err := stop(); err != nil {
		t.Fatalf("stop: %v", err)
	}
	if _, err := server.AddAdmin(ctx, cfg, "carol", bob+"2"); !fault.HasReason(err, "not-running") {
		t.Errorf("without a controller: %v", err)
	}
	defer start(t, cfg)()
	if code, body := ask(t, cfg, opt.AdminOut, "/v1/tenants/default/authorities/root"); code != http.StatusOK {
		t.Fatalf("after a restart: %d %s", code, body)
	}
}

func TestAWatchDoesNotHoldUpAStop(t *testing.T) {
	ctx, cfg := context.Background(), configure(t)
	opt := options(cfg)
	if _, err := server.Init(ctx, cfg, opt, silent()); err != nil {
		t.Fatal(err)
	}
	stop := start(t, cfg)
	cert, err := tls.LoadX509KeyPair(opt.AdminOut, opt.AdminOut)
	if err != nil {
		t.Fatal(err)
	}
	client := &http.Client{Transport: &http.Transport{TLSClientConfig: &tls.Config{InsecureSkipVerify: true, Certificates: []tls.Certificate{cert}}}}
	defer client.CloseIdleConnections()
	res, err := client.Get("https://" + cfg.Listen.API + "/v1/tenants/default/clusters?watch=true")
	if err != nil || res.StatusCode != http.StatusOK {
		t.Fatalf("watch: %v %v", res, err)
	}
	defer res.Body.Close()
	if err := stop(); err != nil {
		t.Fatalf("stop: %v", err)
	}
	if _, err := io.ReadAll(res.Body); err != nil {
		t.Errorf("the watch was cut, not ended: %v", err)
	}
}

func TestAFolderIsNeverTakenTwice(t *testing.T) {
	ctx, cfg := context.Background(), configure(t)
	if _, err := server.Init(ctx, cfg, options(cfg), silent()); err != nil {
		t.Fatal(err)
	}
	again := options(cfg)
	again.AdminOut += "2"
	again.RecoveryOut += "2"
	if _, err := server.Init(ctx, cfg, again, silent()); !fault.HasReason(err, "already-initialised") {
		t.Errorf("init over a system: %v", err)
	}
	if err := os.Remove(filepath.Join(cfg.DataDir, "node.json")); err != nil {
		t.Fatal(err)
	}
	if _, err := server.Init(ctx, cfg, again, silent()); !fault.HasReason(err, "half-initialised") {
		t.Errorf("init over what was not finished: %v", err)
	}
	if err := server.Run(ctx, cfg, silent(), nil); !fault.HasReason(err, "not-initialised") {
		t.Errorf("run without an installation: %v", err)
	}
}

func TestAControllerStartsOnlyOnItsOwnFolder(t *testing.T) {
	ctx, cfg := context.Background(), configure(t)
	if _, err := server.Init(ctx, cfg, options(cfg), silent()); err != nil {
		t.Fatal(err)
	}
	other := cfg
	other.Name = "csm2"
	if err := server.Run(ctx, other, silent(), nil); !fault.HasReason(err, "wrong-name") {
		t.Errorf("another name: %v", err)
	}
	if err := os.WriteFile(filepath.Join(cfg.DataDir, "kek", "master.key"), make([]byte, 32), 0o600); err != nil {
		t.Fatal(err)
	}
	var f *fault.Error
	if err := server.Run(ctx, cfg, silent(), nil); !errors.As(err, &f) || f.Remedy == "" {
		t.Errorf("another master key must be refused and say what to do: %v", err)
	}
}

func TestWhatIsWrongWithAConfigurationIsToldWithItsLine(t *testing.T) {
	file := filepath.Join(t.TempDir(), "controller.yaml")
	text := "name: CSM 1\nregion: eu-west\nadvertise: csm1\ndata_dir: relative\ntimers: slow\nseal: {type: magic}\nlisten: {api: nowhere}\n"
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	_, err := config.Load(server.DefaultConfig(), config.Options{Path: file, Environ: []string{}})
	lines := map[string]int{}
	for _, p := range config.Of(err) {
		lines[p.Key] = p.Line
	}
	for key, line := range map[string]int{"name": 1, "data_dir": 4, "timers": 5, "seal.type": 6, "listen.api": 7} {
		if lines[key] != line {
			t.Errorf("%s: told at line %d, it stands at %d (%v)", key, lines[key], line, err)
		}
	}
}
