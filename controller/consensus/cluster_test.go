package consensus

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/hashicorp/raft"
	"github.com/jonboulle/clockwork"

	"github.com/cassandra-security-manager/csm/controller/state"
	clusterv1 "github.com/cassandra-security-manager/csm/protocol/cluster/v1"
	"github.com/cassandra-security-manager/csm/shared/fault"
)

func TestThreeControllersJoinAndEachTakesWrites(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	for i, b := range w.cluster("a", "b", "c") {
		b.mustWrite([]string{"one", "two", "three"}[i])
	}
	for _, b := range w.boxes {
		if got := b.written(); !got["one"] || !got["two"] || !got["three"] {
			t.Fatalf("%s reads %v", b.name, got)
		}
		w.eventually(b.name+" knows that its state is fresh", func() bool { return b.node.Age() < 2*time.Second })
	}
	w.identical(w.boxes[1], 3)
	w.eventually("gossip hears of everybody", func() bool { return len(w.boxes[0].node.talk.Heard()) == 3 })
	s, err := w.boxes[2].node.Status(context.Background())
	if err != nil || !s.Quorum || len(s.Problems) > 0 || s.Leader != w.leader().name {
		t.Fatalf("status %+v %v", s, err)
	}
	for _, m := range s.Members {
		if !m.Reachable || m.Version != "test" || m.Region != "region-"+m.Name || m.ClockOffset.Abs() > time.Second || len(m.KeyFingerprint) != 64 {
			t.Errorf("status of %s: %+v", m.Name, m)
		}
	}
	follower := w.boxes[slices.IndexFunc(w.boxes, func(b *box) bool { return !b.node.IsLeader() })]
	for i := range 5 {
		hash := sha256.Sum256([]byte{byte(i)})
		r, err := follower.node.Propose(context.Background(), state.Proposal{Actor: "tester", Timeout: patience, Whole: true,
			Command: &clusterv1.CreateControllerToken{Id: fmt.Sprint("whole-", i), Hash: hash[:], TtlMs: 3600_000, Uses: 1}})
		if err != nil {
			t.Fatal(err)
		}
		if err := follower.node.CatchUp(context.Background()); err != nil || follower.store.Applied() < r.Index {
			t.Fatalf("entry %d cannot be read where it was written: applied %d, %v", r.Index, follower.store.Applied(), err)
		}
	}
	follower.node.comesLate(t)
	var wg sync.WaitGroup
	for i := range 300 {
		wg.Add(1)
		go func() {
			defer wg.Done()
			if err := w.boxes[i%3].write(fmt.Sprintf("many-%d", i), patience); err != nil {
				t.Error(err)
			}
		}()
	}
	wg.Wait()
	if n := len(w.boxes[2].written()); n < 308 {
		t.Fatalf("%d of 300 concurrent writes are there", n-8)
	}
}

// comesLate: a controller that does not get what it has acknowledged says so. Of its readers one waits for it, and one that gives up
// early does not count.
func (n *Node) comesLate(t *testing.T) {
	t.Helper()
	n.owe(n.store.Applied() + 1_000_000)
	defer n.owed.Store(0)
	gone, cancel := context.WithCancel(context.Background())
	cancel()
	if err := n.CatchUp(gone); !fault.HasReason(err, "behind") || n.vain.Load() != 0 {
		t.Errorf("a reader that gave up: %v, waited for in vain: %d", err, n.vain.Load())
	}
	for _, first := range []bool{true, false} {
		began := time.Now()
		err := n.CatchUp(context.Background())
		if waited := time.Since(began) >= catchUpLimit; !fault.HasReason(err, "behind") || n.vain.Load() != n.owed.Load() || waited != first {
			t.Errorf("%v, waited: %v, for %d of %d in vain", err, waited, n.vain.Load(), n.owed.Load())
		}
	}
}

