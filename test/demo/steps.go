//go:build linux

package main

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/cassandra-security-manager/csm/controller/api/rest"
	"github.com/cassandra-security-manager/csm/shared/certificate"
	"github.com/cassandra-security-manager/csm/shared/workload"
	"github.com/cassandra-security-manager/csm/test/plane"
)

// observe starts the agents as an operator should first: they join, read and report, and write nothing.
func observe(ctx context.Context, d *demo) (string, error) {
	for _, a := range d.agents {
		if err := a.Write(d.plane.Fleet(clusterShort), "observe"); err != nil {
			return "", err
		}
		if err := a.Start(); err != nil {
			return "", err
		}
	}
	for _, a := range d.agents {
		err := plane.Eventually(ctx, 60*time.Second, func() error {
			if !a.Process.Running() {
				return fmt.Errorf("the agent ended: %s", a.Process.Tail(5))
			}
			n, err := d.node(ctx, a.Node.Name)
			if err == nil && (!n.Agent.Connected || n.Agent.Mode != "observe" || n.Instance.ListenAddress != a.Node.Address.String()) {
				err = fmt.Errorf("connected %t, mode %q, listen address %q", n.Agent.Connected, n.Agent.Mode, n.Instance.ListenAddress)
			}
			return err
		})
		if err != nil {
			return "", fmt.Errorf("%s: %w", a.Node.Name, err)
		}
		if w := a.Written(); len(w) > 0 {
			return "", fmt.Errorf("%s wrote %v in mode observe", a.Node.Name, w)
		}
		n, err := d.node(ctx, a.Node.Name)
		if err != nil {
			return "", err
		}
		i := n.Instance
		d.screen.note("%s found %s: listen %s, %s/%s, %s stores in %s, not there yet", a.Node.Name, i.ClusterName, i.ListenAddress, i.Datacenter, i.Rack, a.Node.Format, short(d, a.Node.Stores))
	}
	return "nothing written", nil
}

func short(d *demo, path string) string {
	if s, ok := strings.CutPrefix(path, d.dir+"/"); ok {
		return s
	}
	return path
}

// manage raises the local ceiling: now the agents may write. Cassandra has never run yet.
func manage(ctx context.Context, d *demo) (string, error) {
	for _, a := range d.agents {
		if err := a.Write(d.plane.Fleet(clusterShort), "manage"); err != nil {
			return "", err
		}
		if err := a.Restart(ctx); err != nil {
			return "", err
		}
	}
	var out []string
	for _, a := range d.agents {
		var p pair
		err := plane.Eventually(ctx, 60*time.Second, func() (err error) {
			if !a.Process.Running() {
				return fmt.Errorf("the agent ended: %s", a.Process.Tail(5))
			}
			if p, err = onDisk(a.Node); err != nil {
				return err
			}
			_, s, err := d.store(ctx, a.Node.Name)
			if err == nil && (s.Leaf != p.fingerprint() || s.State != "installed-unproven") {
				err = fmt.Errorf("the controllers hold %s, state %s: %s", brief(s.Leaf), s.State, s.Detail)
			}
			return err
		})
		if err != nil {
			return "", fmt.Errorf("%s: %w; the agent's log ends with: %s", a.Node.Name, err, a.Process.Tail(3))
		}
		out = append(out, a.Node.Name+" "+a.Node.Format+" "+brief(p.fingerprint()))
	}
	return strings.Join(out, ", "), nil
}

// startRing starts Cassandra for the first time and waits until each store is proved by a neighbour.
func startRing(ctx context.Context, d *demo) (string, error) {
	began := time.Now()
	if err := d.ring.Start(ctx); err != nil {
		return "", err
	}
	up := time.Since(began)
	for _, n := range d.ring.Nodes {
		d.ready = append(d.ready, n.Mark())
	}
	for _, a := range d.agents {
		err := plane.Eventually(ctx, 60*time.Second, func() error {
			_, s, err := d.store(ctx, a.Node.Name)
			if err == nil && s.State != "proven" {
				err = fmt.Errorf("state %s: %s", s.State, s.Detail)
			}
			return err
		})
		if err != nil {
			return "", fmt.Errorf("%s is not proved: %w; the agent's log ends with: %s", a.Node.Name, err, a.Process.Tail(3))
		}
	}
	return fmt.Sprintf("up in %.1f s, internode_encryption all, client certificates on both ports; every store proved %.1f s later",
		up.Seconds(), (time.Since(began) - up).Seconds()), nil
}

// client is the identity of an application, issued from a request whose key never left this program. Its certificate and its
// roots may change while connections are made.
type client struct {
	mu    sync.Mutex
	cert  tls.Certificate
	roots *x509.CertPool
}

// config is what the next connection uses.
func (c *client) config() *tls.Config {
	c.mu.Lock()
	defer c.mu.Unlock()
	return &tls.Config{Certificates: []tls.Certificate{c.cert}, RootCAs: c.roots}
}

