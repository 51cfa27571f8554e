package node

import (
	"testing"
	"time"
)

func TestTheSkewFollowsAClockThatIsSetWhileAStreamLives(t *testing.T) {
	mono := time.Now()
	own := reading{at, mono}
	s := skew{}.measure(own, at.Add(2*time.Second))
	for _, c := range []struct{ set, passed, skew time.Duration }{
		{0, time.Hour, 2 * time.Second},
		{5 * time.Second, time.Minute, -3 * time.Second},
		{400 * 24 * time.Hour, time.Second, 2*time.Second - 400*24*time.Hour},
		{-30 * time.Minute, time.Second, 30*time.Minute + 2*time.Second},
	} {
		later := reading{at.Add(c.set + c.passed), mono.Add(c.passed)}
		if got := s.at(later); got != c.skew || s.set(later) != c.set || s.undone(later) != -c.set {
			t.Errorf("set by %s after %s: skew %s, set %s, undone %s", c.set, c.passed, got, s.set(later), s.undone(later))
		}
	}
	// A controller that says a wrong time does not change by what certificates are judged; what this host's clock was set by stays known.
	year := 365 * 24 * time.Hour
	set := reading{at.Add(year + time.Minute), mono.Add(time.Minute)}
	if w := s.measure(own, at.Add(year)); w.at(own) != year || w.undone(own) != 0 {
		t.Errorf("a controller's wrong time: skew %s, undone %s", w.at(own), w.undone(own))
	}
	if w := s.measure(set, at.Add(time.Minute)); w.at(set) != -year || w.undone(set) != -year {
		t.Errorf("measured again after a leap: skew %s, undone %s", w.at(set), w.undone(set))
	}
	if (skew{}).at(reading{at.Add(time.Hour), mono}) != 0 || (skew{}).set(reading{at.Add(time.Hour), mono}) != 0 {
		t.Error("without a stream something is known of the controllers' clock")
	}
}
