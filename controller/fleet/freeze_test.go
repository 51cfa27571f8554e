package fleet_test

import (
	"context"
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/cassandra-security-manager/csm/controller/fleet"
	"github.com/cassandra-security-manager/csm/controller/state"
	"github.com/cassandra-security-manager/csm/shared/fault"
)

const tenant = "tenants/default"

func TestAFreezeOfEachScopeStopsClaimsIssuingAndJoins(t *testing.T) {
	for _, scope := range []string{fleet.System, tenant, cluster, cluster + "/nodes/n1"} {
		t.Run(scope, func(t *testing.T) {
			w := newWorld(t)
			n := w.joined("n1")
			claim, err := n.claim(first)
			n.must(err)
			again := w.token("n1", fleet.TokenSpec{Rejoin: true})
			n.must(w.Freeze(ctx, scope, "incident", time.Time{}, ann))

			wantReason(t, w.propose(n.record(claim, "leaf")), "frozen")
			_, err = w.Join(ctx, w.spec(again, "another key"))
			wantReason(t, err, "frozen")
			if f := fault.From(err); !strings.Contains(f.Remedy, "unfreeze") {
				t.Errorf("remedy %q", f.Remedy)
			}
			if v := n.view(); v.Frozen == nil || v.Frozen.Scope != scope || !strings.Contains(v.Why, "incident") || v.Incarnation != 1 {
				t.Errorf("the node does not show it: %+v, why %q, incarnation %d", v.Frozen, v.Why, v.Incarnation)
			}
			target, _, err := w.Target(ctx, n.name)
			n.must(err)
			if !target.Frozen.GetActive() || target.Frozen.GetReason() != "incident" || target.Frozen.GetSince() == nil {
				t.Errorf("the agent is not told: %v", target.Frozen)
			}

			n.must(w.Unfreeze(ctx, scope, "over", ann))
			n.must(w.propose(n.record(claim, "leaf")))
			if _, err := w.Join(ctx, w.spec(again, "another key")); err != nil {
				t.Errorf("the token was lost to the freeze: %v", err)
			}
		})
	}
}

func TestAMistypedScopeIsNotFrozen(t *testing.T) {
	w := newWorld(t)
	for scope, reason := range map[string]string{"tenants/other": "no-tenant", "tenants/default/clusters/prd": "no-cluster", cluster + "/nodes/n9": "no-node", "": "bad-scope", "tenants/": "bad-scope"} {
		wantReason(t, w.Freeze(ctx, scope, "incident", time.Time{}, ann), reason)
	}
}

func TestWhatExpiresUnderAFreezeIsSaidAtOnceAndLater(t *testing.T) {
	w := newWorld(t)
	n1, n2 := w.installed("n1"), w.installed("n2")
	now := w.log.Clock.Now()
	for m, life := range map[*member]time.Duration{n1: 3 * time.Hour, n2: 30 * 24 * time.Hour} {
		m.store.NotAfter, m.store.Generation = timestamppb.New(now.Add(life)), 1
		m.must(m.connect())
	}
	n1.must(w.Freeze(ctx, tenant, "incident", time.Time{}, ann))
	alarms := func() (out []fleet.Alarm) {
		all, err := w.Alarms(ctx, 10)
		n1.must(err)
		for _, a := range all {
			if a.Kind == "expires-frozen" {
				out = append(out, a)
			}
		}
		return out
	}
	if a := alarms(); len(a) != 1 || !strings.Contains(a[0].Message, "prod/n1") || a[0].Resource != tenant {
		t.Fatalf("alarms at the begin: %+v", a)
	}
	if v := n1.view(); len(v.Conditions) != 1 || v.Conditions[0].Type != "expires-frozen" || v.Conditions[0].Severity != "error" || !strings.Contains(v.Conditions[0].Remedy, "csm tenant unfreeze default") {
		t.Errorf("n1: %+v", v.Conditions)
	}
	if v := n2.view(); len(v.Conditions) != 0 {
		t.Errorf("n2 has 30 days left: %+v", v.Conditions)
	}
	n1.must(w.WatchFreezes(ctx))
	if len(alarms()) != 1 {
		t.Error("the same was said twice")
	}
	w.log.Clock.Advance(10 * 24 * time.Hour)
	n1.must(w.WatchFreezes(ctx))
	if a := alarms(); len(a) != 2 || !strings.Contains(a[0].Message, "2 stores") {
		t.Errorf("alarms ten days later: %+v", a)
	}
	list, err := w.ListFreezes(ctx)
	if err != nil || len(list) != 1 || list[0].Expiring != 2 || list[0].Alarm == "" {
		t.Errorf("%+v, %v", list, err)
	}
}

func TestAFreezeWithAnEndLetsThoseBeWhoLiveLonger(t *testing.T) {
	w := newWorld(t)
	n := w.installed("n1")
	n.store.NotAfter, n.store.Generation = timestamppb.New(w.log.Clock.Now().Add(10*24*time.Hour)), 1
	n.must(n.connect())
	n.must(w.Freeze(ctx, cluster, "disks", w.log.Clock.Now().Add(4*time.Hour), ann))
	if c, err := w.GetCluster(ctx, cluster); err != nil || c.Frozen == nil || len(c.Conditions) != 0 {
		t.Errorf("%+v, %v", c.Conditions, err)
	}
	if v := n.view(); !strings.Contains(v.Why, "until ") {
		t.Errorf("why does not say until when: %q", v.Why)
	}
	w.log.Clock.Advance(5 * time.Hour)
	if v := n.view(); v.Frozen != nil {
		t.Errorf("it did not end: %+v", v.Frozen)
	}
}

// Those who ask about many names read the freezes once: they must hear what each claim hears.
func TestFreezesReadOnceSayTheSame(t *testing.T) {
	w := newWorld(t)
	n1, n2 := w.joined("n1"), w.joined("n2")
	names := []string{n1.name, n2.name, cluster, tenant, tenant + "/clusters/other", tenant + "/clusters/other/nodes/n1"}
	same := func(when string) {
		t.Helper()
		n1.must(w.log.Store.View(ctx, func(ctx context.Context, q state.Querier) error {
			now := w.log.Clock.Now()
			all, err := fleet.FreezesAt(ctx, q, now)
			if err != nil {
				return err
			}
			for _, name := range names {
				want, err := fleet.FrozenAt(ctx, q, name, now)
				if err != nil {
					return err
				}
				if got := all.On(name); (got == nil) != (want == nil) || got != nil && *got != *want {
					t.Errorf("%s: %s: %+v, and asked alone %+v", when, name, got, want)
				}
			}
			return nil
		}))
	}
	same("without any")
	for _, scope := range []string{n1.name, cluster, tenant, fleet.System} {
		n1.must(w.Freeze(ctx, scope, "incident", time.Time{}, ann))
		same("with " + scope)
	}
	for _, scope := range []string{fleet.System, cluster, tenant} {
		n1.must(w.Unfreeze(ctx, scope, "over", ann))
		same("without " + scope)
	}
	n1.must(w.Freeze(ctx, n2.name, "short", w.log.Clock.Now().Add(time.Minute), ann))
	same("with an end")
	w.log.Clock.Advance(2 * time.Minute)
	same("after the end")
}
