package install_test

import (
	"context"
	"crypto/tls"
	"net/netip"
	"sync"
	"testing"
	"time"

	"github.com/jonboulle/clockwork"

	"github.com/cassandra-security-manager/csm/agent/cassandra"
	"github.com/cassandra-security-manager/csm/agent/cassandra/cassandratest"
	"github.com/cassandra-security-manager/csm/agent/install"
	"github.com/cassandra-security-manager/csm/agent/reload"
	agentv1 "github.com/cassandra-security-manager/csm/protocol/agent/v1"
	"github.com/cassandra-security-manager/csm/shared/fault"
	"github.com/cassandra-security-manager/csm/shared/keystore"
)

// told counts what a Reloader that changes nothing is told.
type told struct{ times int }

func (r *told) Reload(context.Context) (reload.Output, error) { r.times++; return reload.Output{}, nil }

// waiting is a node whose Cassandra looks at its files by itself alone. Each look of the agent at the ports takes its time on a clock
// that obeys: look, if set, is called before that with the number of looks so far.
type waiting struct {
	*world
	told  told
	clock *leaping
	look  func(looks int)
	looks int
	until []time.Time
}

// leaping is a clock that is set ahead, and whose timers end a hundred times sooner than they say.
type leaping struct {
	clockwork.Clock
	mu    sync.Mutex
	ahead time.Duration
}

func (c *leaping) Now() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.Clock.Now().Add(c.ahead)
}

func (c *leaping) NewTimer(d time.Duration) clockwork.Timer { return c.Clock.NewTimer(d / 100) }

func (c *leaping) leap(d time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.ahead += d
}

func polling(t *testing.T) *waiting {
	t.Helper()
	w := &waiting{world: running(t, keystore.PKCS12), clock: &leaping{Clock: clockwork.NewRealClock()}}
	w.world.clock = w.clock
	w.opts = append(w.opts, func(o *install.Options) {
		o.Poll, o.PollEvery, o.Reloader = true, time.Millisecond, &w.told
		o.Waiting = func(store string, until time.Time) {
			w.until = append(w.until, until)
			if store == "" {
				return
			}
			w.looks++
			w.clock.leap(20 * time.Second)
			if w.look != nil {
				w.look(w.looks)
			}
		}
	})
	return w
}

// handshake makes Cassandra read the files again where its poll has emptied the cache.
func (w *waiting) handshake() {
	for _, p := range w.store.Ports {
		c, err := tls.Dial("tcp", netip.AddrPortFrom(p.Address, p.Port).String(), &tls.Config{InsecureSkipVerify: true})
		if err == nil {
			c.Close()
		}
	}
}

func (w *waiting) reloadsOf(n int) {
	w.t.Helper()
	if got := w.node.Reloads(); got != n {
		w.t.Errorf("Cassandra was reloaded %d times, not %d", got, n)
	}
}

func TestWithoutAWayToReloadCassandrasOwnLookIsWaitedForAndProved(t *testing.T) {
	w := polling(t)
	before := w.node.Reloads()
	w.look = func(n int) {
		if n == 30 { // ten minutes
			w.node.Poll()
		}
	}
	p := w.plan(2)
	o, err := w.installer().Run(t.Context(), p)
	if err != nil || o.Result != proven || o.After != leafSum(p.Chain) {
		t.Fatalf("%+v %v", o, err)
	}
	w.serves(leafSum(p.Chain))
	w.reloadsOf(before)
	if w.looks != 30 || w.told.times != 2 || len(w.until) != 31 || !w.until[30].IsZero() || w.until[0].Sub(w.until[29]) != 0 {
		t.Errorf("%d looks, told %d times, %v", w.looks, w.told.times, w.until)
	}
	if w.node.LoggedErrors() != 0 {
		t.Errorf("waiting wrote %d ERRORs into Cassandra's log", w.node.LoggedErrors())
	}
	w.clean()
}

// A poll between the two renames loads the new truststore with the old keystore, and the next one comes ten minutes later.
func TestAPollBetweenTheTwoRenamesIsFollowedByAnother(t *testing.T) {
	w := polling(t)
	first := func(o *install.Options) {
		o.Before = func(op install.Op) error {
			if op.Step == install.StepKeystore && op.Do == "begin" {
				w.node.Poll()
				w.handshake()
			}
			return nil
		}
	}
	w.look = func(n int) {
		if n == 30 {
			w.node.Poll()
		}
	}
	p := w.plan(2)
	p.Anchors = append(p.Anchors, cassandratest.NewCA(t, "next").Root)
	if o, err := w.installer(first).Run(t.Context(), p); err != nil || o.Result != proven || w.looks != 30 {
		t.Fatalf("%+v %v after %d looks", o, err, w.looks)
	}
}

func TestWhereCassandraDoesNotLookTheOldPairIsPutBack(t *testing.T) {
	w := polling(t)
	before := w.keystoreSum()
	began := w.clock.Now()
	o, err := w.installer().Run(t.Context(), w.plan(2))
	if o.Result != rolledBack || !fault.HasReason(err, "proof-wrong-leaf") || w.keystoreSum() != before {
		t.Fatalf("%+v %v", o, err)
	}
	if took := w.clock.Now().Sub(began); took < install.PollBound || took > install.PollBound+2*time.Minute {
		t.Errorf("it went back after %s", took)
	}
	w.clean()
}

