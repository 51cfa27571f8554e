//go:build linux

package plane

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"io"
	"net/http"
	"os"
	"strconv"
	"time"

	"github.com/cassandra-security-manager/csm/shared/identity"
)

// API is a REST client with an administrator's certificate.
type API struct {
	Client *http.Client
	// Pin of the system CA, for agents that join.
	Pin   string
	hosts []string
}

// Problem is an answer other than 2xx (RFC 9457).
type Problem struct {
	Status int    `json:"status"`
	Detail string `json:"detail"`
	Reason string `json:"reason"`
	Remedy string `json:"remedy"`
	// RetryAfter is the header of that name.
	RetryAfter time.Duration `json:"-"`
}

func (p *Problem) Error() string {
	return fmt.Sprintf("%d %s (%s) %s", p.Status, p.Detail, p.Reason, p.Remedy)
}

// newAPI reads an administrator's file: key, chain, system CA last.
func newAPI(file string, controllers []*Controller, now func() time.Time) (*API, error) {
	if now == nil {
		now = time.Now
	}
	b, err := os.ReadFile(file)
	if err != nil {
		return nil, err
	}
	cert, err := tls.X509KeyPair(b, b)
	if err != nil {
		return nil, err
	}
	var last *pem.Block
	for block, rest := pem.Decode(b); block != nil; block, rest = pem.Decode(rest) {
		last = block
	}
	root, err := x509.ParseCertificate(last.Bytes)
	if err != nil {
		return nil, err
	}
	conf := identity.Base()
	conf.Certificates = []tls.Certificate{cert}
	conf.InsecureSkipVerify = true // the verifier below checks the identity instead of a host name
	conf.VerifyConnection = identity.Verifier{Roots: func() []*x509.Certificate { return []*x509.Certificate{root} },
		Kinds: []identity.Kind{identity.Controller}, Now: now}.VerifyConnection
	a := &API{Pin: identity.Pin(root), Client: &http.Client{Timeout: 20 * time.Second, Transport: &http.Transport{TLSClientConfig: conf, MaxIdleConnsPerHost: 128}}}
	for _, c := range controllers {
		a.hosts = append(a.hosts, c.Address(9640))
	}
	return a, nil
}

// JoinToken makes a token by which a controller asks to join.
func (a *API) JoinToken(ctx context.Context) (string, error) {
	var made struct{ Token string }
	err := a.Do(ctx, http.MethodPost, "/v1/system/controllerJoinTokens", struct{}{}, &made)
	return made.Token, err
}

// Approve lets a controller in.
func (a *API) Approve(ctx context.Context, controller, fingerprint string) error {
	return a.Do(ctx, http.MethodPost, "/v1/system/controllers/"+controller+":approve", map[string]string{"fingerprint": fingerprint}, nil)
}

// readFor bounds what one controller may take to answer a read before the next one is asked.
const readFor = 5 * time.Second

// Do asks the controllers in turn until one answers; a Problem is an answer.
func (a *API) Do(ctx context.Context, method, path string, in, out any) error {
	var last error
	for _, h := range a.hosts {
		one, cancel := ctx, context.CancelFunc(func() {})
		if method == http.MethodGet {
			one, cancel = context.WithTimeout(ctx, readFor)
		}
		last = a.On(one, h, method, path, in, out)
		cancel()
		if last == nil {
			return nil
		}
		if p, ok := last.(*Problem); ok && p.Status != http.StatusServiceUnavailable {
			return last
		}
	}
	return last
}

// On asks one controller. in and out may be nil; in may be []byte of JSON.
func (a *API) On(ctx context.Context, host, method, path string, in, out any) error {
	return a.send(ctx, host, method, path, "", in, out)
}

// Once posts to one controller with an idempotency key: asked again, the answer is the same and nothing is done twice.
func (a *API) Once(ctx context.Context, host, path, key string, in, out any) error {
	return a.send(ctx, host, http.MethodPost, path, key, in, out)
}

func (a *API) send(ctx context.Context, host, method, path, key string, in, out any) error {
	var body io.Reader
	switch v := in.(type) {
	case nil:
	case []byte:
		body = bytes.NewReader(v)
	default:
		b, err := json.Marshal(in)
		if err != nil {
			return err
		}
		body = bytes.NewReader(b)
	}
	req, err := http.NewRequestWithContext(ctx, method, "https://"+host+path, body)
	if err != nil {
		return err
	}
	req.Header.Set("Content-Type", "application/json")
	if key != "" {
		req.Header.Set("Idempotency-Key", key)
	}
	res, err := a.Client.Do(req)
	if err != nil {
		return err
	}
	defer res.Body.Close()
	b, err := io.ReadAll(io.LimitReader(res.Body, 16<<20))
	if err != nil {
		return err
	}
	if res.StatusCode >= 300 {
		p := &Problem{Status: res.StatusCode, Detail: fmt.Sprintf("%.200s", b)}
		_ = json.Unmarshal(b, p)
		if secs, err := strconv.Atoi(res.Header.Get("Retry-After")); err == nil {
			p.RetryAfter = time.Duration(secs) * time.Second
		}
		return p
	}
	if out == nil {
		return nil
	}
	return json.Unmarshal(b, out)
}
