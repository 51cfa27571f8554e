package rollout

import (
	"strconv"
	"strings"
	"time"

	"github.com/cassandra-security-manager/csm/shared/fault"
)

// calendar is when nodes may begin. All of it is UTC: a plan means the same wherever it is read.
type calendar struct {
	start     time.Time
	windows   []window
	blackouts []blackout
}

// window is a span of the day on some days of the week; one that ends before it begins ends on the next day.
type window struct {
	days     [7]bool
	from, to time.Duration
	text     string
}

type blackout struct{ from, to time.Time }

var dayNames = []string{"sun", "mon", "tue", "wed", "thu", "fri", "sat"}

func calendarOf(s Spec) (calendar, error) {
	c := calendar{start: s.Start}
	for _, t := range s.Windows {
		w, err := parseWindow(t)
		if err != nil {
			return c, err
		}
		c.windows = append(c.windows, w)
	}
	for _, t := range s.Blackouts {
		a, b, _ := strings.Cut(t, "/")
		from, err1 := time.Parse(time.RFC3339, a)
		to, err2 := time.Parse(time.RFC3339, b)
		if err1 != nil || err2 != nil || !to.After(from) {
			return c, fault.New(fault.Invalid, "bad-blackout", "%.80q is no time in which nothing begins", t).Do("write 2026-12-24T00:00:00Z/2026-12-27T00:00:00Z")
		}
		c.blackouts = append(c.blackouts, blackout{from.UTC(), to.UTC()})
	}
	return c, nil
}

// parseWindow reads "Mon-Fri 01:00-05:00", "Sat,Sun 22:00-06:00" or "01:00-05:00".
func parseWindow(t string) (w window, err error) {
	bad := fault.New(fault.Invalid, "bad-window", "%.80q is no maintenance window", t).Do("write Mon-Fri 01:00-05:00 (UTC)")
	w.text = t
	days, hours, ok := strings.Cut(t, " ")
	if !ok {
		days, hours = "Sun-Sat", t
	}
	for _, part := range strings.Split(days, ",") {
		a, b, span := strings.Cut(strings.ToLower(part), "-")
		if !span {
			b = a
		}
		i, j := dayOf(a), dayOf(b)
		if i < 0 || j < 0 {
			return w, bad
		}
		for d := i; ; d = (d + 1) % 7 {
			w.days[d] = true
			if d == j {
				break
			}
		}
	}
	a, b, ok := strings.Cut(hours, "-")
	var okA, okB bool
	w.from, okA = clockOf(a)
	w.to, okB = clockOf(b)
	if !ok || !okA || !okB || w.from == w.to {
		return w, bad
	}
	return w, nil
}

func dayOf(s string) int {
	for i, n := range dayNames {
		if s == n {
			return i
		}
	}
	return -1
}

func clockOf(s string) (time.Duration, bool) {
	h, m, ok := strings.Cut(s, ":")
	hh, err1 := strconv.Atoi(h)
	mm, err2 := strconv.Atoi(m)
	return time.Duration(hh)*time.Hour + time.Duration(mm)*time.Minute, ok && len(h) == 2 && len(m) == 2 && err1 == nil && err2 == nil && hh >= 0 && hh <= 24 && mm >= 0 && mm < 60 && hh*60+mm <= 24*60
}

// on says whether a time lies in a window.
func (w window) on(t time.Time) bool {
	t = t.UTC()
	midnight := time.Date(t.Year(), t.Month(), t.Day(), 0, 0, 0, 0, time.UTC)
	since, day := t.Sub(midnight), int(t.Weekday())
	if w.from < w.to {
		return w.days[day] && since >= w.from && since < w.to
	}
	return w.days[day] && since >= w.from || w.days[(day+6)%7] && since < w.to
}

// closed says why nothing may begin at a time, and until when; nil when it may.
func (c calendar) closed(t time.Time) *Reason {
	if t.Before(c.start) {
		return &Reason{Code: "scheduled", Message: "it begins at " + stamp(c.start), Until: c.start, Remedy: "wait, or abort it and start it without --at"}
	}
	for _, b := range c.blackouts {
		if !t.Before(b.from) && t.Before(b.to) {
			return &Reason{Code: "blackout", Message: "nothing begins until " + stamp(b.to) + " (blackout)", Until: b.to, Remedy: "wait: it goes on by itself"}
		}
	}
	if len(c.windows) == 0 {
		return nil
	}
	var texts []string
	for _, w := range c.windows {
		if w.on(t) {
			return nil
		}
		texts = append(texts, w.text)
	}
	r := &Reason{Code: "window", Message: "outside of its windows (" + strings.Join(texts, "; ") + " UTC)", Remedy: "wait: it goes on by itself"}
	if next, ok := c.opens(t); ok {
		r.Until = next
		r.Message += ", the next opens at " + stamp(next)
	}
	return r
}

// opens finds the next time, in steps of a minute, at which something may begin; false when there is none within 5 weeks.
func (c calendar) opens(t time.Time) (time.Time, bool) {
	end := t.AddDate(0, 0, 35)
	if t.Before(c.start) {
		t = c.start
		end = t.AddDate(0, 0, 35)
	}
	for ; t.Before(end); t = t.Truncate(time.Minute).Add(time.Minute) {
		if c.open(t) {
			return t, true
		}
	}
	return t, false
}

func (c calendar) open(t time.Time) bool {
	if t.Before(c.start) {
		return false
	}
	for _, b := range c.blackouts {
		if !t.Before(b.from) && t.Before(b.to) {
			return false
		}
	}
	for _, w := range c.windows {
		if w.on(t) {
			return true
		}
	}
	return len(c.windows) == 0
}

func stamp(t time.Time) string { return t.UTC().Format("2006-01-02 15:04 UTC") }
