package readiness_test

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"fmt"
	"math/big"
	"net"
	"slices"
	"testing"
	"time"

	agentv1 "github.com/cassandra-security-manager/csm/protocol/agent/v1"
	"github.com/cassandra-security-manager/csm/shared/readiness"
)

var now = time.Date(2026, 11, 22, 12, 0, 0, 0, time.UTC)

type signer struct {
	key  *ecdsa.PrivateKey
	cert *x509.Certificate
	p    *readiness.Parsed
}

func key(t testing.TB) *ecdsa.PrivateKey {
	t.Helper()
	k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return k
}

var serial int64

// sign makes a certificate by parent, itself when nil.
func sign(t testing.TB, c *x509.Certificate, k *ecdsa.PrivateKey, parent *signer) *signer {
	t.Helper()
	serial++
	c.SerialNumber = big.NewInt(serial)
	if c.NotBefore.IsZero() {
		c.NotBefore = now.Add(-24 * time.Hour)
	}
	if c.NotAfter.IsZero() {
		c.NotAfter = now.Add(400 * 24 * time.Hour)
	}
	by, with := c, k
	if parent != nil {
		by, with = parent.cert, parent.key
	}
	der, err := x509.CreateCertificate(rand.Reader, c, by, &k.PublicKey, with)
	if err != nil {
		t.Fatal(err)
	}
	p, err := readiness.Parse(der)
	if err != nil {
		t.Fatal(err)
	}
	return &signer{k, p.X, p}
}

func ca(t testing.TB, name string, until time.Time) *signer {
	return sign(t, &x509.Certificate{Subject: pkix.Name{CommonName: name}, IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign, NotAfter: until}, key(t), nil)
}

func leafOf(t testing.TB, by *signer, k *ecdsa.PrivateKey, change func(*x509.Certificate), ips ...string) *signer {
	c := &x509.Certificate{Subject: pkix.Name{CommonName: "node"}, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth}}
	for _, ip := range ips {
		c.IPAddresses = append(c.IPAddresses, net.ParseIP(ip))
	}
	if change != nil {
		change(c)
	}
	return sign(t, c, k, by)
}

const ks, ts = "/etc/cassandra/tls/node.p12", "/etc/cassandra/tls/trust.p12"

// member is a node whose store is as it should be.
func member(n int, l *signer, anchors ...*signer) readiness.Node {
	ip := fmt.Sprintf("10.0.0.%d", n)
	s := &agentv1.StoreFacts{Store: "node", KeystorePath: ks, TruststorePath: ts, LeafSha256: l.p.SHA256[:], State: agentv1.InstallState_INSTALL_STATE_PROVEN,
		Required: &agentv1.Names{Ips: []string{ip}}}
	node := readiness.Node{Name: fmt.Sprintf("n%d", n), State: "active", Connected: true, Scanned: true, Agent: &agentv1.AgentFacts{Mode: agentv1.Mode_MODE_MANAGE},
		Instance: &agentv1.InstanceFacts{ConfigPath: "/etc/cassandra/cassandra.yaml", ListenAddress: ip, CassandraVersion: "5.0.8", Jmx: &agentv1.JMXFacts{Seen: true},
			Internode: &agentv1.TLSSection{Enabled: true, Mode: "all", ClientAuth: "true"}, Client: &agentv1.TLSSection{Enabled: true, ClientAuth: "true"}},
		Stores: []*agentv1.StoreFacts{s}, Found: []readiness.Found{{Parsed: l.p, Path: ks, HasPrivateKey: true, Mode: 0o600}}}
	for _, a := range anchors {
		s.Anchors = append(s.Anchors, a.p.SHA256[:])
		node.Found = append(node.Found, readiness.Found{Parsed: a.p, Path: ts})
	}
	return node
}

func codes(r readiness.NodeReport) (out []string) {
	for _, f := range r.Findings {
		s := string(f.Severity) + " " + f.Code
		if f.Severity != readiness.Info && (f.Remedy == "" || f.Message == "") {
			s += " WITHOUT WORDS"
		}
		out = append(out, s)
	}
	return out
}