func TestNoAcknowledgedWriteIsLostWhenLeadersDie(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.cluster("a", "b", "c")
	ctx, stop := context.WithCancel(context.Background())
	defer stop()
	var wg sync.WaitGroup
	var mu sync.Mutex
	acked := map[string]bool{}
	var refused atomic.Int64
	nodes := make([]atomic.Pointer[Node], 3)
	for i, b := range w.boxes {
		nodes[i].Store(b.node)
	}
	for writer := range 6 {
		wg.Add(1)
		go func() {
			defer wg.Done()
			for i := 0; ctx.Err() == nil; i++ {
				id := fmt.Sprintf("w%d-%d", writer, i)
				err := (&box{node: nodes[(writer+i)%3].Load()}).write(id, 5*time.Second)
				switch {
				case err == nil:
					mu.Lock()
					acked[id] = true
					mu.Unlock()
				case fault.Is(err, fault.Unavailable), fault.Is(err, fault.Unknown):
					refused.Add(1)
					time.Sleep(5 * time.Millisecond) // a stopped controller answers at once
				default:
					t.Errorf("%s: %v", id, err) // token-exists would mean that a command ran twice
				}
			}
		}()
	}
	count := func() int { mu.Lock(); defer mu.Unlock(); return len(acked) }
	for range 3 {
		l, enough := w.leader(), count()+100
		w.eventually("writes are acknowledged", func() bool { return count() > enough })
		before := l.node.raft.CurrentTerm()
		l.kill()
		w.led("another controller leads", func() bool {
			for _, b := range w.boxes {
				if b.node != nil && b.node.IsLeader() && b.node.raft.CurrentTerm() > before {
					return true
				}
			}
			return false
		})
		l.start()
		for i, b := range w.boxes {
			nodes[i].Store(b.node)
		}
		w.leader()
	}
	stop()
	wg.Wait()
	got := w.follower().written()
	for id := range acked {
		if !got[id] {
			t.Errorf("%s was acknowledged and is gone", id)
		}
	}
	t.Logf("%d writes acknowledged, %d not", len(acked), refused.Load())
	w.identical(w.leader(), 3)
}

func TestWithoutAQuorumAWriteIsRefusedInTimeAndSaysWhatToStart(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.cluster("a", "b", "c")
	alone := w.follower()
	var gone []string
	for _, b := range w.boxes {
		if b != alone {
			gone = append(gone, b.name)
			b.kill()
		}
	}
	w.led("it is known that nobody leads", func() bool { return alone.node.Leader() == "" && !alone.node.IsLeader() })
	w.eventually("the others are known to be gone", func() bool {
		s, _ := alone.node.Status(context.Background())
		return strings.Count(strings.Join(s.Problems, "\n"), "does not answer") == 2
	})
	// Nobody brings the quorum back meanwhile: a write that went on after its own deadline would never be answered.
	refused := make(chan error, 1)
	go func() { refused <- alone.write("half", time.Second) }()
	var err error
	select {
	case err = <-refused:
	case <-time.After(patience):
		t.Fatal("a write is waited for beyond its deadline")
	}
	wantReason(t, err, fault.Unavailable, "no-quorum")
	for _, name := range gone {
		if !strings.Contains(fault.From(err).Remedy, name) {
			t.Errorf("%q does not name %s", fault.From(err).Remedy, name)
		}
	}
	ctx, cancel := context.WithTimeout(context.Background(), 500*time.Millisecond)
	defer cancel()
	wantReason(t, alone.node.Linearize(ctx), fault.Unavailable, "no-quorum")
	for _, b := range w.boxes {
		if b != alone {
			b.start()
		}
	}
	alone.mustWrite("whole")
	if got := alone.written(); got["half"] || !got["whole"] {
		t.Fatalf("after the quorum came back: %v", got)
	}
}

