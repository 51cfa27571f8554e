package systemca_test

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/cassandra-security-manager/csm/controller/systemca"
)

// A small system in which everything that can happen is tried, in every order: messages are lost or late, processes die and come back, a
// machine is set back to an old disk, somebody joins, somebody is removed, people turn round. What may follow is asked of the real gates,
// so this model cannot say anything else than the code.

// Roots, as bits.
const (
	old  uint8 = 1
	next uint8 = 2
	both       = old | next
)

// party is a controller or an agent.
type party struct {
	member, up bool
	trusts     uint8 // the roots in its verifier
	leaf       uint8 // the root of the leaf that it shows; 0: it has none yet
	coming     uint8 // the root of a leaf that is signed and on its way
	leafOld    bool  // one of the next root was signed after its leaf
	seenOld    bool  // and after the leaf that was seen
	seen, says uint8 // the root of the leaf that was seen last, and the roots that it said it trusts; 0: never
	fresh      bool  // seen within the last seconds
	removed    bool
}

// system is the whole: controllers, an agent, an administrator, and the rotation as the state holds it.
type system struct {
	phase       uint8
	turn        uint8 // 0 nobody, 1 to 3 a controller, 4 the agents
	controllers [3]party
	agent       party
	admin       uint8
	setBack     bool // one machine was set back already
}

var phases = []systemca.Phase{systemca.Distribute, systemca.Reissue, systemca.Reissued, systemca.Retire, systemca.Done, systemca.Undoing, systemca.Withdrawing, systemca.RolledBack}

func (w system) is(p ...systemca.Phase) bool { return slices.Contains(p, phases[w.phase]) }

func (w *system) enter(p systemca.Phase) { w.phase, w.turn = uint8(slices.Index(phases, p)), 0 }

// trusted are the roots that the state trusts, signs the one that signs.
func (w system) trusted() uint8 {
	switch {
	case w.is(systemca.Retire, systemca.Done):
		return next
	case w.is(systemca.Withdrawing, systemca.RolledBack):
		return old
	}
	return both
}

func (w system) signs() uint8 {
	if w.is(systemca.Reissue, systemca.Reissued, systemca.Retire, systemca.Done) {
		return next
	}
	return old
}

// takes says whether a verifier takes a leaf. Whoever holds both roots sends with his chain what leads from each to the other.
func (p party) takes(leaf uint8, crossed bool) bool {
	return p.trusts&leaf != 0 || crossed && p.trusts != 0
}

// sign lets a leaf be on its way to it.
func (p *party) sign(root uint8) {
	p.coming = root
	if root == next {
		p.leafOld, p.seenOld = p.leaf != 0, p.seen != 0
	}
}

func (p *party) take() { p.leaf, p.coming, p.leafOld = p.coming, 0, false }

func (p *party) witness() { p.seen, p.says, p.seenOld = p.leaf, p.trusts, p.leafOld }

func (p party) live() bool { return p.member && p.up && p.leaf != 0 }

// talk says whether two controllers, or a controller and an agent, take each other.
func talk(c, other party, agent bool) bool {
	return other.takes(c.leaf, c.trusts == both) && c.takes(other.leaf, !agent && other.trusts == both)
}

// cut says who is cut off, or holds what is gone.
func (w system) cut() string {
	for i, c := range w.controllers {
		if !c.live() {
			continue
		}
		for k, d := range w.controllers[:i] {
			if d.live() && !talk(c, d, false) {
				return fmt.Sprintf("controllers %d and %d do not take each other", k, i)
			}
		}
		lags := w.setBack && c.trusts == old // it has not followed yet; the agent goes to another one
		if w.agent.live() && !lags && !talk(c, w.agent, true) {
			return fmt.Sprintf("controller %d and the agent do not take each other", i)
		}
	}
	gone := both &^ w.trusted()
	for _, p := range [...]party{w.controllers[0], w.controllers[1], w.controllers[2], w.agent} {
		switch {
		case p.member && p.leaf&gone != 0:
			return "an identity is of the root that is gone"
		case p.member && p.trusts&gone != 0 && (w.is(systemca.Done) || w.is(systemca.RolledBack) && p != w.agent): // an agent that came late is told, also afterwards
			return "it is over, and somebody still trusts the root that is gone"
		}
	}
	if w.admin&gone != 0 {
		return "the administrator is shut out"
	}
	return ""
}

