package node

import (
	"time"

	"github.com/jonboulle/clockwork"
)

// maxLeap is how far this host's clock may be set while a stream lives before the controllers are asked to judge it. Smaller
// steps are what time daemons do.
const maxLeap = time.Minute

// reading is a look at the wall clock beside the monotonic one, which nobody sets.
type reading struct{ wall, mono time.Time }

func read(c clockwork.Clock) reading { return reading{c.Now().Round(0), time.Now()} }

// skew is the controllers' clock minus this host's, as of a reading of the latter. The controllers say their time when a
// stream opens; that this host's is set meanwhile is seen by the monotonic clock. Without a stream nothing is known: a machine
// that slept has a monotonic clock that slept too.
type skew struct {
	known bool
	by    time.Duration
	from  reading
	// undo takes back what this host's clock was set by since the stream opened, up to from.
	undo time.Duration
}

// measure takes a word of the controllers about their time.
func (s skew) measure(own reading, theirs time.Time) skew {
	return skew{true, theirs.Sub(own.wall), own, s.undone(own)}
}

// set is how far the clock was set since; forward is positive. Pure.
func (s skew) set(now reading) time.Duration {
	if !s.known {
		return 0
	}
	return now.wall.Sub(s.from.wall) - now.mono.Sub(s.from.mono)
}

// at is the difference as it is at a later reading; zero while nothing is known. Pure.
func (s skew) at(now reading) time.Duration { return s.by - s.set(now) }

// undone takes back all that the clock was set by since the stream opened. Pure.
func (s skew) undone(now reading) time.Duration { return s.undo - s.set(now) }

// now is the time by which certificates, deadlines and freezes are judged: this host's, as it was before it was set while a
// stream lives. It never follows a controller's: one whose own clock is wrong must not make stores look expired.
func (n *Node) now() time.Time {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.told()
}

// told is now for who holds the lock.
func (n *Node) told() time.Time {
	r := read(n.o.Clock)
	if by := n.skew.undone(r); by.Abs() > maxLeap {
		return r.wall.Add(by)
	}
	return r.wall
}

// watchClock opens the stream anew when this host's clock was set: a controller refuses one that is wrong, in words, and
// says the time to one that is right again.
func (n *Node) watchClock() {
	now := read(n.o.Clock)
	n.mu.Lock()
	set := n.skew.set(now)
	if set.Abs() > maxLeap {
		n.skew = skew{true, n.skew.at(now), now, n.skew.undone(now)}
	}
	n.mu.Unlock()
	if set.Abs() > maxLeap {
		n.log.Warn("this host's clock was set; the controllers judge it", "by", set.Round(time.Second).String())
		n.client.Reconnect()
	}
}
