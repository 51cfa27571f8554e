package identity

import (
	"bytes"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"sync"

	"github.com/cassandra-security-manager/csm/shared/fault"
)

// Resume lets sessions of a port whose peers v verifies be resumed (RFC 8446, 2.2) wherever tickets are sealed with the same keys. A
// ticket says under which roots the peer's chain was verified; under others it is no ticket, and a full handshake follows. What may
// change about a chain whose signatures are good is looked at again each time.
func Resume(c *tls.Config, v Verifier, keys func() *tls.Config) {
	c.WrapSession = func(cs tls.ConnectionState, s *tls.SessionState) ([]byte, error) {
		s.Extra = append(s.Extra, rootsMark(v.Roots()))
		return keys().EncryptTicket(cs, s)
	}
	c.UnwrapSession = func(ticket []byte, cs tls.ConnectionState) (*tls.SessionState, error) {
		s, err := keys().DecryptTicket(ticket, cs)
		if err != nil || s == nil {
			return nil, err
		}
		mark := rootsMark(v.Roots())
		for _, x := range s.Extra {
			if bytes.Equal(x, mark) {
				return s, nil
			}
		}
		return nil, nil
	}
	full := c.VerifyConnection
	c.VerifyConnection = func(cs tls.ConnectionState) error {
		if !cs.DidResume || len(cs.PeerCertificates) == 0 {
			return full(cs)
		}
		return v.Recheck(cs.PeerCertificates)
	}
}

// rootsMark names a set of roots in a ticket.
func rootsMark(roots []*x509.Certificate) []byte {
	sum := digest(nil, roots)
	return append([]byte("csm roots "), sum[:]...)
}

// Recheck looks at what may have changed about a chain whose signatures have been verified under the roots of now: the clock, and what
// its identity may do.
func (v Verifier) Recheck(chain []*x509.Certificate) error {
	now := v.Now()
	for _, c := range chain {
		if now.Before(c.NotBefore) || now.After(c.NotAfter) {
			return fault.New(fault.Unauthenticated, "untrusted-peer", "the certificate of %q is not valid now", c.Subject).Do("connect again: a full handshake says why")
		}
	}
	_, err := v.admit(chain[0])
	return err
}

// Sessions keeps the newest session of a client whose servers take each other's tickets. It is for who it was given to: Owner names the
// client's identity and its roots as they are now. Where thousands connect at a time a handshake may take several attempts, so a session
// is offered more than once, and not for ever: a server may have a reason not to take it that it does not have in a full handshake.
type Sessions struct {
	Owner func() [sha256.Size]byte

	mu    sync.Mutex
	owner [sha256.Size]byte
	state *tls.ClientSessionState
	uses  int
}

// maxUses is how often a session is offered.
const maxUses = 8

func (s *Sessions) of() ownSessions { return ownSessions{s, s.Owner()} }

// Get is of tls.ClientSessionCache.
func (s *Sessions) Get(key string) (*tls.ClientSessionState, bool) { return s.of().Get(key) }

// Put is of tls.ClientSessionCache.
func (s *Sessions) Put(key string, state *tls.ClientSessionState) { s.of().Put(key, state) }

// ForDial is c for the connections of one dial: the sessions that those are given belong to who the client is now, whoever it is when
// they arrive.
func ForDial(c *tls.Config) *tls.Config {
	if s, ok := c.ClientSessionCache.(*Sessions); ok {
		c = c.Clone()
		c.ClientSessionCache = s.of()
	}
	return c
}

// ownSessions are those of one owner.
type ownSessions struct {
	all   *Sessions
	owner [sha256.Size]byte
}

// Get is of tls.ClientSessionCache; the server's name does not matter.
func (s ownSessions) Get(string) (*tls.ClientSessionState, bool) {
	now, all := s.all.Owner(), s.all
	all.mu.Lock()
	defer all.mu.Unlock()
	if all.state == nil || all.owner != now || s.owner != now {
		return nil, false
	}
	state := all.state
	if all.uses++; all.uses == maxUses {
		all.state = nil
	}
	return state, true
}

// Put is of tls.ClientSessionCache. crypto/tls takes a session back with nil after each handshake that ends in an error, and a controller
// that has no leader or too much to do ends thousands of them: the session stays, and goes by how often it has been offered.
func (s ownSessions) Put(_ string, state *tls.ClientSessionState) {
	if state == nil {
		return
	}
	all := s.all
	all.mu.Lock()
	defer all.mu.Unlock()
	all.owner, all.state, all.uses = s.owner, state, 0
}

// Mark names a chain and the roots of who holds it, for Sessions.Owner.
func Mark(chain, roots []*x509.Certificate) [sha256.Size]byte { return digest(chain, roots) }
