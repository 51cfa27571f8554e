package turns_test

import (
	"context"
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/cassandra-security-manager/csm/controller/issuance/turns"
	"github.com/cassandra-security-manager/csm/shared/fault"
)

// client asks as an agent does: a call of 15 s, and again when it is told to. It gives how often it asked.
func client(q *turns.Queue, r turns.Request, sign func()) (asked int) {
	for {
		asked++
		ctx, cancel := context.WithTimeout(context.Background(), 15*time.Second)
		done, err := q.Take(ctx, r)
		cancel()
		if err == nil {
			sign()
			done()
			return asked
		}
		f := fault.From(err)
		if f.Reason != "signer-busy" || f.RetryAfter <= 0 {
			panic(err)
		}
		time.Sleep(f.RetryAfter)
	}
}

// 30,000 certificates end one after the other, as fast as 200 of them can be signed; they are asked for in no order, all within seconds.
func TestInAStormNobodyIsLateWhoCouldBeInTime(t *testing.T) {
	const all, rate = 30_000, 200
	synctest.Test(t, func(t *testing.T) {
		q := turns.New(turns.Options{Rate: rate})
		began := time.Now()
		// Each ends 10 s after its turn, when those that end sooner went first: as long as one may be away that comes back.
		due := func(i int) time.Time {
			return began.Add(time.Duration(i)*time.Second/rate + 10*time.Second)
		}
		order := rand.New(rand.NewPCG(1, 2)).Perm(all)
		ended, asked := make([]time.Time, all), atomic.Int64{}
		var wg sync.WaitGroup
		for _, i := range order {
			wg.Go(func() {
				time.Sleep(time.Duration(rand.N(4_000)) * time.Millisecond)
				n := client(q, turns.Request{ID: fmt.Sprint(i), Due: due(i)}, func() { time.Sleep(5 * time.Millisecond) })
				ended[i] = time.Now()
				asked.Add(int64(n))
			})
		}
		wg.Wait()
		took := time.Since(began)
		if least := all / rate / 0.9; took.Seconds() > least {
			t.Errorf("%s: less than 90 %% of %d a second", took, rate)
		}
		late, worst := 0, time.Duration(0)
		for i, at := range ended {
			if over := at.Sub(due(i)); over > 0 {
				late, worst = late+1, max(worst, over)
			}
		}
		if late > 0 {
			t.Errorf("%d are late, one by %s", late, worst)
		}
		if n := asked.Load(); n > 4*all {
			t.Errorf("they asked %d times: %d of them came back for nothing", n, n-all)
		}
		// What the order is for: first come, first served leaves most of them late.
		fifo := 0
		for turn, i := range order {
			if began.Add(time.Duration(turn) * time.Second / rate).After(due(i)) {
				fifo++
			}
		}
		t.Logf("%d in %s, asked %.1f times each; first come, first served: %d late", all, took.Round(time.Second), float64(asked.Load())/all, fifo)
		if fifo < all/4 {
			t.Errorf("only %d would be late without an order: this storm shows nothing", fifo)
		}
		if here, away := q.Len(); here != 0 || away != 0 {
			t.Errorf("%d and %d are left in the line", here, away)
		}
	})
}

func TestTheNearestDeadlineGoesFirstAndWhatIsNeededNowBeforeIt(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		q := turns.New(turns.Options{Rate: 1})
		now := time.Now()
		take(t, q, turns.Request{})() // the turn of this second
		var got []string
		var mu sync.Mutex
		var wg sync.WaitGroup
		for name, due := range map[string]time.Time{"in a month": now.Add(720 * time.Hour), "in an hour": now.Add(time.Hour), "never had one": {}, "ended yesterday": now.Add(-24 * time.Hour)} {
			wg.Go(func() {
				done := take(t, q, turns.Request{ID: name, Due: due})
				mu.Lock()
				got = append(got, name)
				mu.Unlock()
				done()
			})
		}
		wg.Wait()
		if want := []string{"ended yesterday", "never had one", "in an hour", "in a month"}; !slices.Equal(got, want) {
			t.Errorf("%q", got)
		}
		if took := time.Since(now); took < 3900*time.Millisecond || took > 4*time.Second+100*time.Millisecond {
			t.Errorf("four turns of a second each took %s", took)
		}
	})
}

