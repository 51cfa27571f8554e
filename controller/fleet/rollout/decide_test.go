package rollout

import (
	"slices"
	"strings"
	"testing"
	"time"
)

var noon = time.Date(2026, time.March, 2, 12, 0, 0, 0, time.UTC) // a Monday

func node(name string, wave int, phase string) Node {
	return Node{Name: "tenants/default/clusters/prod/nodes/" + name, Wave: wave, Phase: phase, Since: noon.Add(-time.Hour), Canary: wave == 0}
}

// three is a canary and a wave of two.
func three(phases ...string) []Node {
	return []Node{node("n1", 0, phases[0]), node("n2", 1, phases[1]), node("n3", 1, phases[2])}
}

func TestWhatComesNextIsDecidedByTheFactsAlone(t *testing.T) {
	down := []Reason{{Code: "member-down", Node: "tenants/default/clusters/prod/nodes/n3", Message: "prod/n3 is down"}}
	tests := []struct {
		name    string
		facts   Facts
		do      Do
		nodes   string   // short names
		reasons []string // codes
	}{
		{"the canary goes first, alone", Facts{Nodes: three(Pending, Pending, Pending)}, Open, "n1", nil},
		{"the ring is not looked at yet", Facts{Nodes: three(Pending, Pending, Pending)}, Look, "", nil},
		{"within a wave it is not looked at again: not looked", Facts{Nodes: three(Proved, Proved, Pending)}, Open, "n3", nil},
		{"its neighbours hold something against it", Facts{Nodes: func() []Node { n := three(Pending, Pending, Pending); n[0].Ring = []Reason{{Code: "busy"}}; return n }()}, Wait, "", []string{"busy"}},
		{"a wave waits for the one before", Facts{Nodes: three(Moving, Pending, Pending)}, Wait, "", []string{"moving"}},
		{"told is not done", Facts{Nodes: three(Told, Pending, Pending)}, Wait, "", []string{"told"}},
		{"told, and the ring got worse before it claimed", Facts{Nodes: three(Told, Pending, Pending), Down: down}, Wait, "", []string{"member-down", "told"}},
		{"written is not proved", Facts{Nodes: three(Unproved, Pending, Pending)}, Wait, "", []string{"unproved"}},
		{"the next wave, as wide as the plan", Facts{Nodes: three(Proved, Pending, Pending)}, Open, "n2", nil},
		{"two at once where the plan is so wide", Facts{Nodes: three(Proved, Pending, Pending), Spec: Spec{Width: 2}}, Open, "n2 n3", nil},
		{"a free place is taken", Facts{Nodes: three(Proved, Proved, Pending)}, Open, "n3", nil},
		{"no place is free", Facts{Nodes: three(Proved, Moving, Pending)}, Wait, "", []string{"moving"}},
		{"a wave rests after the one before", Facts{Nodes: three(Proved, Pending, Pending), Spec: Spec{Width: 1, Bake: 2 * time.Hour}}, Wait, "", []string{"baking"}},
		{"no rest within a wave", Facts{Nodes: three(Proved, Proved, Pending), Spec: Spec{Width: 1, Bake: 2 * time.Hour}}, Open, "n3", nil},
		{"the rest is over", Facts{Nodes: three(Proved, Pending, Pending), Spec: Spec{Width: 1, Bake: time.Hour}}, Open, "n2", nil},
		{"a canary that failed halts", Facts{Nodes: three(Failed, Pending, Pending), Failures: 1, Spec: Spec{Width: 1, FailureBudget: 5}}, Halt, "", nil},
		{"one failure is one too many", Facts{Nodes: three(Proved, Failed, Pending), Failures: 1}, Halt, "", nil},
		{"a failure within the budget", Facts{Nodes: three(Proved, Failed, Pending), Failures: 1, Spec: Spec{Width: 1, FailureBudget: 1}}, Open, "n3", nil},
		{"who can go neither way halts whatever the budget", Facts{Nodes: func() []Node { n := three(Proved, Failed, Pending); n[1].Broken = true; return n }(), Failures: 1,
			Spec: Spec{Width: 1, FailureBudget: 5}}, Halt, "", nil},
		{"all proved", Facts{Nodes: three(Proved, Proved, Proved)}, Finish, "", nil},
		{"all at their end", Facts{Nodes: three(Proved, Gone, Failed), Failures: 1, Spec: Spec{Width: 1, FailureBudget: 1}}, Finish, "", nil},
		{"a member is down", Facts{Nodes: three(Proved, Pending, Pending), Down: down}, Wait, "", []string{"member-down"}},
		{"a member is down and the plan bears it", Facts{Nodes: three(Proved, Pending, Pending), Down: down, Spec: Spec{Width: 1, MaxUnavailable: 1}}, Open, "n2", nil},
		{"down and unproved are two", Facts{Nodes: three(Proved, Unproved, Pending), Down: down, Spec: Spec{Width: 2, MaxUnavailable: 1}}, Wait, "", []string{"member-down", "unproved", "unproved"}},
		{"an unproved node is unavailable", Facts{Nodes: three(Proved, Unproved, Pending), Spec: Spec{Width: 2}}, Wait, "", []string{"unproved", "unproved"}},
		{"a node joins", Facts{Nodes: three(Proved, Pending, Pending), Unsettled: []Reason{{Code: "ring-joining"}}}, Wait, "", []string{"ring-joining"}},
		{"nobody knows the ring", Facts{Nodes: three(Pending, Pending, Pending), Unknown: []Reason{{Code: "ring-no-views"}}}, Wait, "", []string{"ring-no-views"}},
		{"another node moves", Facts{Nodes: three(Proved, Pending, Pending), Outside: []Reason{{Code: "other-moves"}}}, Wait, "", []string{"other-moves"}},
		{"frozen", Facts{Nodes: three(Pending, Pending, Pending), Freeze: &Reason{Code: "frozen"}}, Wait, "", []string{"frozen"}},
		{"outside of its window", Facts{Nodes: three(Pending, Pending, Pending), Spec: Spec{Width: 1, Windows: []string{"Mon-Fri 01:00-05:00"}}}, Wait, "", []string{"window"}},
		{"within its window", Facts{Nodes: three(Pending, Pending, Pending), Spec: Spec{Width: 1, Windows: []string{"Sat 01:00-05:00", "Mon 11:00-13:00"}}}, Open, "n1", nil},
		{"in a blackout", Facts{Nodes: three(Pending, Pending, Pending), Spec: Spec{Width: 1, Blackouts: []string{"2026-03-02T00:00:00Z/2026-03-03T00:00:00Z"}}}, Wait, "", []string{"blackout"}},
		{"before its time", Facts{Nodes: three(Pending, Pending, Pending), Spec: Spec{Width: 1, Start: noon.Add(time.Minute)}}, Wait, "", []string{"scheduled"}},
		{"a proved node that fell back holds the others", Facts{Nodes: func() []Node { n := three(Proved, Pending, Pending); n[0].Fallen = true; return n }()}, Wait, "", []string{"fell-back"}},
		{"an agent that is away is passed over", Facts{Nodes: func() []Node { n := three(Proved, Pending, Pending); n[1].Unable = "away"; return n }()}, Open, "n3", nil},
		{"an agent that is away is waited for in the end", Facts{Nodes: func() []Node { n := three(Proved, Pending, Proved); n[1].Unable = "away"; return n }()}, Wait, "", []string{"agent"}},
		{"a frozen node is waited for", Facts{Nodes: func() []Node { n := three(Proved, Pending, Proved); n[1].Frozen = "frozen"; return n }()}, Wait, "", []string{"frozen"}},
		{"paused", Facts{State: Paused, Nodes: three(Proved, Moving, Pending)}, Wait, "", []string{"paused", "moving"}},
		{"halted", Facts{State: Halted, Nodes: three(Proved, Failed, Pending)}, Wait, "", []string{"halted"}},
		{"aborting waits for what moves", Facts{State: Aborting, Nodes: three(Proved, Moving, Gone)}, Wait, "", []string{"aborting", "moving"}},
		{"aborted when nothing moves", Facts{State: Aborting, Nodes: three(Proved, Proved, Gone)}, Abort, "", nil},
		{"what has ended does nothing", Facts{State: Done, Nodes: three(Proved, Pending, Pending)}, Wait, "", nil},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			f := tt.facts
			f.Now = noon
			if f.State == "" {
				f.State = Running
			}
			f.Looked = !strings.Contains(tt.name, "not looked")
			if f.Spec.Width == 0 {
				f.Spec.Width = 1
			}
			act, reasons := decide(f)
			var names, codes []string
			for _, n := range act.Nodes {
				names = append(names, short(n))
			}
			for _, r := range reasons {
				codes = append(codes, r.Code)
			}
			if act.Do != tt.do || strings.Join(names, " ") != tt.nodes || !slices.Equal(codes, tt.reasons) {
				t.Errorf("%s %v for %v, want %s %q for %v", act.Do, names, codes, tt.do, tt.nodes, tt.reasons)
			}
			if (act.Do == Halt) != (act.Why != "") {
				t.Errorf("why it halts: %q", act.Why)
			}
		})
	}
}

