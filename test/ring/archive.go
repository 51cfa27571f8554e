//go:build linux

package ring

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"time"

	"github.com/cassandra-security-manager/csm/test/process"
)

func (d *Distribution) archive() string     { return filepath.Join(d.Dir, "cassandra.jsa") }
func (d *Distribution) toolArchive() string { return filepath.Join(d.Dir, "nodetool.jsa") }

// Prepare does all that comes before a ring: the machine's tools, the jars, and the class archives. It is quick when
// all is there. install lets it run apt-get as root.
func Prepare(ctx context.Context, cache string, install bool, say func(string)) (*Distribution, error) {
	tools, err := Setup(ctx, install, say)
	if err != nil {
		return nil, err
	}
	d, err := Fetch(ctx, tools, cache, say)
	if err != nil {
		return nil, err
	}
	return d, d.warm(ctx, say)
}

// warm makes the class archives by which later JVMs start faster (nodetool in 0.7 s instead of 1.3): a node of its own
// with throw-away stores is started, asked by nodetool and stopped. It takes about 17 s, once per cache folder.
func (d *Distribution) warm(ctx context.Context, say func(string)) error {
	unlock, err := lock(filepath.Join(d.Dir, "lock"))
	if err != nil {
		return err
	}
	defer unlock()
	if _, err := os.Stat(d.archive()); err == nil {
		return nil
	}
	say("archiving Cassandra's classes so that its JVMs start faster (17 s, once)")
	dir, err := os.MkdirTemp(d.Dir, "warm-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	loopback, err := process.Claim(200, 1, StoragePort, NativePort)
	if err != nil {
		return err
	}
	defer loopback.Release()
	r, err := New(d, Options{Dir: dir, Cluster: "warm", Addresses: []netip.Addr{loopback.Host(1)}, Formats: []string{"PEM"}})
	if err != nil {
		return err
	}
	n := r.Nodes[0]
	if err := selfSigned(n); err != nil {
		return err
	}
	return d.record(ctx, n)
}

func (d *Distribution) record(ctx context.Context, n *Node) error {
	args, err := d.daemonArgs(n, true)
	if err != nil {
		return err
	}
	n.process, err = process.Start(process.Spec{Name: "Cassandra " + n.Name, Path: args[0], Args: args[1:], Dir: n.Dir, Log: n.Log})
	if err != nil {
		return err
	}
	defer n.Kill()
	if err := n.WaitReady(ctx); err != nil {
		return err
	}
	c := exec.CommandContext(ctx, n.Nodetool, "status")
	c.Env = append(os.Environ(), "JAVA_TOOL_OPTIONS=-XX:ArchiveClassesAtExit="+d.toolArchive()+".new")
	if out, err := c.CombinedOutput(); err != nil {
		return fmt.Errorf("nodetool for its class archive: %w\n%s", err, tail(string(out), 5))
	}
	stop, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	if err := n.Stop(stop); err != nil {
		return err
	}
	return errors.Join(os.Rename(d.toolArchive()+".new", d.toolArchive()), os.Rename(d.archive()+".new", d.archive()))
}

// selfSigned gives a lone node a certificate that only it trusts.
func selfSigned(n *Node) error {
	key, err := ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
	if err != nil {
		return err
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: n.Name}, NotBefore: time.Now().Add(-time.Minute), NotAfter: time.Now().Add(time.Hour),
		IsCA: true, BasicConstraintsValid: true, IPAddresses: []net.IP{n.Address.AsSlice(), net.IPv4(127, 0, 0, 1)},
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		return err
	}
	pkcs8, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return err
	}
	cert := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
	store := append(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: pkcs8}), cert...)
	return errors.Join(os.WriteFile(n.Keystore, store, 0o600), os.WriteFile(n.Truststore, cert, 0o600))
}
