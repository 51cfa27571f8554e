package fleet_test

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"math/big"
	"strings"
	"testing"
	"time"

	agentv1 "github.com/cassandra-security-manager/csm/protocol/agent/v1"

	"github.com/cassandra-security-manager/csm/controller/fleet"
	"github.com/cassandra-security-manager/csm/controller/state/statetest"
)

const trust = "tenants/default/trustDomains/prod"

func foreignCA(t testing.TB) *x509.Certificate {
	t.Helper()
	k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	tpl := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "old root"}, IsCA: true, BasicConstraintsValid: true,
		NotBefore: statetest.Start.Add(-time.Hour), NotAfter: statetest.Start.Add(1000 * 24 * time.Hour)}
	der, err := x509.CreateCertificate(rand.Reader, tpl, tpl, k.Public(), k)
	if err != nil {
		t.Fatal(err)
	}
	c, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

var wide = fleet.Rule{DNS: []string{"*.example"}, Networks: []string{"10.0.0.0/24"}, FirstNodes: 2}

func (w *world) anchor(rule fleet.Rule) fleet.Anchor {
	w.t.Helper()
	a, err := w.AddAnchor(ctx, trust, fleet.AnchorSpec{Certificate: foreignCA(w.t), Owner: "platform team", Reason: "the ring of today",
		Expires: statetest.Start.Add(90 * 24 * time.Hour), Rule: rule}, ann)
	if err != nil {
		w.t.Fatal(err)
	}
	return a
}

// holder is a node n1..n9 with the address 10.0.0.1..9 that proves possession.
func (w *world) holder(a fleet.Anchor, node string) fleet.PossessionSpec {
	ip := "10.0.0." + node[1:]
	return fleet.PossessionSpec{Anchor: a, Key: keyOf("new key of " + node), CassandraKey: keyOf("old key of " + node), Challenge: keyOf("connection of " + node),
		NotAfter: statetest.Start.Add(30 * 24 * time.Hour), Attested: fleet.Names{DNS: []string{node + ".example"}}, Node: node,
		Names: fleet.Names{DNS: []string{node + ".example"}, IPs: []string{ip}}, Peer: ip,
		Agent: &agentv1.AgentFacts{Mode: agentv1.Mode_MODE_MANAGE, GenerationCounter: 1}, Instance: &agentv1.InstanceFacts{ClusterName: "ring"}}
}

// member makes a connected member of a node that has joined.
func (w *world) member(j fleet.Joined) *member {
	return &member{w: w, name: j.Node, uid: j.UID, incarnation: j.Incarnation, agent: &agentv1.AgentFacts{Mode: agentv1.Mode_MODE_MANAGE, GenerationCounter: 1},
		instance: &agentv1.InstanceFacts{ClusterName: "ring"}, store: &agentv1.StoreFacts{Store: "node"}}
}

func TestTwoNodesJoinByTheRuleAndTheThirdByTheirGossip(t *testing.T) {
	w := newWorld(t)
	a := w.anchor(wide)
	var first []*member
	for _, n := range []string{"n1", "n2"} {
		j, err := w.JoinByPossession(ctx, w.holder(a, n))
		if err != nil {
			t.Fatal(err)
		}
		first = append(first, w.member(j))
	}
	third := w.holder(a, "n3")
	_, err := w.JoinByPossession(ctx, third)
	wantReason(t, err, "approval-pending")
	first[0].sees(1, 1, 2, 3)
	_, err = w.JoinByPossession(ctx, third)
	wantReason(t, err, "approval-pending")
	first[1].sees(2, 1, 2, 3)
	j, err := w.JoinByPossession(ctx, third)
	if err != nil || j.Node != cluster+"/nodes/n3" || j.Incarnation != 1 {
		t.Fatalf("%+v, %v", j, err)
	}
	all, err := w.ListJoinRequests(ctx, "default")
	if err != nil || len(all) != 1 || all[0].State != "joined" {
		t.Fatalf("requests = %+v, %v", all, err)
	}
	_, err = w.DecideJoin(ctx, all[0].Name, true, "", ann)
	wantReason(t, err, "request-decided")
	if n, err := w.GetNode(ctx, j.Node); err != nil || len(n.Names.DNS) != 1 || n.Names.IPs[0] != "10.0.0.3" {
		t.Errorf("node = %+v, %v", n, err)
	}
}

