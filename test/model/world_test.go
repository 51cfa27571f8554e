package model

import (
	"fmt"
	"testing"
)

// world is rotation.pml in Go, for three members and an application: what happens to nodes, without the gates of phases. The test
// that counts its states against those of the checker keeps the two the same.
type world struct {
	n                           [4]uint32
	phase, using, issued        uint8
	named, seen, late, restored bool
	joins                       bool // node 3 may come in any phase
}

// The bits of a node, as in rotation.pml.
const (
	bUp = 1 << iota
	bEnrolled
	bGossip
	bDiskO
	bDiskN
	bDiskLeafN
	bServerO
	bServerN
	bServerLeafN
	bClientO
	bClientN
	bClientLeafN
	bProved
	bAside
	bCanary
	bClaim

	bDisk   = bDiskO | bDiskN | bDiskLeafN
	bServer = bDisk << 3
	bClient = bDisk << 6
)

// The phases and moves, as in rotation.pml.
const (
	idle = iota
	distribute
	reissue
	retire
	done
	backLeaf
	backTrust
	backDone
)

const (
	grow = 1 + iota
	leafN
	shrink
	leafO
	ungrow
)

const joiner = 3

// gateSet are gates that are left out, a bit for each number.
type gateSet uint32

func (g gateSet) has(n int) bool { return g>>n&1 != 0 }

// The gates that the mirror asks about nodes and clients, by their numbers in rotation.pml.
var gateNames = map[int]string{1: "MEMBERS", 5: "UNENROLLED", 6: "TWO_PEERS", 7: "JOINING", 13: "OPEN_CLAIMS", 15: "LINKS", 17: "CLIENT_TRUST",
	18: "CLIENT_RETIRE", 19: "CLIENT_BACK", 23: "FILES"}

func begin(application, joins bool) world {
	w := world{named: !application, joins: joins}
	for i := 0; i < joiner; i++ {
		w.n[i] = bUp | bEnrolled | bGossip | bDiskO | bServerO | bClientO
	}
	return w
}

func (w *world) has(i int, b uint32) bool { return w.n[i]&b != 0 }
func (w *world) kind(i int) uint32        { return w.n[i] / bClaim & 7 }

// wanted is what the phase wants on disk.
func (w *world) wanted(leaf bool) uint32 {
	var d uint32
	switch {
	case w.phase == idle || w.phase >= backTrust:
		d = bDiskO
	case w.phase == retire || w.phase == done:
		d = bDiskN
	default:
		d = bDiskO | bDiskN
	}
	if leaf {
		d |= bDiskLeafN
	}
	return d
}

func (w *world) anyCanary() bool { return (w.n[0]|w.n[1]|w.n[2]|w.n[3])&bCanary != 0 }

func (w *world) mayLeaf(i int) bool {
	return w.phase >= reissue && w.phase <= done && (w.phase != reissue || w.named || w.seen || w.has(i, bCanary))
}

// move is what the phase lets node i claim; without leaves one gate out.
func (w *world) move(i int, without gateSet) uint32 {
	switch {
	case w.phase == distribute && !w.has(i, bDiskN):
		return grow
	case w.phase == reissue && !w.has(i, bDiskLeafN) && (without.has(17) || w.named || w.seen || w.has(i, bCanary) || !w.anyCanary()):
		return leafN
	case w.phase == retire && w.has(i, bDiskO):
		return shrink
	case w.phase == backLeaf && w.has(i, bDiskLeafN):
		return leafO
	case w.phase == backTrust && w.has(i, bDiskN):
		return ungrow
	}
	return 0
}

// shows says whether one of the three places of a node (disk, server, client: shifted by 0, 3, 6) has what the phase asks for.
func (w *world) shows(i, shift int) bool {
	has := func(b uint32) bool { return w.n[i]&(b<<shift) != 0 }
	switch w.phase {
	case distribute:
		return has(bDiskN)
	case reissue:
		return has(bDiskLeafN)
	case retire:
		return !has(bDiskO)
	case backLeaf:
		return !has(bDiskLeafN)
	case backTrust:
		return !has(bDiskN)
	}
	return false
}

func (w *world) provable(i int, without gateSet) bool {
	return w.has(i, bUp) && w.has(i, bEnrolled) && !w.has(i, bAside) && (w.kind(i) == 0 || without.has(13)) && w.shows(i, 3) &&
		(w.shows(i, 6) || without.has(15)) && (w.shows(i, 0) || without.has(23))
}

