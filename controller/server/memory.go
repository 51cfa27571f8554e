package server

import (
	"context"
	"os"
	"runtime/debug"
	runtimemetrics "runtime/metrics"
	"time"
)

const (
	// garbage is how much of it may lie between two collections. What lives long in a small controller is small and what a request makes
	// is garbage: few collections save a tenth of the CPU of issuing. With thousands of agents a fixed share would cost them dearly.
	garbage = 64 << 20
	// mostGarbage and leastGarbage bound it, in per cent of what lives.
	mostGarbage, leastGarbage = 400, 50
)

// memoryLoop lets garbage grow to the same size whatever lives beside it. GOGC in the environment overrules.
func (s *Server) memoryLoop(ctx context.Context) error {
	if os.Getenv("GOGC") != "" {
		return nil
	}
	live := []runtimemetrics.Sample{{Name: "/gc/heap/live:bytes"}}
	last := 0
	for ok := true; ok; ok = wait(ctx, nil, 10*time.Second) {
		runtimemetrics.Read(live)
		if p := percentOf(live[0].Value.Uint64()); p != last {
			debug.SetGCPercent(p)
			last = p
		}
	}
	return nil
}

// percentOf is the runtime's GOGC for so many bytes that live.
func percentOf(live uint64) int {
	if live == 0 { // before the first collection
		return mostGarbage
	}
	return int(max(leastGarbage, min(mostGarbage, garbage*100/live)))
}
