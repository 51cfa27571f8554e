//go:build linux

// Package ring runs a real Apache Cassandra ring on loopback addresses: encrypted between nodes, client certificates
// required on both ports, endpoint verification, three racks, and a store format per node (PKCS#12, JKS, PEM).
//
// It owns the JVMs it starts and one work folder. It writes every configuration file, but never a keystore or a
// truststore: those are the business of whoever is under test. It refuses to start a node whose stores are missing.
package ring

import (
	"context"
	"embed"
	"errors"
	"fmt"
	"math"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/cassandra-security-manager/csm/test/port"
)

//go:embed files
var files embed.FS

// Formats are the store formats of the nodes, in their order, unless Options says otherwise.
var Formats = []string{"PKCS12", "JKS", "PEM"}

// Ports of every node; nodes differ by address.
const (
	StoragePort = 7000
	NativePort  = 9042
)

// Options of a ring.
type Options struct {
	// Dir is the work folder; one folder per node appears in it.
	Dir string
	// Cluster is Cassandra's cluster_name.
	Cluster string
	// Addresses are one loopback address per node, mostly from process.Claim.
	Addresses []netip.Addr
	// Datacenters are those of the nodes, in their order; empty means that all are in dc1. Within each of them the first node
	// is in rack r1, the second in r2, and so on.
	Datacenters []string
	// Formats are the store formats of the nodes, again from the first one when there are more nodes; empty means the package's.
	Formats []string
	// Passwords asks CQL clients for a login (PasswordAuthenticator) and for grants (CassandraAuthorizer). The first login is
	// cassandra with password cassandra.
	Passwords bool
	// PlaintextClients takes CQL clients without TLS beside those with it, and asks none for a certificate.
	PlaintextClients bool
}

// Ring is a set of nodes that know each other.
type Ring struct {
	Options
	Nodes []*Node
	dist  *Distribution
}

// New writes the configuration of all nodes and starts nothing.
func New(dist *Distribution, o Options) (*Ring, error) {
	dir, err := filepath.Abs(o.Dir)
	if err != nil {
		return nil, err
	}
	o.Dir = dir
	if o.Formats == nil {
		o.Formats = Formats
	}
	for len(o.Datacenters) < len(o.Addresses) {
		o.Datacenters = append(o.Datacenters, "dc1")
	}
	if len(o.Addresses) == 0 || len(o.Addresses) > maxNodes {
		return nil, fmt.Errorf("a ring has 1 to %d nodes here, not %d", maxNodes, len(o.Addresses))
	}
	r := &Ring{Options: o, dist: dist}
	for i, a := range o.Addresses {
		// Tokens split the ring evenly: -2^63 + (i+1) * 2^64/(nodes+1).
		step := math.MaxUint64 / uint64(len(o.Addresses)+1)
		n, err := r.node(a, o.Datacenters[i], strconv.FormatInt(int64(uint64(1<<63)+uint64(i+1)*step), 10))
		if err != nil {
			return nil, fmt.Errorf("node %d: %w", i+1, err)
		}
		r.Nodes = append(r.Nodes, n)
	}
	return r, nil
}

// maxNodes is what a machine of two cores and some GB carries.
const maxNodes = 8

// Add writes the configuration of one more node, which will bootstrap: it streams what it is to own from the others.
func (r *Ring) Add(address netip.Addr, datacenter string) (*Node, error) {
	if len(r.Nodes) >= maxNodes {
		return nil, fmt.Errorf("a ring has at most %d nodes here", maxNodes)
	}
	n, err := r.node(address, datacenter, "")
	if err != nil {
		return nil, err
	}
	r.Nodes = append(r.Nodes, n)
	return n, nil
}

