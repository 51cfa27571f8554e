package server

import (
	"crypto"
	"crypto/tls"
	"crypto/x509"
	"slices"
	"sync/atomic"

	"github.com/cassandra-security-manager/csm/shared/fault"
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
	h := &identityHolder{dir: d, key: key}
	h.set(chain, bundle)
	return h, nil
}

func (h *identityHolder) set(chain, bundle []*x509.Certificate) {
	cert := &tls.Certificate{PrivateKey: h.key, Leaf: chain[0]}
	for _, c := range chain {
		cert.Certificate = append(cert.Certificate, c.Raw)
	}
	// The system CA goes last, so that a joiner who holds only its pin can check the whole.
	for _, root := range bundle {
		if !slices.ContainsFunc(chain, root.Equal) {
			cert.Certificate = append(cert.Certificate, root.Raw)
		}
	}
	h.current.Store(&credentials{cert: cert, bundle: bundle})
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
	h.set(parsedChain, parsedBundle)
	return nil
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
func (h *identityHolder) roots() []*x509.Certificate             { return h.current.Load().bundle }
func (h *identityHolder) leaf() *x509.Certificate                { return h.current.Load().cert.Leaf }
