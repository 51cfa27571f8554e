package members_test

import (
	"context"
	"crypto/sha256"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/cassandra-security-manager/csm/controller/consensus/members"
	"github.com/cassandra-security-manager/csm/controller/state"
	"github.com/cassandra-security-manager/csm/controller/state/statetest"
	clusterv1 "github.com/cassandra-security-manager/csm/protocol/cluster/v1"
	"github.com/cassandra-security-manager/csm/shared/fault"
)

// table is the members table with its log.
type table struct {
	*statetest.Log
	t *testing.T
}

// newTable holds csm1, which was there first.
func newTable(t *testing.T) table {
	w := table{statetest.New(t, members.Module()), t}
	w.ok(w.do(&clusterv1.AdmitFirst{Member: member("csm1").Proto()}))
	return w
}

func (w table) do(c proto.Message) error {
	_, err := w.Propose(context.Background(), state.Proposal{Command: c, Actor: "ada"})
	return err
}

func (w table) ok(err error) {
	w.t.Helper()
	if err != nil {
		w.t.Fatal(err)
	}
}

func (w table) refused(reason string, err error) {
	w.t.Helper()
	if !fault.HasReason(err, reason) {
		w.t.Errorf("%v, want %s", err, reason)
	} else if f := fault.From(err); f.Remedy == "" {
		w.t.Errorf("%s tells nobody what to do", reason)
	}
}

func (w table) get(name string) members.Member {
	w.t.Helper()
	var m members.Member
	w.ok(w.Store.View(context.Background(), func(ctx context.Context, q state.Querier) (err error) {
		m, err = members.Get(ctx, q, name)
		return err
	}))
	return m
}

// token makes one with so many uses, for one controller only when it is named.
func (w table) token(id string, uses uint32, name string) {
	w.t.Helper()
	w.ok(w.do(&clusterv1.CreateControllerToken{Id: id, Hash: hash(id), TtlMs: time.Hour.Milliseconds(), Uses: uses, Name: name}))
}

func ask(token string, m members.Member) *clusterv1.RequestAdmission {
	return &clusterv1.RequestAdmission{Member: m.Proto(), TokenHash: hash(token)}
}

func member(name string) members.Member {
	return members.Member{Name: name, ID: "id of " + name, Address: name + ":9642", Key: sha256.Sum256([]byte("key of " + name)), KEKPublic: []byte("kek")}
}

func hash(s string) []byte { h := sha256.Sum256([]byte(s)); return h[:] }

func TestTheFirstControllerIsAdmittedOnceAndAlone(t *testing.T) {
	w := newTable(t)
	if m := w.get("csm1"); m.State != members.Unsealed || !m.Voter {
		t.Errorf("%+v", m)
	}
	w.ok(w.do(&clusterv1.AdmitFirst{Member: member("csm1").Proto()}))
	w.refused("not-first", w.do(&clusterv1.AdmitFirst{Member: member("csm2").Proto()}))
}

func TestAControllerGetsInByTokenThenApprovalThenKeys(t *testing.T) {
	w := newTable(t)
	m := member("csm2")
	w.token("t1", 1, "csm2")
	unsealed := &clusterv1.ReportUnsealed{Name: m.Name, Id: m.ID}
	w.ok(w.do(ask("t1", m)))
	if got := w.get("csm2"); got.State != members.Pending || got.Trusted() {
		t.Errorf("after the token: %+v", got)
	}
	w.refused("not-approved", w.do(unsealed))
	w.refused("fingerprint-differs", w.do(&clusterv1.ApproveMember{Name: m.Name, Key: hash("another key")}))
	w.ok(w.do(&clusterv1.ApproveMember{Name: m.Name, Key: m.Key[:]}))
	if got := w.get("csm2"); got.State != members.Approved || !got.Trusted() {
		t.Errorf("after the approval: %+v", got)
	}
	w.ok(w.do(unsealed))
	if got := w.get("csm2"); got.State != members.Unsealed || got.Fingerprint() != m.Fingerprint() || string(got.KEKPublic) != "kek" {
		t.Errorf("at the end: %+v", got)
	}
}

func TestATokenAdmitsAsManyKeysAsItHasUses(t *testing.T) {
	w := newTable(t)
	w.token("t2", 2, "")
	w.ok(w.do(ask("t2", member("csm2"))))
	w.ok(w.do(ask("t2", member("csm2")))) // the answer was lost
	w.ok(w.do(ask("t2", member("csm3"))))
	w.refused("token-used", w.do(ask("t2", member("csm4"))))
	w.refused("wrong-token", w.do(ask("guessed", member("csm4"))))
	w.token("t3", 1, "csm5")
	w.refused("token-of-another", w.do(ask("t3", member("csm4"))))
	w.Clock.Advance(2 * time.Hour)
	w.refused("token-expired", w.do(ask("t3", member("csm5"))))
	w.token("t4", 1, "")
	w.ok(w.do(&clusterv1.RevokeControllerToken{Id: "t4"}))
	w.refused("wrong-token", w.do(ask("t4", member("csm4"))))
}

func TestANameAnIDAKeyAndAnAddressBelongToOneController(t *testing.T) {
	w := newTable(t)
	w.token("t1", 64, "")
	for reason, change := range map[string]func(m, first *members.Member){
		"name-in-use":    func(m, first *members.Member) { m.Name = first.Name },
		"id-in-use":      func(m, first *members.Member) { m.ID = first.ID },
		"key-in-use":     func(m, first *members.Member) { m.Key = first.Key },
		"address-in-use": func(m, first *members.Member) { m.Address = first.Address },
	} {
		m, first := member("csm2"), member("csm1")
		change(&m, &first)
		w.refused(reason, w.do(ask("t1", m)))
	}
}

func TestARemovedKeyNeverComesBackAndTheLastStays(t *testing.T) {
	w := newTable(t)
	w.refused("last-controller", w.do(&clusterv1.RemoveMember{Name: "csm1"}))
	m := member("csm2")
	w.token("t1", 4, "")
	w.ok(w.do(ask("t1", m)))
	w.refused("last-controller", w.do(&clusterv1.RemoveMember{Name: "csm1"})) // csm2 does not hold the keys yet
	w.ok(w.do(&clusterv1.ApproveMember{Name: m.Name, Key: m.Key[:]}))
	w.ok(w.do(&clusterv1.ReportUnsealed{Name: m.Name, Id: m.ID}))
	w.ok(w.do(&clusterv1.RemoveMember{Name: "csm2"}))
	again := m
	again.ID = "a new id"
	w.refused("removed-member", w.do(ask("t1", again)))
	again = member("csm2")
	again.Key = sha256.Sum256([]byte("a new key"))
	w.refused("id-in-use", w.do(ask("t1", again)))
	again.ID = "a new id"
	w.ok(w.do(ask("t1", again)))
}
