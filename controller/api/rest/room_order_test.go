package rest

import (
	"context"
	"slices"
	"sync"
	"testing"
	"testing/synctest"

	"github.com/cassandra-security-manager/csm/shared/fault"
)

func TestWhoWasInTheRoomGoesFirstAndThenTheNewest(t *testing.T) {
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
		come(t.Context(), "old", false)
		come(impatient, "impatient", false)
		come(t.Context(), "new", false)
		come(t.Context(), "first again", true)
		come(t.Context(), "second again", true)
		away()
		synctest.Wait()
		leave()
		synctest.Wait()
		if want := []string{"impatient gone", "first again", "second again", "new", "old"}; !slices.Equal(order, want) {
			t.Errorf("%q, want %q", order, want)
		}
		if r.free != 1 || r.inside.Len()+r.outside.Len() != 0 {
			t.Errorf("%d places, %d and %d wait", r.free, r.inside.Len(), r.outside.Len())
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
		if r.free != 1 || r.outside.Len() != 0 {
			t.Fatalf("%d places, %d wait", r.free, r.outside.Len())
		}
	}
}
