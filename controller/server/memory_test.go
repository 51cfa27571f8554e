package server

import "testing"

func TestGarbageHasASizeAndBounds(t *testing.T) {
	for _, c := range []struct {
		live uint64
		want int
	}{{0, 400}, {1 << 20, 400}, {16 << 20, 400}, {64 << 20, 100}, {128 << 20, 50}, {4 << 30, 50}, {1 << 62, 50}} {
		if got := percentOf(c.live); got != c.want {
			t.Errorf("%d bytes live: %d %%, want %d", c.live, got, c.want)
		}
	}
}
