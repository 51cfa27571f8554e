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
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strconv"
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
	// Formats are the store formats of the nodes; empty means the package's.
	Formats []string
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
	if len(o.Addresses) == 0 || len(o.Addresses) > len(o.Formats) {
		return nil, fmt.Errorf("a ring has 1 to %d nodes here, not %d", len(o.Formats), len(o.Addresses))
	}
	r := &Ring{Options: o, dist: dist}
	for i, a := range o.Addresses {
		n, err := r.node(i, a)
		if err != nil {
			return nil, fmt.Errorf("node %d: %w", i+1, err)
		}
		r.Nodes = append(r.Nodes, n)
	}
	return r, nil
}

func (r *Ring) node(i int, address netip.Addr) (*Node, error) {
	// Tokens split the ring evenly: -2^63 + (i+1) * 2^64/4.
	token := int64(-1<<63) + int64(i+1)*(1<<62)
	return r.configure("n"+strconv.Itoa(i+1), i, r.Formats[i], address, strconv.FormatInt(token, 10))
}

// Add writes the configuration of one more node, which bootstraps into the ring when it is started, by a token of its own
// choice or that of the node which it replaces. It is in Nodes from then on.
func (r *Ring) Add(name, format string, address netip.Addr) (*Node, error) {
	n, err := r.configure(name, len(r.Nodes), format, address, "")
	if err != nil {
		return nil, err
	}
	r.Nodes = append(r.Nodes, n)
	return n, nil
}

// Renew removes all that a node had, as a host that was set up anew; it bootstraps when it is started again.
func (n *Node) Renew(r *Ring) error {
	if n.Running() {
		return fmt.Errorf("%s runs", n.Name)
	}
	if err := os.RemoveAll(n.Dir); err != nil {
		return err
	}
	fresh, err := r.configure(n.Name, slices.Index(r.Nodes, n), n.Format, n.Address, "")
	if err != nil {
		return err
	}
	*n = *fresh
	return nil
}

func (r *Ring) configure(name string, i int, format string, address netip.Addr, token string) (*Node, error) {
	dir := filepath.Join(r.Dir, name)
	jmx, err := port.Free()
	if err != nil {
		return nil, err
	}
	ext := map[string]string{"PKCS12": "p12", "JKS": "jks", "PEM": "pem"}[format]
	n := &Node{
		Name: name, Dir: dir, Address: address, JMX: jmx, Rack: "r" + strconv.Itoa(i+1), Datacenter: "dc1",
		Format: format, Password: "ring-password",
		Config:   filepath.Join(dir, "conf", "cassandra.yaml"),
		Stores:   filepath.Join(dir, "tls"),
		Keystore: filepath.Join(dir, "tls", "keystore."+ext), Truststore: filepath.Join(dir, "tls", "truststore."+ext),
		Log: filepath.Join(dir, "logs", "system.log"), Nodetool: filepath.Join(dir, "bin", "nodetool"),
		dist: r.dist,
	}
	for _, d := range []string{"conf", "tls", "logs", "data", "bin"} {
		if err := os.MkdirAll(filepath.Join(dir, d), 0o750); err != nil {
			return nil, err
		}
	}
	err = render("cassandra.yaml.tmpl", n.Config, map[string]any{
		"Cluster": r.Cluster, "Token": token, "Address": address, "StoragePort": StoragePort, "NativePort": NativePort,
		"Seed":   netip.AddrPortFrom(r.Addresses[0], StoragePort),
		"Format": n.Format, "Keystore": n.Keystore, "Truststore": n.Truststore, "Password": n.Password,
	})
	if err != nil {
		return nil, err
	}
	if err := os.WriteFile(n.rackdc(), fmt.Appendf(nil, "dc=%s\nrack=%s\n", n.Datacenter, n.Rack), 0o640); err != nil {
		return nil, err
	}
	return n, r.dist.writeNodetool(n)
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
