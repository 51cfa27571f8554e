package rotation

import (
	"slices"
	"testing"
	"time"
)

// good is a ring of three in which every gate of the phase holds.
func good(p Phase) View {
	v := View{Phase: p, Kind: Root, Rollout: Rollout{State: rolloutDone}}
	leaf := Before
	switch p {
	case Reissue, Reissued, Retire, Done:
		leaf = After
	}
	for _, n := range []string{"n1", "n2", "n3"} {
		v.Members = append(v.Members, Member{Name: n, Node: "tenants/default/clusters/c/nodes/" + n, HostID: "h" + n, Incarnation: 1, Active: true, Up: true, State: "normal", Version: "5.0.8",
			Stores: []Store{{Name: "node", Leaf: leaf, Ports: []Port{{Name: "internode 10.0.0.1:7000", Trusts: true}, {Name: "CQL 10.0.0.1:9042", Trusts: true}}}}})
	}
	return v
}

// phaseOf is the phase in which a step is asked for.
var phaseOf = map[Step]Phase{StepReissue: Distribute, StepLeaf: Reissue, StepReissued: Reissue, StepRetire: Reissued, StepShrink: Retire, StepDone: Retire,
	StepTurn: Reissued, StepBack: Undoing, StepWithdraw: Undoing, StepUnshrink: Withdrawing, StepUndone: Withdrawing}

// faults break one thing each. gate is the one that must notice, on every step that it is for.
var faults = []struct {
	gate, name string
	breakIt    func(v *View)
}{
	{"frozen", "the cluster is frozen", func(v *View) { v.Frozen = "prod is frozen" }},
	{"paused", "a person paused it", func(v *View) { v.Paused = true }},
	{"ring-known", "two views differ", func(v *View) { v.Doubts = []string{"n1 sees n4, n2 does not"} }},
	{"ring-known", "no member is known", func(v *View) { v.Members = nil }},
	{"enrolled", "a member has no agent", func(v *View) { v.Members[1].Node = "" }},
	{"enrolled", "an agent may not act", func(v *View) { v.Members[1].Active = false }},
	{"up", "a member is down", func(v *View) { v.Members[2].Up = false }},
	{"started", "an enrolled node has stores and never started", func(v *View) {
		v.Members = append(v.Members, Member{Name: "n4", Node: "tenants/default/clusters/c/nodes/n4", HostID: "n4", Incarnation: 1, Active: true, State: "not-started", OldLinks: -1, Waiting: true,
			Stores: []Store{{Name: "node", Leaf: Unknown, Moving: true}}})
	}},
	{"settled", "a member joins", func(v *View) { v.Members[2].State = "joining" }},
	{"settled", "a member leaves", func(v *View) { v.Members[2].State = "leaving" }},
	{"one-version", "versions are mixed", func(v *View) { v.Members[1].Version = "4.1.3" }},
	{"signer", "the issuer has expired", func(v *View) { v.Signer = "new has no issuer" }},
	{"installed", "files are older than the phase", func(v *View) { v.Members[0].Stores[0].Behind = true }},
	{"installed", "no store of a member is known", func(v *View) { v.Members[1].Stores = nil }},
	{"trust-proved", "a port is not proved to trust the new CA", func(v *View) { v.Members[1].Stores[0].Ports[0].Trusts = false }},
	{"trust-proved", "no store of a member is known", func(v *View) { v.Members[1].Stores = nil }},
	{"leaf-proved", "a node serves the leaf from before", func(v *View) { v.Members[1].Stores[0].Leaf = Before }},
	{"leaf-proved", "nobody knows what a node serves", func(v *View) { v.Members[1].Stores[0].Leaf = Unknown }},
	{"leaf-proved", "a node serves the leaf of a third CA", func(v *View) { v.Members[1].Stores[0].Leaf = Neither }},
	{"leaf-proved", "no store of a member is known", func(v *View) { v.Members[1].Stores = nil }},
	{"kept", "an agent no longer keeps the leaf of before", func(v *View) {
		s := &v.Members[1].Stores[0]
		v.Kind, s.Kept, s.Gone, s.Leaf = Takeover, true, "it is gone", After
	}},
	{"trusted-before", "a node never knew the CA before", func(v *View) {
		v.Kind, v.Members[1].Stores[0].LacksBefore = Takeover, "an anchor lacks"
	}},
	{"trusted-before", "nobody knows what a node has loaded", func(v *View) { v.Kind, v.Members[1].Stores[0].Leaf = Takeover, Unknown }},
	{"leaf-back", "a node still serves the new leaf", func(v *View) { v.Members[1].Stores[0].Leaf = After }},
	{"leaf-back", "nobody knows what a node serves", func(v *View) { v.Members[1].Stores[0].Leaf = Unknown }},
	{"leaf-back", "no store of a member is known", func(v *View) { v.Members[1].Stores = nil }},
	{"still", "a store is on the move", func(v *View) { v.Members[0].Stores[0].Moving = true }},
	{"links", "old links live on", func(v *View) { v.Members[0].OldLinks = 2 }},
	{"links", "links are not known", func(v *View) { v.Members[0].OldLinks = -1 }},
	{"clients", "an application would break", func(v *View) { v.Clients = []Client{{Name: "shop", Detail: "x", Until: time.Now()}} }},
	{"canary", "a client of the first node has not come back", func(v *View) { v.Canary, v.Seen = v.Members[0].Node, awaits(v.Members[0].Node) }},
	{"canary", "clients are waited for and no node is the first", func(v *View) { v.Seen = awaits(v.Members[0].Node) }},
	{"canary", "the first node is down", func(v *View) { v.Canary, v.Seen, v.Members[0].Up = v.Members[0].Node, awaits(v.Members[1].Node), false }},
	{"canary", "who speaks to the first node cannot be seen", func(v *View) {
		v.Canary, v.Seen = v.Members[0].Node, []Seen{{Client{Name: exceptUnseen, Detail: "x"}, []string{v.Members[0].Node}}}
	}},
	{"seen", "a client was not seen to connect since", func(v *View) { v.Seen = awaits(v.Members[0].Node) }},
}

