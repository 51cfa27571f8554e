package node

import (
	"strings"
	"testing"
	"time"
)

func TestAnIdentityIsAskedForAgainSoonAndThenSeldom(t *testing.T) {
	for _, c := range []struct {
		tries  int
		jitter float64
		want   time.Duration
	}{{0, 0, 5 * time.Second}, {0, 1, 10 * time.Second}, {1, 1, 20 * time.Second}, {3, 0.5, 60 * time.Second}, {5, 1, 5 * time.Minute}, {1 << 30, 0, 150 * time.Second}} {
		if got := identityPause(c.tries, c.jitter); got != c.want {
			t.Errorf("after %d tries with jitter %v: %s, want %s", c.tries, c.jitter, got, c.want)
		}
	}
}

func TestAnExpiredIdentityNamesTheGraceAndTheNewJoin(t *testing.T) {
	got := expiredRemedy("tenants/default/clusters/prod/nodes/n7")
	for _, want := range []string{"csm system grace --until 24h", "csm cluster join-command prod/n7 --rejoin"} {
		if !strings.Contains(got, want) {
			t.Errorf("%q does not say %q", got, want)
		}
	}
}
