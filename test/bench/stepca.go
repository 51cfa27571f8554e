//go:build linux

package main

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"io"
	"math/big"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"github.com/cassandra-security-manager/csm/test/plane"
	"github.com/cassandra-security-manager/csm/test/port"
	"github.com/cassandra-security-manager/csm/test/process"
)

// stepCA is the peer: smallstep's step-ca with its badger database and a P-256 hierarchy, one instance.
type stepCA struct {
	url     string
	client  *http.Client
	key     *ecdsa.PrivateKey
	kid     string
	process *process.Process
}

const (
	stepCAModule  = "github.com/smallstep/certificates/cmd/step-ca@v0.30.2"
	stepCLIModule = "github.com/smallstep/cli/cmd/step@v0.30.2"
)

// tool builds a Go program once into build/tools.
func tool(ctx context.Context, module string) (string, error) {
	dir, err := filepath.Abs("build/tools")
	if err != nil {
		return "", err
	}
	name, _, _ := strings.Cut(filepath.Base(module), "@")
	path := filepath.Join(dir, name)
	if _, err := os.Stat(path); err == nil {
		return path, nil
	}
	fmt.Fprintf(os.Stderr, "  building %s once ...\n", module)
	c := exec.CommandContext(ctx, "go", "install", module)
	c.Env = append(os.Environ(), "GOBIN="+dir, "CGO_ENABLED=0", "GOFLAGS=")
	c.Stderr = os.Stderr
	return path, c.Run()
}

func startStepCA(ctx context.Context, work string) (*stepCA, error) {
	server, err := tool(ctx, stepCAModule)
	if err != nil {
		return nil, err
	}
	cli, err := tool(ctx, stepCLIModule)
	if err != nil {
		return nil, err
	}
	dir := filepath.Join(work, "step")
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, err
	}
	password := filepath.Join(dir, "password")
	if err := os.WriteFile(password, []byte("bench-only"), 0o600); err != nil {
		return nil, err
	}
	number, err := port.Free()
	if err != nil {
		return nil, err
	}
	address := fmt.Sprintf("127.0.0.1:%d", number)
	c := exec.CommandContext(ctx, cli, "ca", "init", "--name", "bench", "--dns", "127.0.0.1", "--address", address, "--provisioner", "admin",
		"--password-file", password, "--provisioner-password-file", password, "--deployment-type", "standalone")
	c.Env = append(os.Environ(), "STEPPATH="+dir)
	if out, err := c.CombinedOutput(); err != nil {
		return nil, fmt.Errorf("step ca init: %w: %s", err, out)
	}
	s := &stepCA{url: "https://" + address}
	config := filepath.Join(dir, "config", "ca.json")
	if err := s.provisioner(config); err != nil {
		return nil, err
	}
	root, err := os.ReadFile(filepath.Join(dir, "certs", "root_ca.crt"))
	if err != nil {
		return nil, err
	}
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM(root)
	s.client = &http.Client{Timeout: 20 * time.Second, Transport: &http.Transport{TLSClientConfig: &tls.Config{RootCAs: pool}, MaxIdleConnsPerHost: 128}}
	s.process, err = process.Start(process.Spec{Name: "step-ca", Path: server, Args: []string{config, "--password-file", password},
		Env: []string{"STEPPATH=" + dir}, Dir: dir, Log: filepath.Join(dir, "log")})
	if err != nil {
		return nil, err
	}
	return s, plane.Eventually(ctx, 20*time.Second, func() error {
		res, err := s.client.Get(s.url + "/health")
		if err == nil {
			res.Body.Close()
		}
		return err
	})
}

func (s *stepCA) stop() { s.process.Kill() }

// provisioner gives step-ca a JWK whose key we hold, so that tokens can be made before the clock starts.
func (s *stepCA) provisioner(config string) (err error) {
	if s.key, err = ecdsa.GenerateKey(elliptic.P256(), rand.Reader); err != nil {
		return err
	}
	b64 := base64.RawURLEncoding.EncodeToString
	pub, err := s.key.PublicKey.ECDH()
	if err != nil {
		return err
	}
	point := pub.Bytes()
	x, y := b64(point[1:33]), b64(point[33:65])
	thumb := sha256.Sum256(fmt.Appendf(nil, `{"crv":"P-256","kty":"EC","x":"%s","y":"%s"}`, x, y))
	s.kid = b64(thumb[:])
	raw, err := os.ReadFile(config)
	if err != nil {
		return err
	}
	var conf map[string]any
	if err := json.Unmarshal(raw, &conf); err != nil {
		return err
	}
	conf["authority"].(map[string]any)["provisioners"] = []any{map[string]any{"type": "JWK", "name": "bench",
		"key": map[string]string{"use": "sig", "kty": "EC", "kid": s.kid, "crv": "P-256", "alg": "ES256", "x": x, "y": y}}}
	if raw, err = json.Marshal(conf); err != nil {
		return err
	}
	return os.WriteFile(config, raw, 0o600)
}

// token is a one-time token for a name (ES256).
func (s *stepCA) token(name string) (string, error) {
	id := make([]byte, 16)
	if _, err := rand.Read(id); err != nil {
		return "", err
	}
	b64 := base64.RawURLEncoding.EncodeToString
	now := time.Now()
	head, _ := json.Marshal(map[string]string{"alg": "ES256", "kid": s.kid, "typ": "JWT"})
	body, _ := json.Marshal(map[string]any{"iss": "bench", "aud": s.url + "/1.0/sign", "sub": name, "sans": []string{name},
		"jti": b64(id), "iat": now.Unix(), "nbf": now.Add(-time.Minute).Unix(), "exp": now.Add(30 * time.Minute).Unix()})
	signed := b64(head) + "." + b64(body)
	sum := sha256.Sum256([]byte(signed))
	r, v, err := ecdsa.Sign(rand.Reader, s.key, sum[:])
	if err != nil {
		return "", err
	}
	sig := append(r.FillBytes(make([]byte, 32)), new(big.Int).Set(v).FillBytes(make([]byte, 32))...)
	return signed + "." + b64(sig), nil
}

// sign asks for a certificate. The one-time token is made here, 50 µs of the client's time that ours does not spend;
// it is less than a tenth of step-ca's own cost for a certificate.
func (s *stepCA) sign(csrs [][]byte) func(context.Context, int, int) error {
	pems := make([]string, len(csrs))
	for i, csr := range csrs {
		pems[i] = string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: csr}))
	}
	return func(ctx context.Context, client, i int) error {
		n := (client*37 + i) % len(csrs)
		token, err := s.token(fmt.Sprintf("app%d.bench.example", n))
		if err != nil {
			return err
		}
		body, _ := json.Marshal(map[string]string{"csr": pems[n], "ott": token})
		req, err := http.NewRequestWithContext(ctx, http.MethodPost, s.url+"/1.0/sign", bytes.NewReader(body))
		if err != nil {
			return err
		}
		req.Header.Set("Content-Type", "application/json")
		res, err := s.client.Do(req)
		if err != nil {
			return err
		}
		defer res.Body.Close()
		answer, err := io.ReadAll(io.LimitReader(res.Body, 1<<20))
		if err == nil && res.StatusCode != http.StatusCreated {
			err = fmt.Errorf("%s: %.300s", res.Status, answer)
		}
		return err
	}
}
