package state_test

import (
	"strconv"
	"testing"
	"time"

	"github.com/hashicorp/raft"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/cassandra-security-manager/csm/controller/state"
	"github.com/cassandra-security-manager/csm/shared/fault"
)

func (m *machine) keyed(box, key, request string) (state.Result, error) {
	m.t.Helper()
	p := proposal(wrapperspb.String(box), key)
	p.Request = []byte(request)
	return decide(m.Apply(m.entry(p)))
}

func TestAnIdempotencyKeyStandsForOneRequestForADay(t *testing.T) {
	m := open(t, t.TempDir())
	first, err := m.keyed("a", "key", "request")
	if err != nil {
		t.Fatal(err)
	}
	m.now = m.now.Add(23 * time.Hour)
	for range 128 { // time enough for what is short-lived to go
		m.mustDo(wrapperspb.Bytes(nil))
	}
	again, err := m.keyed("another box, as a client's random part may be", "key", "request")
	if err != nil || !again.Repeated || again.Index != first.Index {
		t.Fatalf("%+v %v", again, err)
	}
	if _, err := m.keyed("b", "key", "another request"); !fault.HasReason(err, "idempotency-key-used") {
		t.Fatalf("another request under the same key: %v", err)
	}
	m.now = m.now.Add(time.Hour + time.Second)
	for range 64 {
		m.mustDo(wrapperspb.Bytes(nil))
	}
	if res, err := m.keyed("b", "key", "another request"); err != nil || res.Repeated {
		t.Fatalf("after a day: %+v %v", res, err)
	}
	if n := m.count("SELECT count FROM kept_counts WHERE actor = 'ann'"); n != 1 {
		t.Fatalf("%d counted, one is kept", n)
	}
}

func TestARefusalUnderAnIdempotencyKeyIsForgottenSoon(t *testing.T) {
	m := open(t, t.TempDir())
	if _, err := m.keyed("forbidden", "key", "request"); !fault.HasReason(err, "forbidden") {
		t.Fatal(err)
	}
	m.now = m.now.Add(state.DefaultTimeout + time.Minute + time.Second)
	for range 64 {
		m.mustDo(wrapperspb.Bytes(nil))
	}
	if res, err := m.keyed("allowed now", "key", "request"); err != nil || res.Repeated {
		t.Fatalf("%+v %v", res, err)
	}
}

func TestOneActorKeepsSoManyOutcomesAndNoMore(t *testing.T) {
	m := open(t, t.TempDir())
	for i := range 10_000 {
		if _, err := m.keyed("box "+strconv.Itoa(i), strconv.Itoa(i), "request"); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := m.keyed("one more", "one more", "request"); !fault.HasReason(err, "idempotency-quota") {
		t.Fatalf("above the quota: %v", err)
	}
	if res, err := m.keyed("box 7", "7", "request"); err != nil || !res.Repeated {
		t.Fatalf("what is kept is still answered: %+v %v", res, err)
	}
	if _, err := m.do(wrapperspb.String("without a key"), ""); err != nil {
		t.Fatalf("without a key all goes on: %v", err)
	}
}

func TestAWriterThatIsRefusedTakesNothingOfItsBatchWithIt(t *testing.T) {
	m := open(t, t.TempDir())
	before, after := m.entry(proposal(wrapperspb.String("before"), "1")), m.entry(proposal(wrapperspb.String("forbidden"), "2"))
	behind := m.entry(proposal(wrapperspb.String("behind"), "3"))
	answers := m.ApplyBatch([]*raft.Log{before, after, behind})
	if _, err := decide(answers[0]); err != nil {
		t.Error(err)
	}
	if _, err := decide(answers[1]); !fault.HasReason(err, "forbidden") {
		t.Error(err)
	}
	if _, err := decide(answers[2]); err != nil {
		t.Error(err)
	}
	if n := m.count("SELECT count(*) FROM boxes WHERE name IN ('before', 'behind')"); n != 2 {
		t.Errorf("%d of the two boxes beside it", n)
	}
	if n := m.count("SELECT count(*) FROM boxes WHERE name = 'forbidden'"); n != 0 {
		t.Error("a refused command left its box")
	}
	if n := m.count("SELECT count(*) FROM audit"); n != 3 {
		t.Errorf("%d audit entries of three commands", n)
	}
}