// use changes the certificate, and trusts the roots of files.
func (c *client) use(cert tls.Certificate, files ...string) error {
	roots := x509.NewCertPool()
	for _, f := range files {
		root, err := os.ReadFile(f)
		if err != nil {
			return err
		}
		if !roots.AppendCertsFromPEM(root) {
			return fmt.Errorf("the root in %s cannot be read", f)
		}
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.cert, c.roots = cert, roots
	return nil
}

func (d *demo) appFile() string { return filepath.Join(d.dir, "app.pem") }

// application issues the load's client certificate by the command line. It trusts the roots of all authorities that were made.
func (d *demo) application(ctx context.Context, authority string) error {
	key, csr, err := request("load.demo.example")
	if err != nil {
		return err
	}
	path := filepath.Join(d.dir, "app.csr")
	if err := os.WriteFile(path, csr, 0o600); err != nil {
		return err
	}
	c, err := mustJSON[rest.Certificate](ctx, d, "csm", "certificate", "issue", "--csr", path, "--ca", authority)
	if err != nil {
		return err
	}
	chain, err := certificate.DecodePEM([]byte(c.Chain))
	if err != nil {
		return err
	}
	if d.client == nil {
		d.client = &client{}
	}
	if err := d.client.use(tls.Certificate{PrivateKey: key, Certificate: certificate.Raw(chain)}, d.roots...); err != nil {
		return err
	}
	keyPEM, err := certificate.EncodeKeyPEM(key)
	if err != nil {
		return err
	}
	return os.WriteFile(d.appFile(), append(keyPEM, c.Chain...), 0o600)
}

// request makes a key and a PEM request for one DNS name.
func request(dns string) (crypto.Signer, []byte, error) {
	key, err := ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
	if err != nil {
		return nil, nil, err
	}
	names, err := certificate.ParseNames([]string{dns}, nil, nil)
	if err != nil {
		return nil, nil, err
	}
	der, err := certificate.NewRequest(key, names)
	return key, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: der}), err
}

// startLoad starts the queries. The first ones meet cold JVMs; how fast they are at rest is measured at the end.
func startLoad(ctx context.Context, d *demo) (string, error) {
	if err := d.application(ctx, authorityShort); err != nil {
		return "", err
	}
	if err := d.startLoads(ctx); err != nil {
		return "", err
	}
	load := d.load
	d.screen.watch(func() string {
		var queries, failed uint64
		for _, l := range d.loads {
			r := l.Since(l.Begin())
			queries, failed = queries+r.Queries, failed+r.Failed
		}
		return fmt.Sprintf("· %d queries, %d failed", queries, failed)
	})
	mark := load.Mark()
	pause(ctx, 4*time.Second)
	r := load.Since(mark)
	if r.Failed > 0 || r.Queries == 0 {
		return "", fmt.Errorf("%d of %d queries failed at rest: %v", r.Failed, r.Queries, r.Errors)
	}
	return fmt.Sprintf("%.0f queries/s, %.1f new connections/s, 0 failed", float64(r.Queries)/r.Took.Seconds(), float64(r.Connections)/r.Took.Seconds()), ctx.Err()
}

// startLoads starts a load for each data centre, which keeps to it when there are several.
func (d *demo) startLoads(ctx context.Context) error {
	hosts, replication := map[string][]string{}, map[string]int{}
	for _, n := range d.ring.Nodes {
		hosts[n.Datacenter] = append(hosts[n.Datacenter], n.Address.String())
		replication[n.Datacenter]++
	}
	d.loads = map[string]*workload.Load{}
	for _, dc := range slices.Sorted(maps.Keys(hosts)) {
		o := workload.Options{Hosts: hosts[dc], Keyspace: "load_" + dc, Replication: replication, TLS: d.client.config}
		if len(hosts) > 1 {
			o.Datacenter, o.Rate = dc, 100
		}
		load, err := workload.Start(ctx, o)
		if err != nil {
			return fmt.Errorf("%s: %w", dc, err)
		}
		d.loads[dc] = load
		if d.load == nil {
			d.load = load
		}
	}
	return nil
}

func ms(d time.Duration) string { return fmt.Sprintf("%.1f ms", float64(d.Microseconds())/1000) }

// renewAll renews every node and fills the table.
func renewAll(ctx context.Context, d *demo) (string, error) {
	var failed error
	for _, a := range d.agents {
		d.screen.step("renewing %s", a.Node.Name)
		r, err := d.renew(ctx, a.Node.Name, "shown by the demonstration")
		if err != nil {
			failed = errors.Join(failed, fmt.Errorf("%s: %w", a.Node.Name, err))
			continue
		}
		d.renewals = append(d.renewals, r)
		d.screen.note("%s (%s) %s -> %s, %s by %s, %.1f s, %d queries, %d failed", r.node, r.format, brief(r.before), brief(r.after), r.proofs, r.by, r.took.Seconds(), r.load.Queries, r.load.Failed)
		if r.load.Failed > 0 {
			failed = errors.Join(failed, fmt.Errorf("%d queries failed while %s was renewed: %v", r.load.Failed, r.node, r.load.Errors))
		}
	}
	return "", failed
}
