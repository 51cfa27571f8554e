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
	// idle is how much garbage and unused memory may lie about while little goes on.
	idle = 16 << 20
	// mostGarbage and leastGarbage bound it, in per cent of what lives.
	mostGarbage, leastGarbage = 400, 50
)

// memoryLoop lets garbage grow to the same size whatever lives beside it, and gives back what a burst of work has left: the stacks and
// buffers of thousands of handshakes would stay for minutes. GOGC in the environment overrules.
func (s *Server) memoryLoop(ctx context.Context) error {
	if os.Getenv("GOGC") != "" {
		return nil
	}
	now := []runtimemetrics.Sample{{Name: "/gc/heap/live:bytes"}, {Name: "/gc/cycles/total:gc-cycles"}, {Name: "/memory/classes/heap/free:bytes"}, {Name: "/memory/classes/heap/objects:bytes"}}
	percent, cycles := 0, uint64(0)
	for ok := true; ok; ok = wait(ctx, nil, 10*time.Second) {
		runtimemetrics.Read(now)
		if p := percentOf(now[0].Value.Uint64()); p != percent {
			debug.SetGCPercent(p)
			percent = p
		}
		quiet := now[1].Value.Uint64() <= cycles+1
		if cycles = now[1].Value.Uint64(); quiet && now[2].Value.Uint64()+now[3].Value.Uint64() > now[0].Value.Uint64()+idle {
			debug.FreeOSMemory()
			cycles++
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
