//go:build linux

package fleetsim

import (
	"bytes"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"sync"
	"time"
)

// vouched remembers which certificate has signed which, so that a signature is checked once and not by each node, and keeps
// one copy of each certificate of an authority.
type vouched struct {
	mu    sync.Mutex
	known map[[2][32]byte]bool
	kept  map[[32]byte]*x509.Certificate
}

func newVouched() *vouched {
	return &vouched{known: map[[2][32]byte]bool{}, kept: map[[32]byte]*x509.Certificate{}}
}

// same gives the copies that are kept.
func (v *vouched) same(all []*x509.Certificate) []*x509.Certificate {
	v.mu.Lock()
	defer v.mu.Unlock()
	out := make([]*x509.Certificate, len(all))
	for i, c := range all {
		sum := sha256.Sum256(c.Raw)
		if v.kept[sum] == nil {
			v.kept[sum] = c
		}
		out[i] = v.kept[sum]
	}
	return out
}

// leads gives the root that a chain leads to; nil when there is none, or the leaf has expired.
func (v *vouched) leads(chain, roots []*x509.Certificate) *x509.Certificate {
	if len(chain) == 0 || time.Now().After(chain[0].NotAfter) {
		return nil
	}
	at := chain[0]
	for range len(chain) {
		if root := v.signer(at, roots); root != nil {
			return root
		}
		if at = v.signer(at, chain[1:]); at == nil {
			return nil
		}
	}
	return nil
}

func (v *vouched) signer(c *x509.Certificate, among []*x509.Certificate) *x509.Certificate {
	for _, by := range among {
		if bytes.Equal(c.RawIssuer, by.RawSubject) && v.signed(c, by) {
			return by
		}
	}
	return nil
}

func (v *vouched) signed(c, by *x509.Certificate) bool {
	key := [2][32]byte{sha256.Sum256(c.Raw), sha256.Sum256(by.Raw)}
	v.mu.Lock()
	good, asked := v.known[key]
	v.mu.Unlock()
	if asked {
		return good
	}
	good = c.CheckSignatureFrom(by) == nil
	v.mu.Lock()
	defer v.mu.Unlock()
	v.known[key] = good
	return good
}

// offered is the chain of a client's certificate.
func offered(c *tls.Certificate) (out []*x509.Certificate) {
	for i, der := range c.Certificate {
		x := c.Leaf
		if i > 0 || x == nil {
			var err error
			if x, err = x509.ParseCertificate(der); err != nil {
				return nil
			}
		}
		out = append(out, x)
	}
	return out
}