func TestPeersThatSeeAnotherHostThereConfirmNobody(t *testing.T) {
	w := newWorld(t)
	a := w.anchor(wide)
	for i, n := range []string{"n1", "n2"} {
		j, err := w.JoinByPossession(ctx, w.holder(a, n))
		if err != nil {
			t.Fatal(err)
		}
		w.member(j).sees(i+1, 1, 2, 3)
	}
	s := w.holder(a, "n3")
	_, s.Instance.HostId = hostID(9)
	_, err := w.JoinByPossession(ctx, s)
	wantReason(t, err, "approval-pending")
	_, s.Instance.HostId = hostID(3)
	if _, err := w.JoinByPossession(ctx, s); err != nil {
		t.Error(err)
	}
}

func TestALostReplyToAProofOfPossessionIsAnsweredTheSame(t *testing.T) {
	w := newWorld(t)
	s := w.holder(w.anchor(wide), "n1")
	one, err := w.JoinByPossession(ctx, s)
	if err != nil {
		t.Fatal(err)
	}
	s.Challenge = keyOf("another connection")
	two, err := w.JoinByPossession(ctx, s)
	if err != nil || two.UID != one.UID || two.Incarnation != 1 || !two.Repeated {
		t.Errorf("%+v, then %+v, %v", one, two, err)
	}
}

func TestEachDoubtAboutAJoinIsPutToAPerson(t *testing.T) {
	for doubt, change := range map[string]func(w *world, s *fleet.PossessionSpec){
		"the rule does not cover n1.elsewhere": func(_ *world, s *fleet.PossessionSpec) {
			s.Names.DNS, s.Attested.DNS = []string{"n1.elsewhere"}, []string{"n1.elsewhere"}
		},
		"the rule does not cover 10.9.0.1":         func(_ *world, s *fleet.PossessionSpec) { s.Names.IPs, s.Peer = []string{"10.9.0.1"}, "10.9.0.1" },
		"the certificate in use does not carry":    func(_ *world, s *fleet.PossessionSpec) { s.Attested = fleet.Names{} },
		"the request came from 10.0.0.9":           func(_ *world, s *fleet.PossessionSpec) { s.Peer = "10.0.0.9" },
		"names no address":                         func(_ *world, s *fleet.PossessionSpec) { s.Names.IPs = nil },
		"the same private key was used by prod/n2": func(w *world, s *fleet.PossessionSpec) { w.held("n2", s); s.CassandraKey = keyOf("old key of n2") },
		"10.0.0.2 is a name of prod/n2": func(w *world, s *fleet.PossessionSpec) {
			w.held("n2", s)
			s.Names.IPs, s.Peer = []string{"10.0.0.2"}, "10.0.0.2"
		},
		"joined before (incarnation 1)": func(w *world, s *fleet.PossessionSpec) {
			w.held("n1", s)
			s.Key, s.Challenge = keyOf("host two"), keyOf("c2")
		},
		"10.0.0.1 is known to the gossip of 0 enrolled peers": func(w *world, s *fleet.PossessionSpec) { w.held("n2", s); w.held("n3", s) },
		"not one of the names that were set for this node": func(w *world, s *fleet.PossessionSpec) {
			w.token("n1", fleet.TokenSpec{})
			s.Names.DNS = []string{"x.example"}
		},
		"known to the gossip of 0 enrolled peers, 2 are needed": func(w *world, s *fleet.PossessionSpec) {
			s.Anchor = w.anchor(fleet.Rule{DNS: wide.DNS, Networks: wide.Networks})
		},
		"the rule does not cover n1.example; the rule does not c": func(w *world, s *fleet.PossessionSpec) { s.Anchor = w.anchor(fleet.Rule{}) },
	} {
		t.Run(doubt, func(t *testing.T) {
			w := newWorld(t)
			s := w.holder(w.anchor(wide), "n1")
			change(w, &s)
			_, err := w.JoinByPossession(ctx, s)
			wantReason(t, err, "approval-pending")
			if err == nil || !strings.Contains(err.Error(), doubt) {
				t.Errorf("got %v, want %q", err, doubt)
			}
			all, err := w.ListJoinRequests(ctx, "default")
			if err != nil || len(all) != 1 || all[0].State != "pending" {
				t.Fatalf("requests = %+v, %v", all, err)
			}
			if _, err := w.DecideJoin(ctx, all[0].Name, true, "I know it", ann); err != nil {
				t.Fatal(err)
			}
			s.Challenge = keyOf("the next connection")
			if j, err := w.JoinByPossession(ctx, s); err != nil || j.Node != cluster+"/nodes/n1" {
				t.Errorf("approved, yet %+v, %v", j, err)
			}
		})
	}
}

