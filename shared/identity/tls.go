package identity

import (
	"bytes"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/hex"
	"strings"
	"time"

	"github.com/cassandra-security-manager/csm/shared/fault"
)

// Hybrid are the key exchanges allowed between our own parts: each holds an ML-KEM share, so traffic recorded today
// stays closed to a quantum computer of tomorrow (FIPS 203; draft-ietf-tls-ecdhe-mlkem).
var Hybrid = []tls.CurveID{tls.SecP384r1MLKEM1024, tls.X25519MLKEM768}

// Pin is the "sha256:<hex>" of a CA certificate's DER, given by hand to whoever joins.
func Pin(ca *x509.Certificate) string {
	sum := sha256.Sum256(ca.Raw)
	return "sha256:" + hex.EncodeToString(sum[:])
}

// ParsePin checks the shape of a pin and returns its 32 bytes.
func ParsePin(s string) ([]byte, error) {
	h, ok := strings.CutPrefix(s, "sha256:")
	b, err := hex.DecodeString(h)
	if !ok || err != nil || len(b) != sha256.Size {
		return nil, fault.New(fault.Invalid, "bad-pin", "%.100q is not a pin", s).Do("it looks like sha256: and 64 hex digits; `csm status` prints it")
	}
	return b, nil
}

// Base is the TLS configuration of every connection between our own parts: 1.3 only, hybrid key exchange only.
func Base() *tls.Config {
	return &tls.Config{MinVersion: tls.VersionTLS13, CurvePreferences: Hybrid}
}

// Verifier checks the peer's chain itself, because a peer is known by its identity and not by a host name.
type Verifier struct {
	// Roots gives the current system bundle (old and new during a rotation).
	Roots func() []*x509.Certificate
	// TrustDomain and Kinds that are let in. An empty TrustDomain takes any (a joiner does not know it yet).
	TrustDomain string
	Kinds       []Kind
	// Now is the clock.
	Now func() time.Time
	// IgnoreExpiry lets a peer in although its leaf has expired or is not yet valid. Expired is not revoked: between
	// controllers the members table decides, and an agent may renew in its grace period.
	IgnoreExpiry func(leaf *x509.Certificate) bool
	// Check, if set, sees the leaf and its identity last.
	Check func(leaf *x509.Certificate, id ID) error
}

// VerifyConnection is a tls.Config.VerifyConnection; it also runs on resumed sessions.
func (v Verifier) VerifyConnection(cs tls.ConnectionState) error {
	_, err := v.Verify(cs.PeerCertificates)
	return err
}

// Verify checks a leaf-first chain and returns the peer's identity.
func (v Verifier) Verify(chain []*x509.Certificate) (ID, error) {
	if len(chain) == 0 {
		return ID{}, fault.New(fault.Unauthenticated, "no-certificate", "the other side sent no certificate")
	}
	leaf := chain[0]
	roots, inter := x509.NewCertPool(), x509.NewCertPool()
	for _, r := range v.Roots() {
		roots.AddCert(r)
	}
	for _, c := range chain[1:] {
		inter.AddCert(c)
	}
	now := v.Now()
	if (now.Before(leaf.NotBefore) || now.After(leaf.NotAfter)) && v.IgnoreExpiry != nil && v.IgnoreExpiry(leaf) {
		now = leaf.NotBefore.Add(leaf.NotAfter.Sub(leaf.NotBefore) / 2)
	}
	if _, err := leaf.Verify(x509.VerifyOptions{Roots: roots, Intermediates: inter, CurrentTime: now, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageAny}}); err != nil {
		return ID{}, fault.Wrap(err, fault.Unauthenticated, "untrusted-peer", "the certificate of %q is not trusted", leaf.Subject).
			Do("compare the system CA pin on both sides and both clocks")
	}
	return v.admit(leaf)
}

// admit looks at the identity in a leaf whose chain is known to be good.
func (v Verifier) admit(leaf *x509.Certificate) (ID, error) {
	id, err := FromCertificate(leaf)
	if err != nil {
		return ID{}, err
	}
	td := v.TrustDomain
	if td == "" {
		td = id.TrustDomain
	}
	if err := id.Require(td, v.Kinds...); err != nil {
		return ID{}, err
	}
	if v.Check != nil {
		return id, v.Check(leaf, id)
	}
	return id, nil
}

// ClientConfig is TLS towards a controller: own certificate (nil for a joiner), peer checked by v.
func ClientConfig(own func() (*tls.Certificate, error), v Verifier) *tls.Config {
	c := Base()
	c.InsecureSkipVerify = true // VerifyConnection below does the whole check: chain, identity, kind
	c.VerifyConnection = v.VerifyConnection
	if own != nil {
		c.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return own() }
	}
	return c
}

// ServerConfig is TLS of a controller's port. auth is tls.RequireAnyClientCert, or tls.RequestClientCert where a joiner
// without a certificate must get in; a certificate that is sent is always checked by v.
func ServerConfig(own func() (*tls.Certificate, error), auth tls.ClientAuthType, v Verifier) *tls.Config {
	c := Base()
	c.GetCertificate = func(*tls.ClientHelloInfo) (*tls.Certificate, error) { return own() }
	c.ClientAuth = auth
	c.VerifyConnection = func(cs tls.ConnectionState) error {
		if len(cs.PeerCertificates) == 0 && auth != tls.RequireAnyClientCert {
			return nil
		}
		return v.VerifyConnection(cs)
	}
	return c
}

// PinnedRoot returns the certificate in a presented chain that has this pin: servers send the system CA last, so that
// who holds only the pin can check the whole.
func PinnedRoot(chain []*x509.Certificate, pin []byte) (*x509.Certificate, error) {
	for _, c := range chain {
		if sum := sha256.Sum256(c.Raw); bytes.Equal(sum[:], pin) {
			return c, nil
		}
	}
	return nil, fault.New(fault.Unauthenticated, "pin-mismatch", "no certificate sent by the other side has the pinned fingerprint").
		Do("check the pin and the address: this may be another system, or someone in between")
}
