package model

import (
	"fmt"
	"iter"
	"maps"
	"slices"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"github.com/cassandra-security-manager/csm/controller/fleet/rotation"
)

// phaseNames are the phases of the model in the words of the code.
var phaseNames = map[uint8]rotation.Phase{distribute: rotation.Distribute, reissue: rotation.Reissue, retire: rotation.Retire, done: rotation.Done,
	backLeaf: rotation.Undoing, backTrust: rotation.Withdrawing, backDone: rotation.RolledBack}

// view is what the control plane can know of a world at best: all that is in force, and all that lies on disk.
func view(w world) rotation.View {
	v := rotation.View{Phase: phaseNames[w.phase], Kind: rotation.Root, Rollout: rotation.Rollout{State: "done"}}
	if w.late { // whom one of the two peers has not heard of yet
		v.Doubts = append(v.Doubts, "two peers differ about node 3")
	}
	for i := range w.n {
		switch {
		case w.has(i, bGossip) && !(w.late && i == joiner):
			v.Members = append(v.Members, member(w, i))
		case w.has(i, bEnrolled) && !w.has(i, bGossip):
			m := member(w, i)
			m.Waiting, m.State = true, "not-started"
			v.Members = append(v.Members, m)
		}
	}
	clients(&v, w)
	if !w.named {
		// Who would break when the CA goes that the phase is about to withdraw.
		leaves := w.phase == backLeaf || w.phase == backTrust
		if (w.issued > 1) == leaves || w.using != w.issued {
			v.Clients = append(v.Clients, rotation.Client{Name: "application"})
		}
	}
	return v
}

// clients fills in what is known of the application as a client that was seen.
func clients(v *rotation.View, w world) {
	if w.named || w.seen || w.phase != reissue {
		return
	}
	x := rotation.Seen{Client: rotation.Client{Name: "seen"}}
	for i := range w.n {
		if w.has(i, bEnrolled) {
			x.Nodes = append(x.Nodes, nodeName(i))
		}
		if w.has(i, bCanary) {
			v.Canary = nodeName(i)
		}
	}
	v.Seen = append(v.Seen, x)
}

func nodeName(i int) string { return fmt.Sprintf("tenants/default/clusters/c/nodes/n%d", i) }

func member(w world, i int) rotation.Member {
	m := rotation.Member{Name: fmt.Sprintf("n%d", i), HostID: fmt.Sprintf("h%d", i), Up: w.has(i, bUp), State: "normal", Version: "5.0.8"}
	if !w.has(i, bEnrolled) {
		return m
	}
	m.Node, m.Incarnation, m.Active = nodeName(i), 1, true
	if w.has(i, bAside) {
		m.Aside = "its machine is gone"
	}
	disk := w.n[i] & bDisk
	s := rotation.Store{Name: "node", Leaf: rotation.Before, Moving: w.kind(i) != 0 || m.Up && w.n[i]&bServer != disk<<3}
	if w.n[i]&bServerLeafN != 0 || !m.Up && disk&bDiskLeafN != 0 {
		s.Leaf = rotation.After
	}
	switch w.phase {
	case distribute, reissue:
		s.Behind = disk&bDiskN == 0
	case retire:
		s.Behind = disk&bDiskO != 0
	case backTrust:
		s.Behind = disk&bDiskN != 0
	}
	if m.Up && w.n[i]&bClient != disk<<6 {
		m.OldLinks = 1
	}
	trusts := w.has(i, bServerN) && disk&bDiskN != 0
	s.Ports = []rotation.Port{{Name: "internode", Trusts: trusts}, {Name: "CQL", Trusts: trusts}}
	m.Stores = []rotation.Store{s}
	return m
}

// proved is the world after every proof that neighbours could give now.
func proved(w world, without gateSet) world {
	for i := range w.n {
		if w.provable(i, without) {
			w.n[i] |= bProved
		}
	}
	return w
}

// opens says whether the code lets the phase end.
func opens(g rotation.Gates, w world) bool {
	v := view(w)
	ask := func(steps ...rotation.Step) bool {
		for _, s := range steps {
			if len(g.Ask(s, v, "")) > 0 {
				return false
			}
		}
		return true
	}
	switch w.phase {
	case distribute:
		return ask(rotation.StepReissue)
	case reissue:
		return ask(rotation.StepReissued, rotation.StepRetire)
	case retire:
		return ask(rotation.StepDone)
	case backLeaf:
		return ask(rotation.StepWithdraw)
	case backTrust:
		return ask(rotation.StepUndone)
	}
	return false
}

// known are the gates of the gaps, all together.
var known = func() (all gateSet) {
	for n, name := range gateNames {
		for gap := range gaps {
			if strings.HasPrefix(gap, name+" ") {
				all |= 1 << n
			}
		}
	}
	return all
}()

func isGap(name string) bool { return gaps[name] != "" }

// looser are the gates of the model that the code does not ask in this world, where it opens and the model does not: each that
// alone would open the model too. Where several gaps meet, none does alone.
func looser(g rotation.Gates, w world) (out []string) {
	if x := proved(w, 0); x.next(0) == x.phase && opens(g, w) {
		for n, name := range gateNames {
			if y := proved(w, 1<<n); y.next(1<<n) != y.phase {
				out = append(out, fmt.Sprintf("%s in %s", name, phases[w.phase]))
			}
		}
		// Several gates may be in the way of one node; a gap among them explains it.
		if slices.ContainsFunc(out, isGap) {
			out = slices.DeleteFunc(out, func(name string) bool { return !isGap(name) })
		}
		if y := proved(w, known); len(out) == 0 && y.next(known) == y.phase {
			out = append(out, "more than the gaps in "+phases[w.phase])
		}
	}
	if w.phase == reissue {
		v := view(w)
		for i := range w.n {
			if w.has(i, bEnrolled) && w.has(i, bGossip) && !w.has(i, bAside|bDiskLeafN) && w.kind(i) == 0 && w.move(i, 0) == 0 &&
				len(g.Ask(rotation.StepLeaf, v, nodeName(i))) == 0 {
				out = append(out, "CLIENT_TRUST in reissue")
			}
		}
	}
	return out
}

