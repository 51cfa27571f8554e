package server

import "testing"

// The node of a system that is being founded tells of itself before there is an identity.
func TestAnIdentityThatIsNotThereYetTrustsNobody(t *testing.T) {
	if r := (&identityHolder{}).roots(); len(r) != 0 {
		t.Errorf("%v", r)
	}
}
