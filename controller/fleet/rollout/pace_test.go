package rollout

import (
	"testing"
	"time"
)

func TestTheSlowestNodesSayNothingOfTheOthers(t *testing.T) {
	var twenty []time.Duration
	for range 18 {
		twenty = append(twenty, 10*time.Second)
	}
	twenty = append([]time.Duration{2 * time.Hour, time.Hour}, twenty...)
	for name, c := range map[string]struct {
		took []time.Duration
		want time.Duration
		last time.Duration
	}{
		"nobody moved":         {nil, 0, 0},
		"a few all count":      {[]time.Duration{time.Second, 3 * time.Second}, 2 * time.Second, 3 * time.Second},
		"two of twenty do not": {twenty, 10 * time.Second, 10 * time.Second},
		"one of ten does not":  {twenty[1:11], 10 * time.Second, 10 * time.Second},
	} {
		if got, last := typical(c.took); got != c.want || last != c.last {
			t.Errorf("%s: %s and %s, not %s and %s", name, got, last, c.want, c.last)
		}
	}
}