func TestAGoodRingHasNoFinding(t *testing.T) {
	root := ca(t, "root", time.Time{})
	r := readiness.Judge([]readiness.Node{member(1, leafOf(t, root, key(t), nil, "10.0.0.1"), root), member(2, leafOf(t, root, key(t), nil, "10.0.0.2"), root)}, now)
	for _, n := range r.Nodes {
		// P-256 lies below the floor of this system, which is worth knowing and no more.
		if got := codes(n); !slices.Equal(got, []string{"info key-below-floor"}) || !n.Ready || len(n.Unseen) != 0 || n.HotReload != "yes" {
			t.Errorf("%s: %v, unseen %v", n.Node, got, n.Unseen)
		}
		if len(n.Expires) != 2 || n.Expires[0].Kind == n.Expires[1].Kind {
			t.Errorf("what expires: %+v", n.Expires)
		}
	}
	if r.Ready != 2 || r.Total != 2 || r.Blockers+r.Errors+r.Warnings != 0 || !r.First.Equal(now.Add(400*24*time.Hour)) {
		t.Errorf("%+v", r)
	}
}

func TestWhatIsWrongWithOneNodeIsSaidAndItsNeighbourIsNotBlamed(t *testing.T) {
	root := ca(t, "root", time.Time{})
	for _, c := range []struct {
		name   string
		want   string
		change func(*readiness.Node, *signer)
	}{
		{"not joined", "blocker not-joined", func(n *readiness.Node, _ *signer) { n.State = "pending" }},
		{"suspended", "blocker agent-suspended", func(n *readiness.Node, _ *signer) { n.State = "suspended" }},
		{"away", "warning agent-away", func(n *readiness.Node, _ *signer) { n.Connected = false }},
		{"observes", "info mode-observe", func(n *readiness.Node, _ *signer) { n.Agent.Mode = agentv1.Mode_MODE_OBSERVE }},
		{"held", "warning held", func(n *readiness.Node, _ *signer) { n.Agent.Hold = "moving racks" }},
		{"a file that no rename can replace", "blocker bind-mount", func(n *readiness.Node, _ *signer) {
			n.Instance.Findings = []*agentv1.Finding{{Code: "bind-mount", Severity: "error", Message: "m", Remedy: "r", Blocks: true}}
		}},
		{"an agent's error that blocks nothing", "error internode-plaintext", func(n *readiness.Node, _ *signer) {
			n.Instance.Findings = []*agentv1.Finding{{Code: "internode-plaintext", Severity: "error", Message: "m", Remedy: "r"}}
		}},
		{"3.11", "blocker no-hot-reload", func(n *readiness.Node, _ *signer) { n.Instance.CassandraVersion = "3.11.17" }},
		{"4.0", "warning reload-joint", func(n *readiness.Node, _ *signer) { n.Instance.CassandraVersion = "4.0.20" }},
		{"4.1.3", "warning reload-by-time", func(n *readiness.Node, _ *signer) { n.Instance.CassandraVersion = "4.1.3" }},
		{"CVE-2026-27314", "error cve-2026-27314", func(n *readiness.Node, _ *signer) {
			n.Instance.CassandraVersion, n.Instance.Authenticator = "5.0.6", "MutualTlsAuthenticator"
		}},
		{"JMX for all", "error jmx-open", func(n *readiness.Node, _ *signer) {
			n.Instance.Jmx = &agentv1.JMXFacts{Seen: true, Remote: true, Tls: true}
		}},
		{"JMX in clear", "error jmx-plaintext", func(n *readiness.Node, _ *signer) {
			n.Instance.Jmx = &agentv1.JMXFacts{Seen: true, Remote: true, Authenticated: true}
		}},
		{"JMX over TLS", "warning jmx-not-reloaded", func(n *readiness.Node, _ *signer) {
			n.Instance.Jmx = &agentv1.JMXFacts{Seen: true, Remote: true, Authenticated: true, Tls: true}
		}},
		{"plaintext clients", "warning plaintext-clients", func(n *readiness.Node, _ *signer) {
			n.Instance.Client.Optional = true
			n.Instance.Clients = &agentv1.ClientFacts{Plaintext: 1, PlaintextClients: []*agentv1.PlaintextClient{{Address: "10.9.9.9"}}}
		}},
		{"contested", "blocker store-contested", func(n *readiness.Node, _ *signer) {
			n.Stores[0].State = agentv1.InstallState_INSTALL_STATE_CONTESTED
		}},
		{"another CA's", "info store-foreign", func(n *readiness.Node, _ *signer) {
			n.Stores[0].State = agentv1.InstallState_INSTALL_STATE_FOREIGN
		}},
		{"names that verification misses", "warning names-missing", func(n *readiness.Node, _ *signer) {
			n.Stores[0].Required.Ips = []string{"10.0.0.1", "192.0.2.1"}
		}},
		{"names that verification misses now", "blocker names-missing", func(n *readiness.Node, _ *signer) {
			n.Stores[0].Required.Ips, n.Instance.Internode.EndpointVerification = []string{"10.0.0.1", "192.0.2.1"}, true
		}},
		{"an agent that does not tell the names", "warning names-missing", func(n *readiness.Node, _ *signer) {
			n.Stores[0].Required, n.Instance.BroadcastAddress = nil, "192.0.2.1"
		}},
		{"a copy of the key", "warning key-copied", func(n *readiness.Node, l *signer) {
			n.Found = append(n.Found, readiness.Found{Parsed: l.p, Path: "/root/backup.p12", HasPrivateKey: true, Mode: 0o600})
		}},
		{"a key for all to read", "error key-readable", func(n *readiness.Node, _ *signer) {
			x := leafOf(t, root, key(t), nil)
			n.Found = append(n.Found, readiness.Found{Parsed: x.p, Path: "/srv/app.pem", HasPrivateKey: true, Mode: 0o644})
		}},
		{"an expired anchor", "warning anchor-expired", func(n *readiness.Node, _ *signer) {
			old := ca(t, "old", now.Add(-time.Hour))
			n.Stores[0].Anchors = append(n.Stores[0].Anchors, old.p.SHA256[:])
			n.Found = append(n.Found, readiness.Found{Parsed: old.p, Path: ts})
		}},
		{"an anchor of nobody", "warning anchor-unused", func(n *readiness.Node, _ *signer) {
			old := ca(t, "unknown", time.Time{})
			n.Stores[0].Anchors = append(n.Stores[0].Anchors, old.p.SHA256[:])
			n.Found = append(n.Found, readiness.Found{Parsed: old.p, Path: ts})
		}},
		{"a truststore without the ring's CA", "blocker peer-untrusted", func(n *readiness.Node, _ *signer) { n.Stores[0].Anchors = nil }},
	} {
		t.Run(c.name, func(t *testing.T) {
			l := leafOf(t, root, key(t), nil, "10.0.0.1")
			nodes := []readiness.Node{member(1, l, root), member(2, leafOf(t, root, key(t), nil, "10.0.0.2"), root)}
			c.change(&nodes[0], l)
			r := readiness.Judge(nodes, now)
			got := codes(r.Nodes[0])
			if !slices.Contains(got, c.want) {
				t.Errorf("want %q, got %v", c.want, got)
			}
			if r.Nodes[0].Ready != (c.want[:7] != "blocker") {
				t.Errorf("ready is %v with %v", r.Nodes[0].Ready, got)
			}
			if other := codes(r.Nodes[1]); !slices.Equal(other, []string{"info key-below-floor"}) {
				t.Errorf("the neighbour is blamed: %v", other)
			}
		})
	}
}

