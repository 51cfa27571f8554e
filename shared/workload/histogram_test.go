package workload

import (
	"testing"
	"time"

	"pgregory.net/rapid"
)

func TestABucketHoldsItsValueWithinThreePercent(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		us := rapid.Int64Range(0, 1<<32-1).Draw(t, "microseconds")
		d := time.Duration(us) * time.Microsecond
		got := upper(bucket(d))
		if got < d || float64(got) > float64(d)*1.032+1000 {
			t.Fatalf("%s is shown as %s", d, got)
		}
	})
}

func TestQuantilesOfAPhaseLeaveOutWhatCameBefore(t *testing.T) {
	var h histogram
	for range 1000 {
		h.add(time.Second)
	}
	before := h
	for i := range 100 {
		h.add(time.Duration(i+1) * time.Millisecond)
	}
	phase := h.minus(&before)
	if p := phase.quantile(0.99); p < 98*time.Millisecond || p > 103*time.Millisecond {
		t.Errorf("p99 of 1..100 ms is %s", p)
	}
	if p := phase.quantile(1); p > 104*time.Millisecond {
		t.Errorf("max is %s: the earlier phase shows through", p)
	}
	if p := (&histogram{}).quantile(0.5); p != 0 {
		t.Errorf("nothing counted, p50 %s", p)
	}
}
