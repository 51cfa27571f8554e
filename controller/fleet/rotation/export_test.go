package rotation

import (
	"testing"

	"github.com/jonboulle/clockwork"

	"github.com/cassandra-security-manager/csm/controller/fleet"
	"github.com/cassandra-security-manager/csm/controller/state"
)

// NewWithout is New with one gate taken out.
func NewWithout(gate string, read fleet.Reader, log state.Log, clock clockwork.Clock, w Waves) *Rotations {
	r := New(read, log, clock, w)
	r.gates = r.gates.Without(gate)
	return r
}

// ModuleWithout is the state machine with one gate taken out: for tests that show what that gate prevents.
func ModuleWithout(gate string, w Waves) state.Module {
	return machine{All().Without(gate), w}.module()
}

// NameAtMost bounds how many clients are named, until the end of a test.
func NameAtMost(t testing.TB, n int) {
	was := maxClients
	maxClients = n
	t.Cleanup(func() { maxClients = was })
}

// GuardWithout is what fleet asks, with one gate taken out.
func GuardWithout(gate string) Asked { return Asked{All().Without(gate)} }
