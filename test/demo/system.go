//go:build linux

package main

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/cassandra-security-manager/csm/controller/api/rest"
	"github.com/cassandra-security-manager/csm/shared/certificate"
	"github.com/cassandra-security-manager/csm/shared/resource"
)

const (
	clusterShort   = "demo"
	authorityShort = "prod"
)

func nodeName(node string) string {
	return resource.Node(resource.DefaultTenant, clusterShort, node)
}

// status is what a controller says of the quorum.
type status struct{ rest.Status }

func (s status) voters() (n int) {
	for _, c := range s.Controllers {
		if c.Voter && c.Reachable {
			n++
		}
	}
	return n
}

func (s status) votes(name string) bool {
	for _, c := range s.Controllers {
		if resource.Last(c.Name) == name {
			return c.Voter && c.Reachable
		}
	}
	return false
}

func (s status) state(name string) string {
	for _, c := range s.Controllers {
		if resource.Last(c.Name) == name {
			return c.State
		}
	}
	return "not known"
}

// status asks the controllers in turn.
func (d *demo) status(ctx context.Context) (s status, err error) {
	if d.api == nil {
		return s, errors.New("no administrator yet")
	}
	err = d.api.get(ctx, "/v1/system", &s.Status)
	return s, err
}

func (d *demo) adminFile() string { return filepath.Join(d.dir, "admin.pem") }

// configure makes the context of csm, as a user does once, and reads the administrator's certificate for our own watching.
func (d *demo) configure(ctx context.Context) error {
	cert, roots, err := readIdentity(d.adminFile())
	if err != nil {
		return err
	}
	var hosts, servers []string
	for _, c := range d.controllers {
		hosts = append(hosts, c.address(9640))
		servers = append(servers, "https://"+c.address(9640))
	}
	d.api = newAPI(cert, roots, hosts)
	args := []string{"context", "set", "demo", "--server", strings.Join(servers, ","), "--ca-pin", d.pin, "--cert", d.adminFile()}
	if _, err := d.must(ctx, "csm", args...); err != nil {
		return err
	}
	_, err = d.must(ctx, "csm", "context", "use", "demo")
	return err
}

// environment lets the programs find the demonstration's configuration and not the user's own.
func (d *demo) environment() []string {
	return []string{"CSM_CONFIG=" + d.csmConfig(), "NO_COLOR=1"}
}

func (d *demo) csmConfig() string { return filepath.Join(d.dir, "csm.yaml") }

// readIdentity reads a PEM file with a key, its chain and the system CA.
func readIdentity(path string) (cert tls.Certificate, roots []*x509.Certificate, err error) {
	data, err := os.ReadFile(path)
	if err != nil {
		return cert, nil, err
	}
	for block, rest := pem.Decode(data); block != nil; block, rest = pem.Decode(rest) {
		if block.Type != "CERTIFICATE" {
			if cert.PrivateKey, err = x509.ParsePKCS8PrivateKey(block.Bytes); err != nil {
				return cert, nil, err
			}
			continue
		}
		c, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			return cert, nil, err
		}
		if certificate.SelfIssued(c) {
			roots = append(roots, c)
		} else {
			cert.Certificate = append(cert.Certificate, c.Raw)
		}
	}
	if cert.PrivateKey == nil || len(cert.Certificate) == 0 || len(roots) == 0 {
		return cert, nil, fmt.Errorf("%s does not hold a key, a chain and the system CA", path)
	}
	return cert, roots, nil
}

// makeAuthorities makes the root and an issuing CA for each region.
func makeAuthorities(ctx context.Context, d *demo) (string, error) {
	args := []string{"ca", "create", authorityShort}
	for _, r := range regions {
		args = append(args, "--region", r)
	}
	a, err := mustJSON[rest.Authority](ctx, d, "csm", args...)
	if err != nil {
		return "", err
	}
	if len(a.Issuers) != 1+len(regions) {
		return "", fmt.Errorf("%d issuers, not a root and %d", len(a.Issuers), len(regions))
	}
	var list []string
	for _, i := range a.Issuers {
		list = append(list, strings.TrimSpace(i.Kind+" "+i.Region+" "+brief(i.SHA256)))
		if i.Kind == "root" {
			if err := os.WriteFile(d.rootFile(), []byte(i.PEM), 0o644); err != nil {
				return "", err
			}
		}
	}
	return strings.Join(list, ", ") + "; " + a.Algorithm, nil
}

func (d *demo) rootFile() string { return filepath.Join(d.dir, "root.pem") }

// makeCluster makes the cluster, and for each node a token that works once.
func makeCluster(ctx context.Context, d *demo) (string, error) {
	if _, err := d.must(ctx, "csm", "cluster", "create", clusterShort, "--authority", authorityShort, "--cassandra-name", d.ring.Cluster, "--region", regions[0]); err != nil {
		return "", err
	}
	for _, a := range d.agents {
		if err := os.MkdirAll(a.dir, 0o700); err != nil {
			return "", err
		}
		args := append([]string{"cluster", "join-command", clusterShort, "--node", a.node.Name}, nameFlags(a)...)
		t, err := mustJSON[rest.JoinToken](ctx, d, "csm", args...)
		if err != nil {
			return "", err
		}
		if t.Secret == "" {
			return "", errors.New("csm cluster join-command printed no token")
		}
		if err := os.WriteFile(a.token, []byte(t.Secret+"\n"), 0o600); err != nil {
			return "", err
		}
	}
	return "cluster " + clusterShort + ", tokens for n1 n2 n3 (only their hashes are kept)", nil
}

// nameFlags are what the certificates of a node may carry. On loopback every outgoing link has the source 127.0.0.1.
func nameFlags(a *agent) []string {
	return []string{"--ip", a.node.Address.String(), "--ip", "127.0.0.1", "--dns", a.node.Name + ".demo.example"}
}

func setNames(a *agent) []string {
	return append([]string{"node", "set-names", clusterShort + "/" + a.node.Name}, nameFlags(a)...)
}
