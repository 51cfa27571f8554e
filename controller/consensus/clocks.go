package consensus

import (
	"time"

	"github.com/hashicorp/raft"

	"github.com/cassandra-security-manager/csm/shared/fault"
)

// maxLeap is how far the wall clock may leap between two comparisons with the other controllers (a second apart) before the
// next write waits for a new one. Smaller steps are what time daemons do.
const maxLeap = time.Minute

// reading is a look at the wall clock beside the monotonic one, which nobody sets.
type reading struct{ wall, mono time.Time }

func (n *Node) readClock() reading { return reading{n.cfg.Clock.Now().Round(0), time.Now()} }

// leapt is how far the wall clock was set between two readings; forward is positive. Pure.
func (r reading) leapt(now reading) time.Duration {
	return now.wall.Sub(r.wall) - now.mono.Sub(r.mono)
}

// judgement says whether this controller may date writes, as of a reading of its clock.
type judgement struct {
	at reading
	// unknown: no other clock was seen since the start. wrong: more clocks differ than agree.
	unknown bool
	wrong   *fault.Error
}

// judge compares what was measured (offsets of the others against the clock as it is now) and gives the next judgement.
// Alone, there is nobody to compare with and a controller has to believe its clock. Where there are others and none
// answers, what was judged holds from when it was: a leap since then is still noticed. Pure.
func judge(name string, old *judgement, now reading, offsets []time.Duration, alone bool) judgement {
	switch differ := skewed(offsets); {
	case differ > 0:
		return judgement{at: now, wrong: fault.New(fault.Unavailable, "clock-skew", "the clock of %s differs by more than %s from %d of the %d other controllers that answer, so it must not date writes",
			name, MaxClockOffset, differ, len(offsets)).Do("set the clocks (chrony, systemd-timesyncd); `csm status` shows each controller's offset")}
	case len(offsets) > 0 || alone:
		return judgement{at: now}
	case old == nil:
		return judgement{at: now, unknown: true}
	}
	return *old
}

// mayDate says why a write must not be dated at a reading of the clock; nil when it may. Pure.
func (j judgement) mayDate(now reading) *fault.Error {
	if j.wrong != nil {
		return j.wrong
	}
	if j.unknown {
		return fault.New(fault.Unavailable, "clock-unknown", "no other controller has told its time since this one was started").Do("try again; if it stays so, see `csm status`")
	}
	if leap := j.at.leapt(now); leap.Abs() > maxLeap {
		return fault.New(fault.Unavailable, "clock-leapt", "the clock of this controller was set by %s a moment ago and is not compared with the others' yet", leap.Round(time.Second)).
			Do("try again; if it stays so, see `csm status`")
	}
	return nil
}

// mayDate says why this controller must not date a write now; nil when it may.
func (n *Node) mayDate() *fault.Error { return n.judged.Load().mayDate(n.readClock()) }

// clockDoubt says that the clock differs from most others', or was set a moment ago; nil when neither is known.
func (n *Node) clockDoubt() *fault.Error {
	if j := n.judged.Load(); !j.unknown {
		return j.mayDate(n.readClock())
	}
	return nil
}

// clockWrong says that the clock differs from most others'; nil when it does not, or is not known to.
func (n *Node) clockWrong() *fault.Error { return n.judged.Load().wrong }

// judgeClocks applies the rule to what was measured. An offset that was measured before a leap of our clock is corrected by it.
func (n *Node) judgeClocks() {
	now := n.readClock()
	var offsets []time.Duration
	for _, m := range n.dir.trusted() {
		if m.ID != n.cfg.NodeID && m.State != "approved" && n.contacts.fresh(m.ID) {
			offsets = append(offsets, n.contacts.get(m.ID).offsetAt(now))
		}
	}
	old := n.judged.Load()
	next := judge(n.cfg.Name, old, now, offsets, n.alone())
	n.judged.Store(&next)
	switch {
	case old == nil:
	case next.wrong != nil && old.wrong == nil:
		n.cfg.Logger.Error("clocks differ", "error", next.wrong)
	case next.wrong == nil && old.wrong != nil:
		n.cfg.Logger.Info("the clock agrees with the others' again")
	case old.at.leapt(now).Abs() > maxLeap:
		n.cfg.Logger.Warn("the clock of this machine was set", "by", old.at.leapt(now).Round(time.Second), "compared_with", len(offsets))
	}
	if old == nil || old.unknown != next.unknown || (old.wrong == nil) != (next.wrong == nil) {
		n.leaders.wake()
	}
}

// alone says that no other controller votes.
func (n *Node) alone() bool {
	conf := n.raft.GetConfiguration()
	if conf.Error() != nil {
		return false
	}
	for _, s := range conf.Configuration().Servers {
		if s.Suffrage == raft.Voter && s.ID != raft.ServerID(n.cfg.NodeID) {
			return false
		}
	}
	return true
}

// skewed is the rule: a leader may date writes while more measured clocks (its own among them) agree with it than differ.
// One of three that is wrong never leads; of two nobody can tell which is wrong, so neither writes. It returns how many
// differ when the leader must not write, else 0. Offsets are those of the other members.
func skewed(offsets []time.Duration) int {
	agree, differ := 1, 0
	for _, o := range offsets {
		if o.Abs() > MaxClockOffset {
			differ++
		} else {
			agree++
		}
	}
	if agree > differ {
		return 0
	}
	return differ
}

// leaderNow is the leader's clock as far as it is known: the deadline of a command is judged by it.
func (n *Node) leaderNow() time.Time {
	now := n.readClock()
	if id := n.leaderID(); id != n.cfg.NodeID && n.contacts.fresh(id) {
		return now.wall.Add(n.contacts.get(id).offsetAt(now))
	}
	return now.wall
}