func TestAllControllersRestartAtOnceAndAnAbsentOneComesBackBehindASnapshot(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.tune.trailingLogs, w.tune.snapshotThreshold, w.tune.snapshotInterval = 20, 30, 50*time.Millisecond
	w.cluster("a", "b", "c")
	for i := range 10 {
		w.boxes[i%3].mustWrite(fmt.Sprintf("before-%d", i))
	}
	for _, b := range w.boxes {
		b.kill()
	}
	for _, b := range w.boxes {
		b.start()
	}
	w.boxes[1].mustWrite("after")
	if got := w.boxes[2].written(); len(got) < 11 {
		t.Fatalf("after the restart: %v", got)
	}

	absent := w.follower()
	absent.kill()
	l := w.leader()
	for i := range 150 {
		l.mustWrite(fmt.Sprintf("meanwhile-%d", i))
	}
	w.eventually("the log no longer reaches back", func() bool {
		first, _ := l.node.log.FirstIndex()
		return first > l.node.store.Applied()-100
	})
	absent.start()
	absent.reads(l)
	if got := absent.written(); !got["meanwhile-0"] || !got["meanwhile-149"] {
		t.Fatal("it does not hold what happened meanwhile")
	}
	absent.mustWrite("back")
	w.identical(absent, 3)
	absent.kill() // its log begins after the snapshot that it took in
	absent.start()
	absent.reads(w.leader())
	w.identical(absent, 3)
}

func TestARemovedControllerIsCutOffAndCannotComeBack(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.cluster("a", "b", "c")
	l := w.leader()
	w.eventually("the leader itself is removed", func() bool {
		err := l.node.Remove(context.Background(), l.name, "tester", "test")
		for _, b := range w.boxes { // its own connections are cut, perhaps before the answer
			if _, still := b.node.dir.find(func(m Member) bool { return m.Name == l.name }); !still {
				return true
			}
		}
		return err == nil
	})
	w.eventually("the others lead without it", func() bool {
		for _, b := range w.boxes {
			if b != l && b.node.IsLeader() {
				s, err := b.node.Status(context.Background())
				return err == nil && len(s.Members) == 2 && s.Quorum && len(b.node.raft.GetConfiguration().Configuration().Servers) == 2
			}
		}
		return false
	})
	other := w.boxes[0]
	if other == l {
		other = w.boxes[1]
	}
	other.mustWrite("without")
	if err := l.write("by-the-removed", 700*time.Millisecond); err == nil {
		t.Fatal("the removed controller still writes")
	}
	l.kill()
	l.start() // with its old folder, key and a certificate that has not expired
	if err := l.write("by-the-removed-2", 700*time.Millisecond); err == nil {
		t.Fatal("the removed controller writes after a restart")
	}
	w.eventually("it says that it is shut out, not that the others are down", func() bool {
		s, err := l.node.Status(context.Background())
		return err == nil && len(s.Problems) == 1 && l.node.noQuorum().Reason == "shut-out"
	})
	token, _, err := other.node.CreateJoinToken(context.Background(), TokenSpec{}, "tester")
	if err != nil {
		t.Fatal(err)
	}
	_, err = Join(context.Background(), l.joinOptions(token, other))
	if !fault.Is(err, fault.Refused) {
		t.Fatalf("its old key was let in: %v", err)
	}
	for _, b := range w.boxes {
		if b != l {
			if got := b.written(); got["by-the-removed"] || got["by-the-removed-2"] {
				t.Fatal("a write of the removed controller is there")
			}
		}
	}
}

func TestAHungDiskUnderTheLeaderEndsItAndAnotherLeads(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.tune.stall = 700 * time.Millisecond
	disks := map[string]*disk{}
	for _, n := range []string{"a", "b", "c"} {
		disks[n] = &disk{go_: make(chan struct{})}
	}
	var created []*box
	for _, n := range []string{"a", "b", "c"} {
		b := w.box(n)
		b.tune.wrapLog = func(l raft.LogStore) raft.LogStore { return disks[n].wrap(l) }
		created = append(created, b)
	}
	if err := created[0].open(true); err != nil {
		t.Fatal(err)
	}
	for _, b := range created[1:] {
		b.join(created[0])
	}
	w.eventually("all vote", func() bool {
		s, _ := created[0].node.Status(context.Background())
		n := 0
		for _, m := range s.Members {
			if m.Voter {
				n++
			}
		}
		return n == 3
	})
	l := w.leader()
	disks[l.name].hang.Store(true)
	go l.write("stuck", 5*time.Second)
	select {
	case err := <-l.fatal:
		if !fault.HasReason(err, "disk-hangs") {
			t.Fatal(err)
		}
	case <-time.After(patience):
		t.Fatal("the watchdog does not bite")
	}
	// The process would end here; its connections do.
	l.node.trans.Close()
	w.led("another controller leads", func() bool {
		for _, b := range w.boxes {
			if b != l && b.node.IsLeader() {
				return true
			}
		}
		return false
	})
	for _, b := range w.boxes {
		if b != l {
			b.mustWrite("by-" + b.name)
		}
	}
	disks[l.name].hang.Store(false)
	close(disks[l.name].go_)
}

