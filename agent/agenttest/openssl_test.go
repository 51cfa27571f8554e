//go:build linux

package agenttest

import (
	"context"
	"crypto"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/cassandra-security-manager/csm/agent/cassandra"
	"github.com/cassandra-security-manager/csm/agent/cassandra/cassandratest"
	"github.com/cassandra-security-manager/csm/agent/config"
	"github.com/cassandra-security-manager/csm/agent/install"
	"github.com/cassandra-security-manager/csm/agent/probe"
	"github.com/cassandra-security-manager/csm/agent/reload"
	"github.com/cassandra-security-manager/csm/controller/fleet"
	"github.com/cassandra-security-manager/csm/controller/issuance"
	agentv1 "github.com/cassandra-security-manager/csm/protocol/agent/v1"
	"github.com/cassandra-security-manager/csm/shared/algorithm"
	"github.com/cassandra-security-manager/csm/shared/certificate"
	"github.com/cassandra-security-manager/csm/shared/identity"
	"github.com/cassandra-security-manager/csm/shared/keystore"
	"github.com/cassandra-security-manager/csm/shared/workload"
	"github.com/cassandra-security-manager/csm/test/process"
	cassandraring "github.com/cassandra-security-manager/csm/test/ring"
)

// corporate is a CA run by hand with `openssl ca`.
type corporate struct {
	t    *testing.T
	dir  string
	root *x509.Certificate
}

func newCorporate(t *testing.T) corporate {
	t.Helper()
	c := corporate{t: t, dir: t.TempDir()}
	conf := fmt.Sprintf(`[ca]
default_ca = d
[d]
dir = %[1]s
database = %[1]s/index.txt
serial = %[1]s/serial
new_certs_dir = %[1]s
certificate = %[1]s/root.pem
private_key = %[1]s/root.key
default_md = sha256
default_days = 60
policy = p
copy_extensions = copy
unique_subject = no
[p]
commonName = supplied
[req]
distinguished_name = n
[n]
[v3_ca]
basicConstraints = critical,CA:TRUE
keyUsage = critical,keyCertSign,cRLSign
`, c.dir)
	for name, text := range map[string]string{"ca.cnf": conf, "index.txt": "", "serial": "1000\n"} {
		must(t, os.WriteFile(filepath.Join(c.dir, name), []byte(text), 0o600))
	}
	c.openssl("req", "-x509", "-newkey", "rsa:2048", "-nodes", "-keyout", "root.key", "-out", "root.pem", "-days", "3650", "-subj", "/CN=Corporate Root 2019", "-config", "ca.cnf", "-extensions", "v3_ca")
	c.root = c.read("root.pem")
	return c
}

func (c corporate) openssl(args ...string) {
	c.t.Helper()
	cmd := exec.Command("openssl", args...)
	cmd.Dir = c.dir
	if out, err := cmd.CombinedOutput(); err != nil {
		c.t.Fatalf("openssl %v: %v\n%s", args, err, out)
	}
}

func (c corporate) read(name string) *x509.Certificate {
	c.t.Helper()
	b, err := os.ReadFile(filepath.Join(c.dir, name))
	must(c.t, err)
	cs, err := certificate.DecodePEM(b)
	must(c.t, err)
	return cs[len(cs)-1]
}

// leaf is what such a CA gives today: RSA 2048, SHA-256.
func (c corporate) leaf(name string, san string) cassandratest.Leaf {
	c.t.Helper()
	c.openssl("req", "-newkey", "rsa:2048", "-nodes", "-keyout", name+".key", "-out", name+".csr", "-subj", "/CN="+name, "-config", "ca.cnf", "-addext", "subjectAltName="+san)
	c.openssl("ca", "-batch", "-config", "ca.cnf", "-in", name+".csr", "-out", name+".pem", "-notext")
	b, err := os.ReadFile(filepath.Join(c.dir, name+".key"))
	must(c.t, err)
	key, err := certificate.DecodeKeyPEM(b)
	must(c.t, err)
	return cassandratest.Leaf{Key: key, Chain: []*x509.Certificate{c.read(name + ".pem")}}
}

