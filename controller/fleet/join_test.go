package fleet_test

import (
	"strings"
	"testing"
	"time"

	agentv1 "github.com/cassandra-security-manager/csm/protocol/agent/v1"

	"github.com/cassandra-security-manager/csm/controller/fleet"
)

func TestTheSecretOfATokenIsNowhereInTheState(t *testing.T) {
	w := newWorld(t)
	secret := w.token("n1", fleet.TokenSpec{})
	if !strings.HasPrefix(secret, "csmt_") || len(secret) != 48 {
		t.Errorf("token %q has not the documented shape", secret)
	}
	ts, err := w.ListTokens(ctx, cluster)
	if err != nil || len(ts) != 1 || ts[0].State != "open" || ts[0].Creator != ann {
		t.Fatalf("tokens = %+v, %v", ts, err)
	}
}

func TestALostReplyIsAnsweredTheSame(t *testing.T) {
	w := newWorld(t)
	s := w.spec(w.token("n1", fleet.TokenSpec{}), "key")
	one, err := w.Join(ctx, s)
	if err != nil {
		t.Fatal(err)
	}
	w.log.Clock.Advance(48 * time.Hour) // longer than the token lives
	two, err := w.Join(ctx, s)
	if err != nil || two.UID != one.UID || two.Incarnation != one.Incarnation || !two.Repeated || one.Repeated {
		t.Errorf("first %+v, then %+v, %v", one, two, err)
	}
}

func TestAUsedTokenWithAnotherKeyIsRefusedAndRaisesAnAlarm(t *testing.T) {
	w := newWorld(t)
	token := w.token("n1", fleet.TokenSpec{})
	if _, err := w.Join(ctx, w.spec(token, "key")); err != nil {
		t.Fatal(err)
	}
	_, err := w.Join(ctx, w.spec(token, "another key"))
	wantReason(t, err, "token-used")
	alarms, err := w.Alarms(ctx, 10)
	if err != nil || len(alarms) != 1 || alarms[0].Kind != "token-reused" || alarms[0].Resource != cluster+"/nodes/n1" {
		t.Errorf("alarms = %+v, %v", alarms, err)
	}
}

func TestEachMisuseOfATokenIsRefused(t *testing.T) {
	for reason, try := range map[string]func(w *world) error{
		"token-unknown": func(w *world) error {
			other := newWorld(t)
			_, err := w.Join(ctx, w.spec(other.token("n1", fleet.TokenSpec{}), "key"))
			return err
		},
		"token-malformed": func(w *world) error { _, err := w.Join(ctx, w.spec("csmt_short", "key")); return err },
		"token-expired": func(w *world) error {
			token := w.token("n1", fleet.TokenSpec{TTL: time.Hour})
			w.log.Clock.Advance(time.Hour)
			_, err := w.Join(ctx, w.spec(token, "key"))
			return err
		},
		"token-revoked": func(w *world) error {
			token := w.token("n1", fleet.TokenSpec{})
			ts, err := w.ListTokens(ctx, cluster)
			if err != nil {
				return err
			}
			if err := w.RevokeToken(ctx, ts[0].Name, ann); err != nil {
				return err
			}
			_, err = w.Join(ctx, w.spec(token, "key"))
			return err
		},
		"token-cluster": func(w *world) error {
			s := w.spec(w.token("n1", fleet.TokenSpec{}), "key")
			s.Cluster = "test"
			_, err := w.Join(ctx, s)
			return err
		},
		"wrong-ring": func(w *world) error {
			w.joined("n1")
			s := w.spec(w.token("n2", fleet.TokenSpec{}), "key")
			s.Instance = &agentv1.InstanceFacts{ClusterName: "another ring"}
			_, err := w.Join(ctx, s)
			return err
		},
		"key-reused": func(w *world) error {
			w.joined("n1")
			_, err := w.Join(ctx, w.spec(w.token("n2", fleet.TokenSpec{}), "key of n1"))
			return err
		},
		"node-joined": func(w *world) error {
			w.joined("n1")
			_, _, err := w.CreateToken(ctx, cluster, fleet.TokenSpec{Node: "n1"}, ann)
			return err
		},
		"names-differ": func(w *world) error {
			w.token("n1", fleet.TokenSpec{})
			_, _, err := w.CreateToken(ctx, cluster, fleet.TokenSpec{Node: "n1", Names: fleet.Names{DNS: []string{"other.example"}}}, ann)
			return err
		},
		"no-names": func(w *world) error {
			_, _, err := w.CreateToken(ctx, cluster, fleet.TokenSpec{Node: "n1"}, ann)
			return err
		},
		"bad-name": func(w *world) error {
			_, _, err := w.CreateToken(ctx, cluster, fleet.TokenSpec{Node: "N 1"}, ann)
			return err
		},
		"bad-ttl": func(w *world) error {
			_, _, err := w.CreateToken(ctx, cluster, fleet.TokenSpec{Node: "n1", TTL: 31 * 24 * time.Hour}, ann)
			return err
		},
		"no-cluster": func(w *world) error {
			_, _, err := w.CreateToken(ctx, cluster+"x", fleet.TokenSpec{Node: "n1", Names: fleet.Names{IPs: []string{"10.0.0.1"}}}, ann)
			return err
		},
	} {
		t.Run(reason, func(t *testing.T) { wantReason(t, try(newWorld(t)), reason) })
	}
}