// What turned back after Cassandra had loaded it is proved to be gone again, by another look of Cassandra's.
func TestTheWayBackWaitsToo(t *testing.T) {
	w := polling(t)
	before := w.leafOnDisk()
	w.look = func(n int) {
		if n == 10 || n == 40 {
			w.node.Poll()
		}
	}
	p := w.plan(2)
	p.Neighbour = func(context.Context, [32]byte, []cassandra.Port) ([]*agentv1.Proof, error) {
		return nil, fault.New(fault.Unavailable, "nobody", "no neighbour answers")
	}
	o, err := w.installer().Run(t.Context(), p)
	if o.Result != rolledBack || err == nil || w.looks != 40 {
		t.Fatalf("%+v %v after %d looks", o, err, w.looks)
	}
	w.serves(before)
}

func TestHOLDEndsTheWaitAndTheOldPairComesBack(t *testing.T) {
	w := polling(t)
	before := w.leafOnDisk()
	w.look = func(n int) {
		if n == 3 {
			w.putHold()
		}
	}
	quick := func(o *install.Options) { o.PollEvery = time.Second }
	o, err := w.installer(quick).Run(t.Context(), w.plan(2))
	if o.Result != rolledBack || err == nil || w.leafOnDisk() != before {
		t.Fatalf("%+v %v", o, err)
	}
}

// Where only trust changes no port shows it: the time in which Cassandra must have looked is waited out.
func TestTrustIsTakenForLoadedWhenALookMustHaveBeen(t *testing.T) {
	w := polling(t)
	began := w.clock.Now()
	w.look = func(n int) {
		if n == 30 {
			w.node.Poll()
		}
	}
	p := w.plan(2)
	p.Key, p.Chain, p.Anchors = nil, nil, append(p.Anchors, cassandratest.NewCA(t, "next").Root)
	o, err := w.installer().Run(t.Context(), p)
	if err != nil || o.Result != proven {
		t.Fatalf("%+v %v", o, err)
	}
	if took := w.clock.Now().Sub(began); took < install.Poll+15*time.Second || took > install.Poll+2*time.Minute {
		t.Errorf("it took %s", took)
	}
}

// An agent that ends does not hold its host up for twenty minutes; what it began is taken up at the next start.
func TestAnAgentThatEndsLeavesTheWaitAndGoesOnLater(t *testing.T) {
	for name, looked := range map[string]bool{"Cassandra looked meanwhile": true, "Cassandra has not looked yet": false} {
		w := polling(t)
		ctx, end := context.WithCancel(t.Context())
		w.look = func(n int) {
			if n == 2 {
				end()
			}
		}
		p := w.plan(2)
		o, err := w.installer().Run(ctx, p)
		if !install.Left(err) || o.State != agentv1.InstallState_INSTALL_STATE_MOVING || w.leafOnDisk() != leafSum(p.Chain) {
			t.Fatalf("%s: %+v %v", name, o, err)
		}
		w.look = nil
		if looked {
			w.node.Poll()
		}
		settled, err := w.installer().Recover(t.Context(), w.site())
		want := unproven
		if looked {
			want = proven
		}
		if err != nil || settled.Result != want || w.looks != 2 {
			t.Fatalf("%s: %+v %v, %d looks", name, settled, err, w.looks)
		}
		if looked {
			continue
		}
		if o, err := w.installer().Reprove(t.Context(), w.site()); !fault.HasReason(err, "proof-wrong-leaf") || o.Result != unproven || w.leafOnDisk() != leafSum(p.Chain) {
			t.Fatalf("%s: before the poll: %+v %v", name, o, err)
		}
		w.node.Poll()
		if o, err := w.installer().Reprove(t.Context(), w.site()); err != nil || o.State != agentv1.InstallState_INSTALL_STATE_PROVEN {
			t.Fatalf("%s: after the poll: %+v %v", name, o, err)
		}
		w.clean()
	}
}

func TestAPollThatNeverComesAfterARestartIsTurnedBack(t *testing.T) {
	w := polling(t)
	before := w.leafOnDisk()
	ctx, end := context.WithCancel(t.Context())
	w.look = func(int) { end() }
	if _, err := w.installer().Run(ctx, w.plan(2)); !install.Left(err) {
		t.Fatal(err)
	}
	if o, err := w.installer().Recover(t.Context(), w.site()); err != nil || o.Result != unproven {
		t.Fatalf("%+v %v", o, err)
	}
	w.clock.leap(install.PollBound)
	o, err := w.installer().Reprove(t.Context(), w.site())
	if o.Result != rolledBack || err == nil || w.leafOnDisk() != before {
		t.Fatalf("%+v %v", o, err)
	}
}

// A store that somebody changed is restored; if Cassandra has loaded theirs, ours is proved after its next look.
func TestARestoreIsProvedAfterCassandrasNextLook(t *testing.T) {
	w := polling(t)
	ours := w.leafOnDisk()
	theirs := w.ca.Leaf()
	cassandratest.Write(t, w.store, theirs, w.ca.Root)
	w.node.Poll()
	w.handshake()
	o, err := w.installer().Restore(t.Context(), w.site())
	if err != nil || o.Result != unproven || o.Reason != "store-restored" || w.leafOnDisk() != ours {
		t.Fatalf("%+v %v", o, err)
	}
	w.node.Poll()
	w.serves(ours)
}
