package consensus

import (
	"fmt"
	"sort"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// BenchmarkWrites measures three fsynced voters in one process, writers on one controller.
func BenchmarkWrites(b *testing.B) {
	for _, at := range []string{"leader", "follower"} {
		for _, writers := range []int{1, 16, 64} {
			b.Run(fmt.Sprintf("%s/%d", at, writers), func(b *testing.B) {
				w := newWorld(b)
				w.cluster("a", "b", "c")
				who := w.leader()
				if at == "follower" {
					who = w.follower()
				}
				var next atomic.Int64
				var wg sync.WaitGroup
				took := make([]time.Duration, b.N)
				b.ResetTimer()
				for range writers {
					wg.Add(1)
					go func() {
						defer wg.Done()
						for i := next.Add(1); i <= int64(b.N); i = next.Add(1) {
							began := time.Now()
							if err := who.write(fmt.Sprintf("bench-%d", i), 30*time.Second); err != nil {
								b.Error(err)
								return
							}
							took[i-1] = time.Since(began)
						}
					}()
				}
				wg.Wait()
				b.StopTimer()
				sort.Slice(took, func(i, j int) bool { return took[i] < took[j] })
				b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "writes/s")
				b.ReportMetric(float64(took[b.N/2].Microseconds())/1000, "p50-ms")
				b.ReportMetric(float64(took[b.N*99/100].Microseconds())/1000, "p99-ms")
			})
		}
	}
}

// BenchmarkFailover measures from the death of the leader to the next acknowledged write through a survivor.
func BenchmarkFailover(b *testing.B) {
	w := newWorld(b)
	w.cluster("a", "b", "c")
	var took []time.Duration
	for i := range b.N {
		l, f := w.leader(), w.follower()
		l.kill()
		began := time.Now()
		if err := f.write(fmt.Sprintf("next-%d", i), 10*time.Second); err != nil {
			b.Fatal(err)
		}
		took = append(took, time.Since(began))
		l.start()
		w.eventually("it is back", func() bool { return l.node.Age() < time.Second })
	}
	sort.Slice(took, func(i, j int) bool { return took[i] < took[j] })
	b.ReportMetric(float64(took[len(took)/2].Milliseconds()), "p50-ms")
	b.ReportMetric(float64(took[len(took)-1].Milliseconds()), "max-ms")
}
