package agenttest

import (
	"context"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/cassandra-security-manager/csm/agent/config"
	"github.com/cassandra-security-manager/csm/agent/install"
	"github.com/cassandra-security-manager/csm/controller/fleet"
	agentv1 "github.com/cassandra-security-manager/csm/protocol/agent/v1"
	"github.com/cassandra-security-manager/csm/shared/certificate"
)

// listener is told each line that an agent logs.
type listener func(slog.Record)

func (listener) Enabled(context.Context, slog.Level) bool        { return true }
func (l listener) Handle(_ context.Context, r slog.Record) error { l(r); return nil }
func (l listener) WithAttrs([]slog.Attr) slog.Handler            { return l }
func (l listener) WithGroup(string) slog.Handler                 { return l }

// within waits for a channel in the middle of a move, where nobody else looks.
func within(t *testing.T, what string, c <-chan struct{}) {
	select {
	case <-c:
	case <-time.After(patience):
		t.Error("it did not come to this: " + what)
	}
}

// interrupted is a ring whose first node is stopped by a word in the middle of its next move: the truststore is new, the
// keystore is not. stop returns when the agent has heard it.
func interrupted(t *testing.T, prepare func(*world, *host), stop func(*world, *host)) (w *world, a *host, stopped *atomic.Pointer[time.Time], arm func()) {
	t.Helper()
	var armed atomic.Bool
	var once sync.Once
	stopped = &atomic.Pointer[time.Time]{}
	w, a, _ = ring(t, func(w *world, a *host) {
		prepare(w, a)
		a.hook = func(op install.Op) error {
			if armed.Load() && op.Step == install.StepKeystore && op.Do == "begin" {
				once.Do(func() {
					stop(w, a)
					now := time.Now()
					stopped.Store(&now)
				})
			}
			return nil
		}
	})
	return w, a, stopped, func() { armed.Store(true) }
}

// A word that comes while a move is under way stops it at its next effect, and what it has changed is taken back.
func TestASuspensionInTheMiddleOfAMoveTakesItBack(t *testing.T) {
	t.Parallel()
	heard := make(chan struct{}, 100)
	w, a, stopped, arm := interrupted(t, func(_ *world, a *host) {
		a.logs = listener(func(r slog.Record) {
			if r.Message == "this agent is suspended" {
				select {
				case heard <- struct{}{}:
				default:
				}
			}
		})
	}, func(w *world, a *host) {
		must(t, w.fleet.Suspend(context.Background(), cluster+"/nodes/n1", "an incident", ann))
		within(t, "the agent hears that it is suspended", heard)
	})
	takenBack(t, w, a, stopped, arm, "suspended", func() { must(t, w.fleet.Resume(t.Context(), cluster+"/nodes/n1", "over", ann)) })
}

func TestAModeLoweredInTheMiddleOfAMoveTakesItBack(t *testing.T) {
	t.Parallel()
	write := func(a *host, text string) {
		must(t, os.WriteFile(filepath.Join(filepath.Dir(a.token), "agent.yaml"), []byte(text), 0o600))
	}
	w, a, stopped, arm := interrupted(t, func(_ *world, a *host) {
		write(a, "mode: manage\n")
		a.mode = config.Ceiling(filepath.Join(filepath.Dir(a.token), "agent.yaml"), agentv1.Mode_MODE_MANAGE)
	}, func(_ *world, a *host) { write(a, "mode: stage\n") })
	takenBack(t, w, a, stopped, arm, "stage", func() { write(a, "mode:   manage\n") })
}

func takenBack(t *testing.T, w *world, a *host, stopped *atomic.Pointer[time.Time], arm func(), reason string, again func()) {
	t.Helper()
	before, trust := a.leaf(), sum(t, a.cass.Store.TruststorePath)
	arm()
	_, err := w.fleet.RequestRenewal(t.Context(), cluster+"/nodes/n1", "", "test", ann)
	must(t, err)
	a.did("install failed")
	if at := stopped.Load(); at == nil || time.Since(*at) > 30*time.Second {
		t.Errorf("stopped at %v, back at %s", at, time.Now())
	}
	if !a.leaf().Equal(before) || sum(t, a.cass.Store.TruststorePath) != trust {
		t.Error("the old pair is not back")
	}
	w.await("it says why it waits", func() bool { n := a.next(); return n.Wants == "install" && n.Reason == reason })
	w.leap(50 * time.Second) // a move that failed is tried again after a while
	again()
	a.await("renewed once it may", func(s fleet.Store) bool {
		return s.State == "proven" && s.Leaf != certificate.Hex(certificate.Fingerprint(before.Raw))
	})
}

func sum(t *testing.T, path string) string {
	t.Helper()
	b, err := os.ReadFile(path)
	must(t, err)
	return certificate.Hex(certificate.Fingerprint(b))
}
