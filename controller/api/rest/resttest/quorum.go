package resttest

import (
	"context"
	"crypto/rand"
	"time"

	"github.com/cassandra-security-manager/csm/controller/consensus"
	"github.com/cassandra-security-manager/csm/controller/fleet"
	agentv1 "github.com/cassandra-security-manager/csm/protocol/agent/v1"
	clusterv1 "github.com/cassandra-security-manager/csm/protocol/cluster/v1"
	"github.com/cassandra-security-manager/csm/shared/fault"
)

func (a *Agent) report() *clusterv1.AgentReported {
	r, err := fleet.Report{UID: a.UID, Incarnation: a.Incarnation, Agent: a.Agent, Instance: a.Instance, Stores: []*agentv1.StoreFacts{a.Store}}.Encode()
	a.w.must(err)
	return r
}

// Linearize answers as the quorum stands.
func (q *Quorum) Linearize(context.Context) error {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.Linearized++
	return q.err
}

// CatchUp has nothing to wait for, because what is proposed here is applied here, until Behind says otherwise.
func (q *Quorum) CatchUp(context.Context) error {
	q.mu.Lock()
	defer q.mu.Unlock()
	return q.behind
}

// Behind makes csm1 one that has acknowledged writes and not applied them.
func (q *Quorum) Behind() {
	q.set(func() {
		q.behind = fault.New(fault.Unavailable, "behind", "csm1 has acknowledged writes that it has not applied yet").Do("ask another controller")
	})
}

// Age of the state.
func (q *Quorum) Age() time.Duration {
	q.mu.Lock()
	defer q.mu.Unlock()
	return q.age
}

// Health of csm1, as SetHealth made it.
func (q *Quorum) Health() consensus.Health {
	q.mu.Lock()
	defer q.mu.Unlock()
	h := q.health
	h.Age, h.Applied = q.age, q.world.Log.Store.Applied()
	if q.err == nil {
		h.Leader = "csm1"
	}
	if h.DiskFree == 0 {
		h.DiskFree = 0.5
	}
	return h
}

// IsLeader while there is a quorum.
func (q *Quorum) IsLeader() bool {
	q.mu.Lock()
	defer q.mu.Unlock()
	return q.err == nil
}

// Status of csm1 and of those that ask to join.
func (q *Quorum) Status(context.Context) (consensus.Status, error) {
	q.mu.Lock()
	defer q.mu.Unlock()
	st := consensus.Status{ClusterID: "testcluster00000", Name: "csm1", Leader: "csm1", Term: 1, Applied: q.world.Log.Store.Applied(), Age: q.age, Quorum: q.err == nil,
		Members: append([]consensus.MemberStatus{{Name: "csm1", Region: "eu", Zone: "a", Address: "csm1:9642", ID: "id1", Voter: true, State: "leader", Reachable: true,
			Applied: q.world.Log.Store.Applied(), Version: "dev", DiskFree: 0.5, KeyFingerprint: "aa"}}, q.extra...)}
	if q.err != nil {
		st.Leader, st.Problems = "", []string{q.err.Error()}
	}
	return st, nil
}

// Verify gives the real checksum of the state.
func (q *Quorum) Verify(ctx context.Context, actor string) ([]consensus.MemberChecksum, error) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.err != nil {
		return nil, q.err
	}
	c := consensus.MemberChecksum{Name: "csm1", Index: q.world.Log.Store.Applied(), Sum: [32]byte{1}, Rows: 7}
	if q.differ {
		d := c
		d.Name, d.Sum = "csm2", [32]byte{2}
		return []consensus.MemberChecksum{c, d}, nil
	}
	return []consensus.MemberChecksum{c}, nil
}

// CreateJoinToken remembers a token.
func (q *Quorum) CreateJoinToken(_ context.Context, spec consensus.TokenSpec, actor string) (string, consensus.Token, error) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.err != nil {
		return "", consensus.Token{}, q.err
	}
	now := q.world.Log.Clock.Now()
	t := consensus.Token{ID: rand.Text(), Name: spec.Name, Created: now, Expires: now.Add(time.Hour), Uses: 1, CreatedBy: actor}
	q.tokens[t.ID] = t
	return "csmj_" + rand.Text(), t, nil
}

// JoinTokens that were made.
func (q *Quorum) JoinTokens(context.Context) (out []consensus.Token, err error) {
	q.mu.Lock()
	defer q.mu.Unlock()
	for _, t := range q.tokens {
		out = append(out, t)
	}
	return out, nil
}

// RevokeJoinToken forgets a token.
func (q *Quorum) RevokeJoinToken(_ context.Context, id, _ string) error {
	q.mu.Lock()
	defer q.mu.Unlock()
	delete(q.tokens, id)
	return q.err
}

// Approve compares the fingerprint, as the real one does.
func (q *Quorum) Approve(_ context.Context, name, fingerprint, _ string) (consensus.Member, error) {
	q.mu.Lock()
	defer q.mu.Unlock()
	for i, m := range q.extra {
		if m.Name != name {
			continue
		}
		if m.KeyFingerprint != fingerprint {
			return consensus.Member{}, fault.New(fault.Refused, "wrong-fingerprint", "the key of %s has another fingerprint", name).Do("compare it with what it prints")
		}
		q.extra[i].State = "approved"
		return consensus.Member{Name: name}, nil
	}
	return consensus.Member{}, fault.New(fault.NotFound, "no-controller", "there is no controller %s", name)
}

// Remove forgets a controller.
func (q *Quorum) Remove(_ context.Context, name, _, _ string) error {
	q.mu.Lock()
	defer q.mu.Unlock()
	for i, m := range q.extra {
		if m.Name == name {
			q.extra = append(q.extra[:i], q.extra[i+1:]...)
			return nil
		}
	}
	return fault.New(fault.NotFound, "no-controller", "there is no controller %s", name)
}

// Looks is how many linearizable reads were asked for so far.
func (q *Quorum) Looks() int {
	q.mu.Lock()
	defer q.mu.Unlock()
	return q.Linearized
}
