package consensus

import (
	"testing"
	"time"
)

func TestWritesGatherOnlyBehindOthersAndNeverLong(t *testing.T) {
	for _, c := range []struct {
		logs    int
		waiting int64
		want    time.Duration
	}{
		{1, 1, 0}, {1, 8, 0}, {8, 8, 0}, {8, 15, 0},
		{1, 9, 9 * gatherEach}, {8, 16, 16 * gatherEach}, {1, 33, 33 * gatherEach}, {1, 34, gatherMost}, {64, 4096, gatherMost},
	} {
		if got := gatherFor(c.logs, c.waiting); got != c.want {
			t.Errorf("%d at hand, %d waiting: %s, want %s", c.logs, c.waiting, got, c.want)
		}
	}
}
