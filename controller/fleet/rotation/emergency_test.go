package rotation

import (
	"slices"
	"testing"

	"github.com/cassandra-security-manager/csm/controller/fleet"
)

// emergency is a good ring in an emergency that gives up all that may be given up, and is told to give up more.
func emergency(p Phase) View {
	v := good(p)
	v.Emergency, v.Wide = true, 1
	for _, g := range All() {
		v.Relaxed = append(v.Relaxed, g.Code)
	}
	v.Relaxed = append(v.Relaxed, relaxWidth, relaxByHand)
	return v
}

// Every other gate sees in an emergency what it sees in peace, even if the state says that it is given up.
func TestAnEmergencyGivesUpTwoGatesAndNoOther(t *testing.T) {
	for _, f := range faults {
		for _, g := range All() {
			if g.Code != f.gate {
				continue
			}
			for _, step := range g.steps {
				v := emergency(phaseOf[step])
				f.breakIt(&v)
				noticed := slices.ContainsFunc(All().Ask(step, v, ""), func(r Reason) bool { return r.Code == f.gate })
				given := f.gate == relaxCanary || f.gate == relaxSeen
				if noticed == given {
					t.Errorf("%s, %s: gate %s notices it: %v", step, f.name, f.gate, noticed)
				}
				if v.Emergency = false; given && len(All().Ask(step, v, "")) == 0 {
					t.Errorf("%s, %s: given up without an emergency", step, f.name)
				}
			}
		}
	}
}

func TestDecisionsOfAnEmergency(t *testing.T) {
	with := func(v View, change func(*View)) View { change(&v); return v }
	kept := func(v View, code string) View {
		v.Relaxed = slices.DeleteFunc(v.Relaxed, func(x string) bool { return x == code })
		return v
	}
	tests := []struct {
		name   string
		view   View
		action Action
		next   Phase
		gate   string
	}{
		{"every leaf is proved: it retires by itself", emergency(Reissued), Enter, Retire, ""},
		{"by hand was kept", kept(emergency(Reissued), relaxByHand), Wait, "", "by-hand"},
		{"a client was only seen", with(emergency(Reissued), func(v *View) { v.Seen = awaits(v.Members[0].Node) }), Enter, Retire, ""},
		{"a client was only seen, and that is kept", kept(with(emergency(Reissued), func(v *View) { v.Seen = awaits(v.Members[0].Node) }), relaxSeen), Wait, "", "seen"},
		{"the canary's client has not come", with(emergency(Reissue), func(v *View) { v.Members[1].Stores[0].Leaf, v.Seen = Before, awaits(v.Members[0].Node) }), Begin, "", ""},
		{"an application would break", with(emergency(Reissued), func(v *View) { v.Clients = []Client{{Name: "shop"}} }), Wait, "", "clients"},
		{"old links", with(emergency(Reissued), func(v *View) { v.Members[0].OldLinks = 1 }), Cycle, "", "links"},
		{"links of which nobody can tell", with(emergency(Reissued), func(v *View) { v.Members[0].OldLinks = -1 }), Wait, "", "links"},
		{"a member is down", with(emergency(Reissued), func(v *View) { v.Members[0].Up = false }), Wait, "", "up"},
		{"a leaf is not proved", with(emergency(Reissued), func(v *View) { v.Members[0].Stores[0].Leaf = Unknown }), Wait, "", "leaf-proved"},
		{"trust is not proved", with(emergency(Distribute), func(v *View) { v.Members[0].Stores[0].Ports[0].Trusts = false }), Begin, "", "trust-proved"},
		{"frozen", with(emergency(Reissued), func(v *View) { v.Frozen = "x" }), Wait, "", "frozen"},
		{"paused", with(emergency(Reissued), func(v *View) { v.Paused = true }), Wait, "", "paused"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			d := All().Decide(tt.view)
			if d.Action != tt.action || d.Next != tt.next {
				t.Errorf("got %s %s, want %s %s: %v", d.Action, d.Next, tt.action, tt.next, d.Reasons)
			}
			if tt.gate != "" && !slices.ContainsFunc(d.Reasons, func(r Reason) bool { return r.Code == tt.gate }) {
				t.Errorf("no reason names %s: %v", tt.gate, d.Reasons)
			}
		})
	}
}

func TestLeavesGoWideWithinARackOnlyWhereOthersAreAQuorum(t *testing.T) {
	at := func(places ...string) (out []fleet.Standing) {
		for _, p := range places {
			dc, rack := p[:1], p[1:]
			out = append(out, fleet.Standing{Incarnation: 1, Datacenter: dc, Rack: rack})
		}
		return out
	}
	tests := []struct {
		name  string
		nodes []fleet.Standing
		want  int
	}{
		{"three racks in each data centre", at("a1", "a2", "a3", "b1", "b2", "b3", "b3"), wideLeaf},
		{"one rack", at("a1", "a1", "a1"), 1},
		{"one data centre has two racks", at("a1", "a2", "a3", "b1", "b2"), 1},
		{"a rack is not known", at("a1", "a2", "a3", "a"), 1},
		{"a node that never joined says nothing", append(at("a1", "a2", "a3"), fleet.Standing{}), wideLeaf},
	}
	for _, tt := range tests {
		if got := wide(tt.nodes); got != tt.want {
			t.Errorf("%s: %d, want %d", tt.name, got, tt.want)
		}
	}
	v := emergency(Reissue)
	v.Wide = wideLeaf
	if v.width(waveTrust) != wideTrust || v.width(waveLeaf) != wideLeaf || v.width(waveShrink) != wideLeaf || v.width(waveRenew) != wideLeaf {
		t.Errorf("widths %d %d %d", v.width(waveTrust), v.width(waveLeaf), v.width(waveShrink))
	}
	if v.Emergency = false; v.width(waveTrust) != 0 {
		t.Error("wide in peace")
	}
}

func TestThePlanOfAnEmergencyNamesWhatItGivesUpAndWho(t *testing.T) {
	v := emergency(Distribute)
	v.Seen = awaits(v.Members[0].Node)
	for _, r := range v.relaxations() {
		if r.GivesUp == "" || r.Risk == "" {
			t.Errorf("%s says nothing", r.Code)
		}
		if named := len(r.Who) == 1; named != (r.Code == relaxCanary || r.Code == relaxSeen) {
			t.Errorf("%s names %v", r.Code, r.Who)
		}
	}
	if n := len(v.relaxations()); n != len(relaxable) {
		t.Errorf("%d are named", n)
	}
	if v.Emergency = false; len(v.relaxations()) > 0 {
		t.Error("something is given up in peace")
	}
}