var controllerNames, agentName = [3]string{"system/controllers/csm1", "system/controllers/csm2", "system/controllers/csm3"}, "tenants/default/clusters/prod/nodes/n1"

func side(root uint8) systemca.Side {
	if root == next {
		return systemca.After
	}
	return systemca.Before
}

func (p party) identity(k systemca.Kind, name string, undo bool) systemca.Identity {
	x := systemca.Identity{Kind: k, Name: name, Leaf: systemca.Unknown, TrustsBefore: p.says&old != 0, TrustsAfter: p.says&next != 0, Connected: p.up, Stray: undo && p.seenOld}
	if p.seen != 0 {
		x.Leaf, x.Seen = side(p.seen), now.Add(-time.Hour)
	}
	if p.fresh {
		x.Seen = now
	}
	return x
}

// view is what the state knows of it.
func (w system) view() systemca.View {
	v := systemca.View{Now: now, Phase: phases[w.phase]}
	switch w.turn {
	case 0:
	case 4:
		v.Turn = systemca.Agents
	default:
		v.Turn = controllerNames[w.turn-1]
	}
	for i, c := range w.controllers {
		if c.member {
			v.Identities = append(v.Identities, c.identity(systemca.Controller, controllerNames[i], v.Phase.Undo()))
		}
	}
	if w.agent.member {
		v.Identities = append(v.Identities, w.agent.identity(systemca.Agent, agentName, v.Phase.Undo()))
	}
	v.Identities = append(v.Identities, systemca.Identity{Kind: systemca.Admin, Name: "system/admins/ada", Leaf: side(w.admin), Seen: now})
	return v
}

// due says whether who has these is asked to renew.
func (w system) due(p party) bool {
	return p.leaf != w.signs() || phases[w.phase].Undo() && p.leafOld
}

// moves says whether it is the turn of a controller, or of the agent (4).
func (w system) moves(who uint8) bool {
	return w.turn == who || w.is(systemca.Reissued) || w.is(systemca.Reissue, systemca.Undoing) && who != 4 && w.turn == 4
}

// steps gives each world that may follow.
func (w system) steps(g systemca.Gates, found func(what string, next system)) {
	for i := range w.controllers {
		w.controller(i, found)
	}
	w.agents(found)
	x := w
	if x.admin = w.signs(); x != w {
		found("the administrator gets a certificate", x)
	}
	x = w
	switch d := g.Decide(w.view()); d.Action {
	case systemca.Enter:
		x.enter(d.Next)
		found("phase "+string(d.Next), x)
	case systemca.Turn:
		x.turn = 4
		if i := slices.Index(controllerNames[:], d.Turn); i >= 0 {
			x.turn = uint8(i) + 1
		}
		found("turn of "+d.Turn, x)
	}
	x = w
	if w.is(systemca.Reissued) && len(g.Ask(systemca.StepRetire, w.view())) == 0 {
		x.enter(systemca.Retire)
		found("a person retires", x)
	}
	x = w
	if w.is(systemca.Distribute, systemca.Reissue, systemca.Reissued) {
		x.enter(systemca.Undoing)
		found("a person turns round", x)
	}
}

