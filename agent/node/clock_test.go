package node

import (
	"testing"
	"time"
)

func TestTheSkewFollowsAClockThatIsSetWhileAStreamLives(t *testing.T) {
	mono := time.Now()
	own := reading{at, mono}
	s := measure(own, at.Add(2*time.Second))
	for _, c := range []struct{ set, passed, skew time.Duration }{
		{0, time.Hour, 2 * time.Second},
		{5 * time.Second, time.Minute, -3 * time.Second},
		{400 * 24 * time.Hour, time.Second, 2*time.Second - 400*24*time.Hour},
		{-30 * time.Minute, time.Second, 30*time.Minute + 2*time.Second},
	} {
		later := reading{at.Add(c.set + c.passed), mono.Add(c.passed)}
		if got := s.at(later); got != c.skew || s.set(later) != c.set {
			t.Errorf("set by %s after %s: skew %s, set %s", c.set, c.passed, got, s.set(later))
		}
	}
	if (skew{}).at(reading{at.Add(time.Hour), mono}) != 0 || (skew{}).set(reading{at.Add(time.Hour), mono}) != 0 {
		t.Error("without a stream something is known of the controllers' clock")
	}
}
