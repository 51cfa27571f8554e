package rotation_test

import "testing"

// What a rotation of a large ring reads: it is asked in Apply at each claim, and at each look of the leader.
func BenchmarkTheViewOfARingOf250(b *testing.B) {
	w := newWorld(b, 250)
	r := w.start(young)
	for b.Loop() {
		w.get(r.Name)
	}
}
