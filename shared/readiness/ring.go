package readiness

import (
	"bytes"
	"crypto/sha256"
	"crypto/x509"
	"errors"
	"slices"

	agentv1 "github.com/cassandra-security-manager/csm/protocol/agent/v1"
	"github.com/cassandra-security-manager/csm/shared/certificate"
)

// leaf of a store that links between nodes use, with the anchors that it chains to.
type leaf struct {
	node    *Node
	store   string
	anchors map[[sha256.Size]byte]bool
}

// ring is what several nodes have in common. Work is done once per certificate, not once per pair of nodes.
type ring struct {
	certificates map[[sha256.Size]byte]*Parsed
	// keys are the nodes whose files hold a private key.
	keys   map[[sha256.Size]byte][]*Node
	leaves []*leaf
	// used are the anchors that some certificate chains to.
	used map[[sha256.Size]byte]bool

	subjects map[string][]*Parsed // CAs and self-signed certificates by subject
	chains   map[[sha256.Size]byte]map[[sha256.Size]byte]bool
}

func newRing(nodes []Node) *ring {
	r := &ring{certificates: map[[sha256.Size]byte]*Parsed{}, keys: map[[sha256.Size]byte][]*Node{}, used: map[[sha256.Size]byte]bool{},
		subjects: map[string][]*Parsed{}, chains: map[[sha256.Size]byte]map[[sha256.Size]byte]bool{}}
	for i := range nodes {
		n := &nodes[i]
		for _, f := range n.Found {
			if r.certificates[f.SHA256] == nil {
				r.certificates[f.SHA256] = f.Parsed
				r.subjects[string(f.X.RawSubject)] = append(r.subjects[string(f.X.RawSubject)], f.Parsed)
			}
			if f.HasPrivateKey && !slices.Contains(r.keys[f.SPKI], n) {
				r.keys[f.SPKI] = append(r.keys[f.SPKI], n)
			}
		}
	}
	for i := range nodes {
		n := &nodes[i]
		for _, s := range n.Stores {
			if l := n.leaf(s); l != nil && s.Store != "client" {
				r.leaves = append(r.leaves, &leaf{node: n, store: s.Store, anchors: r.chain(l.Parsed)})
			}
		}
	}
	for i := range nodes {
		for _, f := range nodes[i].Found {
			if r.used[f.SHA256] || f.X.IsCA && !f.HasPrivateKey {
				continue
			}
			for a := range r.chain(f.Parsed) {
				r.used[a] = true
			}
		}
	}
	return r
}

// signed says whether p's key made the signature of c. Algorithms that Go no longer verifies count as signed: that they
// are weak is another finding.
func signed(c, p *x509.Certificate) bool {
	err := p.CheckSignature(c.SignatureAlgorithm, c.RawTBSCertificate, c.Signature)
	var old x509.InsecureAlgorithmError
	return err == nil || errors.As(err, &old)
}

// chain gives the certificates that c chains to among all those seen, itself included: each would be an anchor for it.
// Only the issuer's signature counts here; time is another finding.
func (r *ring) chain(c *Parsed) map[[sha256.Size]byte]bool {
	if known := r.chains[c.SHA256]; known != nil {
		return known
	}
	out := map[[sha256.Size]byte]bool{c.SHA256: true}
	r.chains[c.SHA256] = out // a circle of cross-signed CAs ends here
	if certificate.SelfIssued(c.X) {
		return out
	}
	for _, p := range r.subjects[string(c.X.RawIssuer)] {
		if p == c || len(c.X.AuthorityKeyId) > 0 && len(p.X.SubjectKeyId) > 0 && !bytes.Equal(c.X.AuthorityKeyId, p.X.SubjectKeyId) {
			continue
		}
		if !signed(c.X, p.X) {
			continue
		}
		for a := range r.chain(p) {
			out[a] = true
		}
	}
	return out
}

// trusts says whether a truststore holds an anchor of the leaf.
func (r *ring) trusts(s *agentv1.StoreFacts, l *leaf) bool {
	for _, a := range s.Anchors {
		if len(a) == sha256.Size && l.anchors[[sha256.Size]byte(a)] {
			return true
		}
	}
	return false
}

func (r *ring) leafOf(n *Node, store string) *leaf {
	for _, l := range r.leaves {
		if l.node == n && l.store == store {
			return l
		}
	}
	return nil
}

// leaf finds the certificate of a store among what was found: by its fingerprint, in the store's own file first.
func (n *Node) leaf(s *agentv1.StoreFacts) *Found {
	var any *Found
	for i := range n.Found {
		f := &n.Found[i]
		if !bytes.Equal(f.SHA256[:], s.LeafSha256) {
			continue
		}
		if f.Path == s.KeystorePath && f.HasPrivateKey {
			return f
		}
		if any == nil {
			any = f
		}
	}
	return any
}

// chain are the other certificates in the file of the leaf.
func (n *Node) chain(s *agentv1.StoreFacts, leaf *Found) (out []*Parsed) {
	for _, f := range n.Found {
		if f.Path == leaf.Path && f.SHA256 != leaf.SHA256 && !f.HasPrivateKey {
			out = append(out, f.Parsed)
		}
	}
	return out
}

// inUse says whether a file is one of Cassandra's stores.
func (n *Node) inUse(path string) bool {
	return slices.ContainsFunc(n.Stores, func(s *agentv1.StoreFacts) bool { return s.KeystorePath == path || s.TruststorePath == path })
}
