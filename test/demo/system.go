//go:build linux

package main

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"

	"github.com/cassandra-security-manager/csm/controller/api/rest"
	"github.com/cassandra-security-manager/csm/controller/fleet"
	"github.com/cassandra-security-manager/csm/shared/resource"
	"github.com/cassandra-security-manager/csm/test/plane"
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

// status asks the controllers in turn.
func (d *demo) status(ctx context.Context) (s status, err error) {
	err = d.get(ctx, "/v1/system", &s.Status)
	return s, err
}

// get asks the controllers in turn over REST. The demonstration acts through the command line, as people do, and watches
// this way, because asking ten times a second should not cost a process each time.
func (d *demo) get(ctx context.Context, path string, out any) error {
	return d.plane.API.Do(ctx, http.MethodGet, path, nil, out)
}

// node reads a node of the demonstration's cluster.
func (d *demo) node(ctx context.Context, name string) (fleet.Node, error) {
	var n fleet.Node
	err := d.get(ctx, "/v1/"+nodeName(name), &n)
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

// configure makes the context of csm, as a user does once.
func (d *demo) configure(ctx context.Context) error {
	var servers []string
	for _, c := range d.plane.Controllers {
		servers = append(servers, "https://"+c.Address(9640))
	}
	args := []string{"context", "set", "demo", "--server", strings.Join(servers, ","), "--ca-pin", d.plane.API.Pin, "--cert", d.plane.AdminFile, "--key", d.plane.AdminFile}
	if _, err := d.must(ctx, "csm", args...); err != nil {
		return err
	}
	_, err := d.must(ctx, "csm", "context", "use", "demo")
	return err
}

// environment lets the programs find the demonstration's configuration and not the user's own.
func (d *demo) environment() []string {
	return []string{"CSM_CONFIG=" + d.csmConfig(), "NO_COLOR=1"}
}

func (d *demo) csmConfig() string { return filepath.Join(d.dir, "csm.yaml") }

// makeAuthorities makes the root and an issuing CA for each region.
func makeAuthorities(ctx context.Context, d *demo) (string, error) {
	a, err := d.makeAuthority(ctx, authorityShort)
	if err != nil {
		return "", err
	}
	var list []string
	for _, i := range a.Issuers {
		list = append(list, strings.TrimSpace(i.Kind+" "+i.Region+" "+brief(i.SHA256)))
	}
	return strings.Join(list, ", ") + "; " + a.Algorithm, nil
}

// makeAuthority makes one, and keeps its root in a file for those who are to trust it.
func (d *demo) makeAuthority(ctx context.Context, name string) (rest.Authority, error) {
	args := []string{"ca", "create", name}
	for _, r := range regions {
		args = append(args, "--region", r)
	}
	a, err := mustJSON[rest.Authority](ctx, d, "csm", args...)
	if err != nil {
		return a, err
	}
	if len(a.Issuers) != 1+len(regions) {
		return a, fmt.Errorf("%d issuers, not a root and %d", len(a.Issuers), len(regions))
	}
	for _, i := range a.Issuers {
		if i.Kind == "root" {
			d.roots = append(d.roots, filepath.Join(d.dir, "root-"+name+".pem"))
			return a, os.WriteFile(d.roots[len(d.roots)-1], []byte(i.PEM), 0o644)
		}
	}
	return a, errors.New("it has no root")
}

func (d *demo) rootFile() string { return d.roots[0] }

// makeCluster makes the cluster, and for each node a token that works once.
func makeCluster(ctx context.Context, d *demo) (string, error) {
	if _, err := d.must(ctx, "csm", "cluster", "create", clusterShort, "--ca", authorityShort, "--cassandra-name", d.ring.Cluster, "--region", regions[0]); err != nil {
		return "", err
	}
	for _, a := range d.agents {
		if err := d.giveToken(ctx, a); err != nil {
			return "", err
		}
	}
	return fmt.Sprintf("cluster %s, tokens for %d nodes (only their hashes are kept)", clusterShort, len(d.agents)), nil
}

// giveToken makes the join token of a node and puts it where its agent looks.
func (d *demo) giveToken(ctx context.Context, a *plane.Agent) error {
	if err := os.MkdirAll(a.Dir, 0o700); err != nil {
		return err
	}
	args := append([]string{"cluster", "join-command", clusterShort + "/" + a.Node.Name, "--yes"}, nameFlags(a)...)
	t, err := mustJSON[rest.JoinToken](ctx, d, "csm", args...)
	if err != nil {
		return err
	}
	if t.Secret == "" {
		return errors.New("csm cluster join-command printed no token")
	}
	return os.WriteFile(a.Token, []byte(t.Secret+"\n"), 0o600)
}

// nameFlags are what the certificates of a node may carry.
func nameFlags(a *plane.Agent) []string {
	var out []string
	dns, ips := a.Names("demo.example")
	for _, ip := range ips {
		out = append(out, "--ip", ip)
	}
	for _, name := range dns {
		out = append(out, "--dns", name)
	}
	return out
}

func setNames(a *plane.Agent) []string {
	return append([]string{"node", "set-names", clusterShort + "/" + a.Node.Name, "--yes"}, nameFlags(a)...)
}
