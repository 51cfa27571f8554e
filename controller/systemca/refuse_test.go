package systemca_test

import (
	"bytes"
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"slices"
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"

	clusterv1 "github.com/cassandra-security-manager/csm/protocol/cluster/v1"

	"github.com/cassandra-security-manager/csm/controller/authority"
	"github.com/cassandra-security-manager/csm/controller/fleet"
	"github.com/cassandra-security-manager/csm/controller/systemca"
	"github.com/cassandra-security-manager/csm/shared/fault"
)

// by gives one of them by the end of its name.
func (k *beings) by(short string) *being {
	k.t.Helper()
	i := slices.IndexFunc(k.all, func(b *being) bool { return b.id.Path == short || b.name == cluster+"/nodes/"+short })
	if i < 0 {
		k.t.Fatalf("nobody is called %s", short)
	}
	return k.all[i]
}

// shows lets somebody be seen with a leaf and these roots.
func (k *beings) shows(b *being, leaf *x509.Certificate, roots ...*x509.Certificate) {
	k.t.Helper()
	by := "csm1"
	if b.id.Path == by {
		by = "csm2"
	}
	k.must(k.Saw(ctx, by, false, []systemca.Sighting{{Identity: b.id.String(), Leaf: sha256.Sum256(leaf.Raw), Trusts: sums(roots)}}))
}

// sides are the two roots.
func (k *beings) sides() (before, after *x509.Certificate) {
	r := k.now()
	return k.rootOf(r.Before), k.rootOf(r.After)
}

func (k *beings) away(short string) {
	k.log.Clock.Advance(21 * time.Second)
	for _, b := range k.all {
		if b.id.Path != short {
			k.seen(b)
		}
	}
}

// obstacle is one thing that is in the way of a transition, in the real state.
type obstacle struct {
	gate, what string
	put        func(k *beings)
}

var (
	frozen     = obstacle{"frozen", "the system is frozen", func(k *beings) { k.must(k.fleet.Freeze(ctx, fleet.System, "audit", time.Time{}, "test")) }}
	pausedByMe = obstacle{"paused", "somebody paused it", func(k *beings) {
		_, err := k.Control(ctx, k.rotation, "pause", "pager", "test")
		k.must(err)
	}}
	unseen = obstacle{"controller-seen", "a controller is down", func(k *beings) { k.away("csm2") }}
	joiner = obstacle{"controller-seen", "a controller was let in and has not come", func(k *beings) { k.approve("csm4") }}
	blind  = obstacle{"controller-trusts", "a controller lacks a root", func(k *beings) {
		b := k.by("csm3")
		k.shows(b, b.leaf, b.roots[0])
	}}
)

// approve lets a controller in that does not run yet.
func (k *beings) approve(name string) {
	k.t.Helper()
	token, key := sha256.Sum256([]byte("token of "+name)), sha256.Sum256([]byte("key of "+name))
	k.must(k.propose(&clusterv1.CreateControllerToken{Id: "t-" + name, Hash: token[:], TtlMs: time.Hour.Milliseconds(), Uses: 1}))
	k.must(k.propose(&clusterv1.RequestAdmission{TokenHash: token[:], Member: &clusterv1.Member{Name: name, Id: name, Address: name + ":9642", Key: key[:], Voter: true}}))
	k.must(k.propose(&clusterv1.ApproveMember{Name: name, Key: key[:]}))
}

func agentShows(root int) func(k *beings) {
	return func(k *beings) {
		b, sides := k.by("n2"), [2]*x509.Certificate{}
		sides[0], sides[1] = k.sides()
		k.shows(b, b.leaf, sides[root])
	}
}

func fallsBack(who string) func(k *beings) {
	return func(k *beings) {
		b := k.by(who)
		roots := b.roots
		b.image()
		k.shows(b, b.leaf, roots...)
	}
}