// controller is what may happen to one of them.
func (w system) controller(i int, found func(string, system)) {
	do := func(what string, change func(p *party)) {
		x := w
		if change(&x.controllers[i]); x != w {
			found(fmt.Sprintf("controller %d %s", i, what), x)
		}
	}
	c := w.controllers[i]
	switch {
	case c.removed:
	case !c.member:
		do("is let in", func(p *party) { p.member = true })
	case c.leaf == 0 && c.coming == 0:
		do("is signed a first leaf", func(p *party) { p.sign(w.signs()) })
	case c.leaf == 0:
		do("starts", func(p *party) { p.take(); p.trusts, p.up = w.trusted(), true })
	case c.up:
		do("dies", func(p *party) { p.up, p.coming = false, 0 })
		do("follows the bundle", func(p *party) { p.trusts = w.trusted() })
		if c.coming != 0 {
			do("takes its leaf", func(p *party) { p.take() })
			do("loses a reply", func(p *party) { p.coming = 0 })
		} else if w.moves(uint8(i)+1) && w.due(c) {
			do("is signed a leaf", func(p *party) { p.sign(w.signs()) })
		}
		if w.witnessed(i) {
			do("is seen", func(p *party) { p.witness(); p.fresh = true })
		}
	default:
		do("comes back", func(p *party) { p.up = true })
		do("was away for long", func(p *party) { p.fresh = false })
		if !w.setBack && !c.fresh && w.trusted() == both {
			x := w
			x.setBack, x.controllers[i].trusts, x.controllers[i].leaf, x.controllers[i].leafOld = true, old, old, w.was(next)
			found(fmt.Sprintf("controller %d is set back to an old disk", i), x)
		}
	}
	if c.member && !c.up && slices.ContainsFunc(w.controllers[:], party.live) {
		do("is removed", func(p *party) { *p = party{removed: true} })
	}
}

// witnessed says whether another controller speaks with this one; the only one there is speaks for itself.
func (w system) witnessed(i int) bool {
	others := 0
	for k, d := range w.controllers {
		if k == i || !d.member {
			continue
		}
		if others++; d.live() && talk(w.controllers[i], d, false) {
			return true
		}
	}
	return others == 0
}

// agents is what may happen to the agent.
func (w system) agents(found func(string, system)) {
	do := func(what string, change func(p *party)) {
		x := w
		if change(&x.agent); x != w {
			found("the agent "+what, x)
		}
	}
	a := w.agent
	connected := slices.ContainsFunc(w.controllers[:], func(c party) bool { return c.live() && talk(c, a, true) })
	switch {
	case a.removed:
	case !a.member:
		do("joins", func(p *party) { p.member = true; p.sign(w.signs()) })
	case a.leaf == 0 && a.coming == 0: // the reply was lost: it asks again with the same token and key
		do("is signed its first leaf again", func(p *party) { p.sign(w.signs()) })
	case a.leaf == 0:
		do("loses the reply to its join", func(p *party) { p.coming = 0 })
		if a.coming&w.trusted() != 0 { // it looks whether the chain leads to the roots that come with it
			do("starts", func(p *party) { p.take(); p.trusts, p.up = w.trusted(), true })
		}
	case !a.up:
		do("comes back", func(p *party) { p.up = true })
	default:
		do("dies", func(p *party) { p.up, p.coming = false, 0 })
		if a.coming != 0 {
			do("takes its leaf", func(p *party) { p.take() })
			do("loses a reply", func(p *party) { p.coming = 0 })
		} else if connected && w.moves(4) && w.due(a) {
			do("is signed a leaf", func(p *party) { p.sign(w.signs()) })
		}
		if connected {
			do("is seen", func(p *party) { p.witness() })
		}
		if connected && a.leaf&w.trusted() != 0 {
			do("takes the roots", func(p *party) { p.trusts = w.trusted() })
		}
	}
}

// was says whether a root has signed in this rotation.
func (w system) was(root uint8) bool { return root == old || !w.is(systemca.Distribute) }

func begin(controllers int, joiner, agent bool) (w system) {
	one := party{member: true, up: true, trusts: old, leaf: old}
	for i := range w.controllers {
		switch {
		case i < controllers:
			w.controllers[i] = one
		case i > controllers || !joiner:
			w.controllers[i] = party{removed: true}
		}
	}
	if w.agent = (party{removed: true}); agent {
		w.agent = one
	}
	w.admin, w.setBack = old, joiner
	return w
}