func awaits(nodes ...string) []Seen {
	return []Seen{{Client{Name: "seen-1", Detail: "10.9.9.9 as app"}, nodes}}
}

func TestTheOthersWaitForTheClientsOfTheCanaryOnly(t *testing.T) {
	v := good(Reissue)
	first, other := v.Members[0].Node, v.Members[1].Node
	v.Canary, v.Seen = first, awaits(first)
	if r := All().Ask(StepLeaf, v, first); len(r) > 0 {
		t.Errorf("the first itself is held: %v", r)
	}
	if r := All().Ask(StepLeaf, v, other); len(r) == 0 {
		t.Error("another may go")
	}
	v.Seen[0].Named = true
	if r := All().Ask(StepLeaf, v, other); len(r) > 0 {
		t.Errorf("a person does not wait for it, and yet %v", r)
	}
	v.Seen = awaits(other)
	if r := All().Ask(StepLeaf, v, other); len(r) > 0 {
		t.Errorf("its client never spoke to the first, and yet %v", r)
	}
	if got := canary(v, []string{first, other}); got != "" {
		t.Errorf("%q goes first though nobody of the first is waited for", got)
	}
	v.Canary = ""
	if got := canary(v, []string{first, other}); got != other {
		t.Errorf("%q goes first, want the one with a client", got)
	}
	v.Seen = append(v.Seen, Seen{Client{Name: exceptUnseen}, []string{first}})
	if got := canary(v, []string{first, v.Members[2].Node}); got != v.Members[2].Node {
		t.Errorf("%q goes first, whose clients cannot be seen", got)
	}
}

func TestNothingIsInTheWayOfAGoodRing(t *testing.T) {
	for step, phase := range phaseOf {
		if r := All().Ask(step, good(phase), ""); len(r) > 0 {
			t.Errorf("%s in %s: %v", step, phase, r)
		}
	}
}

