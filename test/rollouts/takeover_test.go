//go:build linux

package rollouts_test

import (
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"testing"
	"time"

	"github.com/cassandra-security-manager/csm/agent/cassandra"
	"github.com/cassandra-security-manager/csm/agent/cassandra/cassandratest"
	"github.com/cassandra-security-manager/csm/agent/install"
	"github.com/cassandra-security-manager/csm/controller/fleet"
	"github.com/cassandra-security-manager/csm/controller/fleet/rotation"
	"github.com/cassandra-security-manager/csm/test/plane"
	"github.com/cassandra-security-manager/csm/test/ring"
	"github.com/cassandra-security-manager/csm/test/workload"
)

// store reads a node's configuration as its agent does.
func (e *estate) store(n *ring.Node) *cassandra.Store {
	e.t.Helper()
	i, findings, err := cassandra.Options{Roots: []string{n.Stores}}.Read(n.Config)
	e.must(err)
	if len(i.Stores) != 1 {
		e.t.Fatalf("%s has %d stores: %v", n.Name, len(i.Stores), findings)
	}
	return i.Stores[0]
}

// TestTheLeavesOfAnotherCAAreTakenOverUnderLoad adopts a real ring that lives by a CA of somebody else: trust first, then a
// rotation replaces its leaves, node by node, and the anchors of others stay.
func TestTheLeavesOfAnotherCAAreTakenOverUnderLoad(t *testing.T) {
	if os.Getenv("CSM_TEST_FULL") == "" {
		t.Skip("takes minutes; runs with make test-full")
	}
	e := lay(t)
	ca := cassandratest.NewCA(t, "corporate")
	var others []*x509.Certificate // anchors that nobody remembers the reason of
	for _, name := range []string{"unknown-1", "unknown-2", "unknown-3"} {
		others = append(others, cassandratest.NewCA(t, name).Root)
	}
	for _, n := range e.r.Nodes {
		cassandratest.Write(t, e.store(n), ca.Leaf(func(c *x509.Certificate) { c.IPAddresses = append(c.IPAddresses, n.Address.AsSlice()) }), append([]*x509.Certificate{ca.Root}, others...)...)
	}
	e.must(e.r.Start(t.Context()))
	client, roots := ca.Leaf(), x509.NewCertPool()
	roots.AddCert(ca.Root)
	roots.AddCert(e.root("root"))
	load, err := workload.Start(t.Context(), workload.Options{Hosts: e.r.Hosts(), TLS: func() *tls.Config {
		return &tls.Config{Certificates: []tls.Certificate{*client.TLS()}, RootCAs: roots}
	}})
	e.must(err)
	t.Cleanup(load.Stop)

	file := filepath.Join(e.dir, "corporate.pem")
	e.must(os.WriteFile(file, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: ca.Root.Raw}), 0o600))
	e.csm("trust", "anchor-add", "prod", "--file", file, "--owner", "PKI team", "--reason", "the ring of today", "--expires", "720h")
	for _, n := range e.r.Nodes {
		e.enrol(n)
	}
	for _, n := range e.r.Nodes {
		e.until(n.Name, "seen as another CA's", func(v fleet.Node) bool {
			return len(v.Stores) == 1 && v.Stores[0].State == "foreign" && v.Instance.HostID != ""
		})
	}
	e.planned("cluster", "onboard", "prod", "--reason", "trust first")
	for _, n := range e.r.Nodes {
		e.until(n.Name, "trusting both", func(v fleet.Node) bool {
			return v.Stores[0].State == "foreign" && v.Stores[0].Installed > 0 && v.Stores[0].Proven == v.Stores[0].Leaf
		})
	}

	var plan rotation.RotationPlan
	e.must(json.Unmarshal([]byte(e.csm("rotation", "plan", "--to", "root", "-o", "json")), &plan))
	if plan.Kind != rotation.Takeover || len(plan.Members) != 3 || len(plan.Blockers) > 0 {
		t.Fatalf("plan: %+v", plan)
	}
	mark, began := load.Mark(), time.Now()
	e.csm("rotation", "start", "--to", "root", "--plan", plan.Hash, "--bake", "0s", "--reason", "a test")
	e.follow(load, rotation.Reissued)
	for _, n := range e.r.Nodes {
		if v := e.node(n.Name); !proved(v) {
			t.Errorf("%s: %+v", n.Name, v.Stores)
		}
	}
	var retire rotation.RetirePlan
	e.must(json.Unmarshal([]byte(e.csm("rotation", "retire", "--dry-run", "-o", "json")), &retire))
	if out, said, err := e.run("rotation", "retire", "--plan", retire.Hash, "--except", "links", "--reason", "nothing is withdrawn", "--wait", "--timeout", "4m"); err != nil {
		t.Fatalf("%v: %s%s\n%s", err, said, out, e.csm("rotation", "explain"))
	}
	r := load.Since(mark)
	t.Logf("taken over in %s under %d queries and %d new connections: %d failed, p99 %s", time.Since(began).Round(time.Second), r.Queries, r.Connections, r.Failed, r.P99)
	if r.Failed > 0 || r.Wrong > 0 || r.Queries < 500 {
		t.Errorf("%d queries, %d failed, %d wrong: %v", r.Queries, r.Failed, r.Wrong, r.Errors)
	}
	for _, n := range e.r.Nodes {
		s := e.store(n)
		if err := e.chainsTo(n, e.root("root")); err != nil {
			t.Errorf("%s: %v", n.Name, err)
		}
		for _, want := range append([]*x509.Certificate{ca.Root, e.root("root")}, others...) {
			if !slices.ContainsFunc(install.Trusted(s), want.Equal) {
				t.Errorf("%s no longer trusts %s", n.Name, want.Subject)
			}
		}
	}
}

