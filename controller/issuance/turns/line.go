package turns

import (
	"cmp"
	"slices"
	"time"
)

// place is one request in the line.
type place struct {
	id    string
	due   time.Time
	seq   uint64        // of two with one deadline, who asked first
	turn  chan struct{} // closed when it may go
	until time.Time     // when its place is given up, of who was told to come back
}

// line is places by deadline, nearest first.
type line []*place

func compare(a, b *place) int { return cmp.Or(a.due.Compare(b.due), cmp.Compare(a.seq, b.seq)) }

// before counts the places ahead of one.
func (l line) before(p *place) int {
	n, _ := slices.BinarySearchFunc(l, p, compare)
	return n
}

func (l *line) add(p *place) { *l = slices.Insert(*l, l.before(p), p) }

func (l *line) remove(p *place) {
	if i, ok := slices.BinarySearchFunc(*l, p, compare); ok {
		*l = slices.Delete(*l, i, i+1)
	}
}
