package cli

import (
	"errors"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/cassandra-security-manager/csm/shared/fault"
)

var noon = time.Date(2026, 6, 1, 12, 0, 0, 0, time.UTC)

// healthy are the facts of three controllers and a node with nothing to find.
func healthy() facts {
	n := nodeView{Name: "tenants/default/clusters/prod/nodes/n1", State: "active", Stores: []storeView{{Name: "node", State: "proven", NotAfter: noon.Add(60 * 24 * time.Hour)}}}
	n.Agent.Connected, n.Instance.Running = true, true
	st := &statusView{Quorum: true, State: "healthy", Leader: "csm1"}
	for _, name := range []string{"csm1", "csm2", "csm3"} {
		st.Controllers = append(st.Controllers, controllerView{Name: "system/controllers/" + name, Voter: true, Reachable: true, Version: "v1", DiskFree: 0.5})
	}
	return facts{now: noon, servers: []serverFact{{"csm1:9640", nil}}, status: st, own: noon.Add(30 * 24 * time.Hour), nodes: []nodeView{n},
		authorities: []authorityView{{Name: "tenants/default/authorities/root", Issuers: []issuerView{{Name: "i", Kind: "issuing", State: "active", NotAfter: noon.Add(900 * 24 * time.Hour)}}}}}
}

func codes(fs []finding) (out []string) {
	for _, f := range fs {
		out = append(out, f.Severity+" "+f.Code)
	}
	return out
}

func TestEachRuleFindsItsTroubleAndNothingElse(t *testing.T) {
	for name, c := range map[string]struct {
		change func(*facts)
		want   []string
	}{
		"healthy":  {func(*facts) {}, nil},
		"expired":  {func(f *facts) { f.nodes[0].Stores[0].NotAfter = noon.Add(-time.Hour) }, []string{"critical do-not-restart", "critical leaf-expires"}},
		"due":      {func(f *facts) { f.nodes[0].Stores[0].NotAfter = noon.Add(20 * 24 * time.Hour) }, []string{"warning leaf-expires"}},
		"stopped":  {func(f *facts) { f.nodes[0].Stores[0].NotAfter = noon.Add(-1); f.nodes[0].Instance.Running = false }, []string{"critical leaf-expires"}},
		"noquorum": {func(f *facts) { f.status.Quorum = false; f.status.Problems = []string{"no quorum"} }, []string{"critical no-quorum"}},
		"nobody": {func(f *facts) {
			f.status, f.nodes, f.authorities = nil, nil, nil
			f.err = fault.New(fault.Unavailable, "unreachable", "no controller")
		}, []string{"critical no-controller"}},
		"login": {func(f *facts) {
			f.status, f.nodes, f.err = nil, nil, fault.New(fault.Unauthenticated, "x", "who are you")
		}, []string{"critical not-asked"}},
		"old pin":  {func(f *facts) { f.pin, f.status.CAPin = "sha256:0a", "sha256:0b" }, []string{"warning old-pin"}},
		"same pin": {func(f *facts) { f.pin, f.status.CAPin = "sha256:0a", "sha256:0A" }, nil},
		"one away": {func(f *facts) { f.servers[0].err = fault.New(fault.Unavailable, "unreachable", "csm1 is away") }, []string{"warning unreachable"}},
		"sealed": {func(f *facts) {
			f.servers[0].err = fault.New(fault.Unavailable, "not-ready", "keys: sealed").Do("look at seal")
		}, []string{"warning not-ready"}},
		"disk":      {func(f *facts) { f.status.Problems = []string{"the disk of csm2 has 1 % free: it takes no writes"} }, []string{"critical problem"}},
		"clock":     {func(f *facts) { f.status.Problems = []string{"the clock of csm2 is off by 11m: set it"} }, []string{"warning problem"}},
		"joining":   {func(f *facts) { f.status.Problems = []string{"csm4 waits for approval: compare"} }, []string{"info approval"}},
		"versions":  {func(f *facts) { f.status.Controllers[0].Version = "v2" }, []string{"info versions"}},
		"authority": {func(f *facts) { f.authorities[0].Issuers[0].NotAfter = noon.Add(100 * 24 * time.Hour) }, []string{"warning authority-expires"}},
		"retired": {func(f *facts) {
			f.authorities[0].Issuers[0].NotAfter = noon
			f.authorities[0].Issuers[0].State = "retired"
		}, nil},
		"own":       {func(f *facts) { f.own = noon.Add(time.Hour) }, []string{"warning own-certificate"}},
		"suspended": {func(f *facts) { f.nodes[0].State = "suspended" }, []string{"critical agent-suspended"}},
		"unheard": {func(f *facts) {
			f.nodes[0].Agent.Connected = false
			f.nodes[0].Agent.TransitionTime = noon.Add(-time.Hour)
		}, []string{"warning agent-unheard"}},
		"just gone": {func(f *facts) {
			f.nodes[0].Agent.Connected = false
			f.nodes[0].Agent.TransitionTime = noon.Add(-time.Minute)
		}, nil},
		"failed":      {func(f *facts) { f.nodes[0].Stores[0].State = "failed" }, []string{"critical store-failed"}},
		"contested":   {func(f *facts) { f.nodes[0].Stores[0].State = "contested" }, []string{"critical store-contested"}},
		"rolled back": {func(f *facts) { f.nodes[0].Stores[0].State = "rolled-back" }, []string{"warning store-rolled-back"}},
		"grace":       {func(f *facts) { f.status.Grace = &freezeView{Until: noon} }, []string{"info grace"}},
		"held":        {func(f *facts) { f.nodes[0].Agent.Hold = "switch swap" }, []string{"warning held"}},
		"frozen":      {func(f *facts) { f.status.Freezes = []freezeView{{Scope: "system", Since: noon.Add(-time.Hour)}} }, []string{"info frozen"}},
		"frozen long": {func(f *facts) { f.status.Freezes = []freezeView{{Scope: "system", Since: noon.Add(-25 * time.Hour)}} }, []string{"warning frozen"}},
		"frozen and due": {func(f *facts) {
			f.nodes[0].Frozen = &freezeView{Scope: "tenants/default/clusters/prod", Since: noon.Add(-time.Hour)}
			f.nodes[0].Stores[0].NotAfter = noon.Add(20 * 24 * time.Hour)
		}, []string{"critical frozen", "warning leaf-expires"}},
	} {
		f := healthy()
		c.change(&f)
		got := judge(f, defaultLimits)
		if !slices.Equal(codes(got), c.want) {
			t.Errorf("%s: %v, want %v", name, codes(got), c.want)
		}
		for _, x := range got {
			if x.Next == "" && x.Code != "not-asked" {
				t.Errorf("%s: %s says not what to do next", name, x.Code)
			}
		}
	}
}