func (w *world) ready(i int, without gateSet) bool {
	counts := !w.has(i, bAside) && (w.has(i, bGossip) || !without.has(7) && w.has(i, bEnrolled)) &&
		(i != joiner || !w.late || !without.has(6)) && (w.has(i, bEnrolled) || !without.has(5)) && (w.has(i, bUp) || !without.has(1))
	return !counts || w.has(i, bUp) && w.has(i, bEnrolled) && w.has(i, bProved) && (w.kind(i) == 0 || without.has(13))
}

// next is the phase that the gates let it enter now; the present one when they do not.
func (w *world) next(without gateSet) uint8 {
	all := w.ready(0, without) && w.ready(1, without) && w.ready(2, without) && w.ready(3, without)
	app := func(leaf bool) bool { return w.named || w.issued > 1 == leaf && w.using == w.issued }
	switch {
	case w.phase == distribute && (all || without.has(3)):
		return reissue
	case w.phase == reissue && (all || without.has(4)) && (app(true) || without.has(18)):
		return retire
	case w.phase == retire && all:
		return done
	case w.phase == backLeaf && (all || without.has(21)) && (app(false) || without.has(19)):
		return backTrust
	case w.phase == backTrust && all:
		return backDone
	}
	return w.phase
}

func (w *world) enter(p uint8) {
	w.phase, w.seen = p, false
	for i := range w.n {
		w.n[i] &^= bProved | bCanary
	}
}

// sort keeps the members of the beginning in order, since they are alike.
func (w *world) sort() {
	for _, x := range [][2]int{{0, 1}, {1, 2}, {0, 1}} {
		if w.n[x[0]] > w.n[x[1]] {
			w.n[x[0]], w.n[x[1]] = w.n[x[1]], w.n[x[0]]
		}
	}
}

// bundle is what the application is given in a phase.
func bundle(phase uint8) uint8 {
	switch phase {
	case distribute, backLeaf, backTrust:
		return 1
	case backDone:
		return 0
	case done:
		return 3
	}
	return 2
}

// steps calls visit with each world that one step leads to.
func (w world) steps(visit func(world)) {
	try := func(ok bool, do func(x *world)) {
		if !ok {
			return
		}
		x := w
		do(&x)
		x.sort()
		visit(x)
	}
	for i := 0; i <= joiner; i++ {
		w.stepsOf(i, try)
	}
	unknown := w.joins && !w.has(joiner, bEnrolled|bGossip)
	try(unknown, func(x *world) { x.n[joiner] |= bEnrolled | w.wanted(w.mayLeaf(joiner)) })
	try(unknown && w.phase <= distribute, func(x *world) { x.n[joiner] |= bUp | bGossip | bDiskO | bServerO | bClientO; x.late = true })
	try(w.late, func(x *world) { x.late = false })
	try(!w.named && w.phase != idle && w.issued != bundle(w.phase), func(x *world) { x.issued = bundle(w.phase) })
	try(!w.named && w.using != w.issued, func(x *world) { x.using = w.issued })
	met := false
	for i := range w.n {
		met = met || w.has(i, bUp) && w.has(i, bCanary) && w.has(i, bServerLeafN)
	}
	try(!w.named && !w.seen && w.phase == reissue && w.using > 0 && met, func(x *world) { x.seen = true })
	try(!w.named && w.phase != idle, func(x *world) { x.named, x.using, x.issued, x.seen = true, 0, 0, false })
	try(w.phase == idle, func(x *world) { x.enter(distribute) })
	try(w.next(0) != w.phase, func(x *world) { x.enter(w.next(0)) })
	try(w.phase == distribute || w.phase == reissue, func(x *world) { x.enter(backLeaf) })
}

