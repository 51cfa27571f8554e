//go:build linux

package install_test

import (
	"context"
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/cassandra-security-manager/csm/agent/config"
	"github.com/cassandra-security-manager/csm/agent/probe"
	"github.com/cassandra-security-manager/csm/agent/reload"
	agentv1 "github.com/cassandra-security-manager/csm/protocol/agent/v1"
	"github.com/cassandra-security-manager/csm/test/handmade"
	"github.com/cassandra-security-manager/csm/test/process"
	"github.com/cassandra-security-manager/csm/test/ring"
)

// pair is two Cassandras on one host: rings of their own, JMX ports of their own, a login of JMX each.
type pair struct {
	t     *testing.T
	ca    *handmade.CA
	nodes []*ring.Node
	conf  config.Config
	java  string
}

func newPair(t *testing.T, ctx context.Context) *pair {
	t.Helper()
	dist, err := ring.Prepare(ctx, "../../build/cassandra/"+ring.Version, false, func(s string) { t.Log(s) })
	if err != nil {
		t.Fatal(err)
	}
	loopback, err := process.Claim(20, 2, ring.StoragePort, ring.NativePort)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(loopback.Release)
	p := &pair{t: t, ca: handmade.New(t), conf: config.Defaults(), java: dist.Java}
	p.conf.StateDir = t.TempDir()
	for i := range 2 {
		r, err := ring.New(dist, ring.Options{Dir: t.TempDir(), Cluster: fmt.Sprint("pair-", i), Addresses: []netip.Addr{loopback.Host(i + 1)}, Formats: []string{[]string{"PKCS12", "PEM"}[i]}})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(r.Kill)
		n := r.Nodes[0]
		password := filepath.Join(n.Dir, "jmx.password")
		if err := os.WriteFile(password, fmt.Appendf(nil, "csm%d secret-%d\n", i, i), 0o400); err != nil {
			t.Fatal(err)
		}
		n.JVM = []string{"-Dcom.sun.management.jmxremote.authenticate=true", "-Dcom.sun.management.jmxremote.password.file=" + password}
		p.ca.Equip(n)
		if err := n.Start(); err != nil {
			t.Fatal(err)
		}
		p.nodes = append(p.nodes, n)
		p.conf.Cassandra = append(p.conf.Cassandra, config.Instance{Name: fmt.Sprint("i", i), Config: n.Config, JMX: config.JMX{Port: n.JMX, User: fmt.Sprint("csm", i), PasswordFile: password}})
	}
	for _, n := range p.nodes {
		if err := n.WaitReady(ctx); err != nil {
			t.Fatal(err)
		}
	}
	p.tool()
	return p
}

// tool puts a nodetool into the PATH that belongs to no node: host, port and login are the agent's to say.
func (p *pair) tool() {
	p.t.Helper()
	script, err := os.ReadFile(p.nodes[0].Nodetool)
	if err != nil {
		p.t.Fatal(err)
	}
	own := fmt.Sprintf(" -h 127.0.0.1 -p %d ", p.nodes[0].JMX)
	if !strings.Contains(string(script), own) {
		p.t.Fatalf("the script of nodetool is another than this test knows:\n%s", script)
	}
	dir := p.t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "nodetool"), []byte(strings.Replace(string(script), own, " ", 1)), 0o755); err != nil {
		p.t.Fatal(err)
	}
	p.t.Setenv("PATH", dir+":"+os.Getenv("PATH"))
}

// helper is the agent's helper with the commands of the agent's configuration.
func (p *pair) helper(ctx context.Context) *reload.Helper {
	p.t.Helper()
	h, err := reload.Over(func() (io.ReadWriteCloser, error) {
		a, b := net.Pipe()
		go func() { _ = reload.Serve(ctx, b, p.conf.Commands()) }()
		return a, nil
	})
	if err != nil {
		p.t.Fatal(err)
	}
	p.t.Cleanup(func() { h.Close() })
	return h
}

// served is the leaf that the CQL port of a node shows.
func (p *pair) served(ctx context.Context, i int) [32]byte {
	p.t.Helper()
	key, cert := p.ca.Leaf("prober", net.IPv4(127, 0, 0, 1))
	r := probe.Probe(ctx, probe.Request{Kind: agentv1.PortKind_PORT_KIND_CQL, Address: p.nodes[i].Address.String(), Port: ring.NativePort,
		Certificate: &tls.Certificate{PrivateKey: key, Certificate: [][]byte{cert.Raw}}})
	if r.Served == ([32]byte{}) {
		p.t.Fatalf("instance %d serves nothing: %+v", i, r)
	}
	return r.Served
}