func TestEachFaultIsNoticedByItsGateOnEachOfItsSteps(t *testing.T) {
	for _, f := range faults {
		steps := 0
		for _, g := range All() {
			if g.Code != f.gate {
				continue
			}
			for _, step := range g.steps {
				v := good(phaseOf[step])
				f.breakIt(&v)
				got := All().Ask(step, v, "")
				if !slices.ContainsFunc(got, func(r Reason) bool { return r.Code == f.gate && r.Message != "" && r.Remedy != "" }) {
					t.Errorf("%s, %s: gate %s says nothing with a remedy: %v", step, f.name, f.gate, got)
				}
				steps++
			}
		}
		if steps == 0 {
			t.Errorf("%s: there is no gate %s", f.name, f.gate)
		}
	}
	for _, g := range All() {
		if !slices.ContainsFunc(faults, func(f struct {
			gate, name string
			breakIt    func(v *View)
		}) bool {
			return f.gate == g.Code
		}) {
			t.Errorf("gate %s has no fault that it alone must notice", g.Code)
		}
	}
}

// A gate that is taken out must be missed by this table: some fault passes on some step.
func TestEachGateThatIsTakenOutIsMissed(t *testing.T) {
	for _, g := range All() {
		missed := false
		for _, f := range faults {
			if f.gate != g.Code {
				continue
			}
			for _, step := range g.steps {
				v := good(phaseOf[step])
				f.breakIt(&v)
				missed = missed || len(All().Without(g.Code).Ask(step, v, "")) == 0
			}
		}
		if !missed {
			t.Errorf("without the gate %s nothing that it refuses would pass: it is not needed, or not tested", g.Code)
		}
	}
}

func TestAMemberSetAsideIsExcusedWhileItIsDown(t *testing.T) {
	v := good(Distribute)
	v.Members[2].Up, v.Members[2].Aside, v.Members[2].Stores[0].Ports[0].Trusts = false, "its board is broken", false
	if r := All().Ask(StepReissue, v, ""); len(r) > 0 {
		t.Errorf("set aside and down, and yet %v", r)
	}
	v.Members[2].Up = true
	if r := All().Ask(StepReissue, v, ""); len(r) == 0 {
		t.Error("a member that is back and trusts too little is still excused")
	}
}

func TestWhoClaimsBeforeItsStartIsNotAskedAboutItself(t *testing.T) {
	v := good(Reissue)
	v.Members[2].Up, v.Members[2].Stores[0].Ports[0].Trusts = false, false
	if r := All().Ask(StepLeaf, v, v.Members[2].Node); len(r) > 0 {
		t.Errorf("the one that is down cannot take its files before it starts: %v", r)
	}
	if r := All().Ask(StepLeaf, v, v.Members[0].Node); len(r) == 0 {
		t.Error("another may take a leaf of the new CA while a member is down")
	}
}

func TestANodeThatNeverStartedCanBeSetAside(t *testing.T) {
	v := good(Distribute)
	m := v.Members[0]
	m.Name, m.Node, m.Up, m.Waiting, m.Version, m.Aside = "n4", "tenants/default/clusters/c/nodes/n4", false, true, "", "its machine does not come"
	v.Members = append(v.Members, m)
	if r := All().Ask(StepReissue, v, ""); len(r) > 0 {
		t.Errorf("set aside, and yet %v", r)
	}
}

func TestAMemberThatIsSetAsideHasNoVersion(t *testing.T) {
	v := good(Distribute)
	v.Members[2].Up, v.Members[2].Aside, v.Members[2].Version = false, "its board is broken", "4.1.3"
	if r := All().Ask(StepReissue, v, ""); len(r) > 0 {
		t.Errorf("set aside, and yet %v", r)
	}
	v = good(Distribute)
	v.Members[2].Version = "5.0.9"
	if r := All().Ask(StepReissue, v, ""); len(r) > 0 {
		t.Errorf("two patches that reload alike, and yet %v", r)
	}
}

func TestPortsOfWhichNothingCanBeProvedDoNotHold(t *testing.T) {
	v := good(Distribute)
	v.Members[0].Stores[0].Ports[1] = Port{Name: "CQL", Exempt: "asks for no certificate"}
	if r := All().Ask(StepReissue, v, ""); len(r) > 0 {
		t.Errorf("got %v", r)
	}
}