// node writes a node's configuration; without a token it bootstraps.
func (r *Ring) node(address netip.Addr, datacenter, token string) (*Node, error) {
	i, rack := len(r.Nodes), 1
	for _, n := range r.Nodes {
		if n.Datacenter == datacenter {
			rack++
		}
	}
	format := r.Formats[i%len(r.Formats)]
	name := "n" + strconv.Itoa(i+1)
	dir := filepath.Join(r.Dir, name)
	jmx, err := port.Free()
	if err != nil {
		return nil, err
	}
	ext := map[string]string{"PKCS12": "p12", "JKS": "jks", "PEM": "pem"}[format]
	n := &Node{
		Name: name, Dir: dir, Address: address, JMX: jmx, Rack: "r" + strconv.Itoa(rack), Datacenter: datacenter,
		Format: format, Password: "ring-password",
		Config:   filepath.Join(dir, "conf", "cassandra.yaml"),
		Stores:   filepath.Join(dir, "tls"),
		Keystore: filepath.Join(dir, "tls", "keystore."+ext), Truststore: filepath.Join(dir, "tls", "truststore."+ext),
		Log: filepath.Join(dir, "logs", "system.log"), Nodetool: filepath.Join(dir, "bin", "nodetool"),
		dist: r.dist,
	}
	if r.Passwords {
		// Roles on each node, and the first of them at once.
		n.JVM = []string{"-Dcassandra.superuser_setup_delay_ms=500", fmt.Sprintf("-Dcassandra.system_auth.default_rf=%d", len(r.Addresses))}
	}
	return n, r.write(n, token)
}

// Rebuild removes all that a node has that does not run, as a host has nothing that was set up anew; it bootstraps when it is
// started.
func (r *Ring) Rebuild(n *Node) error {
	if n.Running() {
		return fmt.Errorf("%s runs", n.Name)
	}
	if err := os.RemoveAll(n.Dir); err != nil {
		return err
	}
	return r.write(n, "")
}

// write makes a node's folders and configuration.
func (r *Ring) write(n *Node, token string) error {
	for _, d := range []string{"conf", "tls", "logs", "data", "bin"} {
		if err := os.MkdirAll(filepath.Join(n.Dir, d), 0o750); err != nil {
			return err
		}
	}
	err := render("cassandra.yaml.tmpl", n.Config, map[string]any{
		"Cluster": r.Cluster, "Token": token, "Address": n.Address, "StoragePort": StoragePort, "NativePort": NativePort,
		"Seed":      netip.AddrPortFrom(r.Addresses[0], StoragePort),
		"Passwords": r.Passwords, "PlaintextClients": r.PlaintextClients,
		"Format": n.Format, "DiskAccessMode": !strings.HasPrefix(r.dist.Release.Version, "4."), "Keystore": n.Keystore, "Truststore": n.Truststore, "Password": n.Password,
	})
	if err != nil {
		return err
	}
	if err := os.WriteFile(n.rackdc(), fmt.Appendf(nil, "dc=%s\nrack=%s\n", n.Datacenter, n.Rack), 0o640); err != nil {
		return err
	}
	return r.dist.writeNodetool(n)
}

// Start starts all nodes at once and waits until each one takes clients.
func (r *Ring) Start(ctx context.Context) error {
	for _, n := range r.Nodes {
		if err := n.Start(); err != nil {
			return err
		}
	}
	for _, n := range r.Nodes {
		if err := n.WaitReady(ctx); err != nil {
			return err
		}
	}
	return nil
}

// Hosts are the addresses as strings, for a driver.
func (r *Ring) Hosts() []string {
	var out []string
	for _, n := range r.Nodes {
		out = append(out, n.Address.String())
	}
	return out
}

// Kill ends all nodes at once with SIGKILL; Cassandra replays its commit log when it starts again.
func (r *Ring) Kill() {
	for _, n := range r.Nodes {
		n.Kill()
	}
}

// WaitUp waits until every node says of every node that it is up and normal.
func (r *Ring) WaitUp(ctx context.Context) error {
	for {
		up := true
		for _, n := range r.Nodes {
			out, err := n.RunNodetool(ctx, "status")
			up = up && err == nil && countUp(out) == len(r.Nodes)
		}
		if up {
			return nil
		}
		select {
		case <-ctx.Done():
			return errors.Join(errors.New("the nodes do not all see each other up"), ctx.Err())
		case <-time.After(500 * time.Millisecond):
		}
	}
}