// small are the systems that are searched: everything at once would be too much.
var small = map[string]system{
	"two controllers":                     begin(2, false, false),
	"two controllers and one that joins":  begin(2, true, false),
	"a controller, another one, an agent": begin(1, true, true),
	"two controllers and an agent":        begin(2, false, true),
}

// search is every world that can be reached, with the one before it.
type search struct {
	ids   map[system]int32
	all   []system
	from  []int32
	what  []string
	edges [][]int32 // of each world to those that it follows
}

// explore goes through all of it, or to the first world in which somebody is cut off.
func explore(g systemca.Gates, start system, edges bool) (s *search, broken string) {
	s = &search{ids: map[system]int32{start: 0}, all: []system{start}, from: []int32{-1}, what: []string{"it begins"}}
	for at := 0; at < len(s.all) && broken == ""; at++ {
		s.all[at].steps(g, func(what string, x system) {
			id, known := s.ids[x]
			if !known && broken == "" {
				id = int32(len(s.all))
				s.ids[x], s.all, s.from, s.what = id, append(s.all, x), append(s.from, int32(at)), append(s.what, what)
				broken = x.cut()
			}
			if edges {
				for len(s.edges) < len(s.all) {
					s.edges = append(s.edges, nil)
				}
				s.edges[id] = append(s.edges[id], int32(at))
			}
		})
	}
	return s, broken
}

// way tells how a world was come to, the newest by default.
func (s *search) way(id int32) string {
	var lines []string
	for ; id >= 0; id = s.from[id] {
		lines = append(lines, fmt.Sprintf("%-15s %s", phases[s.all[id].phase], s.what[id]))
	}
	slices.Reverse(lines)
	return strings.Join(lines, "\n")
}

func (s *search) newest() int32 { return int32(len(s.all) - 1) }

// In no order of events is anybody cut off; and wherever the system is, it can still come to an end.
func TestNoWorldCutsAnybodyOffAndEachCanComeToAnEnd(t *testing.T) {
	for name, start := range small {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s, broken := explore(systemca.All(), start, true)
			if broken != "" {
				t.Fatalf("%s:\n%s\n%+v", broken, s.way(s.newest()), s.all[s.newest()])
			}
			ends, todo := make([]bool, len(s.all)), []int32{}
			reached := map[systemca.Phase]int{}
			for id, w := range s.all {
				if reached[phases[w.phase]]++; phases[w.phase].Ended() {
					ends[id], todo = true, append(todo, int32(id))
				}
			}
			for len(todo) > 0 {
				id := todo[len(todo)-1]
				todo = todo[:len(todo)-1]
				for _, before := range s.edges[id] {
					if !ends[before] {
						ends[before], todo = true, append(todo, before)
					}
				}
			}
			if id := slices.Index(ends, false); id >= 0 {
				t.Errorf("no end can be reached from here:\n%s\n%+v", s.way(int32(id)), s.all[id])
			}
			for _, p := range phases {
				if reached[p] == 0 {
					t.Errorf("%s is never reached", p)
				}
			}
			t.Logf("%d worlds: %v", len(s.all), reached)
		})
	}
}

// Each gate of safety is needed: without it somebody is cut off, and this is the shortest way to it.
func TestWithoutAGateSomebodyIsCutOff(t *testing.T) {
	people := []string{"frozen", "paused", "signer", "used"} // about people and time: TestEachGateNoticesItsFault
	for _, g := range systemca.All() {
		if slices.Contains(people, g.Code) {
			continue
		}
		t.Run(g.Code, func(t *testing.T) {
			t.Parallel()
			for name, start := range small {
				if s, broken := explore(systemca.All().Without(g.Code), start, false); broken != "" {
					t.Logf("%s: %s\n%s", name, broken, s.way(s.newest()))
					return
				}
			}
			t.Errorf("nobody misses the gate %q", g.Code)
		})
	}
}
