package backup

import (
	"testing"
	"time"
)

func TestWhenABackupIsDue(t *testing.T) {
	now := time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)
	ago := func(state string, d time.Duration) Backup { return Backup{State: state, Created: now.Add(-d)} }
	for name, c := range map[string]struct {
		all   []Backup
		every time.Duration
		want  bool
	}{
		"never by schedule":          {nil, 0, false},
		"the first":                  {nil, time.Hour, true},
		"young enough":               {[]Backup{ago(Ready, 59*time.Minute)}, time.Hour, false},
		"old enough":                 {[]Backup{ago(Ready, 61*time.Minute)}, time.Hour, true},
		"one runs":                   {[]Backup{ago(Running, 2*time.Hour)}, time.Hour, false},
		"one ran and was lost":       {[]Backup{ago(Running, 7*time.Hour)}, time.Hour, true},
		"failed just now":            {[]Backup{ago(Failed, time.Minute), ago(Ready, 2*time.Hour)}, time.Hour, false},
		"failed a while ago":         {[]Backup{ago(Failed, 11*time.Minute), ago(Ready, 2*time.Hour)}, time.Hour, true},
		"failed, a short schedule":   {[]Backup{ago(Failed, 2*time.Minute)}, time.Minute, true},
		"failed after a younger one": {[]Backup{ago(Failed, 20*time.Minute), ago(Ready, 10*time.Minute)}, time.Hour, false},
	} {
		if got := due(c.all, c.every, now); got != c.want {
			t.Errorf("%s: due is %v", name, got)
		}
	}
}

func TestTheNewestVerifiedBackupAlwaysStays(t *testing.T) {
	file := func(id string) File { return File{Header: Header{ID: id}} }
	files := []File{file("a"), file("b"), file("c"), file("d")}
	ids := func(fs []File) (s string) {
		for _, f := range fs {
			s += f.Header.ID
		}
		return s
	}
	for _, c := range []struct {
		keep     int
		verified map[string]bool
		want     string
	}{
		{0, nil, ""}, {4, nil, ""}, {2, nil, "ab"}, {2, map[string]bool{"a": true}, "b"},
		{2, map[string]bool{"a": true, "b": true}, "a"}, {2, map[string]bool{"a": true, "d": true}, "ab"}, {1, map[string]bool{"b": true}, "ac"},
	} {
		if got := ids(surplus(files, c.keep, c.verified)); got != c.want {
			t.Errorf("keep %d, verified %v: %q goes, want %q", c.keep, c.verified, got, c.want)
		}
	}
}
