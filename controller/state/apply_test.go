package state_test

import (
	"bytes"
	"context"
	"strings"
	"testing"
	"time"

	"github.com/hashicorp/raft"
	"google.golang.org/protobuf/types/known/timestamppb"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/cassandra-security-manager/csm/controller/state"
	clusterv1 "github.com/cassandra-security-manager/csm/protocol/cluster/v1"
	"github.com/cassandra-security-manager/csm/shared/fault"
)

func TestARepeatIsAnsweredAndNotRunAgain(t *testing.T) {
	m := open(t, t.TempDir())
	first, err := m.do(wrapperspb.String("a"), "id-1")
	if err != nil {
		t.Fatal(err)
	}
	m.now = m.now.Add(time.Second)
	again, err := m.do(wrapperspb.String("a"), "id-1")
	if err != nil || !again.Repeated || again.Index != first.Index || !again.Time.Equal(first.Time) ||
		again.Reply.(*wrapperspb.UInt64Value).Value != first.Index {
		t.Fatalf("repeat answered %+v, %v; first %+v", again, err, first)
	}
	if n := m.count("SELECT count(*) FROM audit"); n != 1 {
		t.Errorf("%d audit entries for one command", n)
	}
	if _, err := m.do(wrapperspb.String("forbidden"), "id-2"); !fault.HasReason(err, "forbidden") {
		t.Fatal(err)
	}
	res, err := m.do(wrapperspb.String("forbidden"), "id-2")
	if !fault.HasReason(err, "forbidden") || !res.Repeated || fault.From(err).Remedy != "choose another" {
		t.Errorf("the repeated refusal reads %v (%+v)", err, res)
	}
}

func TestAnIDOfAnotherCommandOrActorIsRefused(t *testing.T) {
	m := open(t, t.TempDir())
	if _, err := m.do(wrapperspb.String("a"), "id-1"); err != nil {
		t.Fatal(err)
	}
	if _, err := m.do(wrapperspb.Int64(1), "id-1"); !fault.HasReason(err, "id-reused") || !fault.Is(err, fault.Conflict) {
		t.Errorf("another kind: %v", err)
	}
	p := proposal(wrapperspb.String("a"), "id-1")
	p.Actor = "mallory"
	if res, err := decide(m.Apply(m.entry(p))); !fault.HasReason(err, "id-reused") || res.Reply != nil {
		t.Errorf("another actor got %+v, %v", res, err)
	}
	if n := m.count("SELECT count(*) FROM boxes"); n != 1 {
		t.Errorf("%d boxes", n)
	}
}