func TestTwoCassandrasOfOneAgentAreReloadedEachWithItsOwnLogin(t *testing.T) {
	if testing.Short() {
		t.Skip("two real Cassandras are left out of -short runs")
	}
	ctx, cancel := context.WithTimeout(t.Context(), 4*time.Minute)
	defer cancel()
	p := newPair(t, ctx)
	h := p.helper(ctx)
	for _, in := range p.conf.Cassandra {
		i, _, err := in.ReadOptions().Read(in.Config)
		if err != nil {
			t.Fatal(err)
		}
		if j := i.Facts(true).Jmx; !j.Seen || !j.Authenticated || j.Remote || int(j.Port) != in.JMX.Port {
			t.Errorf("JMX of %s is read as %v", in.Name, j)
		}
	}
	for _, c := range p.conf.Commands() {
		if strings.Contains(strings.Join(append(c.Args, c.Env...), " "), "secret") {
			t.Fatalf("a password stands on a command line: %v", c.Args)
		}
	}
	old := [][32]byte{p.served(ctx, 0), p.served(ctx, 1)} // also fills Cassandra's cache: only a reload changes what is served
	fresh := [][32]byte{p.ca.Equip(p.nodes[0]), p.ca.Equip(p.nodes[1])}
	for i := range p.nodes {
		if got := p.served(ctx, i); got != old[i] {
			t.Fatalf("instance %d serves a new certificate before its reload", i)
		}
		out, err := h.Reloader(p.nodes[i].Config).Reload(ctx)
		if err != nil || out.ExitCode != 0 {
			t.Fatalf("reload of instance %d: exit %d, %v\n%s%s", i, out.ExitCode, err, out.Stdout, out.Stderr)
		}
		if got := p.served(ctx, i); got != fresh[i] {
			t.Errorf("instance %d serves %x after its reload, not %x", i, got[:4], fresh[i][:4])
		}
	}

	for _, in := range p.conf.Cassandra {
		if _, err := os.Stat(filepath.Join(p.conf.Folder(in), "nodetool", ".cassandra", "nodetool.history")); err != nil {
			t.Errorf("nodetool of %s keeps its history elsewhere: %v", in.Name, err)
		}
	}

	// With a wrong password nothing is reloaded, and it is seen.
	wrong := filepath.Join(t.TempDir(), "wrong.password")
	if err := os.WriteFile(wrong, []byte("csm0 secret-1\n"), 0o400); err != nil {
		t.Fatal(err)
	}
	p.conf.Cassandra[0].JMX.PasswordFile = wrong
	p.ca.Equip(p.nodes[0])
	out, err := p.helper(ctx).Reloader(p.nodes[0].Config).Reload(ctx)
	if err != nil || out.ExitCode == 0 || !strings.Contains(out.Stdout+out.Stderr, "Invalid username or password") {
		t.Errorf("a wrong password gave exit %d, %v: %s%s", out.ExitCode, err, out.Stdout, out.Stderr)
	}
	if got := p.served(ctx, 0); got != fresh[0] {
		t.Errorf("instance 0 serves %x after a reload that was refused, not %x", got[:4], fresh[0][:4])
	}
	p.withoutNodetool(ctx)
}

// withoutNodetool asks the same of our own client. The password file of the first instance is a wrong one.
func (p *pair) withoutNodetool(ctx context.Context) {
	t := p.t
	t.Helper()
	for i := range p.conf.Cassandra {
		p.conf.Cassandra[i].Reload = config.Reload{Way: "jmx", Java: p.java}
	}
	out, err := p.helper(ctx).Reloader(p.nodes[0].Config).Reload(ctx)
	if err != nil || out.ExitCode != 1 || !strings.Contains(out.Stderr, "Invalid username or password") || strings.Contains(out.Stderr, "secret") {
		t.Errorf("our own client with a wrong password gave exit %d, %v: %s", out.ExitCode, err, out.Stderr)
	}
	p.conf.Cassandra[0].JMX.PasswordFile = filepath.Join(p.nodes[0].Dir, "jmx.password")
	h := p.helper(ctx)
	fresh := [][32]byte{p.ca.Equip(p.nodes[0]), p.ca.Equip(p.nodes[1])}
	for i := range p.nodes {
		out, err := h.Reloader(p.nodes[i].Config).Reload(ctx)
		if got := p.served(ctx, i); err != nil || out.ExitCode != 0 || got != fresh[i] {
			t.Errorf("our own client at instance %d: exit %d, %v, it serves %x, not %x\n%s%s", i, out.ExitCode, err, got[:4], fresh[i][:4], out.Stdout, out.Stderr)
		}
		t.Logf("our own client reloads in %s", out.Took)
	}
}
