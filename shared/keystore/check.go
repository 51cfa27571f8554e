package keystore

import (
	"crypto/x509"
	"fmt"
	"time"

	"github.com/cassandra-security-manager/csm/shared/algorithm"
	"github.com/cassandra-security-manager/csm/shared/certificate"
)

// MaxSentChain is the most bytes of DER that a node may send as its chain: between Cassandra nodes links fail above
// 15.6 KB (seen on 5.0.8), 12 KB keeps a margin.
const MaxSentChain = 12 << 10

// Expect is what a pair of stores must fulfil.
type Expect struct {
	Now time.Time
	// Names that the leaf must carry; more is a problem too when Exact is set.
	Names certificate.Names
	Exact bool
	// EKUs that must all be usable. Nil means serverAuth and clientAuth, which one keystore for both directions needs.
	EKUs []x509.ExtKeyUsage
	// MinRemaining is the least time that the leaf must still live.
	MinRemaining time.Duration
	// Roots, if set, are the anchors that the leaf must chain to instead of the truststore's own. They are given where a
	// truststore does not hold the CA of its own node.
	Roots []*x509.Certificate
	// Floor also refuses keys and signatures below the floor. CSM's own stores must pass it, foreign ones need not.
	Floor bool
}

// Problem is something that Cassandra would load without a word and that breaks, or soon breaks, connections.
type Problem struct {
	// Code is a stable kebab-case word.
	Code string `json:"code"`
	// Fatal problems break handshakes now; others are warnings.
	Fatal   bool   `json:"fatal"`
	Message string `json:"message"`
	Remedy  string `json:"remedy,omitempty"`
}

func (p Problem) String() string { return p.Code + ": " + p.Message }

// Fatal says whether one of the problems is fatal.
func Fatal(ps []Problem) bool {
	for _, p := range ps {
		if p.Fatal {
			return true
		}
	}
	return false
}

type checker struct{ problems []Problem }

func (c *checker) add(fatal bool, code, remedy, format string, args ...any) {
	c.problems = append(c.problems, Problem{code, fatal, fmt.Sprintf(format, args...), remedy})
}

// Check lists everything that Cassandra does not check about a keystore (may be nil) and the anchors of its truststore.
// The order is stable: leaf, names, usages, chain, truststore.
func Check(ks *KeyStore, anchors []*x509.Certificate, e Expect) []Problem {
	c := &checker{}
	if e.EKUs == nil {
		e.EKUs = []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth}
	}
	if ks == nil || ks.Key == nil || len(ks.Chain) == 0 {
		c.add(true, "no-key", "put the private key and its certificate in", "the keystore holds no private key with a certificate")
	} else {
		c.leaf(ks, e)
		c.chain(ks, anchors, e)
	}
	c.truststore(anchors, e)
	return c.problems
}

func (c *checker) leaf(ks *KeyStore, e Expect) {
	l := ks.Leaf()
	if !certificate.SameKey(ks.Key.Public(), l.PublicKey) {
		c.add(true, "key-mismatch", "put the certificate of this key in", "the private key does not belong to the certificate of %s", certificate.Subject(l))
	}
	if l.IsCA {
		c.add(true, "leaf-is-ca", "use a certificate issued for the node", "the certificate of the node is a CA certificate")
	}
	switch left := l.NotAfter.Sub(e.Now); {
	case left <= 0:
		c.add(true, "expired", "renew it now: a restarted node cannot join the ring with it", "the certificate expired on %s", l.NotAfter.UTC().Format(time.RFC3339))
	case left < e.MinRemaining:
		c.add(true, "expires-soon", "renew it", "the certificate expires on %s, in %s", l.NotAfter.UTC().Format(time.RFC3339), left.Round(time.Minute))
	}
	if e.Now.Before(l.NotBefore) {
		c.add(true, "not-yet-valid", "compare the clocks", "the certificate is valid only from %s", l.NotBefore.UTC().Format(time.RFC3339))
	}
	if have := certificate.OfCertificate(l); !have.Contains(e.Names) {
		c.add(true, "wrong-names", "issue it again with all addresses that peers and clients use", "the certificate lacks the names %s", have.Missing(e.Names))
	} else if e.Exact && !e.Names.Contains(have) {
		c.add(true, "wrong-names", "issue it again", "the certificate carries names that were not asked for: %s", e.Names.Missing(have))
	}
	if len(l.DNSNames)+len(l.IPAddresses) == 0 {
		c.add(false, "no-names", "issue it again with the node's addresses", "the certificate carries no DNS name and no address, so no peer can verify the endpoint")
	}
	for _, u := range e.EKUs {
		if !allows(l, u) {
			c.add(true, "wrong-usage", "issue it with serverAuth and clientAuth: one keystore serves both directions", "the certificate's extended key usage lacks %s", certificate.UsageName(u))
		}
	}
	if e.Floor {
		if err := algorithm.CheckFloor(l.PublicKey); err != nil {
			c.add(true, "weak-key", "make a P-384 key", "the key is %s", algorithm.Name(l.PublicKey))
		}
		if err := algorithm.CheckSignature(l.SignatureAlgorithm); err != nil {
			c.add(true, "weak-signature", "issue it with SHA-384", "the certificate is signed with %s", l.SignatureAlgorithm)
		}
	}
}

func allows(c *x509.Certificate, u x509.ExtKeyUsage) bool {
	if len(c.ExtKeyUsage)+len(c.UnknownExtKeyUsage) == 0 {
		return true
	}
	for _, have := range c.ExtKeyUsage {
		if have == u || have == x509.ExtKeyUsageAny {
			return true
		}
	}
	return false
}

func (c *checker) chain(ks *KeyStore, anchors []*x509.Certificate, e Expect) {
	size := 0
	for _, x := range ks.Chain {
		size += len(x.Raw)
	}
	if size > MaxSentChain {
		c.add(true, "chain-too-large", "leave out the root and extra intermediates", "the chain has %d bytes; links between nodes fail above 15.6 KB, at most %d are allowed", size, MaxSentChain)
	}
	roots := anchors
	if e.Roots != nil {
		roots = e.Roots
	}
	if len(roots) == 0 {
		return
	}
	// Expiry is its own problem above; here only trust counts.
	at := e.Now
	if l := ks.Leaf(); at.After(l.NotAfter) || at.Before(l.NotBefore) {
		at = l.NotBefore.Add(l.NotAfter.Sub(l.NotBefore) / 2)
	}
	if err := certificate.VerifyChain(ks.Leaf(), ks.Chain[1:], roots, at); err != nil {
		c.add(true, "untrusted", "put the CA of this certificate into the truststore, and its intermediates into the keystore",
			"the certificate does not chain to a trusted anchor: %v", err)
	}
}

func (c *checker) truststore(anchors []*x509.Certificate, e Expect) {
	if len(anchors) == 0 {
		c.add(true, "empty-truststore", "import the CA certificates", "the truststore holds no anchor; Cassandra loads it and then every handshake fails")
	}
	for _, a := range anchors {
		if e.Now.After(a.NotAfter) {
			c.add(false, "anchor-expired", "remove it once nothing chains to it", "the anchor %s expired on %s", certificate.Subject(a), a.NotAfter.UTC().Format(time.DateOnly))
		}
		if !a.IsCA {
			c.add(false, "anchor-not-ca", "trust the CA instead of a leaf", "the anchor %s is not a CA certificate", certificate.Subject(a))
		}
	}
}
