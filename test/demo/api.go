//go:build linux

package main

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"time"

	"github.com/cassandra-security-manager/csm/controller/fleet"
	"github.com/cassandra-security-manager/csm/shared/identity"
)

// api is a REST client with an administrator's certificate. The demonstration acts through the command line, as people
// do, and watches through REST, because asking ten times a second should not cost a process each time.
type api struct {
	client *http.Client
	hosts  []string
}

func newAPI(cert tls.Certificate, pin []byte, hosts []string) *api {
	conf := identity.Base()
	conf.Certificates = []tls.Certificate{cert}
	conf.InsecureSkipVerify = true // a controller is known by its identity under the pinned CA, not by a host name
	conf.VerifyConnection = func(cs tls.ConnectionState) error {
		root, err := identity.PinnedRoot(cs.PeerCertificates, pin)
		if err != nil {
			return err
		}
		return identity.Verifier{
			Roots: func() []*x509.Certificate { return []*x509.Certificate{root} }, Kinds: []identity.Kind{identity.Controller}, Now: time.Now,
		}.VerifyConnection(cs)
	}
	return &api{hosts: hosts, client: &http.Client{Transport: &http.Transport{TLSClientConfig: conf, MaxIdleConnsPerHost: 32, ForceAttemptHTTP2: true}}}
}

// problem is an answer other than 2xx (RFC 9457).
type problem struct {
	Status int    `json:"status"`
	Detail string `json:"detail"`
	Reason string `json:"reason"`
	Remedy string `json:"remedy"`
}

func (p *problem) Error() string {
	return fmt.Sprintf("%d %s (%s) %s", p.Status, p.Detail, p.Reason, p.Remedy)
}

// do sends a request to one host. out may be nil.
func (a *api) do(ctx context.Context, method, host, path string, header map[string]string, in, out any) error {
	var body io.Reader
	if in != nil {
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
	for k, v := range header {
		req.Header.Set(k, v)
	}
	res, err := a.client.Do(req)
	if err != nil {
		return err
	}
	defer res.Body.Close()
	b, err := io.ReadAll(io.LimitReader(res.Body, 16<<20))
	if err != nil {
		return err
	}
	if res.StatusCode >= 300 {
		p := &problem{Status: res.StatusCode}
		if json.Unmarshal(b, p) != nil {
			p.Detail = cut(string(b), 200)
		}
		return p
	}
	if out == nil {
		return nil
	}
	return json.Unmarshal(b, out)
}

// get asks the controllers in turn until one answers.
func (a *api) get(ctx context.Context, path string, out any) error {
	var last error
	for _, h := range a.hosts {
		one, cancel := context.WithTimeout(ctx, 5*time.Second)
		last = a.do(one, http.MethodGet, h, path, nil, nil, out)
		cancel()
		if last == nil {
			return nil
		}
	}
	return last
}

// node reads a node of the demonstration's cluster.
func (d *demo) node(ctx context.Context, name string) (fleet.Node, error) {
	var n fleet.Node
	err := d.api.get(ctx, "/v1/"+nodeName(name), &n)
	return n, err
}

// store reads the one store of a node.
func (d *demo) store(ctx context.Context, name string) (fleet.Node, fleet.Store, error) {
	n, err := d.node(ctx, name)
	if err != nil {
		return n, fleet.Store{}, err
	}
	if len(n.Stores) != 1 {
		return n, fleet.Store{}, fmt.Errorf("%s has %d stores, not one", name, len(n.Stores))
	}
	return n, n.Stores[0], nil
}
