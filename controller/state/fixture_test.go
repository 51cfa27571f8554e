package state_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"testing"
	"time"

	"github.com/hashicorp/raft"
	"github.com/jonboulle/clockwork"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/cassandra-security-manager/csm/controller/state"
	clusterv1 "github.com/cassandra-security-manager/csm/protocol/cluster/v1"
	"github.com/cassandra-security-manager/csm/shared/fault"
)

// The domain of these tests is a shelf of boxes: a StringValue puts a box there, a BytesValue fills box "big",
// an Int64Value takes boxes away, a BoolValue does what a handler must not.

const cluster = "0123456789abcdef"

var start = time.Date(2026, time.March, 1, 12, 0, 0, 0, time.UTC)

func boxes() state.Module {
	return state.Module{
		Name: "boxes",
		Migrations: []state.Migration{
			{Number: 9001, SQL: `CREATE TABLE boxes (name TEXT PRIMARY KEY, revision INTEGER NOT NULL, time INTEGER NOT NULL, content BLOB) STRICT, WITHOUT ROWID`},
			{Number: 9002, SQL: `CREATE TABLE local_boxes (name TEXT PRIMARY KEY) STRICT; CREATE TABLE weights (kilo REAL, gram INTEGER, PRIMARY KEY (gram, kilo)) STRICT`},
		},
		Commands: func(r *state.Registry) {
			state.Handle(r, put)
			state.Handle(r, fill)
			state.Handle(r, take)
			state.Handle(r, misbehave)
		},
	}
}

func put(a *state.Apply, c *wrapperspb.StringValue) (*wrapperspb.UInt64Value, error) {
	if _, err := a.Exec("INSERT INTO boxes (name, revision, time) VALUES (?, ?, ?)", c.Value, a.Index, a.Now.UnixMilli()); err != nil {
		return nil, err
	}
	a.Touch(state.Created, "tenants/default/boxes/"+c.Value)
	if c.Value == "forbidden" {
		return nil, fault.New(fault.Refused, "forbidden", "this box is forbidden").Do("choose another")
	}
	return wrapperspb.UInt64(a.Index), nil
}

func fill(a *state.Apply, c *wrapperspb.BytesValue) (*wrapperspb.UInt64Value, error) {
	_, err := a.Exec("INSERT INTO boxes (name, revision, time, content) VALUES (?, ?, ?, ?)",
		fmt.Sprintf("big-%d", a.Index), a.Index, a.Now.UnixMilli(), c.Value)
	a.Touch(state.Created, fmt.Sprintf("tenants/default/boxes/big-%d", a.Index))
	return wrapperspb.UInt64(a.Index), err
}

// take removes the first boxes by name; it queries while it writes, with the same statement nested.
func take(a *state.Apply, c *wrapperspb.Int64Value) (*wrapperspb.Int64Value, error) {
	rows, err := a.Query("SELECT name FROM boxes ORDER BY name LIMIT ?", c.Value)
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	var taken int64
	for rows.Next() {
		var name, again string
		if err := rows.Scan(&name); err != nil {
			return nil, err
		}
		if err := a.QueryRow("SELECT name FROM boxes ORDER BY name LIMIT ?", 1).Scan(&again); err != nil {
			return nil, err
		}
		if _, err := a.Exec("DELETE FROM boxes WHERE name = ?", name); err != nil {
			return nil, err
		}
		a.Touch(state.Deleted, "tenants/default/boxes/"+name)
		taken++
	}
	return wrapperspb.Int64(taken), rows.Err()
}

func misbehave(a *state.Apply, c *wrapperspb.BoolValue) (*clusterv1.Empty, error) {
	if _, err := a.Exec("INSERT INTO boxes (name, revision, time) VALUES ('half done', 1, 1)"); err != nil {
		return nil, err
	}
	if c.Value {
		panic("a defect")
	}
	return nil, errors.New("a plain error with a detail")
}

// machine is a store with the log that fed it.
type machine struct {
	*state.Store
	t     testing.TB
	dir   string
	fatal error
	index uint64
	now   time.Time
}

func open(t testing.TB, dir string) *machine {
	t.Helper()
	m, err := tryOpen(t, dir, nil)
	if err != nil {
		t.Fatalf("open: %v", err)
	}
	return m
}

func tryOpen(t testing.TB, dir string, change func(*state.Options)) (*machine, error) {
	m := &machine{t: t, dir: dir, now: start}
	o := state.Options{Dir: dir, ClusterID: cluster, NodeID: "n1", Modules: []state.Module{boxes()},
		Logger: slog.New(slog.DiscardHandler), Fatal: func(err error) { m.fatal = err },
		Clock: clockwork.NewFakeClock()} // nothing is folded in but by Checkpoint
	if change != nil {
		change(&o)
	}
	s, err := state.Open(context.Background(), o)
	if err != nil {
		return nil, err
	}
	m.Store, m.index = s, s.Applied()
	t.Cleanup(func() { s.Close() })
	return m, nil
}

func proposal(c proto.Message, id string) state.Proposal {
	return state.Proposal{Command: c, Actor: "ann", ID: id, Tenant: "default"}
}

func (m *machine) entry(p state.Proposal) *raft.Log {
	m.t.Helper()
	e, err := state.NewEnvelope(p, m.now)
	if err != nil {
		m.t.Fatal(err)
	}
	e.Stamp = timestamppb.New(m.now)
	m.index++
	return &raft.Log{Index: m.index, Term: 1, Type: raft.LogCommand, Data: encode(m.t, e)}
}

func encode(t testing.TB, e *clusterv1.Envelope) []byte {
	t.Helper()
	b, err := proto.Marshal(e)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func decide(answer any) (state.Result, error) {
	o, _ := answer.(*clusterv1.Outcome)
	return state.DecodeOutcome(o, "test")
}

func (m *machine) do(c proto.Message, id string) (state.Result, error) {
	m.t.Helper()
	return decide(m.Apply(m.entry(proposal(c, id))))
}

func (m *machine) mustDo(c proto.Message) state.Result {
	m.t.Helper()
	res, err := m.do(c, "")
	if err != nil {
		m.t.Fatalf("%T: %v", c, err)
	}
	return res
}

func (m *machine) count(query string, args ...any) (n int64) {
	m.t.Helper()
	if err := m.View(context.Background(), func(ctx context.Context, q state.Querier) error {
		return q.QueryRowContext(ctx, query, args...).Scan(&n)
	}); err != nil {
		m.t.Fatal(err)
	}
	return n
}

// sum marks the state and gives its checksum.
func (m *machine) sum() ([32]byte, int64) {
	m.t.Helper()
	res := m.mustDo(&clusterv1.Marker{})
	sum, rows, err := m.Checksum(context.Background(), res.Index)
	if err != nil {
		m.t.Fatal(err)
	}
	return sum, rows
}