// real is an agent beside a real Cassandra.
type real struct {
	*host
	node  *cassandraring.Node
	store *cassandra.Store
}

func (w *world) real(n *cassandraring.Node) *real {
	w.t.Helper()
	i, findings, err := cassandra.Options{Roots: []string{n.Stores}}.Read(n.Config)
	if err != nil || len(i.Stores) != 1 {
		w.t.Fatalf("%v %v", err, findings)
	}
	r := &real{host: &host{t: w.t, w: w, name: n.Name, acts: make(chan string, 1000), end: func() error { return nil }}, node: n, store: i.Stores[0]}
	r.conf = config.Defaults()
	r.conf.Controllers, r.conf.Pin, r.conf.Cluster, r.conf.Mode = []string{w.address}, identity.Pin(w.roots[0]), "prod", "manage"
	r.conf.Join = config.Join{Method: "possession", Node: n.Name}
	r.conf.StateDir, r.conf.HoldFile = filepath.Join(n.Dir, "agent"), filepath.Join(n.Dir, "HOLD")
	r.conf.Cassandra = []config.Instance{{Config: n.Config, StoreRoots: []string{n.Stores}}}
	helper, err := reload.Over(func() (io.ReadWriteCloser, error) {
		agent, child := net.Pipe()
		go reload.Serve(context.Background(), child, map[string]reload.Command{n.Config: {Path: n.Nodetool, Args: []string{"reloadssl"}, Ring: []string{n.Nodetool, "status"}}})
		return agent, nil
	})
	must(w.t, err)
	w.t.Cleanup(func() { helper.Close() })
	r.reloader = helper.Reloader(n.Config)
	w.t.Cleanup(func() { r.end() })
	return r
}

// leafOf is the certificate on disk.
func leafOf(t *testing.T, s *cassandra.Store) *x509.Certificate {
	t.Helper()
	c, err := install.Certificate(s)
	must(t, err)
	return c.Leaf
}

func (r *real) anchors() []*x509.Certificate {
	r.t.Helper()
	b, err := os.ReadFile(r.store.TruststorePath)
	must(r.t, err)
	cs, err := keystore.DecodeTrustStore(r.store.Format, b, r.store.TruststorePassword)
	must(r.t, err)
	return cs
}