// chainsTo says why the leaf of a node's store is not of a root.
func (e *estate) chainsTo(n *ring.Node, root *x509.Certificate) error {
	c, err := install.Certificate(e.store(n))
	if err != nil {
		return err
	}
	var chain []*x509.Certificate
	for _, der := range c.Certificate[1:] {
		i, err := x509.ParseCertificate(der)
		if err != nil {
			return err
		}
		chain = append(chain, i)
	}
	_, err = c.Leaf.Verify(x509.VerifyOptions{Roots: pool(root), Intermediates: pool(chain...), KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageAny}})
	return err
}

// follow waits for a phase. Applications whose connections are older than the canary's leaf are waited for, so they are restarted.
func (e *estate) follow(load *workload.Load, to rotation.Phase) {
	e.t.Helper()
	var connected time.Time
	e.must(plane.Eventually(e.t.Context(), 2*patience, func() error {
		time.Sleep(time.Second)
		var r rotation.Rotation
		e.must(json.Unmarshal([]byte(e.csm("rotation", "explain", "-o", "json")), &r))
		waits := func(x rotation.Reason) bool { return x.Code == "canary" }
		if slices.ContainsFunc(r.Reasons, waits) && time.Since(connected) > time.Minute {
			connected = time.Now()
			e.must(load.Reconnect())
		}
		if r.Phase != to {
			return fmt.Errorf("phase %s, it waits for %+v", r.Phase, r.Reasons)
		}
		return nil
	}))
}

func pool(all ...*x509.Certificate) *x509.CertPool {
	p := x509.NewCertPool()
	for _, c := range all {
		p.AddCert(c)
	}
	return p
}

// planned runs a grave command with --dry-run, and then with the hash of its plan.
func (e *estate) planned(args ...string) {
	e.t.Helper()
	out, said, err := e.run(append(args, "--dry-run")...)
	e.must(err)
	hash := regexp.MustCompile(`plan ([0-9a-f]{16})`).FindStringSubmatch(out + said)
	if hash == nil {
		e.t.Fatalf("csm %v shows no plan: %s%s", args, out, said)
	}
	e.csm(append(args, "--plan", hash[1])...)
}
