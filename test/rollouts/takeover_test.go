//go:build linux

package rollouts_test

import (
	"bytes"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"net/netip"
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
	"github.com/cassandra-security-manager/csm/shared/workload"
	"github.com/cassandra-security-manager/csm/test/plane"
	"github.com/cassandra-security-manager/csm/test/ring"
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
	ca := e.corporate()
	var others []*x509.Certificate // anchors that nobody remembers the reason of
	for _, name := range []string{"unknown-1", "unknown-2", "unknown-3"} {
		others = append(others, cassandratest.NewCA(t, name).Root)
	}
	for _, n := range e.r.Nodes {
		cassandratest.Write(t, e.store(n), ca.leaf(n.Name, n.Address.String()), append([]*x509.Certificate{ca.root}, others...)...)
	}
	e.must(e.r.Start(t.Context()))
	client, roots := ca.leaf("load", "127.0.0.1"), x509.NewCertPool()
	roots.AddCert(ca.root)
	roots.AddCert(e.root("root"))
	load, err := workload.Start(t.Context(), workload.Options{Hosts: e.r.Hosts(), TLS: func() *tls.Config {
		return &tls.Config{Certificates: []tls.Certificate{*client.TLS()}, RootCAs: roots}
	}})
	e.must(err)
	t.Cleanup(load.Stop)

	file := filepath.Join(e.dir, "corporate.pem")
	e.must(os.WriteFile(file, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: ca.root.Raw}), 0o600))
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

	e.thereAndBack(load, append([]*x509.Certificate{ca.root, e.root("root")}, others...))

	mark, began := load.Mark(), time.Now()
	e.takeOver("0s")
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
	e.forgotten()
	for _, n := range e.r.Nodes {
		s := e.store(n)
		if err := e.chainsTo(n, e.root("root")); err != nil {
			t.Errorf("%s: %v", n.Name, err)
		}
		for _, want := range append([]*x509.Certificate{ca.root, e.root("root")}, others...) {
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

// takeOver starts a take-over of a ring whose leaves are all another CA's.
func (e *estate) takeOver(bake string) {
	e.t.Helper()
	var plan rotation.RotationPlan
	e.must(json.Unmarshal([]byte(e.csm("rotation", "plan", "--to", "root", "-o", "json")), &plan))
	if plan.Kind != rotation.Takeover || len(plan.Members) != 3 || len(plan.Blockers) > 0 {
		e.t.Fatalf("plan: %+v", plan)
	}
	e.csm("rotation", "start", "--to", "root", "--plan", plan.Hash, "--bake", bake, "--reason", "a test")
}

// thereAndBack takes the whole ring over, then turns round under load: each node serves the leaf that it had before again, and every
// anchor stays where it was.
func (e *estate) thereAndBack(load *workload.Load, anchors []*x509.Certificate) {
	e.t.Helper()
	before, files := map[string][]byte{}, map[string][]byte{}
	for _, n := range e.r.Nodes {
		before[n.Name], files[n.Name] = e.served(n), e.keystore(n)
	}
	mark, began := load.Mark(), time.Now()
	e.takeOver("0s")
	e.follow(load, rotation.Reissued)
	e.t.Logf("after %s every node serves a leaf of ours\n%s", time.Since(began).Round(time.Second), e.csm("rotation", "explain"))
	for _, n := range e.r.Nodes {
		if err := e.chainsTo(n, e.root("root")); err != nil {
			e.t.Errorf("%s: %v", n.Name, err)
		}
		if held, _ := filepath.Glob(filepath.Join(e.dir, "agents", n.Name, "state", "*", "install", "node", "original-*", "keystore")); len(held) != 1 {
			e.t.Errorf("%s keeps %v of the leaf of before", n.Name, held)
		}
	}

	turned := time.Now()
	out, said, err := e.run("rotation", "rollback", "--reason", "clients complain", "--yes", "--wait", "--timeout", "6m")
	e.t.Logf("%s%s%s", said, out, e.csm("rotation", "explain"))
	e.must(err)
	r := load.Since(mark)
	e.t.Logf("turned round in %s; there and back under %d queries and %d new connections: %d failed, p99 %s", time.Since(turned).Round(time.Second), r.Queries, r.Connections, r.Failed, r.P99)
	if r.Failed > 0 || r.Wrong > 0 || r.Queries < 200 {
		e.t.Errorf("%d queries, %d failed, %d wrong: %v", r.Queries, r.Failed, r.Wrong, r.Errors)
	}
	for _, n := range e.r.Nodes {
		if got := e.served(n); !bytes.Equal(got, before[n.Name]) {
			e.t.Errorf("%s serves %x, before it was %x", n.Name, got[:6], before[n.Name][:6])
		}
		if !bytes.Equal(e.keystore(n), files[n.Name]) {
			e.t.Errorf("the keystore of %s is not the one of before", n.Name)
		}
		for _, want := range anchors {
			if !slices.ContainsFunc(install.Trusted(e.store(n)), want.Equal) {
				e.t.Errorf("%s no longer trusts %s", n.Name, want.Subject)
			}
		}
		e.until(n.Name, "another CA's again", func(v fleet.Node) bool {
			return v.Stores[0].State == "foreign" && v.Stores[0].Proven == v.Stores[0].Leaf
		})
	}
	e.forgotten()
}

// forgotten waits until no agent keeps anything of another CA any more.
func (e *estate) forgotten() {
	e.t.Helper()
	e.must(plane.Eventually(e.t.Context(), patience, func() error {
		if held, _ := filepath.Glob(filepath.Join(e.dir, "agents", "*", "state", "*", "install", "node", "original*")); len(held) > 0 {
			return fmt.Errorf("kept for nothing: %v", held)
		}
		return nil
	}))
}

// served is the fingerprint of the leaf that a node serves to applications.
func (e *estate) served(n *ring.Node) []byte {
	e.t.Helper()
	c, err := install.Certificate(e.store(n))
	e.must(err)
	conn, err := tls.Dial("tcp", netip.AddrPortFrom(n.Address, ring.NativePort).String(), &tls.Config{Certificates: []tls.Certificate{*c}, InsecureSkipVerify: true}) // what it serves is looked at, whoever signed it
	e.must(err)
	defer conn.Close()
	sum := sha256.Sum256(conn.ConnectionState().PeerCertificates[0].Raw)
	return sum[:]
}

func (e *estate) keystore(n *ring.Node) []byte {
	e.t.Helper()
	data, err := os.ReadFile(e.store(n).KeystorePath)
	e.must(err)
	return data
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

var shownPlan = regexp.MustCompile(`plan ([0-9a-f]{16})`)

// planned runs a grave command with --dry-run, and then with the hash of its plan.
func (e *estate) planned(args ...string) {
	e.t.Helper()
	out, said, err := e.run(append(args, "--dry-run")...)
	e.must(err)
	hash := shownPlan.FindStringSubmatch(out + said)
	if hash == nil {
		e.t.Fatalf("csm %v shows no plan: %s%s", args, out, said)
	}
	e.csm(append(args, "--plan", hash[1])...)
}
