package node

import (
	"strings"
	"testing"
	"time"
)

func TestHealthTurnsRedInTime(t *testing.T) {
	good := func() Status {
		return Status{Node: "n1", Link: Link{Connected: true}, Stores: []StoreStatus{{Name: "node", State: "proven", NotBefore: at.AddDate(0, 0, -10), NotAfter: at.AddDate(0, 0, 80)}}}
	}
	for _, c := range []struct {
		what   string
		change func(*Status)
		down   bool
		after  time.Duration
		level  Level
		word   string
	}{
		{"as it should be", func(*Status) {}, false, 0, Green, ""},
		{"offline is yellow", func(s *Status) { s.Link = Link{Error: "refused"} }, false, 0, Yellow, "no controller"},
		{"22 days before the end all is well", func(*Status) {}, false, 58 * 24 * time.Hour, Green, ""},
		{"21 days before the end it is red", func(*Status) {}, false, 59*24*time.Hour + time.Minute, Red, "good only until"},
		{"expired", func(*Status) {}, false, 81 * 24 * time.Hour, Red, "expired"},
		{"an agent that does not run", func(*Status) {}, true, 0, Red, "does not run"},
		{"contested", func(s *Status) { s.Stores[0].State = "contested" }, false, 0, Red, "contested"},
		{"failed", func(s *Status) { s.Stores[0].State = "failed" }, false, 0, Red, "failed"},
		{"unproven", func(s *Status) { s.Stores[0].State = "installed-unproven" }, false, 0, Yellow, "not proved"},
		{"held", func(s *Status) { s.Hold = "tea" }, false, 0, Yellow, "tea"},
		{"copied", func(s *Status) { s.Copied = true }, false, 0, Red, "copied"},
		{"suspended", func(s *Status) { s.Suspended = "why" }, false, 0, Red, "why"},
		{"not joined", func(s *Status) { s.Node = "" }, false, 0, Yellow, "not joined"},
	} {
		s := good()
		c.change(&s)
		level, notes := Health(s, !c.down, at.Add(c.after))
		all := ""
		for _, n := range notes {
			all += n.Message + "\n"
		}
		if level != c.level || !strings.Contains(all, c.word) {
			t.Errorf("%s: %s %q, want %s %q", c.what, level, all, c.level, c.word)
		}
	}
}
