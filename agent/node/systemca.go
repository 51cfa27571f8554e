package node

import (
	"bytes"
	"crypto/sha256"
	"crypto/x509"
	"time"

	"github.com/cassandra-security-manager/csm/agent/state"
	"github.com/cassandra-security-manager/csm/shared/certificate"
	"github.com/cassandra-security-manager/csm/shared/identity"
)

// succession is what the controllers asked for because the root of the system CA changes.
type succession struct {
	// roots are those to trust from now on; none: as before.
	roots [][]byte
	// renewAt is when to renew the identity with this leaf.
	renewAt time.Time
	leaf    []byte
}

// askRenewal draws when to renew because another root signs. The lock is held.
func (n *Node) askRenewal(withinMs int64) {
	id := n.folder.Identity()
	if withinMs <= 0 || id == nil || bytes.Equal(n.succession.leaf, fingerprint(id.Chain[0].Raw)) {
		return
	}
	pause := time.Duration(jitter() * float64(withinMs) * float64(time.Millisecond))
	n.succession.leaf, n.succession.renewAt = fingerprint(id.Chain[0].Raw), n.o.Clock.Now().Add(pause)
	n.o.Clock.AfterFunc(pause, n.poke)
}

// renewalAsked says whether this identity is to be renewed now though it is not due.
func (n *Node) renewalAsked(id *state.Identity) bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	return bytes.Equal(n.succession.leaf, fingerprint(id.Chain[0].Raw)) && !n.o.Clock.Now().Before(n.succession.renewAt)
}

// adoptRoots takes the roots that a controller offered over a stream that this agent trusts. It refuses those under which its own identity
// would be nobody's: it could not come back.
func (n *Node) adoptRoots() {
	n.mu.Lock()
	offered := n.succession.roots
	n.succession.roots = nil
	n.mu.Unlock()
	id := n.folder.Identity()
	if offered == nil || id == nil {
		return
	}
	roots, err := certificate.ParseAll(offered)
	if err == nil {
		v := identity.Verifier{Roots: func() []*x509.Certificate { return roots }, TrustDomain: id.TrustDomain, Kinds: []identity.Kind{identity.Agent}, Now: n.now,
			IgnoreExpiry: func(*x509.Certificate) bool { return true }}
		_, err = v.Verify(id.Chain)
	}
	if err == nil {
		err = n.folder.SaveBundle(roots)
	}
	if err != nil {
		n.log.Error("the roots of the system CA that the controller offers are not taken", "error", err)
		return
	}
	n.log.Info("the roots of the system CA changed", "roots", len(roots))
	n.prepareHello()
}

// trusts are the roots that this agent's verifier uses now.
func (n *Node) trusts() (out [][]byte) {
	id := n.folder.Identity()
	if id == nil {
		return nil
	}
	for _, r := range id.Bundle {
		sum := sha256.Sum256(r.Raw)
		out = append(out, sum[:])
	}
	return out
}
