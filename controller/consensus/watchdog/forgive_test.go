package watchdog

import (
	"testing"
	"time"
)

func TestADogThatWasKeptFromLookingForgives(t *testing.T) {
	d := &Dog{limit: 3 * time.Second, work: map[uint64]work{}}
	began := time.Now()
	defer d.Begin("writing the raft log")()
	now := began.Add(10 * time.Second)
	if _, late := d.oldest(now); !late {
		t.Fatal("ten seconds are not too long")
	}
	d.forgive(-time.Second)
	d.forgive(8 * time.Second) // of which it was kept from looking for eight
	if w, late := d.oldest(now); late {
		t.Errorf("late: %+v", w)
	}
	if _, late := d.oldest(now.Add(2 * time.Second)); !late {
		t.Error("what hangs on is not late any more")
	}
}
