package node

import (
	"path/filepath"
	"testing"
	"time"
)

func TestTheWordForNoWayBackHoldsAnHourAndOnlyOverAnExpiredLeaf(t *testing.T) {
	dir, now := t.TempDir(), time.Now()
	if noWayBack(dir, now.Add(-time.Hour), now) {
		t.Error("nobody gave it")
	}
	if err := AllowNoWayBack(filepath.Join(dir, "nothing")); err == nil {
		t.Error("a word into a folder that is not there")
	}
	if err := AllowNoWayBack(dir); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		end, now time.Time
		want     bool
	}{{now.Add(-time.Hour), now, true}, {now.Add(time.Hour), now, false}, {time.Time{}, now, false}, {now.Add(-time.Hour), now.Add(61 * time.Minute), false}} {
		if got := noWayBack(dir, c.end, c.now); got != c.want {
			t.Errorf("leaf until %s, now %s: %v", c.end, c.now, got)
		}
	}
}