func TestAClaimIsGrantedOnlyWhileTheGatesStandOpen(t *testing.T) {
	n2 := "tenants/default/clusters/prod/nodes/n2"
	tests := []struct {
		name  string
		facts Facts
		ok    bool
	}{
		{"its turn", Facts{Nodes: three(Proved, Told, Pending)}, true},
		{"paused since", Facts{State: Paused, Nodes: three(Proved, Told, Pending)}, false},
		{"a member went down since", Facts{Nodes: three(Proved, Told, Pending), Down: []Reason{{Code: "member-down"}}}, false},
		{"no place", Facts{Nodes: three(Proved, Told, Moving)}, false},
		{"only its proof is missing", Facts{State: Paused, Nodes: three(Proved, Unproved, Pending), Down: []Reason{{Code: "member-down"}}}, true},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			f := tt.facts
			f.Now, f.Spec.Width = noon, 1
			if f.State == "" {
				f.State = Running
			}
			if reasons := mayBegin(f, n2); (len(reasons) == 0) != tt.ok {
				t.Errorf("held by %v", reasons)
			}
		})
	}
}

func TestTheWayBackIsHeldByWhatGoesOnAndNotByWhatIsBroken(t *testing.T) {
	codes := func(f Facts) (out []string) {
		f.onTheWayBack()
		for _, r := range mayBegin(f, f.Nodes[0].Name) {
			out = append(out, r.Code)
		}
		return out
	}
	ill := Facts{Now: noon, State: Running, Spec: Spec{Width: 1}, Nodes: three(Told, Pending, Pending),
		Down: []Reason{{Code: "member-down"}, {Code: "agent-away"}}, Unknown: []Reason{{Code: "ring-differ"}}}
	ill.Nodes[0].Ring = []Reason{{Code: "quorum-failed"}, {Code: "member-unseen"}, {Code: "health-unprobed"}}
	if got := codes(ill); len(got) > 0 {
		t.Errorf("held by %v", got)
	}
	ill.Unsettled, ill.Freeze = []Reason{{Code: "ring-joining"}}, &Reason{Code: "frozen"}
	ill.Outside, ill.Nodes[0].Ring = []Reason{{Code: "other-moves"}}, []Reason{{Code: "busy"}, {Code: "quorum-failed"}}
	if got := codes(ill); !slices.Equal(got, []string{"frozen", "ring-joining", "other-moves", "busy"}) {
		t.Errorf("held by %v", got)
	}
}

