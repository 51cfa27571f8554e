package consensus

import (
	"context"
	"fmt"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jonboulle/clockwork"

	"github.com/cassandra-security-manager/csm/shared/fault"
)

// offsetClock is a real clock that is wrong.
type offsetClock struct {
	clockwork.Clock
	by atomic.Int64
}

func (c *offsetClock) Now() time.Time { return c.Clock.Now().Add(time.Duration(c.by.Load())) }

// clocked is a system of three whose clocks can be set.
func clocked(t *testing.T) (*world, map[string]*offsetClock) {
	w := newWorld(t)
	clocks := map[string]*offsetClock{}
	for _, n := range []string{"a", "b", "c"} {
		clocks[n] = &offsetClock{Clock: clockwork.NewRealClock()}
		w.box(n).clock = clocks[n]
	}
	if err := w.boxes[0].open(true); err != nil {
		t.Fatal(err)
	}
	for _, b := range w.boxes[1:] {
		b.join(w.boxes[0])
	}
	w.eventually("all vote and agree on the time", func() bool {
		s, err := w.boxes[0].node.Status(context.Background())
		voters := 0
		for _, m := range s.Members {
			if m.Voter {
				voters++
			}
		}
		for _, b := range w.boxes {
			if b.node.mayDate() != nil {
				return false
			}
		}
		return err == nil && s.Quorum && voters == 3
	})
	return w, clocks
}

// A write that is dated wrongly cannot be taken back: the clock of the state never goes back.
func TestALeaderWhoseClockIsSetDatesNotASingleWriteWithIt(t *testing.T) {
	t.Parallel()
	w, clocks := clocked(t)
	for round, leap := range []time.Duration{400 * 24 * time.Hour, 11 * time.Minute, -400 * 24 * time.Hour} {
		l := w.leader()
		before := l.store.Now()
		clocks[l.name].by.Store(int64(leap))
		var wg sync.WaitGroup
		for i := range 30 {
			for _, b := range w.boxes {
				wg.Add(1)
				go func() {
					defer wg.Done()
					b.mustWrite(fmt.Sprintf("round%d-%s-%d", round, b.name, i))
				}()
			}
		}
		wg.Wait()
		for _, b := range w.boxes {
			if at := b.store.Now(); time.Until(at) > time.Minute || at.Before(before) {
				t.Fatalf("a leap by %s: the state of %s is at %s", leap, b.name, at)
			}
		}
		w.eventually("another leads", func() bool { return w.leader() != l })
		clocks[l.name].by.Store(0)
		w.eventually("the mended clock is believed again", func() bool { return l.node.mayDate() == nil })
	}
}

func TestTheTermOfAControllerWithAWrongClockDoesNotMoveTheStatesClock(t *testing.T) {
	t.Parallel()
	w, clocks := clocked(t)
	b := w.follower()
	clocks[b.name].by.Store(int64(400 * 24 * time.Hour))
	w.eventually("it knows", func() bool { return b.node.clockWrong() != nil })
	began := w.leader().node.raft.CurrentTerm()
	// Leadership is pushed onto it; it hands it over again, and what it wrote meanwhile is the beginning of its term.
	w.eventually("it has led", func() bool {
		if l := w.leader(); l != b {
			ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
			defer cancel()
			_ = l.node.TransferLeadership(ctx, b.name)
		}
		return b.node.leaders.ready.Load() > began
	})
	w.eventually("another leads", func() bool { return w.leader() != b })
	w.leader().mustWrite("after")
	if at := b.store.Now(); time.Until(at) > time.Minute {
		t.Errorf("the state is at %s", at)
	}
}

func TestWhatIsJudgedOfAClock(t *testing.T) {
	mono := time.Now()
	at := func(wall, passed time.Duration) reading {
		return reading{wall: mono.Add(wall + passed).Round(0), mono: mono.Add(passed)}
	}
	fine, wrong, unknown := judgement{at: at(0, 0)}, judgement{at: at(0, 0), wrong: fault.New(fault.Unavailable, "clock-skew", "wrong")}, judgement{at: at(0, 0), unknown: true}
	for _, c := range []struct {
		what    string
		old     *judgement
		now     reading
		offsets []time.Duration
		alone   bool
		reason  string
	}{
		{"a first controller believes its clock", nil, at(0, 0), nil, true, ""},
		{"a lone controller believes a clock that was set", &fine, at(400*24*time.Hour, time.Second), nil, true, ""},
		{"who has asked nobody yet must not date", nil, at(0, 0), nil, false, "clock-unknown"},
		{"and goes on not to", &unknown, at(0, time.Hour), nil, false, "clock-unknown"},
		{"until somebody agrees", &unknown, at(0, time.Second), []time.Duration{0}, false, ""},
		{"nobody answers, and nothing was set", &fine, at(0, time.Hour), nil, false, ""},
		{"nobody answers, and the clock was set", &fine, at(5*time.Minute, time.Second), nil, false, "clock-leapt"},
		{"or set back", &fine, at(-5*time.Minute, time.Second), nil, false, "clock-leapt"},
		{"a small step", &fine, at(5*time.Second, time.Second), nil, false, ""},
		{"set, and most others say the same time", &fine, at(5*time.Minute, time.Second), []time.Duration{0, 10 * time.Hour}, false, ""},
		{"set, and the others differ", &fine, at(time.Hour, time.Second), []time.Duration{-time.Hour, -time.Hour}, false, "clock-skew"},
		{"a wrong clock stays wrong while nobody answers", &wrong, at(0, time.Hour), nil, false, "clock-skew"},
		{"and is right when they agree", &wrong, at(0, time.Second), []time.Duration{0}, false, ""},
	} {
		f, reason := judge("me", c.old, c.now, c.offsets, c.alone).mayDate(c.now), ""
		if f != nil {
			reason = f.Reason
		}
		if reason != c.reason {
			t.Errorf("%s: %q", c.what, reason)
		}
	}
	j := judge("me", nil, at(0, 0), []time.Duration{0, 0}, false)
	if f := j.mayDate(at(2*time.Minute, 300*time.Millisecond)); f == nil || f.Reason != "clock-leapt" {
		t.Errorf("a leap between two comparisons: %v", f)
	}
	if c := (contact{offset: time.Second, clock: at(0, 0)}); c.offsetAt(at(time.Hour, time.Second)) != time.Second-time.Hour {
		t.Errorf("an offset measured before the leap: %s", c.offsetAt(at(time.Hour, time.Second)))
	}
}

func TestALeaderDatesWritesWhileMoreClocksAgreeThanDiffer(t *testing.T) {
	for _, c := range []struct {
		offsets []time.Duration
		writes  bool
	}{
		{nil, true},
		{[]time.Duration{time.Second, -time.Minute}, true},
		{[]time.Duration{11 * time.Minute, 0}, true},
		{[]time.Duration{-11 * time.Minute, 11 * time.Minute}, false},
		{[]time.Duration{11 * time.Minute}, false},
		{[]time.Duration{11 * time.Minute, 11 * time.Minute, 0, 0}, true},
		{[]time.Duration{11 * time.Minute, 11 * time.Minute, 12 * time.Minute, 0}, false},
	} {
		if got := skewed(c.offsets) == 0; got != c.writes {
			t.Errorf("%v: writes %v", c.offsets, got)
		}
	}
}
