package state_test

import (
	"errors"
	"testing"
	"time"

	"github.com/hashicorp/raft"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/cassandra-security-manager/csm/controller/state"
	clusterv1 "github.com/cassandra-security-manager/csm/protocol/cluster/v1"
	"github.com/cassandra-security-manager/csm/shared/fault"
)

// labels has one label: a StringValue sets it, a BoolValue answers with it out of its memory, and true makes it fail after that.
func labels(reads *int) state.Module {
	return state.Module{
		Name:       "labels",
		Migrations: []state.Migration{{Number: 9003, SQL: `CREATE TABLE labels (id INTEGER PRIMARY KEY, label TEXT NOT NULL) STRICT`}},
		Commands: func(r *state.Registry) {
			state.Handle(r, func(a *state.Apply, c *wrapperspb.StringValue) (*clusterv1.Empty, error) {
				_, err := a.Exec("INSERT INTO labels (id, label) VALUES (1, ?) ON CONFLICT (id) DO UPDATE SET label = excluded.label", c.Value)
				if err == nil && c.Value == "forbidden" {
					err = fault.New(fault.Refused, "forbidden", "no such label")
				}
				return &clusterv1.Empty{}, err
			})
			state.Handle(r, func(a *state.Apply, c *wrapperspb.BoolValue) (*wrapperspb.StringValue, error) {
				label, err := state.Recall(a, "label", func() (label string, err error) {
					*reads++
					return label, a.QueryRow("SELECT label FROM labels WHERE id = 1").Scan(&label)
				})
				if err == nil && c.Value {
					err = errors.New("wanted")
				}
				return wrapperspb.String(label), err
			})
		},
	}
}

func TestWhatIsRecalledIsForgottenAtEveryOtherCommand(t *testing.T) {
	reads := 0
	m, err := tryOpen(t, t.TempDir(), func(o *state.Options) { o.Modules = []state.Module{labels(&reads)} })
	if err != nil {
		t.Fatal(err)
	}
	want := func(label string, read int) {
		t.Helper()
		if got := m.mustDo(wrapperspb.Bool(false)).Reply.(*wrapperspb.StringValue).Value; got != label || reads != read {
			t.Fatalf("recalled %q after %d reads, want %q after %d", got, reads, label, read)
		}
	}
	m.mustDo(wrapperspb.String("one"))
	want("one", 1)
	want("one", 1)
	if _, err := m.do(wrapperspb.Bool(true), ""); err == nil {
		t.Fatal("a failed command succeeded")
	}
	want("one", 1)
	m.mustDo(wrapperspb.String("two"))
	want("two", 2)
	// In one batch: what a refused command wrote is undone, and so is what was recalled meanwhile.
	batch := []*raft.Log{m.entry(proposal(wrapperspb.Bool(false), "")), m.entry(proposal(wrapperspb.String("three"), "")),
		m.entry(proposal(wrapperspb.Bool(false), "")), m.entry(proposal(wrapperspb.String("forbidden"), "")), m.entry(proposal(wrapperspb.Bool(false), ""))}
	answers := m.ApplyBatch(batch)
	for i, label := range map[int]string{0: "two", 2: "three", 4: "three"} {
		if res, err := decide(answers[i]); err != nil || res.Reply.(*wrapperspb.StringValue).Value != label {
			t.Errorf("command %d recalled %v (%v), want %q", i, res.Reply, err, label)
		}
	}
}

func TestARepeatInTheSameBatchIsAnswered(t *testing.T) {
	m := open(t, t.TempDir())
	first, again := m.entry(proposal(wrapperspb.String("a"), "same")), m.entry(proposal(wrapperspb.String("a"), "same"))
	answers := m.ApplyBatch([]*raft.Log{first, m.entry(proposal(wrapperspb.String("b"), "")), again})
	one, err := decide(answers[0])
	if err != nil || one.Repeated {
		t.Fatalf("the first: %+v, %v", one, err)
	}
	two, err := decide(answers[2])
	if err != nil || !two.Repeated || two.Index != one.Index {
		t.Fatalf("the repeat: %+v, %v", two, err)
	}
	if n := m.count("SELECT count(*) FROM boxes"); n != 2 {
		t.Errorf("%d boxes, want 2", n)
	}
}

// A repeat whose outcome is past its time is found as long as that outcome is there, also by the command that prunes it.
func TestARepeatIsFoundByTheCommandThatPrunesItsOutcome(t *testing.T) {
	one, two := open(t, t.TempDir()), open(t, t.TempDir())
	logs := []*raft.Log{one.entry(proposal(wrapperspb.Bytes([]byte("first")), "same"))}
	one.now = one.now.Add(24 * time.Hour)
	for range 62 {
		logs = append(logs, one.entry(proposal(wrapperspb.Bytes([]byte("x")), "")))
	}
	logs = append(logs, one.entry(proposal(wrapperspb.Bytes([]byte("first")), "same")),
		one.entry(proposal(wrapperspb.String("forbidden"), ""))) // refused after it wrote: its batch is done again, carefully
	for _, l := range logs {
		one.Apply(l)
	}
	two.ApplyBatch(logs)
	marker := one.entry(proposal(&clusterv1.Marker{}, ""))
	one.Apply(marker)
	two.Apply(marker)
	a, _, err := one.Checksum(t.Context(), marker.Index)
	b, _, err2 := two.Checksum(t.Context(), marker.Index)
	if err != nil || err2 != nil || a != b {
		t.Errorf("%x one by one, %x as a batch (%v, %v)", a, b, err, err2)
	}
}