func TestAReplacedHostIsANewIncarnationAndTheOldIdentityEnds(t *testing.T) {
	w := newWorld(t)
	m := w.installed("n1")
	j, err := w.Join(ctx, w.spec(w.token("n1", fleet.TokenSpec{Rejoin: true}), "new key"))
	if err != nil || j.UID != m.uid || j.Incarnation != 2 {
		t.Fatalf("joined as %+v, %v", j, err)
	}
	_, err = m.claim(first)
	wantReason(t, err, "agent-revoked")
	wantReason(t, m.connect(), "agent-revoked")
	if n := m.view(); n.State != fleet.Active || n.Incarnation != 2 || len(n.Stores) != 0 {
		t.Errorf("node = %+v", n)
	}
}

func TestATokenOfSeveralUsesMakesAnIncarnationForEachKey(t *testing.T) {
	w := newWorld(t)
	w.joined("n1")
	token := w.token("n1", fleet.TokenSpec{Rejoin: true, Uses: 2})
	for i, key := range []string{"a", "b"} {
		if j, err := w.Join(ctx, w.spec(token, key)); err != nil || j.Incarnation != uint64(i+2) {
			t.Fatalf("%s: %+v, %v", key, j, err)
		}
	}
	_, err := w.Join(ctx, w.spec(token, "c"))
	wantReason(t, err, "token-used")
	_, err = w.Join(ctx, w.spec(token, "a"))
	wantReason(t, err, "agent-revoked")
}

func TestACopiedStateFolderSuspendsBothUsers(t *testing.T) {
	for name, change := range map[string]func(*member){
		"another machine":          func(m *member) { m.agent.Machine = []byte("clone") },
		"a counter that went back": func(m *member) { m.agent.GenerationCounter = 6 },
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			m := w.joined("n1")
			m.agent.GenerationCounter = 7
			m.must(m.connect())
			change(m)
			wantReason(t, m.connect(), "agent-suspended")
			_, err := m.claim(first)
			wantReason(t, err, "agent-suspended")
			if n := m.view(); n.State != fleet.Suspended || !strings.Contains(n.StateReason, "copied-state") {
				t.Errorf("node = %s %q", n.State, n.StateReason)
			}
			if alarms, err := w.Alarms(ctx, 1); err != nil || len(alarms) != 1 || alarms[0].Kind != "copied-state" {
				t.Errorf("alarms = %v, %v", alarms, err)
			}
			m.must(w.Resume(ctx, m.name, "it was I", ann))
			m.must(m.connect())
		})
	}
}

func TestRevocationIsFinalAndNeedsAReason(t *testing.T) {
	w := newWorld(t)
	m := w.joined("n1")
	wantReason(t, w.Revoke(ctx, m.name, "", ann), "no-reason")
	m.must(w.Revoke(ctx, m.name, "stolen", ann))
	m.must(w.Revoke(ctx, m.name, "stolen", ann))
	wantReason(t, w.Resume(ctx, m.name, "", ann), "agent-revoked")
	wantReason(t, m.connect(), "agent-revoked")
	c, err := w.Caller(ctx, m.uid, m.incarnation)
	if err != nil {
		t.Fatal(err)
	}
	wantReason(t, c.Allowed(), "agent-revoked")
}