// obstacles are what is in the way at the end of each phase.
var obstacles = map[systemca.Phase][]obstacle{
	systemca.Distribute: {frozen, pausedByMe, unseen, joiner, blind, {"agent-trusts", "a connected agent lacks the root that comes", agentShows(0)},
		{"agent-trusts", "an agent is connected, and nobody has seen what it holds", func(k *beings) { k.launch(k.join("n3")) }}},
	systemca.Reissue: {frozen, pausedByMe, unseen, joiner, blind, {"agent-leaf", "an agent falls back to its old leaf", fallsBack("n1")},
		{"agent-leaf", "an agent joins", func(k *beings) { k.launch(k.join("n3")) }}},
	systemca.Reissued: {frozen, pausedByMe, unseen, joiner, blind, {"controller-leaf", "a controller falls back to its old disk", fallsBack("csm2")},
		{"agent-leaf", "an agent falls back to its old leaf", fallsBack("n1")}, {"agent-trusts", "an agent joins", func(k *beings) { k.launch(k.join("n3")) }},
		{"agent-trusts", "an agent lost the root that stays", agentShows(0)},
		{"used", "an administrator has not used the new certificate", func(k *beings) {
			k.idle = true
			k.admin()
		}}},
	systemca.Retire: {frozen, pausedByMe, unseen, joiner, {"forgotten", "a controller holds the root that went", func(k *beings) {
		b := k.by("csm3")
		before, after := k.sides()
		k.shows(b, b.leaf, before, after)
	}}, {"forgotten", "an agent holds the root that went", agentShows(0)}},
	systemca.Undoing: {frozen, pausedByMe, unseen, joiner, blind, {"agent-leaf", "an agent shows the leaf of the root that goes", func(k *beings) {
		b := k.by("n1")
		k.shows(b, b.past[len(b.past)-2], b.roots...)
	}}, {"agent-trusts", "an agent lacks the root that stays", agentShows(1)}, {"agent-leaf", "an agent joins", func(k *beings) { k.launch(k.join("n3")) }}},
	systemca.Withdrawing: {frozen, pausedByMe, unseen, joiner, {"forgotten", "an agent holds the root that goes", agentShows(1)}},
}

// Whatever is in the way, the raw command to go on changes nothing, the raw command to retire is refused, and people are told why; without
// it the same command goes on.
func TestNoTransitionIsMadeBeforeItsTimeHoweverItIsAsked(t *testing.T) {
	for phase, list := range obstacles {
		for _, o := range append([]obstacle{{what: "nothing is in the way"}}, list...) {
			t.Run(string(phase)+"/"+o.what, func(t *testing.T) {
				t.Parallel()
				k := newBeings(t)
				k.begin()
				k.ready(phase)
				if phase == systemca.Reissued {
					k.admin()
				}
				if o.put != nil {
					o.put(k)
				}
				before := k.now()
				if o.gate != "" && !slices.Contains(codes(before), o.gate) && !slices.ContainsFunc(before.Reasons, func(r systemca.Reason) bool { return r.Code == "turn" }) {
					t.Errorf("people are told %v", before.Reasons)
				}
				if phase == systemca.Reissued {
					err := k.raw()
					if o.gate == "" {
						k.must(err)
						return
					}
					k.refused(err, "gate-"+o.gate)
				}
				k.must(k.propose(&clusterv1.AdvanceSystemRotation{Name: k.rotation}))
				after := k.now()
				if o.gate == "" && after.Phase == phase {
					t.Errorf("it does not go on: %+v", after.Reasons)
				}
				if o.gate != "" && after.Phase != phase {
					t.Errorf("it went on to %s", after.Phase)
				}
				k.whole()
			})
		}
	}
}

// raw asks for the retire with the hash of now, as nobody's client would.
func (k *beings) raw(except ...string) error {
	k.t.Helper()
	p, err := k.PlanRetire(ctx, k.rotation)
	k.must(err)
	hash, err := hex.DecodeString(p.Hash)
	k.must(err)
	return k.propose(&clusterv1.RetireSystemRotation{Name: k.rotation, PlanHash: hash, Reason: "raw", Exceptions: except})
}

func (k *beings) whole() {
	k.t.Helper()
	if b := k.broken(); b != "" {
		k.t.Error(b)
	}
}