func TestTheCertificateItself(t *testing.T) {
	root := ca(t, "root", time.Time{})
	for want, change := range map[string]func(*x509.Certificate){
		"blocker expired":   func(c *x509.Certificate) { c.NotBefore, c.NotAfter = now.Add(-48*time.Hour), now.Add(-time.Hour) },
		"error near-expiry": func(c *x509.Certificate) { c.NotAfter = now.Add(20 * 24 * time.Hour) },
		"error wrong-usage": func(c *x509.Certificate) { c.ExtKeyUsage = c.ExtKeyUsage[:1] },
		"warning long-lived": func(c *x509.Certificate) {
			c.NotAfter = now.Add(20 * 365 * 24 * time.Hour)
		},
		"warning names-missing": func(c *x509.Certificate) { c.IPAddresses = nil },
	} {
		n := member(1, leafOf(t, root, key(t), change, "10.0.0.1"), root)
		if got := codes(readiness.Judge([]readiness.Node{n}, now).Nodes[0]); !slices.Contains(got, want) {
			t.Errorf("want %q, got %v", want, got)
		}
	}
}

func TestAKeyOfSeveralNodesIsNamedOnEach(t *testing.T) {
	root, k := ca(t, "root", time.Time{}), key(t)
	a, b := leafOf(t, root, k, nil, "10.0.0.1"), leafOf(t, root, k, nil, "10.0.0.2") // two certificates of one key
	r := readiness.Judge([]readiness.Node{member(1, a, root), member(2, b, root), member(3, leafOf(t, root, key(t), nil, "10.0.0.3"), root)}, now)
	for i, want := range []bool{true, true, false} {
		if got := slices.Contains(codes(r.Nodes[i]), "error shared-key"); got != want {
			t.Errorf("n%d: %v", i+1, codes(r.Nodes[i]))
		}
	}
	if r.Errors != 2 || r.Ready != 3 {
		t.Errorf("%d errors, %d ready", r.Errors, r.Ready)
	}
}

