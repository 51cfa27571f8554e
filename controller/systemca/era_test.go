package systemca_test

import (
	"context"
	"crypto/x509"
	"slices"
	"testing"
	"time"

	clusterv1 "github.com/cassandra-security-manager/csm/protocol/cluster/v1"

	"github.com/cassandra-security-manager/csm/controller/consensus/members"
	"github.com/cassandra-security-manager/csm/controller/state"
	"github.com/cassandra-security-manager/csm/controller/systemca"
)

// reborn lets the state go on with one controller alone, as a restore and a recovery do.
func (k *beings) reborn(name string) {
	k.t.Helper()
	b := k.by(name)
	var m members.Member
	k.must(k.log.Store.View(ctx, func(ctx context.Context, q state.Querier) (err error) {
		m, err = members.Get(ctx, q, name)
		return err
	}))
	k.log.Skip(members.EraLeap)
	k.must(k.propose(&clusterv1.BeginEra{Members: []*clusterv1.Member{m.Proto()}, Cause: "recover"}))
	k.all = slices.DeleteFunc(k.all, func(x *being) bool { return x.controller() && x != b })
}

// In each phase one controller goes on alone with the state, after a restore or a recovery: what others saw before counts no more, and the
// rotation goes on to its end with whoever is there.
func TestARotationGoesOnInANewEra(t *testing.T) {
	for _, phase := range []systemca.Phase{systemca.Distribute, systemca.Reissue, systemca.Reissued, systemca.Retire, systemca.Undoing, systemca.Withdrawing} {
		t.Run(string(phase), func(t *testing.T) {
			t.Parallel()
			k := newBeings(t)
			k.begin()
			k.ready(phase)
			k.reborn("csm2")
			if phase == systemca.Reissued {
				k.refused(k.raw(), "gate-controller-seen")
			}
			k.must(k.propose(&clusterv1.AdvanceSystemRotation{Name: k.rotation}))
			if r := k.now(); r.Phase != phase || slices.ContainsFunc(r.Controllers, func(x systemca.Identity) bool { return !x.Seen.IsZero() }) || r.Agents.Trusting+r.Agents.Moved > 0 {
				t.Fatalf("what was seen in the life before counts: %+v", r)
			}
			for range 40 {
				if k.now().Phase.Ended() {
					return
				}
				k.everybody()
				k.whole()
				if k.now().Phase == systemca.Reissued {
					k.admin()
					k.must(k.raw())
				}
				k.must(k.Watch(ctx))
			}
			t.Fatalf("it does not come to its end: %+v", k.now())
		})
	}
}

// A backup of distribute is brought back after the world has gone on to the end: agents hold the root that came and nothing else. What the
// backup says of them is worth nothing, and the way back waits until they hold the root before again.
func TestABackupOfAnEarlierPhaseStrandsNobody(t *testing.T) {
	for _, verb := range []string{"on", "back"} {
		t.Run(verb, func(t *testing.T) {
			t.Parallel()
			k := newBeings(t)
			k.begin()
			k.ready(systemca.Distribute)
			_, after := k.sides()
			k.reborn("csm1")
			// They were renewed after the backup was made, by a root whose key is in it. The state knows nothing of these leaves.
			for _, b := range k.all {
				if !b.controller() {
					b.roots = []*x509.Certificate{after}
					b.leaf = &x509.Certificate{Raw: []byte(b.name), AuthorityKeyId: after.SubjectKeyId, NotAfter: k.log.Clock.Now().Add(time.Hour)}
				}
			}
			k.whole()
			if verb == "back" {
				_, err := k.Control(ctx, k.rotation, "rollback", "test", "test")
				k.must(err)
				for range 3 {
					k.seen(k.by("csm1"))
					k.must(k.Watch(ctx))
					k.whole()
				}
				if r := k.now(); r.Phase != systemca.Undoing {
					t.Fatalf("the root that came went, and agents hold no other: %+v", r)
				}
			}
			for range 40 {
				r := k.now()
				if r.Phase.Ended() {
					if want := map[string]systemca.Phase{"on": systemca.Done, "back": systemca.RolledBack}[verb]; r.Phase != want {
						t.Errorf("it ended in %s", r.Phase)
					}
					return
				}
				k.everybody()
				k.whole()
				if r.Phase == systemca.Reissued {
					k.admin()
					k.must(k.raw())
				}
				k.must(k.Watch(ctx))
			}
			t.Fatalf("it does not come to its end: %+v", k.now())
		})
	}
}
