package statetest_test

import (
	"context"
	"testing"

	"github.com/cassandra-security-manager/csm/controller/state"
	"github.com/cassandra-security-manager/csm/controller/state/statetest"
	clusterv1 "github.com/cassandra-security-manager/csm/protocol/cluster/v1"
	"github.com/cassandra-security-manager/csm/shared/fault"
)

func notes() state.Module {
	return state.Module{
		Name:       "notes",
		Migrations: []state.Migration{{Number: 9000, SQL: "CREATE TABLE notes (name TEXT PRIMARY KEY, revision INTEGER NOT NULL) STRICT, WITHOUT ROWID"}},
		Commands: func(r *state.Registry) {
			state.Handle(r, func(a *state.Apply, c *clusterv1.TermStart) (*clusterv1.TermStart, error) {
				if _, err := a.Exec("INSERT INTO notes (name, revision) VALUES (?, ?)", c.Leader, a.Index); err != nil {
					return nil, err
				}
				if c.Leader == "refused" {
					return nil, fault.New(fault.Refused, "no", "not this one").Do("take another")
				}
				a.Touch(state.Created, "tenants/default/notes/"+c.Leader)
				return &clusterv1.TermStart{Term: a.Index, Leader: c.Leader}, nil
			})
		},
	}
}

func TestAProposalIsAppliedAnsweredAndSeen(t *testing.T) {
	ctx := context.Background()
	log := statetest.New(t, notes())
	watch := log.Store.Watch("tenants/default/notes/")
	defer watch.Close()
	got, err := state.Reply[*clusterv1.TermStart](ctx, log, state.Proposal{Command: &clusterv1.TermStart{Leader: "a"}, Actor: "ann"})
	if err != nil || got.Leader != "a" || got.Term != 1 {
		t.Fatalf("answer %v, %v", got, err)
	}
	select {
	case <-watch.C():
	default:
		t.Error("the watch did not wake")
	}
	_, err = log.Propose(ctx, state.Proposal{Command: &clusterv1.TermStart{Leader: "refused"}, Actor: "ann"})
	if !fault.HasReason(err, "no") {
		t.Errorf("refusal came back as %v", err)
	}
	var n int
	if err := log.Store.View(ctx, func(ctx context.Context, q state.Querier) error {
		return q.QueryRowContext(ctx, "SELECT count(*) FROM notes").Scan(&n)
	}); err != nil || n != 1 {
		t.Errorf("%d notes, %v", n, err)
	}
	entries, _, err := log.Store.Audit(ctx, state.AuditFilter{}, state.AuditPage{})
	if err != nil || len(entries) != 2 || entries[0].Fault == nil || len(entries[1].Touched) != 1 {
		t.Errorf("audit %+v, %v", entries, err)
	}
}