func TestARealRingOfOpensslIsJoinedTrustedAndLetGo(t *testing.T) {
	if os.Getenv("CSM_TEST_FULL") == "" {
		t.Skip("a real Cassandra ring beside all the others of this package takes more than a minute: `make test-full` runs it")
	}
	ctx, cancel := context.WithTimeout(t.Context(), 4*time.Minute)
	defer cancel()
	dist, err := cassandraring.Prepare(ctx, "../../build/cassandra/"+cassandraring.Version, false, func(s string) { t.Log(s) })
	must(t, err)
	loopback, err := process.Claim(20, 3, cassandraring.StoragePort, cassandraring.NativePort)
	must(t, err)
	defer loopback.Release()
	r, err := cassandraring.New(dist, cassandraring.Options{Dir: t.TempDir(), Cluster: "corporate", Addresses: []netip.Addr{loopback.Host(1), loopback.Host(2), loopback.Host(3)}})
	must(t, err)
	defer r.Kill()

	ca := newCorporate(t)
	theirs := []*x509.Certificate{ca.root}
	for i := range 3 {
		theirs = append(theirs, cassandratest.NewCA(t, fmt.Sprint("unknown ", i)).Root)
	}
	w := newWorld(t)
	_, err = w.fleet.AddAnchor(ctx, trustDomain, fleet.AnchorSpec{Certificate: ca.root, Owner: "corporate PKI", Reason: "the ring of today", Expires: time.Now().Add(30 * 24 * time.Hour),
		Rule: fleet.Rule{DNS: []string{"*.corp.example"}, Networks: []string{"127.0.0.0/8"}, FirstNodes: 2}}, ann)
	must(t, err)
	var hosts []*real
	for _, n := range r.Nodes {
		h := w.real(n)
		cassandratest.Write(t, h.store, ca.leaf(n.Name, fmt.Sprintf("IP:%s,IP:127.0.0.1,DNS:%s.corp.example", n.Address, n.Name)), theirs...)
		hosts = append(hosts, h)
	}
	must(t, r.Start(ctx))
	client := ca.leaf("load", "DNS:load.corp.example")
	pool := x509.NewCertPool()
	pool.AddCert(ca.root)
	load, err := workload.Start(ctx, workload.Options{Hosts: r.Hosts(), TLS: func() *tls.Config {
		return &tls.Config{Certificates: []tls.Certificate{*client.TLS()}, RootCAs: pool}
	}})
	must(t, err)
	defer load.Stop()

	leaves := map[string]*x509.Certificate{}
	for _, h := range hosts {
		h.start()
		w.await(h.name+" to join", func() bool { _, err := w.fleet.GetNode(ctx, cluster+"/nodes/"+h.name); return err == nil })
		h.await("joined and observed", func(s fleet.Store) bool { return s.State == "foreign" && s.Installed == 0 })
		leaves[h.name] = leafOf(t, h.store)
	}
	must(t, w.fleet.Onboard(ctx, cluster, "trust first", ann))
	ours, err := w.fleet.GetTrustDomain(ctx, trustDomain)
	must(t, err)
	for _, h := range hosts {
		h.await("trust first", func(s fleet.Store) bool { return s.State == "foreign" && s.Installed > 0 && s.Proven == s.Leaf })
		got := h.anchors()
		for _, c := range append(slices.Clone(theirs), ours.Anchors[0].Certificate) {
			if !slices.ContainsFunc(got, c.Equal) {
				t.Errorf("%s lacks %s", h.name, certificate.Subject(c))
			}
		}
		if len(got) != 5 || !leafOf(t, h.store).Equal(leaves[h.name]) {
			t.Errorf("%s has %d anchors, leaf %s", h.name, len(got), leafOf(t, h.store).SerialNumber)
		}
		app := w.application()
		if p := probe.Probe(ctx, probe.Request{Kind: agentv1.PortKind_PORT_KIND_CQL, Address: h.node.Address.String(), Port: cassandraring.NativePort, Certificate: app}); p.Verdict != agentv1.Verdict_VERDICT_ACCEPTED {
			t.Errorf("%s does not take a certificate of our CA: %v %s", h.name, p.Verdict, p.Detail)
		}
		if m, _, err := w.fleet.ListMoves(ctx, cluster+"/nodes/"+h.name, fleet.Page{}); err != nil || len(m) != 1 || m[0].Outcome != "proven" {
			t.Errorf("%s: %+v %v", h.name, m, err)
		} else {
			t.Logf("%s (%s): trust added and proved in %.1f s, %d proofs", h.name, h.node.Format, m[0].Seconds, len(m[0].Proofs))
		}
	}
	all := load.Since(load.Begin())
	t.Logf("load: %d queries, %d failed, %d wrong", all.Queries, all.Failed, all.Wrong)
	if all.Failed+all.Wrong > 0 || all.Queries == 0 {
		t.Errorf("the load saw it: %+v", all)
	}
	must(t, w.fleet.Release(ctx, cluster, "handed over", ann))
	for _, h := range hosts {
		w.await(h.name+" knows that it was let go", func() bool { s := h.status(); return len(s.Stores) == 1 && s.Stores[0].Next.Reason == "released" })
	}
}

// application is a client certificate of our CA.
func (w *world) application() *tls.Certificate {
	w.t.Helper()
	key, err := algorithm.Generate(algorithm.P384, rand.Reader)
	must(w.t, err)
	names, err := certificate.ParseNames([]string{"app.example"}, nil, nil)
	must(w.t, err)
	csr, err := certificate.NewRequest(key, names)
	must(w.t, err)
	c, err := w.fleet.GetCluster(w.t.Context(), cluster)
	must(w.t, err)
	out, err := w.door.Issue(w.t.Context(), issuance.Request{RequestID: rand.Text(), Actor: ann, Tenant: "default", Authority: c.Authority, Region: "eu", Template: "application", CSR: csr, Names: names})
	must(w.t, err)
	return &tls.Certificate{Certificate: out.Chain, PrivateKey: crypto.PrivateKey(key)}
}
