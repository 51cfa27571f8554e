package identity

import (
	"crypto/sha256"
	"crypto/x509"
	"sync"
	"time"
)

// maxRemembered bounds a Remembering: whoever fills it costs the others one verification each.
const maxRemembered = 1024

// Remembering is a Verifier for ports that ask at each request. That a chain leads to these very roots is arithmetic on bytes
// and stays true, so it is done once; clock, identity, kind and Check are looked at every time. What may change its mind
// (a revocation, another root) does so elsewhere: in Check, in the tables behind the port, or through Roots.
type Remembering struct {
	Verifier
	mu    sync.Mutex
	known map[[sha256.Size]byte]span
}

// span is when every certificate of a chain is valid.
type span struct{ from, to time.Time }

// Verify is Verifier.Verify.
func (r *Remembering) Verify(chain []*x509.Certificate) (ID, error) {
	if len(chain) == 0 || r.IgnoreExpiry != nil {
		return r.Verifier.Verify(chain)
	}
	roots := r.Roots()
	key, now := digest(chain, roots), r.Now()
	r.mu.Lock()
	s, known := r.known[key]
	r.mu.Unlock()
	if known && !now.Before(s.from) && !now.After(s.to) {
		return r.admit(chain[0])
	}
	v := r.Verifier
	v.Roots = func() []*x509.Certificate { return roots }
	id, err := v.Verify(chain)
	if err != nil {
		return id, err
	}
	s = span{chain[0].NotBefore, chain[0].NotAfter}
	for _, c := range append(append([]*x509.Certificate{}, chain[1:]...), roots...) {
		// One that is not needed for the chain may make the span shorter, which costs a verification and no more.
		if c.NotBefore.After(s.from) {
			s.from = c.NotBefore
		}
		if c.NotAfter.Before(s.to) {
			s.to = c.NotAfter
		}
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if len(r.known) >= maxRemembered || r.known == nil {
		r.known = map[[sha256.Size]byte]span{}
	}
	r.known[key] = s
	return id, nil
}

// digest names a chain and the roots that it was verified with.
func digest(chain, roots []*x509.Certificate) (sum [sha256.Size]byte) {
	h := sha256.New()
	for _, list := range [][]*x509.Certificate{chain, roots} {
		for _, c := range list {
			one := sha256.Sum256(c.Raw)
			h.Write(one[:])
		}
		h.Write([]byte{0})
	}
	h.Sum(sum[:0])
	return sum
}