func take(t *testing.T, q *turns.Queue, r turns.Request) func() {
	t.Helper()
	done, err := q.Take(t.Context(), r)
	if err != nil {
		t.Error(err)
		return func() {}
	}
	return done
}

func TestWhoCannotHaveATurnInTimeIsToldAtOnceWhenToComeBackAndKeepsItsPlace(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		q := turns.New(turns.Options{Rate: 1})
		now := time.Now()
		take(t, q, turns.Request{})()
		var wg sync.WaitGroup
		for range 10 {
			wg.Go(func() { take(t, q, turns.Request{Due: now.Add(time.Hour)})() })
		}
		synctest.Wait()
		var back []time.Duration
		for i := range 20 {
			_, err := q.Take(t.Context(), turns.Request{ID: fmt.Sprint(i), Due: now.Add(2 * time.Hour)})
			if f := fault.From(err); !fault.HasReason(err, "signer-busy") || f.Code != fault.Unavailable || f.Remedy == "" {
				t.Fatalf("%d was not turned away: %v", i, err)
			} else {
				back = append(back, f.RetryAfter)
			}
		}
		if time.Since(now) > 0 {
			t.Errorf("being told took %s", time.Since(now))
		}
		if !slices.IsSorted(back) || back[len(back)-1]-back[0] < time.Duration(len(back)-1)*time.Second {
			t.Errorf("all were told to come back together: %v", back)
		}
		// One that asks for less time than what it was told finds the line as it was.
		_, away := q.Len()
		_, err := q.Take(t.Context(), turns.Request{ID: "19", Due: now.Add(2 * time.Hour)})
		if _, again := q.Len(); again != away || fault.From(err).RetryAfter > back[len(back)-1] {
			t.Errorf("it stands in the line twice: %d, then %d; %v", away, again, err)
		}
		// Those who never come back are forgotten.
		time.Sleep(5 * time.Minute)
		if _, away := q.Len(); away != 0 {
			t.Errorf("%d places are kept for ever", away)
		}
		wg.Wait()
	})
}

func TestWhoGoesAwayTakesNobodysTurn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		q := turns.New(turns.Options{Rate: 1})
		take(t, q, turns.Request{})()
		began := time.Now()
		ctx, cancel := context.WithCancel(t.Context())
		var wg sync.WaitGroup
		for range 5 {
			wg.Go(func() {
				if _, err := q.Take(ctx, turns.Request{}); !fault.Is(err, fault.Unavailable) {
					t.Errorf("a request that was given up: %v", err)
				}
			})
		}
		synctest.Wait()
		cancel()
		wg.Wait()
		take(t, q, turns.Request{})()
		if took := time.Since(began); took > time.Second {
			t.Errorf("the next waited %s for who had gone", took)
		}
	})
}

func TestASignerThatIsSlowerThanWasSaidIsNotBuried(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		q := turns.New(turns.Options{Rate: 10})
		var busy, most atomic.Int64
		var wg sync.WaitGroup
		for i := range 200 {
			wg.Go(func() {
				client(q, turns.Request{ID: fmt.Sprint(i), Due: time.Now().Add(time.Hour)}, func() {
					if n := busy.Add(1); n > most.Load() {
						most.Store(n)
					}
					time.Sleep(5 * time.Second)
					busy.Add(-1)
				})
			})
		}
		wg.Wait()
		if most.Load() > 10 {
			t.Errorf("%d requests were with a signer of 10 a second", most.Load())
		}
	})
}

func TestAnIdleSignerSignsHoweverShortTheTimeIsAndWithoutARateThereIsNoLine(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		for name, q := range map[string]*turns.Queue{"idle": turns.New(turns.Options{Rate: 5}), "no rate": turns.New(turns.Options{})} {
			ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
			done, err := q.Take(ctx, turns.Request{Due: time.Now().Add(time.Hour)})
			cancel()
			if err != nil {
				t.Fatalf("%s: %v", name, err)
			}
			done()
			done() // twice is once
		}
		if q := turns.New(turns.Options{}); q != nil {
			t.Error("a line without a rate")
		}
	})
}
