//go:build linux

package fleetsim

import (
	"context"
	"log/slog"
	"net/netip"
	"sync"
	"time"

	"github.com/cassandra-security-manager/csm/agent/node"
)

// Agent is how one agent is, as it logs itself.
type Agent struct {
	Node    string `json:"node"`
	Cluster string `json:"cluster"`
	// Open says that its stream lives, Opened since when.
	Open   bool      `json:"open"`
	Opened time.Time `json:"opened"`
	// Controller at the other end, of the last stream.
	Controller string `json:"controller,omitempty"`
	// Generation of the newest target, and when it came.
	Generation uint64    `json:"generation"`
	Target     time.Time `json:"target"`
	// Moves were done, Failed were not; Proved are proofs of what was installed before Cassandra's start.
	Moves  int `json:"moves"`
	Proved int `json:"proved"`
	Failed int `json:"failed"`
	// Said is the last failure.
	Said string `json:"said,omitempty"`
}

// ear hears what an agent does.
type ear struct {
	mu   sync.Mutex
	stat Agent
}

func (e *ear) now() Agent {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.stat
}

func (e *ear) did(a node.Action, err error) {
	if a.Do != node.Install && a.Do != node.Prove {
		return
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	switch {
	case err == nil && a.Do == node.Prove:
		e.stat.Proved++
		return
	case err == nil:
		e.stat.Moves++
		return
	}
	e.stat.Failed++
	e.stat.Said = err.Error()
}

// listening is a log that an ear is held to. The agent has no other way to tell of its stream, and needs none.
type listening struct {
	ear *ear
	to  slog.Handler
}

func (l *listening) Enabled(_ context.Context, level slog.Level) bool { return level >= slog.LevelInfo }

func (l *listening) Handle(ctx context.Context, r slog.Record) error {
	l.ear.hear(r)
	if l.to.Enabled(ctx, r.Level) {
		return l.to.Handle(ctx, r)
	}
	return nil
}

func (l *listening) WithAttrs(a []slog.Attr) slog.Handler {
	return &listening{l.ear, l.to.WithAttrs(a)}
}
func (l *listening) WithGroup(g string) slog.Handler { return &listening{l.ear, l.to.WithGroup(g)} }

func (e *ear) hear(r slog.Record) {
	e.mu.Lock()
	defer e.mu.Unlock()
	switch r.Message {
	case "stream open":
		e.stat.Open, e.stat.Opened = true, r.Time
		r.Attrs(func(a slog.Attr) bool {
			if a.Key == "controller" {
				e.stat.Controller = a.Value.String()
			}
			return true
		})
	case "no stream":
		e.stat.Open = false
	case "target":
		e.stat.Target = r.Time
		r.Attrs(func(a slog.Attr) bool {
			if a.Key == "generation" {
				e.stat.Generation = a.Value.Uint64()
			}
			return true
		})
	}
}

func netipPort(number int) netip.AddrPort { return netip.AddrPortFrom(source(number), 0) }
