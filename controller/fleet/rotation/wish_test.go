package rotation

import (
	"context"
	"testing"

	agentv1 "github.com/cassandra-security-manager/csm/protocol/agent/v1"

	"github.com/cassandra-security-manager/csm/controller/state"
)

// wavesThat hold each store, or none.
type wavesThat struct {
	Waves
	hold bool
}

func (w wavesThat) Holds(context.Context, state.Querier, string, string, string) (bool, error) {
	return w.hold, nil
}

func TestAWishIsToldOnceAndNotWhileAWaveHoldsTheStore(t *testing.T) {
	r := row{name: "tenants/default/trustDomains/prod/rotations/r7", phase: Reissue, before: "old", after: "young"}
	const renew, unspecified = agentv1.MoveKind_MOVE_KIND_RENEW, agentv1.MoveKind_MOVE_KIND_UNSPECIFIED
	for what, c := range map[string]struct {
		move   agentv1.MoveKind
		signer string
		held   bool
		tell   bool
	}{
		"nothing is told yet":             {unspecified, "old", false, true},
		"told already":                    {renew, "young", false, false},
		"told a leaf of the CA before":    {renew, "old", false, true},
		"a wave is about to move it":      {unspecified, "old", true, false},
		"told to take anchors, has taken": {agentv1.MoveKind_MOVE_KIND_TRUST, "young", false, true},
	} {
		v := View{Members: []Member{{Name: "n1", Node: "n1", Active: true, Aside: "broken", Stores: []Store{{Name: "node", Behind: true, Leaf: Before, Files: Before, Move: c.move, Signer: c.signer}}}}}
		wishes, err := r.untold(t.Context(), nil, wavesThat{hold: c.held}, v)
		if err != nil || len(wishes) > 0 != c.tell {
			t.Errorf("%s: %+v, %v", what, wishes, err)
		}
		if c.tell && (len(wishes) != 1 || wishes[0].Move != renew || wishes[0].Authority != "young" || wishes[0].Node != "n1") {
			t.Errorf("%s: it is told %+v", what, wishes)
		}
	}
}

func TestWhoIsPutIntoAWave(t *testing.T) {
	for what, c := range map[string]struct {
		phase  Phase
		member Member
		leaf   Side
		want   bool
	}{
		"it lacks what the phase asks for":                     {Retire, Member{Up: true}, After, true},
		"it is down and nobody has set it aside":               {Retire, Member{}, After, true},
		"it was set aside":                                     {Retire, Member{Aside: "broken"}, After, false},
		"it was set aside and is up":                           {Retire, Member{Up: true, Aside: "broken"}, After, true},
		"it came with the leaf of before, which comes first":   {Retire, Member{Up: true}, Before, false},
		"on the way back":                                      {Withdrawing, Member{Up: true}, Before, true},
		"it came back with the new leaf, and the old is first": {Withdrawing, Member{Up: true}, After, false},
	} {
		c.member.Node, c.member.Active, c.member.Stores = "n1", true, []Store{{Name: "node", Behind: true, Leaf: c.leaf}}
		if got := moves(View{Phase: c.phase, Kind: Root}, c.member); got != c.want {
			t.Errorf("%s: %v", what, got)
		}
	}
}
