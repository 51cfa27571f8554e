package rest

import (
	"context"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/cassandra-security-manager/csm/shared/fault"
)

func (r *room) waiting() int { return r.inside.Len() + r.fresh.Len() + r.stale.Len() }

func TestACrowdIsNotSentAwayAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := room{free: 1}
		if _, err := r.enter(t.Context(), false); err != nil {
			t.Fatal(err)
		}
		began := time.Now()
		const crowd = 1000
		gone := make(chan time.Duration, crowd)
		for range crowd {
			go func() {
				_, err := r.enter(t.Context(), false)
				if f := fault.From(err); f == nil || f.Reason != "crowded" || f.RetryAfter < crowdedFor || f.RetryAfter > crowdedFor+crowdedSpread {
					t.Errorf("%v", err)
				}
				gone <- time.Since(began)
			}()
		}
		first, half := <-gone, time.Duration(0)
		for n := range crowd - 1 {
			if at := <-gone; n == crowd/2 {
				half = at
			}
		}
		if last := time.Since(began); first < waitFor/2 || last > waitFor || half-first < waitFor/8 || last-half < waitFor/8 {
			t.Errorf("they went after %s, %s and %s", first, half, last)
		}
	})
}

func TestWhoWasInTheRoomGoesFirstAndThenTheFreshAndTheNewest(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := room{free: 1}
		leave, err := r.enter(t.Context(), false)
		if err != nil {
			t.Fatal(err)
		}
		var mu sync.Mutex
		var order []string
		come := func(ctx context.Context, who string, again bool) {
			go func() {
				leave, err := r.enter(ctx, again)
				mu.Lock()
				defer mu.Unlock()
				if err != nil {
					if f := fault.From(err); f.Reason != "crowded" || f.RetryAfter <= 0 {
						t.Error(err)
					}
					order = append(order, who+" gone")
					return
				}
				order = append(order, who)
				leave()
				leave() // gives no second place
			}()
			synctest.Wait()
		}
		impatient, away := context.WithCancel(t.Context())
		come(t.Context(), "oldest", false)
		come(impatient, "impatient", false)
		come(t.Context(), "old", false)
		time.Sleep(2 * freshFor)
		come(t.Context(), "new", false)
		come(t.Context(), "newer", false)
		come(t.Context(), "first again", true)
		come(t.Context(), "second again", true)
		away()
		synctest.Wait()
		leave()
		synctest.Wait()
		if want := []string{"impatient gone", "first again", "second again", "new", "newer", "old", "oldest"}; !slices.Equal(order, want) {
			t.Errorf("%q, want %q", order, want)
		}
		if r.free != 1 || r.waiting() != 0 {
			t.Errorf("%d places, %d wait", r.free, r.waiting())
		}
	})
}

func TestAPlaceThatNobodyWaitsForAnyMoreGoesToTheNext(t *testing.T) {
	for range 200 {
		r := room{free: 1}
		leave, _ := r.enter(t.Context(), false)
		ctx, cancel := context.WithCancel(t.Context())
		var wg sync.WaitGroup
		wg.Go(func() {
			if leave, err := r.enter(ctx, false); err == nil {
				leave()
			}
		})
		wg.Go(cancel)
		leave()
		wg.Wait()
		if r.free != 1 || r.waiting() != 0 {
			t.Fatalf("%d places, %d wait", r.free, r.waiting())
		}
	}
}
