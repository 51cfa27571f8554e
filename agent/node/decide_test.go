package node

import (
	"testing"
	"time"

	"google.golang.org/protobuf/types/known/timestamppb"

	agentv1 "github.com/cassandra-security-manager/csm/protocol/agent/v1"
)

var at = time.Date(2026, 11, 22, 0, 0, 0, 0, time.UTC)

// healthy is a store at rest: proven, as wanted, everything allowed.
func healthy() View {
	return View{Now: at, Mode: agentv1.Mode_MODE_MANAGE, Connected: true, Running: true, Settled: true,
		Store: StoreView{Name: "node", Manageable: true, State: agentv1.InstallState_INSTALL_STATE_PROVEN, Generation: 7, Leaf: []byte{1}, Acknowledged: []byte{1},
			NotBefore: at.AddDate(0, 0, -10), NotAfter: at.AddDate(0, 0, 80), Anchors: [][]byte{{9}}},
		Target:  &agentv1.StoreTarget{Store: "node", Generation: 7, LeafSha256: []byte{1}, RenewAt: timestamppb.New(at.AddDate(0, 0, 50))},
		Anchors: [][]byte{{9}}, NextProof: at.Add(time.Hour)}
}

func TestWhatComesNext(t *testing.T) {
	const first, renew, trust, shrink = agentv1.MoveKind_MOVE_KIND_FIRST, agentv1.MoveKind_MOVE_KIND_RENEW, agentv1.MoveKind_MOVE_KIND_TRUST, agentv1.MoveKind_MOVE_KIND_SHRINK
	absent := func(v *View) {
		v.Store = StoreView{Name: "node", Manageable: true, State: agentv1.InstallState_INSTALL_STATE_ABSENT}
		v.NextProof, v.Target.LeafSha256 = time.Time{}, nil
	}
	newer := func(v *View) { v.Target.Generation = 8 }
	for _, c := range []struct {
		what   string
		change func(*View)
		do     Do
		move   agentv1.MoveKind
		reason string
	}{
		{"a healthy store rests", func(*View) {}, Rest, 0, "as-wanted"},
		{"an absent store is installed", absent, Install, first, "first-install"},
		{"an absent store is installed though Cassandra is down", func(v *View) { absent(v); v.Running = false }, Install, first, "first-install"},
		{"a newer generation is a renewal", newer, Install, renew, "new-generation"},
		{"a newer generation before the first start is still a first install", func(v *View) {
			newer(v)
			v.Running, v.Store.State = false, agentv1.InstallState_INSTALL_STATE_INSTALLED_UNPROVEN
		}, Install, first, "new-generation"},
		{"renewal is due at its drawn time", func(v *View) { v.Target.RenewAt = timestamppb.New(at) }, Install, renew, "renewal-due"},
		{"a renewal time of another leaf does not count", func(v *View) { v.Target.RenewAt, v.Target.LeafSha256 = timestamppb.New(at), []byte{5} }, Rest, 0, "as-wanted"},
		{"below the repair floor it is renewed at once", func(v *View) { v.Store.NotBefore, v.Store.NotAfter = at.AddDate(0, 0, -70), at.AddDate(0, 0, 20) }, Install, renew, "expires-soon"},
		{"a short-lived leaf is not below the floor from birth", func(v *View) {
			v.Store.NotBefore, v.Store.NotAfter = at.AddDate(0, 0, -1), at.AddDate(0, 0, 13)
		}, Rest, 0, "as-wanted"},
		{"a missing anchor waits until the store is raised", func(v *View) { v.Anchors = [][]byte{{9}, {8}} }, Rest, 0, "as-wanted"},
		{"trust grows where it is wished", func(v *View) { newer(v); v.Target.Move = trust }, Install, trust, "new-generation"},
		{"trust shrinks where it is wished", func(v *View) { newer(v); v.Target.Move = shrink }, Install, shrink, "new-generation"},
		{"a wish that is done is no move", func(v *View) { v.Target.Move = shrink }, Rest, 0, "as-wanted"},
		{"a store that is not there yet is installed, whatever is wished", func(v *View) { absent(v); newer(v); v.Target.Move = shrink }, Install, first, "first-install"},
		{"trust of another CA's store grows where it is wished", func(v *View) { newer(v); v.Target.TrustOnly, v.Target.Move = true, trust }, Install, trust, "new-generation"},
		{"trust of another CA's store shrinks where it is wished", func(v *View) { newer(v); v.Target.TrustOnly, v.Target.Move = true, shrink }, Install, shrink, "new-generation"},
		{"another CA's store takes no anchor before it is raised", func(v *View) { v.Anchors, v.Target.TrustOnly = [][]byte{{9}, {8}}, true }, Rest, 0, "store-foreign"},
		{"an extra anchor of somebody else is left alone", func(v *View) { v.Store.Anchors = [][]byte{{9}, {8}} }, Rest, 0, "as-wanted"},
		{"an unproven store is proved when Cassandra is up", func(v *View) {
			v.Store.State, v.Store.Acknowledged = agentv1.InstallState_INSTALL_STATE_INSTALLED_UNPROVEN, nil
		}, Prove, first, "unproven"},
		{"an unproven store waits for Cassandra", func(v *View) {
			v.Store.State, v.Store.Acknowledged, v.Running = agentv1.InstallState_INSTALL_STATE_INSTALLED_UNPROVEN, nil, false
		}, Rest, 0, "cassandra-down"},
		{"a proof falls due", func(v *View) { v.NextProof = at }, Reprove, 0, "proof-due"},
		{"changed files are restored", func(v *View) { v.Store.Changed = true }, Restore, 0, "store-changed"},
		{"changed files are restored without any controller", func(v *View) { v.Store.Changed, v.Connected, v.Target = true, false, nil }, Restore, 0, "store-changed"},
		{"contested files are left alone", func(v *View) { v.Store.Changed, v.Store.State = true, agentv1.InstallState_INSTALL_STATE_CONTESTED }, Rest, 0, "store-contested"},
		{"foreign files are left alone", func(v *View) {
			newer(v)
			v.Store.State, v.Target.LeafSha256 = agentv1.InstallState_INSTALL_STATE_FOREIGN, nil
		}, Rest, 0, "store-foreign"},
		{"files that CSM gave and the agent has forgotten are renewed", func(v *View) {
			newer(v)
			v.Store.State, v.Store.Generation = agentv1.InstallState_INSTALL_STATE_FOREIGN, 0
		}, Install, renew, "new-generation"},
		{"foreign files are left alone though a leaf is wanted", func(v *View) {
			newer(v)
			v.Store.State, v.Store.Leaf = agentv1.InstallState_INSTALL_STATE_FOREIGN, []byte{6}
		}, Rest, 0, "store-foreign"},
		{"our anchors in files of another CA are proved again", func(v *View) {
			v.Store.State, v.Target.TrustOnly, v.NextProof = agentv1.InstallState_INSTALL_STATE_FOREIGN, true, at
		}, Reprove, 0, "proof-due"},
		{"and rest until then", func(v *View) {
			v.Store.State, v.Target.TrustOnly = agentv1.InstallState_INSTALL_STATE_FOREIGN, true
		}, Rest, 0, "store-foreign"},
		{"an interrupted install goes before all", func(v *View) { newer(v); v.Store.Unsettled, v.Store.Changed = true, true }, Settle, 0, "interrupted-install"},
		{"an interrupted install ends under a freeze", func(v *View) { v.Store.Unsettled = true; v.Frozen = &agentv1.Frozen{Active: true} }, Settle, 0, "interrupted-install"},

		{"observe writes nothing", func(v *View) { newer(v); v.Mode = agentv1.Mode_MODE_OBSERVE }, Wait, renew, "observe"},
		{"observe restores nothing", func(v *View) { v.Store.Changed = true; v.Mode = agentv1.Mode_MODE_OBSERVE }, Wait, 0, "observe"},
		{"an unknown mode writes nothing", func(v *View) { newer(v); v.Mode = 0 }, Wait, renew, "observe"},
		{"stage shows only", func(v *View) { newer(v); v.Mode = agentv1.Mode_MODE_STAGE }, Wait, renew, "stage"},
		{"HOLD is respected", func(v *View) { newer(v); v.Hold = "maintenance" }, Wait, renew, "held"},
		{"HOLD stops restoring", func(v *View) { v.Store.Changed = true; v.Hold = "maintenance" }, Wait, 0, "held"},
		{"HOLD does not blind", func(v *View) { v.NextProof = at; v.Hold = "maintenance" }, Reprove, 0, "proof-due"},
		{"a freeze is respected", func(v *View) { newer(v); v.Frozen = &agentv1.Frozen{Active: true, Scope: "system"} }, Wait, renew, "frozen"},
		{"a lifted freeze is none", func(v *View) { newer(v); v.Frozen = &agentv1.Frozen{} }, Install, renew, "new-generation"},
		{"frozen is not blind", func(v *View) { v.NextProof = at; v.Frozen = &agentv1.Frozen{Active: true} }, Reprove, 0, "proof-due"},
		{"a suspended agent does nothing", func(v *View) { newer(v); v.Suspended = "copied" }, Wait, renew, "suspended"},
		{"a copied state folder does nothing", func(v *View) { newer(v); v.Copied = true }, Wait, renew, "copied-state"},
		{"an unmanageable store is observed", func(v *View) { newer(v); v.Store.Manageable, v.Store.Blocked = false, "bind mount" }, Wait, renew, "unmanageable"},
		{"offline nothing new is applied", func(v *View) { newer(v); v.Connected = false }, Wait, renew, "offline"},
		{"offline it proves itself", func(v *View) { v.NextProof = at; v.Connected = false }, Reprove, 0, "proof-due"},
		{"a wrong clock claims nothing", func(v *View) { newer(v); v.Skew = -11 * time.Minute }, Wait, renew, "clock-skew"},
		{"a joining node is left alone", func(v *View) { newer(v); v.Settled = false }, Wait, renew, "node-not-normal"},
		{"a refused move rests", func(v *View) {
			newer(v)
			v.Last = &Attempt{Do: Install, Generation: 8, Reason: "wrong-names", Again: at.Add(time.Minute)}
		}, Wait, renew, "wrong-names"},
		{"a refused move is tried again", func(v *View) {
			newer(v)
			v.Last = &Attempt{Do: Install, Generation: 8, Reason: "wrong-names", Again: at}
		}, Install, renew, "new-generation"},
		{"a newer wish does not wait for an older failure", func(v *View) {
			newer(v)
			v.Last = &Attempt{Do: Install, Generation: 7, Reason: "wrong-names", Again: at.Add(time.Minute)}
		}, Install, renew, "new-generation"},
		{"a failed restore rests", func(v *View) {
			v.Store.Changed = true
			v.Last = &Attempt{Do: Restore, Reason: "store-folder", Again: at.Add(time.Minute)}
		}, Wait, 0, "store-folder"},
		{"a failed restore does not stop an install", func(v *View) { newer(v); v.Last = &Attempt{Do: Restore, Generation: 8, Again: at.Add(time.Minute)} }, Install, renew, "new-generation"},
		{"without a target nothing is installed", func(v *View) { absent(v); v.Target = nil }, Rest, 0, "no-target"},
	} {
		v := healthy()
		c.change(&v)
		got := Decide(v)
		if got.Do != c.do || got.Move != c.move || got.Reason != c.reason {
			t.Errorf("%s: %s %s %q, want %s %s %q", c.what, got.Do, got.Move, got.Reason, c.do, c.move, c.reason)
		}
		if got.Message == "" {
			t.Errorf("%s: no words for people", c.what)
		}
	}
}

func TestPausesGrowAndEnd(t *testing.T) {
	if Pause(0) != 30*time.Second || Pause(1) != time.Minute || Pause(60) != 4*time.Hour {
		t.Errorf("%s %s %s", Pause(0), Pause(1), Pause(60))
	}
}