// gaps are the gates of the model that the pure gates of the code do not ask: others do, or nobody yet. A gap that is closed
// must leave this list.
var gaps = map[string]string{
	"LINKS in distribute":       "not asked: a context for dialling that was being built during the reload lives on until Cassandra's next poll",
	"LINKS in leaves back":      "as in distribute; README.md says what that costs",
	"LINKS in retire":           "nothing follows: it trusts the old CA a while longer",
	"LINKS in anchors back":     "nothing follows: it trusts the new CA a while longer",
	"OPEN_CLAIMS in distribute": "harmless: what comes late there only adds trust, and the way back waits for it",
}

func compare(g rotation.Gates, worlds iter.Seq[world]) map[string]world {
	found := map[string]world{}
	for w := range worlds {
		for _, name := range looser(g, w) {
			if _, ok := found[name]; !ok {
				found[name] = w
			}
		}
	}
	return found
}

// The real gates are asked in every state of the model: where the model keeps a phase closed, so do they, but for the gaps.
func TestCodeIsNoLooserThanTheModel(t *testing.T) {
	t.Parallel()
	worlds := reachable(begin(true, false))
	if full() {
		worlds = reachable(begin(false, true))
		maps.Copy(worlds, reachable(begin(true, false)))
	}
	found := compare(rotation.All(), maps.Keys(worlds))
	for name, w := range found {
		if !isGap(name) {
			t.Errorf("the code opens and the model does not: %s, in\n%s", name, w)
		}
	}
	for name := range gaps {
		if _, ok := found[name]; !ok {
			t.Errorf("the gap %q is closed: take it from the list", name)
		}
	}
}

// Gates that open nowhere would be safe too.
func TestCodeOpensEachPhase(t *testing.T) {
	t.Parallel()
	open := map[uint8]int{}
	for w := range reachable(begin(false, false)) {
		if opens(rotation.All(), w) {
			open[w.phase]++
		}
	}
	for _, p := range []uint8{distribute, reissue, retire, backLeaf, backTrust} {
		if open[p] == 0 {
			t.Errorf("the code opens phase %s in no world", phases[p])
		}
	}
}

// Each pure gate of the code that is about trust is needed: without it the code opens where the model does not.
func TestCodeNeedsEachGate(t *testing.T) {
	t.Parallel()
	// They are about time, load, people, keys that sign, clients that nobody registered, or the way back of a take-over, and are killed by tests of their own package; of a
	// member without an agent no store is known either, which closes every gate that asks about stores.
	others := []string{"frozen", "paused", "settled", "one-version", "signer", "installed", "enrolled", "seen", "kept", "trusted-before"}
	stranger := begin(false, false)
	stranger.n[joiner] = bUp | bGossip | bDiskO | bServerO | bClientO
	worlds := walks(500)
	worlds = slices.AppendSeq(worlds, maps.Keys(reachable(begin(false, false))))
	worlds = slices.AppendSeq(worlds, maps.Keys(reachable(stranger)))
	for w := range reachable(begin(true, false)) { // of the many with an application, those in which all waits for it
		alive := w.n[0]&w.n[1]&w.n[2]&bUp != 0
		if x := proved(w, 0); x.next(1<<18) != x.next(0) || w.phase == reissue && w.anyCanary() && alive && !w.seen && !w.named {
			worlds = append(worlds, w)
		}
	}
	before := compare(rotation.All(), slices.Values(worlds))
	for _, g := range rotation.All() {
		if slices.Contains(others, g.Code) {
			continue
		}
		t.Run(g.Code, func(t *testing.T) {
			t.Parallel()
			for name, w := range compare(rotation.All().Without(g.Code), slices.Values(worlds)) {
				if _, was := before[name]; !was {
					t.Logf("without it the code asks nobody for %s: for example in\n%s", name, w)
					return
				}
			}
			t.Errorf("nobody misses the gate %q: it is not needed, or the model does not see why", g.Code)
		})
	}
}

// walks are random ways through the largest model: three members, one that joins, an application.
func walks(n int) (out []world) {
	for seed := range n {
		out = append(out, rapid.Custom(func(r *rapid.T) []world {
			w := begin(true, true)
			var way []world
			for range 60 {
				var next []world
				w.steps(func(x world) { next = append(next, x) })
				w = rapid.SampledFrom(next).Draw(r, "step")
				way = append(way, w)
			}
			return way
		}).Example(seed)...)
	}
	return out
}

func TestWalksAreSafe(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(r *rapid.T) {
		w := begin(true, true)
		for range 80 {
			var next []world
			w.steps(func(x world) { next = append(next, x) })
			w = rapid.SampledFrom(next).Draw(r, "step")
			if who := w.cut(); who != "" {
				r.Fatalf("%s in\n%s", who, w)
			}
			for _, name := range looser(rotation.All(), w) {
				if !isGap(name) {
					r.Fatalf("the code opens and the model does not: %s, in\n%s", name, w)
				}
			}
		}
	})
}
