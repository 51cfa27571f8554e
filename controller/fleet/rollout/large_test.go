package rollout_test

import (
	"fmt"
	"testing"
)

// What a decision over a large ring reads: it is asked in Apply at each claim and each look of the leader.
func BenchmarkTheFactsOfARingOf600(b *testing.B) {
	racks := make([]string, 600)
	for i := range racks {
		racks[i] = fmt.Sprint("r", i%3)
	}
	w := newWorld(b, racks...)
	s := w.spec()
	s.Width, s.MaxUnavailable, s.Canary = 40, 40, 0
	name := w.start(s)
	w.tick()
	for b.Loop() {
		w.get(name)
	}
}
