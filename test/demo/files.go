//go:build linux

package main

import (
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/hex"
	"fmt"
	"net"
	"net/netip"
	"os"
	"time"

	"github.com/cassandra-security-manager/csm/shared/certificate"
	"github.com/cassandra-security-manager/csm/shared/keystore"
	"github.com/cassandra-security-manager/csm/test/ring"
)

// pair is what a node's two store files are at a moment.
type pair struct {
	keystore, truststore [32]byte
	leaf                 *x509.Certificate
	anchors              []*x509.Certificate
	key                  *keystore.KeyStore
}

// onDisk reads the stores of a node as its JVM would and checks that key, chain and trust belong together.
func onDisk(n *ring.Node) (pair, error) {
	var p pair
	ks, err := os.ReadFile(n.Keystore)
	if err != nil {
		return p, err
	}
	ts, err := os.ReadFile(n.Truststore)
	if err != nil {
		return p, err
	}
	password := []byte(n.Password)
	if n.Format == "PEM" {
		password = nil
	}
	p.keystore, p.truststore = sha256.Sum256(ks), sha256.Sum256(ts)
	if p.key, err = keystore.DecodeKeyStore(keystore.Format(n.Format), ks, password); err != nil {
		return p, fmt.Errorf("keystore of %s: %w", n.Name, err)
	}
	if p.anchors, err = keystore.DecodeTrustStore(keystore.Format(n.Format), ts, password); err != nil {
		return p, fmt.Errorf("truststore of %s: %w", n.Name, err)
	}
	p.leaf = p.key.Leaf()
	if !certificate.SameKey(p.leaf.PublicKey, p.key.Key.Public()) {
		return p, fmt.Errorf("%s: the key in the keystore is not the leaf's", n.Name)
	}
	return p, certificate.VerifyChain(p.leaf, p.key.Chain[1:], p.anchors, time.Now(), x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth)
}

func (p pair) fingerprint() string { return certificate.Hex(certificate.Fingerprint(p.leaf.Raw)) }

// same reports whether the files are byte for byte what they were.
func (p pair) same(o pair) bool { return p.keystore == o.keystore && p.truststore == o.truststore }

var ports = []uint16{ring.StoragePort, ring.NativePort}

// served is the fingerprint of the leaf that a node's CQL port hands to an application, seen from outside of all our
// programs. The internode port takes only nodes, and writes an ERROR about others: there the agents' probes count.
func (d *demo) served(n *ring.Node) (string, error) {
	var sum [32]byte
	conf := d.client.config()
	conf.VerifyConnection = func(s tls.ConnectionState) error {
		sum = sha256.Sum256(s.PeerCertificates[0].Raw)
		return nil
	}
	dial := tls.Dialer{NetDialer: &net.Dialer{Timeout: 5 * time.Second}, Config: conf}
	c, err := dial.Dial("tcp", netip.AddrPortFrom(n.Address, ring.NativePort).String())
	if err != nil {
		return "", fmt.Errorf("%s:%d: %w", n.Address, ring.NativePort, err)
	}
	return hex.EncodeToString(sum[:]), c.Close()
}

func brief(fingerprint string) string {
	if len(fingerprint) < 8 {
		return "-"
	}
	return fingerprint[:8]
}
