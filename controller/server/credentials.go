package server

import (
	"crypto"
	"crypto/tls"
	"crypto/x509"
	"slices"
	"sync/atomic"

	"github.com/cassandra-security-manager/csm/shared/fault"
	"github.com/cassandra-security-manager/csm/shared/identity"
)

// identityHolder gives the controller's current certificate and the system bundle to every listener; both may change
// while running, and no handshake waits for it.
type identityHolder struct {
	dir     dataDir
	key     crypto.Signer
	current atomic.Pointer[credentials]
}

// openIdentity reads key, chain and bundle from the data folder.
func openIdentity(d dataDir) (*identityHolder, error) {
	key, err := d.readKey()
	if err != nil {
		return nil, fault.Wrap(err, fault.Internal, "broken-installation", "the controller's key").Do("remove this controller from the system and join it anew")
	}
	chain, bundle, err := d.readChain()
	if err != nil {
		return nil, fault.Wrap(err, fault.Internal, "broken-installation", "the controller's certificate").Do("remove this controller from the system and join it anew")
	}
	cross, err := d.readCross()
	if err != nil {
		return nil, fault.Wrap(err, fault.Internal, "broken-installation", "the certificates between the roots of the system CA").Do("remove identity/cross.pem: it is written again")
	}
	h := &identityHolder{dir: d, key: key}
	h.set(chain, bundle, cross)
	return h, nil
}

func (h *identityHolder) set(chain, bundle, cross []*x509.Certificate) {
	cert := &tls.Certificate{PrivateKey: h.key, Leaf: chain[0]}
	for _, c := range chain {
		cert.Certificate = append(cert.Certificate, c.Raw)
	}
	// The system CA goes last, so that a joiner who holds only its pin can check the whole: with two roots, by the certificates that
	// lead from each to the other.
	for _, root := range slices.Concat(cross, bundle) {
		if !slices.ContainsFunc(chain, root.Equal) {
			cert.Certificate = append(cert.Certificate, root.Raw)
		}
	}
	h.current.Store(&credentials{cert: cert, bundle: bundle, cross: cross})
}

// replace stores a renewed chain on disk first, then uses it.
func (h *identityHolder) replace(chain, bundle [][]byte) error {
	parsedChain, err := parseAll(chain)
	if err != nil {
		return err
	}
	parsedBundle, err := parseAll(bundle)
	if err != nil {
		return err
	}
	if err := h.dir.writeChain(chain, bundle); err != nil {
		return err
	}
	h.set(parsedChain, parsedBundle, h.current.Load().cross)
	return nil
}

// follow stores the roots that are trusted now and what leads between them, then uses both.
func (h *identityHolder) follow(chain, bundle, cross []*x509.Certificate) error {
	if err := h.dir.writeCross(raw(cross)); err != nil {
		return err
	}
	if err := h.dir.writeChain(raw(chain), raw(bundle)); err != nil {
		return err
	}
	h.set(chain, bundle, cross)
	return nil
}

// pinOf is the pin of the root that signed a leaf.
func pinOf(leaf *x509.Certificate, roots []*x509.Certificate) string {
	for _, r := range roots {
		if leaf.CheckSignatureFrom(r) == nil {
			return identity.Pin(r)
		}
	}
	return identity.Pin(roots[0])
}

func parseAll(ders [][]byte) ([]*x509.Certificate, error) {
	if len(ders) == 0 {
		return nil, fault.New(fault.Internal, "empty-chain", "no certificate was returned")
	}
	var out []*x509.Certificate
	for _, der := range ders {
		c, err := x509.ParseCertificate(der)
		if err != nil {
			return nil, err
		}
		out = append(out, c)
	}
	return out, nil
}

func (h *identityHolder) certificate() (*tls.Certificate, error) { return h.current.Load().cert, nil }

// roots are none while a system is founded or restored: its node runs before it has an identity.
func (h *identityHolder) roots() []*x509.Certificate {
	if c := h.current.Load(); c != nil {
		return c.bundle
	}
	return nil
}

func (h *identityHolder) leaf() *x509.Certificate { return h.current.Load().cert.Leaf }
