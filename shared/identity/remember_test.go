package identity_test

import (
	"crypto/x509"
	"testing"
	"time"

	"github.com/cassandra-security-manager/csm/shared/fault"
	"github.com/cassandra-security-manager/csm/shared/identity"
)

func TestARememberedChainIsStillHeldToClockRootsAndCheck(t *testing.T) {
	system, other := makeCA(t), makeCA(t)
	clock, roots, revoked := now, []*x509.Certificate{system.cert}, false
	r := &identity.Remembering{Verifier: identity.Verifier{Roots: func() []*x509.Certificate { return roots }, TrustDomain: td,
		Kinds: []identity.Kind{identity.Admin}, Now: func() time.Time { return clock },
		Check: func(*x509.Certificate, identity.ID) error {
			if revoked {
				return fault.New(fault.Unauthenticated, "revoked", "revoked")
			}
			return nil
		}}}
	alice := []*x509.Certificate{system.issue(t, now.Add(time.Hour), identity.AdminID(td, "alice")).Leaf}
	passes := func(want bool, when string) {
		t.Helper()
		if _, err := r.Verify(alice); (err == nil) != want {
			t.Errorf("%s: %v", when, err)
		}
	}
	passes(true, "the first time")
	passes(true, "remembered")
	clock = now.Add(2 * time.Hour)
	passes(false, "after it expired")
	clock = now
	passes(true, "the clock was set back")
	revoked = true
	passes(false, "revoked")
	revoked = false
	roots = []*x509.Certificate{other.cert}
	passes(false, "its root is gone")
	roots = []*x509.Certificate{system.cert}
	if _, err := r.Verify([]*x509.Certificate{other.issue(t, now.Add(time.Hour), identity.AdminID(td, "alice")).Leaf}); err == nil {
		t.Error("the same name under another CA passed")
	}
	if _, err := r.Verify([]*x509.Certificate{system.issue(t, now.Add(time.Hour), identity.AgentID(td, "u", 1)).Leaf}); err == nil {
		t.Error("an agent passed for an administrator")
	}
}