// lagging is a reissue whose canary is the first member, in which one still serves the leaf from before.
func lagging(who int) View {
	v := good(Reissue)
	v.Canary, v.Members[who].Stores[0].Leaf = v.Members[0].Node, Before
	return v
}

func TestDecisions(t *testing.T) {
	with := func(v View, change func(*View)) View { change(&v); return v }
	tests := []struct {
		name   string
		view   View
		action Action
		next   Phase
		gate   string
	}{
		{"waves begin", with(good(Distribute), func(v *View) { v.Rollout.State = "" }), Begin, "", ""},
		{"waves run", with(good(Distribute), func(v *View) { v.Rollout.State = rolloutRunning }), Wait, "", "waves"},
		{"waves halted", with(good(Distribute), func(v *View) { v.Rollout.State = "halted" }), Halt, "", "waves"},
		{"all proved", good(Distribute), Enter, Reissue, ""},
		{"waves over, one down", with(good(Distribute), func(v *View) { v.Members[0].Up = false }), Wait, "", "up"},
		{"waves over, one joined later", with(good(Distribute), func(v *View) { v.Members[0].Stores[0].Behind = true }), Begin, "", ""},
		{"waves over, a truststore changed by hand", with(good(Distribute), func(v *View) { v.Members[0].Stores[0].Ports[0].Trusts = false }), Begin, "", ""},
		{"waves over, one that lacks trust only observes", with(good(Distribute), func(v *View) { v.Members[0].Active, v.Members[0].Stores[0].Behind = false, true }), Wait, "", "enrolled"},
		{"leaves proved", good(Reissue), Enter, Reissued, ""},
		{"the first has its leaf, its client has not come", with(lagging(1), func(v *View) { v.Seen = awaits(v.Canary) }), Wait, "", "canary"},
		{"the client of the first has come", lagging(1), Begin, "", ""},
		{"the first has to move again", with(lagging(0), func(v *View) { v.Seen = awaits(v.Canary) }), Begin, "", ""},
		{"one lies about its leaf", with(good(Reissue), func(v *View) { v.Members[0].Stores[0].Leaf = Before }), Begin, "", ""},
		{"links that can be cycled", with(good(Reissued), func(v *View) { v.Members[1].OldLinks = 1 }), Cycle, "", ""},
		{"one cycles already", with(good(Reissued), func(v *View) { v.Members[1].OldLinks, v.Members[0].Cycling = 1, true }), Wait, "", "links"},
		{"a host that cannot cut", with(good(Reissued), func(v *View) { v.Members[1].OldLinks, v.Members[1].Links = 1, "no CAP_NET_ADMIN" }), Wait, "", "links"},
		{"a person must retire", good(Reissued), Wait, "", "by-hand"},
		{"paused", with(good(Reissue), func(v *View) { v.Paused = true }), Wait, "", "paused"},
		{"paused before its waves", with(good(Distribute), func(v *View) { v.Rollout.State, v.Paused = "", true }), Wait, "", "paused"},
		{"paused, one has to move again", with(good(Distribute), func(v *View) { v.Members[0].Stores[0].Behind, v.Paused = true, true }), Wait, "", "paused"},
		{"paused with links that can be cycled", with(good(Reissued), func(v *View) { v.Members[1].OldLinks, v.Paused = 1, true }), Wait, "", "paused"},
		{"frozen", with(good(Distribute), func(v *View) { v.Frozen = "x" }), Wait, "", "frozen"},
		{"shrunk", good(Retire), Enter, Done, ""},
		{"anchors of another CA stay", with(good(Retire), func(v *View) { v.Idle, v.Rollout.State = true, "" }), Enter, Done, ""},
		{"leaves are back", good(Undoing), Enter, Withdrawing, ""},
		{"a leaf is not back", with(good(Undoing), func(v *View) { v.Members[1].Stores[0].Leaf = After }), Begin, "", ""},
		{"undone", good(Withdrawing), Enter, RolledBack, ""},
		{"over", good(Done), Rest, "", ""},
		{"rolled back", good(RolledBack), Rest, "", ""},
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
