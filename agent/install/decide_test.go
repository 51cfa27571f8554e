package install

import (
	"testing"
	"time"

	"pgregory.net/rapid"
)

func TestTheDiskDecidesNotTheJournal(t *testing.T) {
	j := func(back string) *journal {
		return &journal{Claim: "c", Generation: 2, Back: back, Old: snapshot{Keystore: "ko", Truststore: "to"}, New: snapshot{Keystore: "kn", Truststore: "tn"}}
	}
	committed := &record{Claim: "c", Generation: 2, History: []snapshot{{Keystore: "kn", Truststore: "tn"}}}
	for _, c := range []struct {
		name   string
		j      *journal
		rec    *record
		ks, ts string
		want   course
	}{
		{"nothing renamed", j(""), nil, "ko", "to", back},
		{"truststore renamed", j(""), nil, "ko", "tn", back},
		{"both renamed", j(""), nil, "kn", "tn", forth},
		{"both renamed, rollback begun", j("proof-refused"), nil, "kn", "tn", back},
		{"recorded", j(""), committed, "kn", "tn", settled},
		{"recorded, but the disk is old", j(""), committed, "ko", "to", back},
		{"somebody else's keystore", j(""), nil, "xx", "tn", alien},
		{"file gone", j(""), nil, "", "tn", alien},
	} {
		if got := decide(c.j, c.rec, c.ks, c.ts); got != c.want {
			t.Errorf("%s: %s, expected %s", c.name, got, c.want)
		}
	}
}

func TestProofsFollowEachPollAndThenAHour(t *testing.T) {
	t0 := time.Unix(1_700_000_000, 0)
	if s := Schedule(t0, 2); len(s) != 3 || s[2].Before(t0.Add(3*Poll)) {
		t.Errorf("schedule = %v", s)
	}
	rapid.Check(t, func(t *rapid.T) {
		files := rapid.IntRange(1, 3).Draw(t, "files")
		proved, proofs := t0, 0
		for !Settled(t0, proved, proved, files) {
			next := Next(t0, proved, proved, files)
			if !next.After(proved) {
				t.Fatalf("no progress at %v", proved)
			}
			proved = next.Add(time.Duration(rapid.IntRange(0, 3600).Draw(t, "late")) * time.Second)
			if proofs++; proofs > files+1 {
				t.Fatal("more proofs than polls")
			}
		}
		if !Next(t0, proved, proved, files).Equal(proved.Add(AtRest)) {
			t.Fatal("at rest a proof an hour")
		}
		// The clock is set back by a year: a proof is due at once, then hourly, and nothing is turned back for an install of the future.
		back := t0.Add(-365 * 24 * time.Hour)
		if !Next(t0, proved, back, files).Equal(back) || !Next(t0, back, back.Add(time.Minute), files).Equal(back.Add(AtRest)) {
			t.Fatal("proofs wait for the time that the clock once said")
		}
		if !Settled(t0, back, back, files) {
			t.Fatal("an install of the future is turned back")
		}
	})
}

func TestAReplacedFileIsAlwaysNewerByTwoSeconds(t *testing.T) {
	now := time.Unix(1_700_000_000, 0)
	for _, previous := range []time.Time{now.Add(-time.Hour), now, now.Add(time.Hour)} {
		if got := fresh(now, previous); got.Before(now) || got.Sub(previous) < 2*time.Second {
			t.Errorf("fresh(%v) = %v", previous, got)
		}
	}
}