func TestWindowsAreUTCAndMayCrossMidnight(t *testing.T) {
	c, err := calendarOf(Spec{Windows: []string{"Fri,Sat 22:00-06:00"}, Blackouts: []string{"2026-03-07T00:00:00Z/2026-03-07T03:00:00Z"}})
	if err != nil {
		t.Fatal(err)
	}
	for when, open := range map[string]bool{"2026-03-06T21:59:00Z": false, "2026-03-06T22:00:00Z": true, "2026-03-07T00:30:00Z": false, "2026-03-07T03:00:00Z": true,
		"2026-03-07T05:59:59Z": true, "2026-03-07T06:00:00Z": false, "2026-03-08T05:00:00Z": true, "2026-03-08T22:00:00Z": false, "2026-03-06T23:00:00+01:00": true} {
		at, err := time.Parse(time.RFC3339, when)
		if err != nil {
			t.Fatal(err)
		}
		if c.open(at) != open || (c.closed(at) == nil) != open {
			t.Errorf("%s: open %v, want %v", when, c.open(at), open)
		}
	}
	if next, ok := c.opens(time.Date(2026, 3, 7, 0, 30, 0, 0, time.UTC)); !ok || next.Hour() != 3 {
		t.Errorf("opens at %s", next)
	}
	for _, bad := range []string{"", "Mon", "Mon 1:00-2:00", "Mon 01:00-01:00", "Someday 01:00-02:00", "01:00-25:00", "01:00"} {
		if _, err := parseWindow(bad); err == nil {
			t.Errorf("%q was taken for a window", bad)
		}
	}
}