func TestTheFirstLineOfTheDoctorIsNotToRestart(t *testing.T) {
	f := healthy()
	f.status.Quorum, f.status.Problems = false, []string{"no quorum"}
	f.nodes[0].State, f.nodes[0].Stores[0].NotAfter = "suspended", noon.Add(-time.Hour)
	if first := judge(f, defaultLimits)[0]; first.Code != "do-not-restart" || !strings.Contains(first.Message, "do NOT restart") {
		t.Errorf("%+v", first)
	}
}

func TestNagiosGetsItsStatesAndFigures(t *testing.T) {
	for name, c := range map[string]struct {
		change func(*facts)
		code   int
		text   string
	}{
		"ok":       {func(*facts) {}, 0, "CSM OK - all is well | voters=3;3:;2:;0;3 lag=0;;;0 clock_offset=0.000s;;600;0 disk_free=50%;;5:;0;100 first_expiry=5184000s;1814400:;604800: agents=1;;;0;1 freezes=0;;;0"},
		"warning":  {func(f *facts) { f.nodes[0].Stores[0].State = "rolled-back" }, 1, "CSM WARNING - prod/n1: the last install"},
		"critical": {func(f *facts) { f.status.Quorum = false }, 2, "CSM CRITICAL - system: the controllers have no quorum"},
		"unknown":  {func(f *facts) { f.missing = []error{errors.New("a | b")} }, 3, "CSM UNKNOWN - a / b |"},
		"nobody":   {func(f *facts) { f.status, f.err = nil, fault.New(fault.Unavailable, "unreachable", "away") }, 2, "CSM CRITICAL - no controller answers"},
		"login":    {func(f *facts) { f.status, f.err = nil, fault.New(fault.Unauthenticated, "x", "who") }, 3, "CSM UNKNOWN - who"},
	} {
		f := healthy()
		c.change(&f)
		code, line := nagios(f, defaultLimits, checkNames)
		if code != c.code || !strings.HasPrefix(line, c.text) || strings.Contains(line, "\n") {
			t.Errorf("%s: %d %s", name, code, line)
		}
	}
}

func TestAnEmergencyBeginsWithWhatEndsFirstAndLeavesOutWhoCannotMove(t *testing.T) {
	node := func(name string, end time.Duration, change func(*nodeView)) nodeView {
		n := nodeView{Name: "tenants/default/clusters/prod/nodes/" + name, State: "active", Stores: []storeView{{NotAfter: noon.Add(end)}}}
		n.Agent.Connected, n.Agent.Mode = true, "manage"
		if change != nil {
			change(&n)
		}
		return n
	}
	able, left := reissuePlan([]nodeView{node("n1", 3*time.Hour, nil), node("n2", -time.Hour, nil), node("n3", 0, func(n *nodeView) { n.State = "suspended" }),
		node("n4", 0, func(n *nodeView) { n.Agent.Connected = false }), node("n5", 0, func(n *nodeView) { n.Agent.Mode = "observe" }),
		node("n6", 0, func(n *nodeView) { n.Agent.Hold = "x" }), node("n7", 0, func(n *nodeView) { n.Frozen = &freezeView{} }), node("n8", 0, func(n *nodeView) { n.Stores = nil })})
	if len(able) != 2 || short(able[0].Name) != "prod/n2" || len(left) != 6 {
		t.Errorf("%v %v", able, left)
	}
	before := planOf(able)
	able[0].Stores[0].LeafSha256 = "other"
	if planOf(able) == before {
		t.Error("a plan outlives the certificates that it was made for")
	}
}