func TestARefusedCommandLeavesNothingButItsAuditEntry(t *testing.T) {
	m := open(t, t.TempDir())
	w := m.Watch(state.Everything)
	defer w.Close()
	for name, c := range map[string]struct {
		command state.Proposal
		reason  string
	}{
		"a fault":       {proposal(wrapperspb.String("forbidden"), ""), "forbidden"},
		"a plain error": {proposal(wrapperspb.Bool(false), ""), "internal"},
	} {
		if _, err := decide(m.Apply(m.entry(c.command))); !fault.HasReason(err, c.reason) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if n := m.count("SELECT count(*) FROM boxes"); n != 0 {
		t.Errorf("%d boxes of refused commands", n)
	}
	if n := m.count("SELECT count(*) FROM audit WHERE touched <> ''"); n != 0 {
		t.Errorf("%d changes of refused commands", n)
	}
	select {
	case <-w.C():
		t.Error("a refused command woke a watch")
	default:
	}
	entries, _, err := m.Audit(context.Background(), state.AuditFilter{Refused: true}, state.AuditPage{})
	if err != nil || len(entries) != 2 {
		t.Fatalf("audit %+v, %v", entries, err)
	}
	for _, e := range entries {
		if strings.Contains(e.Fault.Message, "a plain error with a detail") {
			t.Errorf("the text of an error of one version of one library is replicated: %q", e.Fault.Message)
		}
	}
}

func TestPastItsDeadlineACommandIsRefusedAndItsIDStaysFree(t *testing.T) {
	m := open(t, t.TempDir())
	late := m.entry(proposal(wrapperspb.String("late"), "id-1"))
	m.now = m.now.Add(6 * time.Second)
	between := m.entry(proposal(wrapperspb.String("between"), ""))
	late.Index, between.Index = between.Index, late.Index
	out := m.ApplyBatch([]*raft.Log{between, late})
	if _, err := decide(out[0]); err != nil {
		t.Fatal(err)
	}
	if _, err := decide(out[1]); !fault.HasReason(err, "deadline-passed") || !fault.Is(err, fault.Unavailable) {
		t.Fatalf("late command: %v", err)
	}
	if res, err := m.do(wrapperspb.String("late"), "id-1"); err != nil || res.Repeated {
		t.Errorf("asked again: %+v, %v", res, err)
	}
}

func TestTheStateClockNeverGoesBack(t *testing.T) {
	m := open(t, t.TempDir())
	m.now = start.Add(time.Hour)
	m.mustDo(wrapperspb.String("a"))
	m.now = start.Add(time.Hour - time.Second)
	res := m.mustDo(wrapperspb.String("b"))
	if !res.Time.Equal(start.Add(time.Hour)) || !m.Now().Equal(res.Time) {
		t.Errorf("clock at %v, store says %v", res.Time, m.Now())
	}
}

func TestEntriesThatAreNoCommandsOnlyMoveTheIndex(t *testing.T) {
	m := open(t, t.TempDir())
	a := m.entry(proposal(wrapperspb.String("a"), ""))
	m.index = 9 // indexes have gaps: no-ops are not delivered
	b := m.entry(proposal(wrapperspb.String("b"), ""))
	out := m.ApplyBatch([]*raft.Log{{Index: 1, Term: 1, Type: raft.LogConfiguration}, at(a, 2), b, {Index: 11, Term: 3, Type: raft.LogConfiguration}})
	if len(out) != 4 || out[0] != nil || out[3] != nil {
		t.Fatalf("answers %v", out)
	}
	if m.Applied() != 11 || m.AppliedTerm() != 3 {
		t.Errorf("applied %d in term %d", m.Applied(), m.AppliedTerm())
	}
	// Delivered again after a restart: skipped, answered in number, never run twice.
	if again := m.ApplyBatch([]*raft.Log{at(a, 2), b, at(m.entry(proposal(wrapperspb.String("c"), "")), 12)}); len(again) != 3 {
		t.Errorf("%d answers", len(again))
	} else if _, err := decide(again[2]); err != nil {
		t.Error(err)
	}
	if n := m.count("SELECT count(*) FROM boxes"); n != 3 {
		t.Errorf("%d boxes", n)
	}
	if m.fatal != nil {
		t.Error(m.fatal)
	}
}

func at(l *raft.Log, index uint64) *raft.Log {
	c := *l
	c.Index = index
	return &c
}

func TestWhatThisControllerCannotKnowStopsIt(t *testing.T) {
	for name, change := range map[string]func(*clusterv1.Envelope){
		"a newer envelope": func(e *clusterv1.Envelope) { e.Version = 2 },
		"a newer command":  func(e *clusterv1.Envelope) { e.KindVersion = 2 },
		"an unknown kind":  func(e *clusterv1.Envelope) { e.Kind = "csm.cluster.v1.FromTheFuture" },
	} {
		t.Run(name, func(t *testing.T) {
			m := open(t, t.TempDir())
			before := m.entry(proposal(wrapperspb.String("before"), ""))
			e, _ := state.NewEnvelope(proposal(wrapperspb.String("a"), ""), m.now)
			e.Stamp = timestamppb.New(m.now)
			change(e)
			if err := m.Check(e); !fault.HasReason(err, "newer-command") {
				t.Errorf("the leader would have proposed it: %v", err)
			}
			out := m.ApplyBatch([]*raft.Log{before, {Index: 2, Term: 1, Data: encode(t, e)}})
			if !fault.HasReason(m.fatal, "newer-command") || fault.From(m.fatal).Remedy == "" {
				t.Fatalf("it goes on: %v", m.fatal)
			}
			for _, o := range out {
				if _, err := decide(o); !fault.Is(err, fault.Unknown) {
					t.Errorf("an entry was answered: %v", err)
				}
			}
			if m.Applied() != 0 || m.count("SELECT count(*) FROM boxes") != 0 {
				t.Error("half a batch stays")
			}
		})
	}
}

func TestRubbishInTheLogIsRefusedAlike(t *testing.T) {
	m := open(t, t.TempDir())
	big, _ := state.NewEnvelope(proposal(wrapperspb.String("a"), ""), m.now)
	big.Command = make([]byte, state.MaxCommand+1)
	for i, data := range [][]byte{nil, []byte("\xff\xff rubbish"), encode(t, big), encode(t, &clusterv1.Envelope{Version: 1})} {
		if _, err := decide(m.Apply(&raft.Log{Index: uint64(i + 1), Term: 1, Data: data})); !fault.Is(err, fault.Invalid) {
			t.Errorf("entry %d: %v", i, err)
		}
	}
	m.index = 10
	m.mustDo(wrapperspb.String("after"))
	if m.fatal != nil {
		t.Error(m.fatal)
	}
}

func TestAPanicOfAHandlerEndsTheProcessAndCommitsNothing(t *testing.T) {
	m := open(t, t.TempDir())
	out := m.ApplyBatch([]*raft.Log{m.entry(proposal(wrapperspb.String("a"), "")), m.entry(proposal(wrapperspb.Bool(true), ""))})
	if m.fatal == nil || !strings.Contains(m.fatal.Error(), "a defect") {
		t.Fatalf("fatal: %v", m.fatal)
	}
	if _, err := decide(out[0]); !fault.Is(err, fault.Unknown) {
		t.Errorf("answered %v", err)
	}
	if m.count("SELECT count(*) FROM boxes") != 0 || m.Applied() != 0 {
		t.Error("half a batch stays")
	}
	if _, err := m.Snapshot(); err == nil {
		t.Error("a stopped state machine gives snapshots")
	}
}

func TestAFullDiskEndsTheProcessBeforeAnyAnswer(t *testing.T) {
	dir := t.TempDir()
	m := open(t, dir)
	m.mustDo(wrapperspb.String("a"))
	if err := m.LimitPages(40); err != nil {
		t.Fatal(err)
	}
	block := bytes.Repeat([]byte{1}, 60<<10)
	var acknowledged uint64
	for range 10 {
		out := m.ApplyBatch([]*raft.Log{m.entry(proposal(wrapperspb.String("with-"+string(rune('a'+m.index))), "")), m.entry(proposal(wrapperspb.Bytes(block), ""))})
		if m.fatal != nil {
			for _, o := range out {
				if _, err := decide(o); !fault.Is(err, fault.Unknown) {
					t.Errorf("answered with %v", err)
				}
			}
			break
		}
		acknowledged = m.index
	}
	if m.fatal == nil || acknowledged == 0 {
		t.Fatalf("fatal %v after %d", m.fatal, acknowledged)
	}
	m.Close()
	again := open(t, dir)
	if again.Applied() != acknowledged {
		t.Errorf("applied %d, acknowledged %d", again.Applied(), acknowledged)
	}
}

func TestNestedQueriesAndWritesInOneHandler(t *testing.T) {
	m := open(t, t.TempDir())
	for _, n := range []string{"a", "b", "c", "d"} {
		m.mustDo(wrapperspb.String(n))
	}
	res := m.mustDo(wrapperspb.Int64(3))
	if n := res.Reply.(*wrapperspb.Int64Value).Value; n != 3 || m.count("SELECT count(*) FROM boxes") != 1 {
		t.Errorf("took %d", n)
	}
}

func TestRowsThatAHandlerLeavesOpenAreClosed(t *testing.T) {
	leak := state.Module{Name: "leak", Commands: func(r *state.Registry) {
		state.Handle(r, func(a *state.Apply, c *wrapperspb.DoubleValue) (*clusterv1.Empty, error) {
			rows, err := a.Query("SELECT name FROM boxes ORDER BY name")
			if err != nil || !rows.Next() {
				t.Errorf("no rows: %v", err)
			}
			return nil, err
		})
	}}
	m, err := tryOpen(t, t.TempDir(), func(o *state.Options) { o.Modules = append(o.Modules, leak) })
	if err != nil {
		t.Fatal(err)
	}
	for _, n := range []string{"a", "b", "c"} {
		m.mustDo(wrapperspb.String(n))
	}
	for range 3 {
		m.mustDo(wrapperspb.Double(1))
	}
	if restarted, err := m.TryRestartLog(); err != nil || !restarted {
		t.Errorf("the write-ahead log cannot restart: %v", err)
	}
}

func TestOutcomesGoWhenTheirTimeIsOverAndChangesAreBounded(t *testing.T) {
	m := open(t, t.TempDir())
	m.mustDo(wrapperspb.String("first"))
	m.now = m.now.Add(state.DefaultTimeout + time.Minute + time.Second)
	for range 128 {
		m.mustDo(wrapperspb.Bytes(nil))
	}
	if n := m.count("SELECT count(*) FROM outcomes WHERE idx = 1"); n != 0 {
		t.Error("the first outcome is still there")
	}
	if n := m.count("SELECT count(*) FROM outcomes"); n != 128 {
		t.Errorf("%d outcomes", n)
	}
	m.index = 300_000
	for range 128 {
		m.mustDo(wrapperspb.Bytes(nil))
	}
	changes, oldest, err := m.Changes(context.Background(), "tenants/", 0, 1000)
	if err != nil || oldest == 0 || len(changes) != 128 || changes[0].Revision <= oldest {
		t.Errorf("%d changes, whole after %d, %v", len(changes), oldest, err)
	}
}

func TestAProposalThatCanNeverBecomeAnEntryIsInvalid(t *testing.T) {
	for name, p := range map[string]state.Proposal{
		"no command":   {Actor: "ann"},
		"no actor":     {Command: wrapperspb.String("a")},
		"too large":    proposal(wrapperspb.Bytes(make([]byte, state.MaxCommand)), ""),
		"long id":      proposal(wrapperspb.String("a"), strings.Repeat("x", 65)),
		"long reason":  {Command: wrapperspb.String("a"), Actor: "ann", Reason: strings.Repeat("x", 1025)},
		"long tenants": {Command: wrapperspb.String("a"), Actor: "ann", Tenant: strings.Repeat("x", 64)},
	} {
		if _, err := state.NewEnvelope(p, start); !fault.Is(err, fault.Invalid) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestAFaultCrossesTheLogUnchanged(t *testing.T) {
	in := fault.New(fault.Exhausted, "cap", "too many").Do("wait")
	out := state.DecodeFault(state.EncodeFault(in))
	if *out != *in {
		t.Errorf("%+v became %+v", in, out)
	}
	if state.EncodeFault(nil) != nil || state.DecodeFault(nil) != nil {
		t.Error("nil must stay nil")
	}
	if _, err := state.DecodeOutcome(nil, "k"); !fault.Is(err, fault.Unknown) {
		t.Error(err)
	}
	long := state.EncodeFault(fault.New(fault.Invalid, "r", "%s\xff", strings.Repeat("é", 4096)))
	if len(long.Message) > 4096 {
		t.Errorf("message of %d bytes", len(long.Message))
	}
}
