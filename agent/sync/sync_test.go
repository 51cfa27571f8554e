package sync_test

import (
	"testing"
	"time"

	"github.com/cassandra-security-manager/csm/agent/sync"
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