// held lets another node join by possession under the same anchor.
func (w *world) held(node string, s *fleet.PossessionSpec) {
	w.t.Helper()
	if _, err := w.JoinByPossession(ctx, w.holder(s.Anchor, node)); err != nil {
		w.t.Fatal(err)
	}
}

func TestEachMisuseOfAProofOfPossessionIsRefused(t *testing.T) {
	for reason, change := range map[string]func(w *world, s *fleet.PossessionSpec){
		"evidence-replayed": func(w *world, s *fleet.PossessionSpec) { w.held("n1", s); s.Key = keyOf("a thief's key") },
		"leaf-expired":      func(_ *world, s *fleet.PossessionSpec) { s.NotAfter = statetest.Start },
		"anchor-expired":    func(w *world, _ *fleet.PossessionSpec) { w.log.Clock.Advance(91 * 24 * time.Hour) },
		"no-anchor": func(w *world, s *fleet.PossessionSpec) {
			if err := w.RemoveAnchor(ctx, s.Anchor.Name, "gone", ann); err != nil {
				t.Fatal(err)
			}
		},
		"wrong-ring":      func(w *world, s *fleet.PossessionSpec) { w.held("n2", s); s.Instance.ClusterName = "another" },
		"no-cluster-name": func(_ *world, s *fleet.PossessionSpec) { s.Instance.ClusterName = "" },
		"key-reused": func(w *world, s *fleet.PossessionSpec) {
			w.held("n2", s)
			s.Key = keyOf("new key of n2")
		},
		"bad-name": func(_ *world, s *fleet.PossessionSpec) { s.Node = "N 1" },
		"no-names": func(_ *world, s *fleet.PossessionSpec) { s.Names = fleet.Names{} },
	} {
		t.Run(reason, func(t *testing.T) {
			w := newWorld(t)
			s := w.holder(w.anchor(wide), "n1")
			change(w, &s)
			_, err := w.JoinByPossession(ctx, s)
			wantReason(t, err, reason)
			alarms, err := w.Alarms(ctx, 1)
			if err != nil || (len(alarms) == 1) != (reason == "evidence-replayed") {
				t.Errorf("alarms = %+v, %v", alarms, err)
			}
		})
	}
}

