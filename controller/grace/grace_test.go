package grace_test

import (
	"context"
	"testing"
	"time"

	"github.com/cassandra-security-manager/csm/controller/grace"
	"github.com/cassandra-security-manager/csm/controller/state/statetest"
	"github.com/cassandra-security-manager/csm/shared/fault"
)

func TestAGraceHasAReasonAndAnEnd(t *testing.T) {
	ctx := context.Background()
	log := statetest.New(t, grace.Module())
	g := grace.New(log.Store, log, log.Clock)
	now := log.Clock.Now()
	for want, err := range map[string]error{
		"no-reason":      g.Give(ctx, now.Add(time.Hour), "", "ann"),
		"bad-until":      g.Give(ctx, time.Time{}, "x", "ann"),
		"grace-too-long": g.Give(ctx, now.Add(31*24*time.Hour), "x", "ann"),
	} {
		if !fault.HasReason(err, want) || fault.From(err).Remedy == "" {
			t.Errorf("want %s, got %v", want, err)
		}
	}
	if err := g.Give(ctx, now.Add(-time.Second), "x", "ann"); !fault.HasReason(err, "bad-until") {
		t.Errorf("a grace that is over: %v", err)
	}
	if g.Open() {
		t.Fatal("open although nobody gave it")
	}
	if err := g.Give(ctx, now.Add(time.Hour), "the site was off", "ann"); err != nil {
		t.Fatal(err)
	}
	if c, err := g.Current(ctx); err != nil || c == nil || c.Reason != "the site was off" || c.Actor != "ann" || !g.Open() {
		t.Fatalf("%+v %v", c, err)
	}
	log.Clock.Advance(time.Hour + time.Second)
	if c, err := g.Current(ctx); err != nil || c != nil || g.Open() {
		t.Errorf("it did not end: %+v %v", c, err)
	}
	if err := g.Give(ctx, log.Clock.Now().Add(time.Hour), "again", "ann"); err != nil || !g.Open() {
		t.Fatal(err)
	}
	if err := g.End(ctx, "all are back", "ann"); err != nil || g.Open() {
		t.Errorf("it was not taken back: %v", err)
	}
}
