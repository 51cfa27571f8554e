package systemca_test

import (
	"slices"
	"testing"
	"time"

	"github.com/cassandra-security-manager/csm/controller/systemca"
)

var now = time.Date(2026, time.March, 1, 12, 0, 0, 0, time.UTC)

// good is a view in which nothing is in the way in a phase.
func good(p systemca.Phase) systemca.View {
	side := systemca.After
	before, after := true, true
	switch p {
	case systemca.Undoing, systemca.Withdrawing:
		side = systemca.Before
	}
	switch p {
	case systemca.Retire:
		before = false
	case systemca.Withdrawing:
		after = false
	}
	v := systemca.View{Now: now, Phase: p, Turn: systemca.Agents}
	for _, x := range []systemca.Identity{
		{Kind: systemca.Controller, Name: "system/controllers/csm1"}, {Kind: systemca.Controller, Name: "system/controllers/csm2"},
		{Kind: systemca.Agent, Name: "tenants/default/clusters/prod/nodes/n1", Connected: true}, {Kind: systemca.Agent, Name: "tenants/default/clusters/prod/nodes/n2", Connected: true},
	} {
		x.Leaf, x.TrustsBefore, x.TrustsAfter, x.Seen = side, before, after, now.Add(-time.Second)
		v.Identities = append(v.Identities, x)
	}
	v.Identities = append(v.Identities, systemca.Identity{Kind: systemca.Admin, Name: "system/admins/ada", Leaf: side, Seen: now})
	return v
}

// phaseOf is the phase in which a step is asked for.
var phaseOf = map[systemca.Step]systemca.Phase{
	systemca.StepReissue: systemca.Distribute, systemca.StepTurn: systemca.Reissue, systemca.StepReissued: systemca.Reissue, systemca.StepRetire: systemca.Reissued,
	systemca.StepDone: systemca.Retire, systemca.StepWithdraw: systemca.Undoing, systemca.StepUndone: systemca.Withdrawing,
}

// faults spoil a good view in one way; each must be noticed by its gate in each of these steps, and by no other gate.
var faults = []struct {
	gate  string
	steps []systemca.Step
	spoil func(v *systemca.View)
}{
	{"frozen", all, func(v *systemca.View) { v.Frozen = "the system is frozen" }},
	{"paused", all, func(v *systemca.View) { v.Paused = true }},
	{"signer", []systemca.Step{systemca.StepReissue}, func(v *systemca.View) { v.Signer = "it ends" }},
	{"controller-seen", all, func(v *systemca.View) { v.Identities[1].Seen = now.Add(-time.Minute) }},
	{"controller-trusts", []systemca.Step{systemca.StepReissue, systemca.StepTurn, systemca.StepReissued, systemca.StepRetire, systemca.StepWithdraw}, func(v *systemca.View) { v.Identities[0].TrustsAfter = false }},
	{"controller-trusts", []systemca.Step{systemca.StepReissue, systemca.StepTurn, systemca.StepReissued, systemca.StepWithdraw}, func(v *systemca.View) { v.Identities[0].TrustsBefore = false }},
	{"agent-trusts", []systemca.Step{systemca.StepReissue, systemca.StepRetire}, func(v *systemca.View) { v.Identities[2].TrustsAfter = false }},
	{"agent-trusts", []systemca.Step{systemca.StepRetire}, func(v *systemca.View) { v.Identities[2].Connected, v.Identities[2].TrustsAfter = false, false }},
	{"agent-trusts", []systemca.Step{systemca.StepWithdraw}, func(v *systemca.View) { v.Identities[2].TrustsBefore = false }},
	{"controller-leaf", leaves, func(v *systemca.View) { v.Identities[1].Leaf = systemca.Neither }},
	{"controller-leaf", leaves, func(v *systemca.View) { v.Identities[1].Leaf = systemca.Unknown }},
	{"agent-leaf", leaves, func(v *systemca.View) { v.Identities[3].Leaf = systemca.Neither }},
	{"agent-leaf", leaves, func(v *systemca.View) { v.Identities[3].Leaf = systemca.Unknown }},
	{"issued", []systemca.Step{systemca.StepWithdraw}, func(v *systemca.View) { v.Identities[0].Stray = true }},
	{"issued", []systemca.Step{systemca.StepWithdraw}, func(v *systemca.View) { v.Identities[3].Stray = true }},
	{"administrator", []systemca.Step{systemca.StepRetire, systemca.StepWithdraw}, func(v *systemca.View) { v.Identities[4].Leaf = systemca.Neither }},
	{"used", []systemca.Step{systemca.StepRetire}, func(v *systemca.View) { v.Identities[4].Seen = time.Time{} }},
	{"forgotten", []systemca.Step{systemca.StepDone}, func(v *systemca.View) { v.Identities[0].TrustsBefore = true }},
	{"forgotten", []systemca.Step{systemca.StepDone}, func(v *systemca.View) { v.Identities[2].TrustsBefore = true }},
	{"forgotten", []systemca.Step{systemca.StepUndone}, func(v *systemca.View) { v.Identities[3].TrustsAfter = true }},
}

