package rotation

import "github.com/cassandra-security-manager/csm/controller/state"

// ModuleWithout is the state machine with one gate taken out: for tests that show what that gate prevents.
func ModuleWithout(gate string, w Waves) state.Module {
	return machine{All().Without(gate), w}.module()
}

// GuardWithout is what fleet asks, with one gate taken out.
func GuardWithout(gate string) Asked { return Asked{All().Without(gate)} }
