package watchdog_test

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"github.com/hashicorp/raft"

	"github.com/cassandra-security-manager/csm/controller/consensus/watchdog"
	"github.com/cassandra-security-manager/csm/shared/fault"
)

const limit = 3 * time.Second

// watch runs a test under a clock of its own and says how often, and after which time, the dog bit.
func watch(t *testing.T, do func(d *watchdog.Dog)) (bites []error, after time.Duration) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		ctx, stop := context.WithCancel(t.Context())
		began := time.Now()
		d := watchdog.New(ctx, limit, func(err error) {
			bites, after = append(bites, err), time.Since(began)
		})
		do(d)
		stop()
		synctest.Wait()
	})
	return bites, after
}

func TestWorkThatDoesNotEndBitesOnce(t *testing.T) {
	bites, after := watch(t, func(d *watchdog.Dog) {
		d.Begin("writing the raft log")
		d.Begin("applying the raft log")
		time.Sleep(10 * limit)
	})
	if len(bites) != 1 || !fault.HasReason(bites[0], "disk-hangs") {
		t.Fatalf("bites: %v", bites)
	}
	if after <= limit || after > limit+limit/5 {
		t.Errorf("it bit after %s, the limit is %s", after, limit)
	}
}

func TestWorkThatEndsInTimeBitesNobody(t *testing.T) {
	bites, _ := watch(t, func(d *watchdog.Dog) {
		for range 20 {
			end := d.Begin("writing the raft log")
			time.Sleep(limit - time.Second)
			end()
		}
		time.Sleep(10 * limit)
	})
	if len(bites) > 0 {
		t.Errorf("bites: %v", bites)
	}
}

// laborious takes long for a batch, and not for any entry of it.
type laborious struct{ watchdog.Stepping }

func (laborious) ApplySteps(logs []*raft.Log, step func()) []any {
	for range logs {
		step()
		time.Sleep(limit - time.Second)
	}
	return nil
}

func TestALongBatchIsNoHungDisk(t *testing.T) {
	bites, _ := watch(t, func(d *watchdog.Dog) {
		watchdog.FSM{Stepping: laborious{}, Dog: d}.ApplyBatch(make([]*raft.Log, 50))
		time.Sleep(10 * limit)
	})
	if len(bites) > 0 {
		t.Errorf("bites: %v", bites)
	}
}

// hung is a disk that never answers.
type hung struct {
	raft.LogStore
	raft.StableStore
	watchdog.Stepping
	until <-chan struct{}
}

var errFreed = errors.New("the disk answers again")

func (h hung) StoreLogs([]*raft.Log) error    { <-h.until; return errFreed }
func (h hung) Set(_, _ []byte) error          { <-h.until; return errFreed }
func (h hung) SetUint64([]byte, uint64) error { <-h.until; return errFreed }
func (h hung) Apply(*raft.Log) any            { <-h.until; return nil }

func (h hung) ApplySteps([]*raft.Log, func()) []any { <-h.until; return nil }

func TestEachWriteOfRaftIsWatched(t *testing.T) {
	for what, do := range map[string]func(*watchdog.Dog, hung){
		"one entry":    func(d *watchdog.Dog, h hung) { _ = watchdog.Log{LogStore: h, Dog: d}.StoreLog(&raft.Log{}) },
		"many entries": func(d *watchdog.Dog, h hung) { _ = watchdog.Log{LogStore: h, Dog: d}.StoreLogs(nil) },
		"the vote":     func(d *watchdog.Dog, h hung) { _ = watchdog.Stable{StableStore: h, Dog: d}.Set(nil, nil) },
		"the term":     func(d *watchdog.Dog, h hung) { _ = watchdog.Stable{StableStore: h, Dog: d}.SetUint64(nil, 1) },
		"a batch":      func(d *watchdog.Dog, h hung) { watchdog.FSM{Stepping: h, Dog: d}.ApplyBatch(nil) },
		"one command":  func(d *watchdog.Dog, h hung) { watchdog.FSM{Stepping: h, Dog: d}.Apply(nil) },
	} {
		bites, _ := watch(t, func(d *watchdog.Dog) {
			until := make(chan struct{})
			go do(d, hung{until: until})
			time.Sleep(2 * limit)
			close(until)
		})
		if len(bites) != 1 {
			t.Errorf("%s: bites: %v", what, bites)
		}
	}
}