// stepsOf are those of one node.
func (w world) stepsOf(i int, try func(bool, func(*world))) {
	disk, up := w.n[i]&bDisk, w.has(i, bUp)
	load := func(x *world, shift int) { x.n[i] = x.n[i]&^(bDisk<<shift) | disk<<shift }
	try(up, func(x *world) { x.n[i] &^= bUp | bServer | bClient })
	try(!up && w.has(i, bEnrolled) && !w.has(i, bAside), func(x *world) {
		x.late = x.late || !w.has(i, bGossip)
		x.n[i] |= bUp | bGossip
		load(x, 3)
		load(x, 6)
		x.n[i] &^= bProved
	})
	try(up && disk<<3 != w.n[i]&bServer, func(x *world) { load(x, 3) })
	try(up && disk<<6 != w.n[i]&bClient, func(x *world) { load(x, 6) })
	move := w.move(i, 0)
	try(w.has(i, bEnrolled) && !w.has(i, bAside) && w.kind(i) == 0 && move != 0, func(x *world) {
		x.n[i] |= move * bClaim
		if w.phase == reissue && !w.seen && !w.named {
			x.n[i] |= bCanary
		}
	})
	try(w.kind(i) != 0, func(x *world) {
		switch w.kind(i) {
		case grow:
			x.n[i] |= bDiskN
		case leafN:
			x.n[i] |= bDiskLeafN
		case shrink:
			x.n[i] &^= bDiskO
		case leafO:
			x.n[i] &^= bDiskLeafN
		case ungrow:
			x.n[i] &^= bDiskN
		}
	})
	try(w.kind(i) != 0, func(x *world) { x.n[i] &^= 7 * bClaim })
	try(!w.has(i, bProved) && w.provable(i, 0), func(x *world) { x.n[i] |= bProved })
	try(w.phase != idle && w.has(i, bEnrolled) && !w.has(i, bAside) && !up, func(x *world) { x.n[i] = x.n[i]&^(bProved|7*bClaim) | bAside })
	try(w.has(i, bAside) && !up, func(x *world) { x.n[i] = x.n[i]&^(bDisk|bAside) | w.wanted(w.mayLeaf(i)) })
	try(!w.restored && w.has(i, bEnrolled) && !up && w.phase == distribute && w.has(i, bDiskN), func(x *world) {
		x.restored = true
		x.n[i] = x.n[i]&^bDisk | bDiskO
	})
}

// String shows a world to people.
func (w world) String() string {
	s := fmt.Sprintf("phase %q, application uses %d of %d (named %v, seen %v), gossip late %v\n", phases[w.phase], w.using, w.issued, w.named, w.seen, w.late)
	for i := range w.n {
		three := func(shift int) string {
			out := ""
			for b, c := range []string{"O", "N", ", leaf of N"} {
				if w.n[i]>>(3+shift+b)&1 != 0 {
					out += c
				}
			}
			return "{" + out + "}"
		}
		s += fmt.Sprintf("  node %d: up %v, enrolled %v, gossip %v, disk %s server %s client %s, proved %v, aside %v, canary %v, claim %q\n", i, w.has(i, bUp), w.has(i, bEnrolled),
			w.has(i, bGossip), three(0), three(3), three(6), w.has(i, bProved), w.has(i, bAside), w.has(i, bCanary), kinds[w.kind(i)])
	}
	return s
}

// cut says who is cut off in a world; empty when nobody is.
func (w *world) cut() string {
	side := func(leaf bool, o, n uint32) uint32 {
		if leaf {
			return n
		}
		return o
	}
	lost := 0
	for i := range w.n {
		if !w.has(i, bUp) {
			continue
		}
		for j := range w.n {
			if i == j || !w.has(j, bUp) {
				continue
			}
			// i dials j
			if !w.has(i, side(w.has(j, bServerLeafN), bClientO, bClientN)) || !w.has(j, side(w.has(i, bClientLeafN), bServerO, bServerN)) {
				return fmt.Sprintf("node %d cannot dial node %d", i, j)
			}
		}
		trusts := w.using < 3
		if w.has(i, bServerLeafN) {
			trusts = w.using > 0
		}
		if !trusts || !w.has(i, side(w.using > 1, bServerO, bServerN)) {
			lost++
		}
	}
	if !w.named && lost > 1 {
		return "the application has lost more than one node"
	}
	return ""
}

// reachable walks through every world that can be reached from the beginning.
func reachable(start world) map[world]bool {
	seen := map[world]bool{start: true}
	queue := []world{start}
	for len(queue) > 0 {
		w := queue[0]
		queue = queue[1:]
		w.steps(func(x world) {
			if !seen[x] {
				seen[x] = true
				queue = append(queue, x)
			}
		})
	}
	return seen
}

// The mirror in Go has exactly the states that the checker finds, and none in which somebody is cut off.
func TestMirrorIsTheModel(t *testing.T) {
	t.Parallel()
	c := build(t, "rotation.pml", "NODES=4")
	for name, x := range map[string]struct {
		run  Run
		full bool
	}{
		"members":                 {Run{}, false},
		"members and application": {Run{Application: true}, false},
		"members and one joining": {Run{Joiner: true}, true},
	} {
		if x.full && !full() {
			continue
		}
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			found := check(t, c, x.run)
			worlds := reachable(begin(x.run.Application, x.run.Joiner))
			// spin counts two more: before and after it has read its environment.
			if len(worlds) != found.States-2 {
				t.Errorf("the checker finds %d states, the mirror %d", found.States, len(worlds))
			}
			for w := range worlds {
				if who := w.cut(); who != "" {
					t.Fatalf("%s in\n%s", who, w)
				}
			}
		})
	}
}
