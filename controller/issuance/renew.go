package issuance

import (
	"crypto/rand"
	"io"
	"math/big"
	"time"
)

// RepairFloor is what should be left of a node's certificate when its renewal begins: time to repair what hinders it.
const RepairFloor = 21 * day

// renewWindow is 60 to 70 % of a lifetime. Lifetimes of at least twice the repair floor are renewed before the floor: the
// window then moves forward as a whole, so that renewals stay spread over a tenth of the lifetime.
func renewWindow(life time.Duration) (from, to time.Duration) {
	to = life * 7 / 10
	if life >= 2*RepairFloor {
		to = min(to, life-RepairFloor)
	}
	return to - life/10, to
}

// drawRenewal draws the renewal time, once; the result is recorded. Drawing it again and again would bunch renewals up at
// the beginning of the window.
func drawRenewal(random io.Reader, now, end time.Time) (time.Time, error) {
	from, to := renewWindow(end.Sub(now))
	n, err := rand.Int(random, big.NewInt(int64(to-from)/int64(time.Second)+1))
	if err != nil {
		return time.Time{}, err
	}
	return now.Add(from + time.Duration(n.Int64())*time.Second), nil
}