// What cannot be taken back, and who is not waited for, is written down with a reason or not done.
func TestNothingIsWithdrawnOrLeftBehindWithoutAReason(t *testing.T) {
	k := newBeings(t)
	k.begin()
	k.ready(systemca.Reissued)
	k.admin()
	p, err := k.PlanRetire(ctx, k.rotation)
	k.must(err)
	hash, err := hex.DecodeString(p.Hash)
	k.must(err)
	before := k.now()
	for what, c := range map[string]proto.Message{
		"retire":   &clusterv1.RetireSystemRotation{Name: k.rotation, PlanHash: hash},
		"rollback": &clusterv1.ControlSystemRotation{Name: k.rotation, Verb: "rollback"},
		"resume":   &clusterv1.ControlSystemRotation{Name: k.rotation, Verb: "resume", Exceptions: []string{cluster + "/nodes/n2"}},
	} {
		if err := k.propose(c); !fault.HasReason(err, "no-reason") {
			t.Errorf("%s without a reason: %v", what, err)
		}
	}
	if after := k.now(); after.Revision != before.Revision || after.Agents.Named != before.Agents.Named {
		t.Errorf("something was changed: %+v, before %+v", after, before)
	}
	k.must(k.propose(&clusterv1.RetireSystemRotation{Name: k.rotation, PlanHash: hash, Reason: "raw"}))
}

// A leaf that the ledger does not know is one of a life that a backup has not seen: its owner gets another, and is told so at once.
func TestWhoShowsALeafThatTheLedgerDoesNotKnowIsToldToRenew(t *testing.T) {
	k := newBeings(t)
	k.begin()
	b := k.by("n1")
	foreign := sha256.Sum256([]byte("signed after the backup"))
	for _, known := range []bool{true, false} {
		leaf := sha256.Sum256(b.leaf.Raw)
		if !known {
			leaf = foreign
		}
		told := k.log.Store.Watch(authority.SystemName)
		k.must(k.Saw(ctx, "csm1", false, []systemca.Sighting{{Identity: b.id.String(), Leaf: leaf, Trusts: sums(b.roots)}}))
		woken := false
		select {
		case <-told.C():
			woken = true
		default:
		}
		told.Close()
		if woken == known {
			t.Errorf("a leaf is known (%v), and who waits for news of the system's roots was woken: %v", known, woken)
		}
	}
	w, err := k.Wish(ctx)
	k.must(err)
	if !bytes.Equal(w.Foreign[b.id.String()], foreign[:]) {
		t.Errorf("it is not asked for: %x", w.Foreign)
	}
}

func TestTheRetireIsRefusedInEveryOtherPhase(t *testing.T) {
	for _, phase := range []systemca.Phase{systemca.Distribute, systemca.Reissue, systemca.Retire, systemca.Undoing, systemca.Withdrawing} {
		t.Run(string(phase), func(t *testing.T) {
			t.Parallel()
			k := newBeings(t)
			k.begin()
			k.ready(phase)
			k.refused(k.raw(), "rotation-phase")
		})
	}
}

// A reply that was on its way when the rotation was turned round is the one thing that no sighting shows.
func TestTheWayBackWaitsForWhatWasSignedAndNotTaken(t *testing.T) {
	for _, who := range []string{"csm2", "n2", "csm2 lost", "n2 lost"} {
		t.Run(who, func(t *testing.T) {
			t.Parallel()
			who, lost := strings.CutSuffix(who, " lost")
			k := newBeings(t)
			k.begin()
			k.ready(systemca.Distribute)
			k.must(k.Watch(ctx)) // the root that comes signs; nobody has moved
			b := k.by(who)
			k.must(k.sign(b))
			late := b.coming
			_, err := k.Control(ctx, k.rotation, "rollback", "test", "test")
			k.must(err)
			b.coming = nil
			for range 4 { // its reply has not come, and it asks for no other while it waits
				for _, x := range k.all {
					k.log.Clock.Advance(time.Second)
					k.follow(x)
					k.seen(x)
				}
				k.must(k.Watch(ctx))
			}
			if r := k.now(); r.Phase != systemca.Undoing {
				t.Fatalf("the root that came went, and %s is about to take a leaf of it: %+v", who, r)
			}
			if !lost {
				b.leaf = late
			}
			for range 12 {
				k.everybody()
				k.must(k.Watch(ctx))
				k.whole()
			}
			k.want(k.now(), systemca.RolledBack)
		})
	}
}