func TestOfTwoDecisionsTheSecondIsToldTheFirst(t *testing.T) {
	w := newWorld(t)
	s := w.holder(w.anchor(fleet.Rule{}), "n1")
	_, err := w.JoinByPossession(ctx, s)
	wantReason(t, err, "approval-pending")
	all, err := w.ListJoinRequests(ctx, "-")
	if err != nil || len(all) != 1 {
		t.Fatalf("%v, %v", all, err)
	}
	_, err = w.DecideJoin(ctx, all[0].Name, false, "", ann)
	wantReason(t, err, "no-reason")
	if _, err = w.DecideJoin(ctx, all[0].Name, false, "not ours", ann); err != nil {
		t.Fatal(err)
	}
	_, err = w.DecideJoin(ctx, all[0].Name, true, "", "bob")
	wantReason(t, err, "request-decided")
	if err == nil || !strings.Contains(err.Error(), "denied by "+ann) {
		t.Errorf("the second is told %v", err)
	}
	_, err = w.JoinByPossession(ctx, s)
	wantReason(t, err, "join-denied")
}

func TestAnApprovalCoversWhatWasAskedAndEnds(t *testing.T) {
	for name, change := range map[string]func(w *world, s *fleet.PossessionSpec){
		"other names":       func(_ *world, s *fleet.PossessionSpec) { s.Names.DNS = append(s.Names.DNS, "more.example") },
		"another node":      func(_ *world, s *fleet.PossessionSpec) { s.Node = "n2" },
		"another key":       func(_ *world, s *fleet.PossessionSpec) { s.CassandraKey = keyOf("x") },
		"a day and an hour": func(w *world, _ *fleet.PossessionSpec) { w.log.Clock.Advance(25 * time.Hour) },
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			s := w.holder(w.anchor(fleet.Rule{}), "n1")
			_, err := w.JoinByPossession(ctx, s)
			wantReason(t, err, "approval-pending")
			all, err := w.ListJoinRequests(ctx, "default")
			if err != nil {
				t.Fatal(err)
			}
			if _, err := w.DecideJoin(ctx, all[0].Name, true, "", ann); err != nil {
				t.Fatal(err)
			}
			change(w, &s)
			_, err = w.JoinByPossession(ctx, s)
			wantReason(t, err, "approval-pending")
		})
	}
}

func TestWhoWaitsCostsNoCommand(t *testing.T) {
	w := newWorld(t)
	s := w.holder(w.anchor(fleet.Rule{}), "n1")
	_, err := w.JoinByPossession(ctx, s)
	wantReason(t, err, "approval-pending")
	before := w.log.Store.Applied()
	_, err = w.JoinByPossession(ctx, s)
	wantReason(t, err, "approval-pending")
	if after := w.log.Store.Applied(); after != before {
		t.Errorf("the repeat was entry %d", after)
	}
}

func TestAnAnchorNeedsAnOwnerAReasonAndAnEnd(t *testing.T) {
	w := newWorld(t)
	good := fleet.AnchorSpec{Certificate: foreignCA(t), Owner: "o", Reason: "r", Expires: statetest.Start.Add(time.Hour)}
	for reason, change := range map[string]func(*fleet.AnchorSpec){
		"no-owner": func(s *fleet.AnchorSpec) { s.Owner = "" }, "no-reason": func(s *fleet.AnchorSpec) { s.Reason = "" },
		"bad-expiry": func(s *fleet.AnchorSpec) { s.Expires = statetest.Start }, "no-anchor": func(s *fleet.AnchorSpec) { s.Certificate = nil },
		"bad-rule": func(s *fleet.AnchorSpec) { s.Rule.Networks = []string{"10.0.0.1/99"} },
	} {
		s := good
		change(&s)
		_, err := w.AddAnchor(ctx, trust, s, ann)
		wantReason(t, err, reason)
	}
	a, err := w.AddAnchor(ctx, trust, good, ann)
	if err != nil || a.Kind != "external" || a.State != "active" || a.Owner != "o" {
		t.Fatalf("%+v, %v", a, err)
	}
	if d, err := w.GetTrustDomain(ctx, trust); err != nil || len(d.Anchors) != 2 || d.Anchors[0].Kind != "authority" {
		t.Errorf("%+v, %v", d, err)
	}
}
