package members_test

import (
	"context"
	"testing"
	"time"

	"github.com/hashicorp/raft"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/cassandra-security-manager/csm/controller/consensus/members"
	"github.com/cassandra-security-manager/csm/controller/state"
	"github.com/cassandra-security-manager/csm/controller/state/statetest"
	clusterv1 "github.com/cassandra-security-manager/csm/protocol/cluster/v1"
	"github.com/cassandra-security-manager/csm/shared/fault"
)

func controller(name string, key byte) *clusterv1.Member {
	return &clusterv1.Member{Name: name, Id: "id-" + name, Address: name + ".example:9642", Region: "eu", Key: append(make([]byte, 31), key)}
}

func era(name string, key byte) state.Proposal {
	return state.Proposal{Actor: "t", Command: &clusterv1.BeginEra{Members: []*clusterv1.Member{controller(name, key)}, Cause: "recover"}}
}

// leap applies a command far above the last entry, as a state outside of raft does.
func leap(t *testing.T, l *statetest.Log, p state.Proposal) error {
	t.Helper()
	e, err := state.NewEnvelope(p, l.Clock.Now())
	if err != nil {
		t.Fatal(err)
	}
	e.Stamp = timestamppb.New(l.Clock.Now())
	data, err := proto.Marshal(e)
	if err != nil {
		t.Fatal(err)
	}
	out := l.Store.Apply(&raft.Log{Index: l.Store.Applied() + members.EraLeap, Term: 9, Type: raft.LogCommand, Data: data}).(*clusterv1.Outcome)
	_, err = state.DecodeOutcome(out, e.Kind)
	return err
}

func TestANewEraBeginsOnlyOutsideOfARunningLog(t *testing.T) {
	l, ctx := statetest.New(t, members.Module()), context.Background()
	if _, err := l.Propose(ctx, state.Proposal{Actor: "t", Command: &clusterv1.AdmitFirst{Member: controller("csm1", 1)}}); err != nil {
		t.Fatal(err)
	}
	if _, err := l.Propose(ctx, era("csm2", 2)); !fault.HasReason(err, "not-an-era") {
		t.Fatalf("within a log: %v", err)
	}
	if err := leap(t, l, state.Proposal{Actor: "t", Command: &clusterv1.BeginEra{Cause: "recover"}}); !fault.HasReason(err, "bad-era") {
		t.Fatalf("with nobody: %v", err)
	}
}

func TestANewEraShutsOutWhoeverDoesNotGoOnAndVoidsTokens(t *testing.T) {
	l, ctx := statetest.New(t, members.Module()), context.Background()
	for _, c := range []proto.Message{&clusterv1.AdmitFirst{Member: controller("csm1", 1)},
		&clusterv1.CreateControllerToken{Id: "t1", Hash: make([]byte, 32), TtlMs: time.Hour.Milliseconds(), Uses: 1}} {
		if _, err := l.Propose(ctx, state.Proposal{Actor: "t", Command: c}); err != nil {
			t.Fatal(err)
		}
	}
	if err := leap(t, l, era("csm1", 2)); err != nil { // the same name with a key of its own
		t.Fatal(err)
	}
	check := func(want members.Era, removed ...byte) {
		t.Helper()
		err := l.Store.View(ctx, func(ctx context.Context, q state.Querier) error {
			all, err := members.List(ctx, q)
			if err != nil {
				return err
			}
			gone, err := members.RemovedKeys(ctx, q)
			if err != nil {
				return err
			}
			tokens, err := members.Tokens(ctx, q)
			if err != nil {
				return err
			}
			e, err := members.LastEra(ctx, q)
			if len(all) != 1 || all[0].State != members.Unsealed || len(tokens) != 0 || len(gone) != len(removed) || e.Number != want.Number || e.Cause != want.Cause {
				t.Errorf("members %+v, tokens %v, removed %v, era %+v", all, tokens, gone, e)
			}
			for _, k := range removed {
				if !gone[[32]byte(append(make([]byte, 31), k))] {
					t.Errorf("key %d is not shut out", k)
				}
			}
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	check(members.Era{Number: 1, Cause: "recover"}, 1)
	if err := leap(t, l, era("csm2", 1)); err != nil { // who was shut out comes back by a recovery on its side: its key counts again
		t.Fatal(err)
	}
	check(members.Era{Number: 2, Cause: "recover"}, 2)
}