func TestTrustIsJudgedBetweenNodes(t *testing.T) {
	root, other := ca(t, "root", time.Time{}), ca(t, "other", time.Time{})
	inter := sign(t, &x509.Certificate{Subject: pkix.Name{CommonName: "issuer"}, IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign}, key(t), root)
	one := member(1, leafOf(t, inter, key(t), nil, "10.0.0.1"), root, other)
	one.Found = append(one.Found, readiness.Found{Parsed: inter.p, Path: ks})
	two := member(2, leafOf(t, other, key(t), nil, "10.0.0.2"), other) // does not trust root
	self := leafOf(t, nil, key(t), nil, "10.0.0.3")
	three := member(3, self, root, other) // nobody trusts its self-signed certificate, not even itself
	r := readiness.Judge([]readiness.Node{one, two, three}, now)
	for i, want := range [][]string{{"blocker peer-untrusted"}, {"blocker peer-untrusted"}, {"warning own-ca-untrusted"}} {
		for _, w := range want {
			if got := codes(r.Nodes[i]); !slices.Contains(got, w) {
				t.Errorf("n%d: want %q, got %v", i+1, w, got)
			}
		}
	}
	if e := r.Nodes[0].Findings[0].Evidence; e != "n3" {
		t.Errorf("n1 does not trust %q", e)
	}
	if e := r.Nodes[1].Findings[0].Evidence; e != "n1, n3" {
		t.Errorf("n2 does not trust %q", e)
	}
	// With the self-signed certificate itself as an anchor, as keytool's users do, it is trusted.
	for _, n := range []*readiness.Node{&one, &two, &three} {
		n.Stores[0].Anchors = append(n.Stores[0].Anchors, self.p.SHA256[:], root.p.SHA256[:])
	}
	if r = readiness.Judge([]readiness.Node{one, two, three}, now); r.Blockers != 0 {
		t.Errorf("%v", codes(r.Nodes[0]))
	}
}

func TestWhatNobodyCouldLookAtIsListedAndNotCounted(t *testing.T) {
	root := ca(t, "root", time.Time{})
	n := member(1, leafOf(t, root, key(t), nil, "10.0.0.1"), root)
	n.Scanned, n.Found = false, nil
	n.Instance.CassandraVersion, n.Instance.Jmx, n.Instance.Client = "", nil, nil
	r := readiness.Judge([]readiness.Node{n}, now).Nodes[0]
	var what []string
	for _, u := range r.Unseen {
		if u.Why == "" {
			t.Errorf("%s is unseen without a reason", u.What)
		}
		what = append(what, u.What)
	}
	if !slices.Equal(what, []string{"release of Cassandra", "JMX", "plaintext clients", "certificates"}) || len(r.Findings) != 0 || r.HotReload != "unknown" {
		t.Errorf("unseen %v, findings %v", what, codes(r))
	}
}

// The worst ring for the judge: 600 nodes, each with a self-signed certificate that lies in each truststore.
func BenchmarkSixHundredSelfSigned(b *testing.B) {
	var all []*signer
	for i := range 600 {
		all = append(all, leafOf(b, nil, key(b), nil, fmt.Sprintf("10.0.%d.%d", i/256, i%256)))
	}
	var nodes []readiness.Node
	for i := range all {
		nodes = append(nodes, member(i%250, all[i], all...))
	}
	for b.Loop() {
		readiness.Judge(nodes, now)
	}
}