var (
	all = []systemca.Step{systemca.StepReissue, systemca.StepTurn, systemca.StepReissued, systemca.StepRetire, systemca.StepDone, systemca.StepWithdraw, systemca.StepUndone}
	// leaves: a leaf that is not where the phase wants it.
	leaves = []systemca.Step{systemca.StepReissued, systemca.StepRetire, systemca.StepWithdraw}
)

func TestEachGateNoticesItsFault(t *testing.T) {
	noticed := map[string]bool{}
	for _, f := range faults {
		for _, step := range f.steps {
			v := good(phaseOf[step])
			if got := systemca.All().Ask(step, v); len(got) > 0 {
				t.Fatalf("%s: something is wrong with a good view: %+v", step, got)
			}
			f.spoil(&v)
			got := systemca.All().Ask(step, v)
			if !slices.ContainsFunc(got, func(r systemca.Reason) bool { return r.Code == f.gate && r.Message != "" && r.Remedy != "" }) {
				t.Errorf("%s at %s: not noticed: %+v", f.gate, step, got)
			}
			if rest := systemca.All().Without(f.gate).Ask(step, v); len(rest) > 0 {
				t.Errorf("%s at %s is noticed by another gate too: %+v", f.gate, step, rest)
			}
		}
		noticed[f.gate] = true
	}
	for _, g := range systemca.All() {
		if !noticed[g.Code] {
			t.Errorf("the gate %s has no fault here", g.Code)
		}
	}
}

func TestWhoIsNamedIsNotWaitedForButAControllerAlwaysIs(t *testing.T) {
	for step, gate := range map[systemca.Step]string{systemca.StepReissued: "controller-leaf", systemca.StepRetire: "controller-leaf", systemca.StepDone: "forgotten"} {
		v := good(phaseOf[step])
		for i := range v.Identities {
			x := &v.Identities[i]
			if x.Kind != systemca.Controller {
				x.Named, x.Leaf, x.TrustsBefore, x.TrustsAfter = "gone", systemca.Unknown, true, false
			}
		}
		if got := systemca.All().Ask(step, v); len(got) > 0 {
			t.Errorf("%s: %+v", step, got)
		}
		v.Identities[0].Named, v.Identities[0].Leaf, v.Identities[0].Seen, v.Identities[0].TrustsBefore = "gone", systemca.Unknown, time.Time{}, true
		got := systemca.All().Ask(step, v)
		for _, code := range []string{"controller-seen", gate} {
			if !slices.ContainsFunc(got, func(r systemca.Reason) bool { return r.Code == code }) {
				t.Errorf("%s: a controller was given up by %s: %+v", step, code, got)
			}
		}
	}
}

func TestAnAgentThatIsAwayHoldsTheRetireAndNotTheReissue(t *testing.T) {
	v := good(systemca.Distribute)
	v.Identities[2] = systemca.Identity{Kind: systemca.Agent, Name: "n1", Leaf: systemca.Unknown}
	if got := systemca.All().Ask(systemca.StepReissue, v); len(got) > 0 {
		t.Errorf("%+v", got)
	}
	v.Phase = systemca.Reissued
	if got := systemca.All().Ask(systemca.StepRetire, v); len(got) != 2 {
		t.Errorf("%+v", got)
	}
}

