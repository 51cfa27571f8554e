// Package statetest gives tests of domain packages the real state machine with a log of one voter and no network.
package statetest

import (
	"context"
	"flag"
	"fmt"
	"log/slog"
	"os"
	"strconv"
	"sync"
	"testing"
	"time"

	"github.com/hashicorp/raft"
	"github.com/jonboulle/clockwork"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/cassandra-security-manager/csm/controller/state"
	clusterv1 "github.com/cassandra-security-manager/csm/protocol/cluster/v1"
	"github.com/cassandra-security-manager/csm/shared/fault"
)

// Start is where the clock of a new Log stands.
var Start = time.Date(2026, time.March, 1, 12, 0, 0, 0, time.UTC)

// Log is a state.Log of one voter: a proposal is stamped by Clock, encoded, applied by the real Store and decoded again.
type Log struct {
	Store *state.Store
	Clock *clockwork.FakeClock
	close func()

	mu    sync.Mutex
	index uint64
	rude  []error
	lost  error
}

var _ state.Log = (*Log)(nil)

// New opens an empty state in a folder of the test. What would end a controller panics.
func New(t testing.TB, modules ...state.Module) *Log {
	t.Helper()
	clock := clockwork.NewFakeClockAt(Start)
	store, err := state.Open(context.Background(), state.Options{
		Dir: t.TempDir(), ClusterID: "testcluster00000", NodeID: "controller-1", Modules: modules, Clock: clock,
		Logger: slog.New(slog.NewTextHandler(writer{t}, nil)),
		Fatal:  func(err error) { panic(fmt.Sprintf("the state machine would end the process: %v", err)) },
	})
	if err != nil {
		t.Fatalf("open the state: %v", err)
	}
	l := &Log{Store: store, Clock: clock}
	l.close = sync.OnceFunc(func() {
		if err := store.Close(); err != nil {
			t.Errorf("close the state: %v", err)
		}
	})
	t.Cleanup(l.close)
	return l
}

// Close closes the state before the test ends, for tests that open hundreds.
func (l *Log) Close() { l.close() }

// Walks sets how many random walks (pgregory.net/rapid) a test takes, and of how many steps, 0 for rapid's own number: usual ones, and
// twenty times as many with CSM_TEST_FULL. Where -rapid.checks or -rapid.steps are given they hold.
func Walks(t testing.TB, usual, steps int) {
	t.Helper()
	if os.Getenv("CSM_TEST_FULL") != "" {
		usual *= 20
	}
	for name, value := range map[string]int{"rapid.checks": usual, "rapid.steps": steps} {
		if f := flag.Lookup(name); value > 0 && f.Value.String() == f.DefValue {
			if err := f.Value.Set(strconv.Itoa(value)); err != nil {
				t.Fatal(err)
			}
		}
	}
}

// Fail makes the next proposals fail with these errors, one each, before anything is applied: a log that is rude.
func (l *Log) Fail(errs ...error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.rude = append(l.rude, errs...)
}

// Lose makes every proposal fail with this error until it is called with nil, as one does without a quorum. Reads go on.
func (l *Log) Lose(err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.lost = err
}

// Skip leaves entries out, so that the next command lies far above the last one, as in a state that was restored.
func (l *Log) Skip(entries uint64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.index += entries
}

// Propose applies the command at the next index.
func (l *Log) Propose(ctx context.Context, p state.Proposal) (state.Result, error) {
	if err := ctx.Err(); err != nil {
		return state.Result{}, fault.From(err)
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.lost != nil {
		return state.Result{}, l.lost
	}
	if len(l.rude) > 0 {
		err := l.rude[0]
		l.rude = l.rude[1:]
		return state.Result{}, err
	}
	e, err := state.NewEnvelope(p, l.Clock.Now())
	if err != nil {
		return state.Result{}, err
	}
	if err := l.Store.Check(e); err != nil {
		return state.Result{}, err
	}
	e.Stamp = timestamppb.New(l.Clock.Now())
	data, err := proto.Marshal(e)
	if err != nil {
		return state.Result{}, err
	}
	l.index++
	out, ok := l.Store.Apply(&raft.Log{Index: l.index, Term: 1, Type: raft.LogCommand, Data: data}).(*clusterv1.Outcome)
	if !ok {
		return state.Result{}, fmt.Errorf("entry %d was answered with no outcome", l.index)
	}
	return state.DecodeOutcome(out, e.Kind)
}

type writer struct{ t testing.TB }

func (w writer) Write(b []byte) (int, error) {
	w.t.Logf("%s", b)
	return len(b), nil
}
