package workload

import (
	"math/bits"
	"time"
)

// histogram counts latencies in buckets that grow with the value: 32 of them to each power of two of a microsecond, so
// a quantile is right within about 3 %. Two states of it can be subtracted, which a reservoir cannot.
type histogram struct {
	counts [buckets]uint64
}

const (
	fine    = 5 // log2 of the buckets in each power of two
	buckets = (32 - fine + 1) << fine
)

func bucket(d time.Duration) int {
	us := uint64(max(0, d.Microseconds()))
	if us >= 1<<32 {
		us = 1<<32 - 1
	}
	if us < 1<<fine {
		return int(us)
	}
	shift := bits.Len64(us) - fine - 1
	return min(buckets-1, shift<<fine+int(us>>shift))
}

// upper is the largest value that falls into a bucket.
func upper(b int) time.Duration {
	if b < 1<<fine {
		return time.Duration(b) * time.Microsecond
	}
	shift := b>>fine - 1
	return time.Duration((uint64(b&(1<<fine-1)|1<<fine)+1)<<shift-1) * time.Microsecond
}

func (h *histogram) add(d time.Duration) { h.counts[bucket(d)]++ }

func (h *histogram) minus(o *histogram) *histogram {
	out := &histogram{}
	for i := range h.counts {
		out.counts[i] = h.counts[i] - o.counts[i]
	}
	return out
}

// quantile is the latency that a share q of all stay at or under; 0 when there are none.
func (h *histogram) quantile(q float64) time.Duration {
	var total uint64
	for _, c := range h.counts {
		total += c
	}
	if total == 0 {
		return 0
	}
	want, seen := uint64(q*float64(total-1))+1, uint64(0)
	for b, c := range h.counts {
		if seen += c; seen >= want {
			return upper(b)
		}
	}
	return 0
}