func TestControllersTakeTheirTurnsThenTheAgents(t *testing.T) {
	for _, p := range []systemca.Phase{systemca.Reissue, systemca.Undoing} {
		v := good(p)
		want := v.Identities[0].Leaf
		for i := range v.Identities {
			v.Identities[i].Leaf = systemca.Neither
		}
		v.Turn = ""
		for _, c := range []int{0, 1} {
			d := systemca.All().Decide(v)
			if d.Action != systemca.Turn || d.Turn != v.Identities[c].Name {
				t.Fatalf("%s: %+v", p, d)
			}
			v.Turn = d.Turn
			if d = systemca.All().Decide(v); d.Action != systemca.Wait || d.Reasons[0].Code != "turn" {
				t.Fatalf("%s: the next one goes before this one is proved: %+v", p, d)
			}
			v.Identities[c].Leaf = want
		}
		v.Identities[0].Seen = time.Time{}
		if d := systemca.All().Decide(v); d.Action != systemca.Wait {
			t.Fatalf("%s: with a controller down %+v", p, d)
		}
		v.Identities[0].Seen = now
		d := systemca.All().Decide(v)
		if d.Action != systemca.Turn || d.Turn != systemca.Agents {
			t.Fatalf("%s: %+v", p, d)
		}
		v.Turn = d.Turn
		if d = systemca.All().Decide(v); d.Action != systemca.Wait || d.Reasons[0].Code != "agent-leaf" {
			t.Fatalf("%s: %+v", p, d)
		}
		for i := range v.Identities {
			v.Identities[i].Leaf = want
		}
		if d = systemca.All().Decide(v); d.Action != systemca.Enter {
			t.Fatalf("%s: %+v", p, d)
		}
		// One that falls back, a restored machine, takes its turn again.
		v.Identities[1].Leaf = systemca.Neither
		if d = systemca.All().Decide(v); d.Action != systemca.Turn || d.Turn != v.Identities[1].Name {
			t.Fatalf("%s: %+v", p, d)
		}
	}
}

// The boundaries of each gate, beside the faults above: what is just not one.
func TestWhatIsJustNotInTheWay(t *testing.T) {
	for what, c := range map[string]struct {
		step  systemca.Step
		spare func(v *systemca.View)
	}{
		"a controller that was seen 20 s ago":                                   {systemca.StepRetire, func(v *systemca.View) { v.Identities[0].Seen = now.Add(-20 * time.Second) }},
		"an agent that is away while the root is distributed":                   {systemca.StepReissue, func(v *systemca.View) { v.Identities[2].Connected, v.Identities[2].TrustsAfter = false, false }},
		"an agent without the root before, where that goes":                     {systemca.StepRetire, func(v *systemca.View) { v.Identities[2].TrustsBefore = false }},
		"an agent without the root that goes, on the way back":                  {systemca.StepWithdraw, func(v *systemca.View) { v.Identities[2].TrustsAfter = false }},
		"an administrator of the root before, before the retire":                {systemca.StepReissued, func(v *systemca.View) { v.Identities[4].Leaf = systemca.Before }},
		"an administrator who went home a while ago":                            {systemca.StepRetire, func(v *systemca.View) { v.Identities[4].Seen = now.Add(-time.Hour) }},
		"an administrator who was not there on the way back":                    {systemca.StepWithdraw, func(v *systemca.View) { v.Identities[4].Seen = time.Time{} }},
		"an agent of the root before, before its turn":                          {systemca.StepTurn, func(v *systemca.View) { v.Identities[2].Leaf = systemca.Before }},
		"an agent that was named, with a certificate that is on its way to it":  {systemca.StepWithdraw, func(v *systemca.View) { v.Identities[3].Stray, v.Identities[3].Named = true, "gone" }},
		"a certificate of the root that comes that is on its way, not back yet": {systemca.StepRetire, func(v *systemca.View) { v.Identities[0].Stray = true }},
	} {
		v := good(phaseOf[c.step])
		c.spare(&v)
		if got := systemca.All().Ask(c.step, v); len(got) > 0 {
			t.Errorf("%s: %+v", what, got)
		}
	}
}

// A certificate that was signed before the way back is a reason to move once more, and told by one gate.
func TestWhoMayBeAboutToTakeWhatGoesTakesItsTurnAgain(t *testing.T) {
	v := good(systemca.Undoing)
	v.Identities[1].Stray, v.Turn = true, ""
	if d := systemca.All().Decide(v); d.Action != systemca.Turn || d.Turn != v.Identities[1].Name {
		t.Errorf("%+v", d)
	}
	v.Identities[1].Leaf = systemca.After
	if got := systemca.All().Ask(systemca.StepWithdraw, v); len(got) != 1 || got[0].Code != "controller-leaf" {
		t.Errorf("%+v", got)
	}
}

func TestNothingIsRetiredWithoutAPersonAndNothingFollowsTheEnd(t *testing.T) {
	if d := systemca.All().Decide(good(systemca.Reissued)); d.Action != systemca.Wait || d.Reasons[0].Code != "by-hand" {
		t.Errorf("%+v", d)
	}
	for _, p := range []systemca.Phase{systemca.Done, systemca.RolledBack} {
		if d := systemca.All().Decide(good(p)); d.Action != systemca.Rest {
			t.Errorf("%+v", d)
		}
	}
	v := good(systemca.Distribute)
	v.Paused = true
	if d := systemca.All().Decide(v); d.Action != systemca.Wait || d.Reasons[0].Code != "paused" {
		t.Errorf("%+v", d)
	}
}
