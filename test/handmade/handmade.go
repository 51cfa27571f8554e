//go:build linux

// Package handmade is a certificate authority for tests that should not depend on ours: it signs with the standard library
// and writes stores with the libraries alone.
package handmade

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"math/big"
	"net"
	"os"
	"testing"
	"time"

	pkcs12 "software.sslmate.com/src/go-pkcs12"

	jks "github.com/pavlo-v-chernykh/keystore-go/v4"

	"github.com/cassandra-security-manager/csm/test/ring"
)

// CA is a root made by hand.
type CA struct {
	t    testing.TB
	key  crypto.Signer
	cert *x509.Certificate
}

// New makes a root.
func New(t testing.TB) *CA {
	a := &CA{t: t}
	a.key, a.cert = a.sign(&x509.Certificate{
		Subject: pkix.Name{CommonName: "ring test root"}, IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	})
	return a
}

func (a *CA) sign(template *x509.Certificate) (crypto.Signer, *x509.Certificate) {
	a.t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
	if err != nil {
		a.t.Fatal(err)
	}
	template.SerialNumber, _ = rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 120))
	template.NotBefore, template.NotAfter = time.Now().Add(-time.Minute), time.Now().Add(30*24*time.Hour)
	signer, parent := crypto.Signer(key), template
	if a.cert != nil {
		signer, parent = a.key, a.cert
	}
	der, err := x509.CreateCertificate(rand.Reader, template, parent, key.Public(), signer)
	if err != nil {
		a.t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		a.t.Fatal(err)
	}
	return key, cert
}

// Root is the trust anchor.
func (a *CA) Root() *x509.Certificate { return a.cert }

// Leaf makes a key and a certificate for both directions of TLS.
func (a *CA) Leaf(name string, ips ...net.IP) (crypto.Signer, *x509.Certificate) {
	return a.sign(&x509.Certificate{
		Subject: pkix.Name{CommonName: name}, IPAddresses: ips, KeyUsage: x509.KeyUsageDigitalSignature,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
	})
}

// Client makes what an application needs to connect.
func (a *CA) Client(name string) (tls.Certificate, *x509.CertPool) {
	key, cert := a.Leaf(name)
	pool := x509.NewCertPool()
	pool.AddCert(a.cert)
	return tls.Certificate{Certificate: [][]byte{cert.Raw}, PrivateKey: key, Leaf: cert}, pool
}

// Equip writes fresh stores for a node and returns the leaf's fingerprint. Linux leaves loopback by 127.0.0.1, so each
// node's certificate needs that address too.
func (a *CA) Equip(n *ring.Node) [32]byte {
	a.t.Helper()
	key, cert := a.Leaf(n.Name, net.IP(n.Address.AsSlice()), net.IPv4(127, 0, 0, 1))
	var ks, ts []byte
	var err error
	switch n.Format {
	case "PKCS12":
		if ks, err = pkcs12.Modern.Encode(key, cert, nil, n.Password); err == nil {
			ts, err = pkcs12.Modern.EncodeTrustStore([]*x509.Certificate{a.cert}, n.Password)
		}
	case "JKS":
		ks, ts, err = a.jks(key, cert, []byte(n.Password))
	case "PEM":
		var pkcs8 []byte
		pkcs8, err = x509.MarshalPKCS8PrivateKey(key)
		ks = append(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: pkcs8}), pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: cert.Raw})...)
		ts = pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: a.cert.Raw})
	}
	if err != nil {
		a.t.Fatal(err)
	}
	for path, data := range map[string][]byte{n.Truststore: ts, n.Keystore: ks} {
		if err := os.WriteFile(path+".new", data, 0o600); err != nil {
			a.t.Fatal(err)
		}
		if err := os.Rename(path+".new", path); err != nil {
			a.t.Fatal(err)
		}
	}
	return sha256.Sum256(cert.Raw)
}

func (a *CA) jks(key crypto.Signer, cert *x509.Certificate, password []byte) (ks, ts []byte, err error) {
	pkcs8, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return nil, nil, err
	}
	entry := jks.Certificate{Type: "X509", Content: cert.Raw}
	k, t := jks.New(), jks.New()
	if err := k.SetPrivateKeyEntry("node", jks.PrivateKeyEntry{CreationTime: time.Now(), PrivateKey: pkcs8, CertificateChain: []jks.Certificate{entry}}, password); err != nil {
		return nil, nil, err
	}
	if err := t.SetTrustedCertificateEntry("root", jks.TrustedCertificateEntry{CreationTime: time.Now(), Certificate: jks.Certificate{Type: "X509", Content: a.cert.Raw}}); err != nil {
		return nil, nil, err
	}
	var kb, tb bytes.Buffer
	if err := k.Store(&kb, password); err != nil {
		return nil, nil, err
	}
	if err := t.Store(&tb, password); err != nil {
		return nil, nil, err
	}
	return kb.Bytes(), tb.Bytes(), nil
}