// disk is a log store that hangs on command.
type disk struct {
	raft.LogStore
	hang atomic.Bool
	go_  chan struct{}
}

func (d *disk) wrap(l raft.LogStore) raft.LogStore { d.LogStore = l; return d }
func (d *disk) IsMonotonic() bool                  { return true }
func (d *disk) StoreLog(l *raft.Log) error         { return d.StoreLogs([]*raft.Log{l}) }
func (d *disk) StoreLogs(ls []*raft.Log) error {
	if d.hang.Load() {
		<-d.go_
		return errors.New("the disk hung")
	}
	return d.LogStore.StoreLogs(ls)
}

func TestALeaderWithAWrongClockOrALowDiskHandsOver(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	clocks, free := map[string]*offsetClock{}, map[string]*atomic.Bool{}
	for _, n := range []string{"a", "b", "c"} {
		b := w.box(n)
		clocks[n], free[n] = &offsetClock{Clock: clockwork.NewRealClock()}, &atomic.Bool{}
		b.clock = clocks[n]
		b.tune.diskFree = func(string) (float64, error) {
			if free[n].Load() {
				return 0.03, nil
			}
			return 0.5, nil
		}
	}
	if err := w.boxes[0].open(true); err != nil {
		t.Fatal(err)
	}
	for _, b := range w.boxes[1:] {
		b.join(w.boxes[0])
	}
	voters := func() (n int) {
		for _, s := range w.leader().node.raft.GetConfiguration().Configuration().Servers {
			if s.Suffrage == raft.Voter {
				n++
			}
		}
		return n
	}
	w.eventually("all vote", func() bool { return voters() == 3 })

	late := w.leader()
	clocks[late.name].by.Store(int64(11 * time.Minute))
	w.eventually("who has the wrong clock leads no longer", func() bool { return !late.node.IsLeader() && w.leader() != late })
	late.mustWrite("through-another") // a follower with a wrong clock may still ask: the leader dates
	s, _ := w.leader().node.Status(context.Background())
	if !strings.Contains(strings.Join(s.Problems, "\n"), "the clock of "+late.name) {
		t.Errorf("status says nothing of the clock: %q", s.Problems)
	}
	clocks[late.name].by.Store(0)

	full := w.leader()
	free[full.name].Store(true)
	w.eventually("who has a full disk leads no longer", func() bool { return !full.node.IsLeader() && w.leader() != full })
	wantReason(t, full.write("no-room", 500*time.Millisecond), fault.Unavailable, "disk-low")
	w.leader().mustWrite("room")
}

func TestWritesGoOnAfterAClockThatWasAheadIsSetBack(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	b := w.box("a")
	c := &offsetClock{Clock: clockwork.NewRealClock()}
	b.clock = c
	c.by.Store(int64(30 * time.Minute))
	if err := b.open(true); err != nil {
		t.Fatal(err)
	}
	b.mustWrite("in-the-future")
	c.by.Store(0)
	b.mustWrite("set-back")
	s, err := b.node.Status(context.Background())
	if err != nil || !strings.Contains(strings.Join(s.Problems, "\n"), "ahead of the clock") {
		t.Fatalf("%q %v", s.Problems, err)
	}
}
