package state_test

import (
	"bytes"
	"fmt"
	"testing"

	"github.com/hashicorp/raft"
	"google.golang.org/protobuf/types/known/wrapperspb"
)

// BenchmarkApplyBatch applies commands of 700 bytes, by the number of commands raft hands over at once.
func BenchmarkApplyBatch(b *testing.B) {
	for _, size := range []int{1, 21, 64, 512} {
		b.Run(fmt.Sprintf("batch=%d", size), func(b *testing.B) {
			m := open(b, b.TempDir())
			body := wrapperspb.Bytes(bytes.Repeat([]byte{7}, 700))
			logs := make([]*raft.Log, 0, size)
			entries := make([]*raft.Log, b.N)
			for i := range entries {
				entries[i] = m.entry(proposal(body, ""))
			}
			b.ResetTimer()
			for i := 0; i < b.N; i += len(logs) {
				logs = append(logs[:0], entries[i:min(i+size, b.N)]...)
				m.ApplyBatch(logs)
			}
			b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "commands/s")
			if m.fatal != nil {
				b.Fatal(m.fatal)
			}
		})
	}
}

// BenchmarkView reads one row in a read transaction, while nothing is written.
func BenchmarkView(b *testing.B) {
	m := open(b, b.TempDir())
	m.mustDo(wrapperspb.String("a"))
	b.RunParallel(func(pb *testing.PB) {
		for pb.Next() {
			m.count("SELECT count(*) FROM boxes WHERE name = ?", "a")
		}
	})
}

// BenchmarkFanOut applies one change that wakes one of ten thousand waiters.
func BenchmarkFanOut(b *testing.B) {
	m := open(b, b.TempDir())
	for i := range 10_000 {
		defer m.Watch(fmt.Sprintf("tenants/default/boxes/other-%d", i)).Close()
	}
	body := wrapperspb.Bytes(nil)
	for b.Loop() {
		m.Apply(m.entry(proposal(body, "")))
	}
}
