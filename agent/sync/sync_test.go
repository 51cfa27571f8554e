package sync_test

import (
	"context"
	"crypto/tls"
	"errors"
	"log/slog"
	"testing"
	"time"

	"github.com/jonboulle/clockwork"

	"github.com/cassandra-security-manager/csm/agent/sync"
	agentv1 "github.com/cassandra-security-manager/csm/protocol/agent/v1"
)

func TestPausesGrowWithJitterAndEnd(t *testing.T) {
	for _, c := range []struct {
		round  int
		jitter float64
		want   time.Duration
	}{{0, 0, 200 * time.Millisecond}, {0, 1, time.Second}, {2, 1, 4 * time.Second}, {50, 1, 5 * time.Second}, {50, 0, time.Second}} {
		if got := sync.Pause(c.round, c.jitter); got != c.want {
			t.Errorf("round %d, jitter %v: %s, want %s", c.round, c.jitter, got, c.want)
		}
	}
}

// deserted is an agent whose controllers do not answer; it counts the tries.
type deserted struct{ lost chan error }

func (deserted) Hello() *agentv1.Hello            { return &agentv1.Hello{} }
func (deserted) Target(*agentv1.Target)           {}
func (deserted) ProofTask(*agentv1.ProofTask)     {}
func (deserted) ProofResult(*agentv1.ProofResult) {}
func (deserted) Control(*agentv1.Control)         {}
func (deserted) Connected(string)                 {}
func (d deserted) Disconnected(why error)         { d.lost <- why }

func TestEveryControllerIsAskedAgainWithinFiveSecondsHoweverLongNoneAnswered(t *testing.T) {
	ctx, stop := context.WithTimeout(t.Context(), time.Minute)
	defer stop()
	clock, d := clockwork.NewFakeClock(), deserted{make(chan error)}
	controllers := []string{"127.0.0.1:1", "127.0.0.1:2", "127.0.0.1:3"} // nothing listens there
	c := sync.New(sync.Options{Controllers: controllers, TLS: &tls.Config{}, Handler: d, Clock: clock, Jitter: func() float64 { return 0.999 }, Logger: slog.New(slog.DiscardHandler)})
	ended := make(chan error, 1)
	go func() { ended <- c.Run(ctx) }()
	for round := range 50 {
		for range controllers {
			select {
			case <-d.lost:
			case <-ctx.Done():
				t.Fatalf("round %d: nobody is asked", round)
			}
		}
		if err := clock.BlockUntilContext(ctx, 1); err != nil {
			t.Fatal(err)
		}
		clock.Advance(5 * time.Second)
	}
	stop()
	for {
		select {
		case <-d.lost:
		case err := <-ended:
			if err != nil {
				t.Error(err)
			}
			return
		}
	}
}

// lines counts what is logged at each level.
type lines struct {
	slog.Handler
	warned chan string
}

func (l lines) Enabled(context.Context, slog.Level) bool { return true }
func (l lines) Handle(_ context.Context, r slog.Record) error {
	if r.Level >= slog.LevelWarn {
		l.warned <- r.Message
	}
	return nil
}

func TestWhyThereIsNoStreamIsSaidOnceAndAHopelessAgentAsksSeldom(t *testing.T) {
	ctx, stop := context.WithTimeout(t.Context(), time.Minute)
	defer stop()
	clock, d, log := clockwork.NewFakeClock(), deserted{make(chan error)}, lines{warned: make(chan string, 1000)}
	c := sync.New(sync.Options{Controllers: []string{"127.0.0.1:1", "127.0.0.1:2"}, TLS: &tls.Config{}, Handler: d, Clock: clock, Jitter: func() float64 { return 0 },
		Logger: slog.New(log), Hopeless: func() bool { return true }})
	ended := make(chan error, 1)
	go func() { ended <- c.Run(ctx) }()
	lost := func() {
		t.Helper()
		for range 2 {
			select {
			case <-d.lost:
			case <-ctx.Done():
				t.Fatal("nobody is asked")
			}
		}
	}
	for round := range 5 {
		lost()
		step := sync.Pause(round, 0)
		for waited := time.Duration(0); waited < time.Minute; waited += step {
			if err := clock.BlockUntilContext(ctx, 1); err != nil { // it is asleep, so it asks nobody
				t.Fatal(err)
			}
			select {
			case <-d.lost:
				t.Fatalf("asked again after %s", waited)
			default:
			}
			clock.Advance(step)
		}
	}
	lost()
	if n := len(log.warned); n != 2 {
		t.Errorf("%d lines for two controllers that never answered", n)
	}
	c.Reconnect() // the identity is renewed
	lost()
	stop()
	for {
		select {
		case <-d.lost:
		case err := <-ended:
			if err != nil {
				t.Error(err)
			}
			return
		}
	}
}

func TestTwoErrorsThatDifferInNumbersAreOneKind(t *testing.T) {
	a := errors.New("read tcp 127.0.0.1:40312->10.0.0.1:9641: the clock is 11m0s off: it says 2026-11-22T08:00:00Z")
	b := errors.New("read tcp 127.0.0.1:40999->10.0.0.1:9641: the clock is 12m30s off: it says 2026-11-22T08:01:30Z")
	if sync.Kind(a) != sync.Kind(b) || sync.Kind(a) == sync.Kind(errors.New("connection refused")) || sync.Kind(nil) != "" {
		t.Errorf("%q, %q", sync.Kind(a), sync.Kind(b))
	}
}
