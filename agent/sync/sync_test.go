package sync_test

import (
	"context"
	"crypto/tls"
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