// The same request gets the same answer, but for one of a root that signs no more: that identity would soon be nobody's.
func TestALostAnswerOfARootThatSignsNoMoreIsNotGivenAgain(t *testing.T) {
	k := newBeings(t)
	k.begin()
	b := k.by("n1")
	k.must(k.sign(b))
	first := b.coming
	b.request--
	k.must(k.sign(b))
	if !b.coming.Equal(first) {
		t.Error("a repeat was answered with another certificate")
	}
	b.coming = nil
	k.ready(systemca.Reissue)
	_, after := k.sides()
	b.request = 0 // as it asked for its first leaf, before the rotation
	k.must(k.sign(b))
	if !signed(b.coming, after) {
		t.Error("a certificate of the root that signs no more was given again")
	}
	again := b.coming
	b.request = 0
	if k.must(k.sign(b)); !b.coming.Equal(again) {
		t.Error("the repeat of that is another one")
	}
}

// Who asks to be let in is no witness, and keeps nobody from being one.
func TestTheOnlyControllerSpeaksForItselfWhoeverKnocks(t *testing.T) {
	k := newBeings(t)
	k.begin()
	for _, name := range []string{"csm2", "csm3"} {
		k.remove(name)
	}
	token, key := sha256.Sum256([]byte("x")), sha256.Sum256([]byte("key"))
	k.must(k.propose(&clusterv1.CreateControllerToken{Id: "x", Hash: token[:], TtlMs: time.Hour.Milliseconds(), Uses: 1}))
	k.must(k.propose(&clusterv1.RequestAdmission{TokenHash: token[:], Member: &clusterv1.Member{Name: "csm9", Id: "csm9", Address: "csm9:9642", Key: key[:], Voter: true}}))
	b := k.by("csm1")
	self := []systemca.Sighting{{Identity: b.id.String(), Leaf: sha256.Sum256(b.leaf.Raw), Trusts: sums(k.bundle())}}
	k.must(k.Saw(ctx, "csm1", true, self))
	k.must(k.propose(&clusterv1.ApproveMember{Name: "csm9", Key: key[:]}))
	k.log.Clock.Advance(time.Minute)
	if err := k.Saw(ctx, "csm1", true, self); !fault.HasReason(err, "own-witness") {
		t.Errorf("with another one that was let in: %v", err)
	}
}

func (k *beings) remove(name string) {
	k.t.Helper()
	k.must(k.propose(&clusterv1.RemoveMember{Name: name}))
	k.all = slices.DeleteFunc(k.all, func(b *being) bool { return b.controller() && b.id.Path == name })
}

// Who was named is named with the identity that he had: a host that joins anew meanwhile is waited for like any other.
func TestWhoJoinsAnewIsWaitedForAgain(t *testing.T) {
	k := newBeings(t)
	k.begin()
	k.stop(k.by("n2"))
	_, err := k.Control(ctx, k.rotation, "resume", "its disk is gone", "test", cluster+"/nodes/n2")
	k.must(err)
	k.join("n2")
	k.ready(systemca.Reissue)
	k.must(k.Watch(ctx))
	if r := k.now(); r.Phase != systemca.Reissue || !slices.Contains(codes(r), "agent-leaf") {
		t.Fatalf("it goes on without the host that has joined anew: %+v", r)
	}
	k.launch(k.by("n2"))
	k.ready(systemca.Reissued)
	k.whole()
}

// A plan that names its blocker has a hash too; and what was seen in the rotation before counts for nothing in the next one.
func TestTheNextRotationBeginsWithNothing(t *testing.T) {
	k := newBeings(t)
	k.begin()
	k.ready(systemca.Undoing)
	p, err := k.Plan(ctx)
	k.must(err)
	hash, err := hex.DecodeString(p.Hash)
	k.must(err)
	next, err := k.authorities.Succeed(ctx, "test")
	k.must(err)
	k.refused(k.propose(&clusterv1.StartSystemRotation{Root: next.Root, NewWithOld: next.NewWithOld, OldWithNew: next.OldWithNew, PlanHash: hash, Reason: "x"}), "gate-one-at-a-time")
	k.must(k.Watch(ctx))
	k.everybody()
	k.must(k.Watch(ctx))
	k.want(k.now(), systemca.RolledBack)
	k.begin()
	for _, x := range k.now().Controllers {
		if !x.Seen.IsZero() {
			t.Errorf("%s counts as seen: %+v", x.Name, x)
		}
	}
}
