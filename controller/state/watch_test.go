package state_test

import (
	"context"
	"fmt"
	"testing"
	"time"

	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/cassandra-security-manager/csm/controller/state"
	"github.com/cassandra-security-manager/csm/shared/fault"
)

func woken(w *state.Watch) bool {
	select {
	case <-w.C():
		return true
	default:
		return false
	}
}

func TestAWatchWakesForItsNamesAndPrefixesAndForNothingElse(t *testing.T) {
	m := open(t, t.TempDir())
	watch := map[string]*state.Watch{}
	for _, n := range []string{"tenants/default/boxes/a", "tenants/default/boxes/", "tenants/", "/", "tenants/default/boxes/b", "tenants/default/boxes", "tenants/default/boxes/a/"} {
		watch[n] = m.Watch(n)
	}
	m.mustDo(wrapperspb.String("a"))
	for n, want := range map[string]bool{"tenants/default/boxes/a": true, "tenants/default/boxes/": true, "tenants/": true, "/": true,
		"tenants/default/boxes/b": false, "tenants/default/boxes": false, "tenants/default/boxes/a/": false} {
		if got := woken(watch[n]); got != want {
			t.Errorf("watch on %q woken: %v", n, got)
		}
	}
}

func TestWakeUpsAreJoinedAndComeAfterTheCommit(t *testing.T) {
	m := open(t, t.TempDir())
	w := m.Watch("tenants/default/boxes/a", "tenants/default/boxes/")
	for _, n := range []string{"a", "b", "c"} {
		m.mustDo(wrapperspb.String(n))
	}
	if !woken(w) || woken(w) {
		t.Error("three changes unread must be one wake-up")
	}
	m.mustDo(wrapperspb.String("d"))
	<-w.C()
	if m.count("SELECT count(*) FROM boxes WHERE name = 'd'") != 1 {
		t.Error("woken before the change can be read")
	}
	w.Close()
	w.Close()
	m.mustDo(wrapperspb.String("e"))
	if woken(w) {
		t.Error("a closed watch wakes")
	}
}

func TestWaitAppliedReturnsWhenTheIndexCanBeRead(t *testing.T) {
	m := open(t, t.TempDir())
	done := make(chan error, 2)
	for _, i := range []uint64{2, 1} {
		go func() { done <- m.WaitApplied(context.Background(), i) }()
	}
	m.mustDo(wrapperspb.String("a"))
	m.mustDo(wrapperspb.String("b"))
	for range 2 {
		if err := <-done; err != nil {
			t.Error(err)
		}
	}
	ctx, cancel := context.WithTimeout(context.Background(), time.Millisecond)
	defer cancel()
	if err := m.WaitApplied(ctx, 99); !fault.HasReason(err, "behind") {
		t.Error(err)
	}
	go func() { done <- m.WaitApplied(context.Background(), 100) }()
	m.Close()
	if err := <-done; !fault.Is(err, fault.Unavailable) {
		t.Errorf("a wait on a closed state: %v", err)
	}
}

func TestChangesListWhatIsBelowAPrefixInOrder(t *testing.T) {
	m := open(t, t.TempDir())
	ctx := context.Background()
	for _, n := range []string{"c", "a", "b"} {
		m.mustDo(wrapperspb.String(n))
	}
	m.mustDo(wrapperspb.Int64(1))
	got, oldest, err := m.Changes(ctx, "tenants/default/boxes/", 1, 10)
	if want := "[{tenants/default/boxes/a ADDED 2} {tenants/default/boxes/b ADDED 3} {tenants/default/boxes/a DELETED 4}]"; err != nil || oldest != 0 || fmt.Sprint(got) != want {
		t.Errorf("%v, %d, %v", got, oldest, err)
	}
	for prefix, want := range map[string]int{"tenants/default/boxes/a": 2, "tenants/other/": 0, "tenants/default/boxes": 0, "/": 4} {
		if got, _, err := m.Changes(ctx, prefix, 0, 10); err != nil || len(got) != want {
			t.Errorf("%q: %d changes, %v", prefix, len(got), err)
		}
	}
}

func TestTheAuditLogIsPagedAndFiltered(t *testing.T) {
	m := open(t, t.TempDir())
	ctx := context.Background()
	for _, n := range []string{"a", "b", "forbidden", "c"} {
		m.do(wrapperspb.String(n), "")
	}
	p := proposal(wrapperspb.String("d"), "")
	p.Actor, p.Reason, p.CorrelationID = "bob", "because", "corr"
	m.now = m.now.Add(time.Minute)
	m.Apply(m.entry(p))
	var seen []uint64
	for page := (state.AuditPage{Size: 2}); ; {
		entries, next, err := m.Audit(ctx, state.AuditFilter{}, page)
		if err != nil {
			t.Fatal(err)
		}
		for _, e := range entries {
			seen = append(seen, e.Index)
		}
		if page.Token = next; next == "" {
			break
		}
	}
	if fmt.Sprint(seen) != "[5 4 3 2 1]" {
		t.Errorf("pages give %v", seen)
	}
	for name, c := range map[string]struct {
		filter state.AuditFilter
		want   int
	}{
		"actor":    {state.AuditFilter{Actor: "bob"}, 1},
		"kind":     {state.AuditFilter{Kind: "google.protobuf.Int64Value"}, 0},
		"resource": {state.AuditFilter{Resource: "tenants/default/boxes/a"}, 1},
		"prefix":   {state.AuditFilter{Resource: "tenants/default/"}, 4},
		"part":     {state.AuditFilter{Resource: "tenants/default/boxes"}, 0},
		"refused":  {state.AuditFilter{Refused: true}, 1},
		"from":     {state.AuditFilter{From: start.Add(time.Second)}, 1},
		"to":       {state.AuditFilter{To: start.Add(time.Second), Tenant: "default"}, 4},
	} {
		if got, _, err := m.Audit(ctx, c.filter, state.AuditPage{}); err != nil || len(got) != c.want {
			t.Errorf("%s: %d entries, %v", name, len(got), err)
		}
	}
	if _, _, err := m.Audit(ctx, state.AuditFilter{}, state.AuditPage{Token: "x"}); !fault.Is(err, fault.Invalid) {
		t.Error(err)
	}
}
