package cli

import (
	"fmt"
	"time"
)

// Ago tells a time relative to now, as people say it: "4m ago", "in 62d"; "" for the zero time.
func Ago(now, t time.Time) string {
	if t.IsZero() || t.Unix() == 0 {
		return ""
	}
	d := now.Sub(t)
	if d < 0 {
		return "in " + Span(-d)
	}
	if d < time.Second {
		return "now"
	}
	return Span(d) + " ago"
}

// Span tells a length of time in its largest unit: "850ms", "12s", "5m", "3h", "62d".
func Span(d time.Duration) string {
	switch {
	case d < time.Second:
		return fmt.Sprintf("%dms", d.Milliseconds())
	case d < 2*time.Minute:
		return fmt.Sprintf("%ds", int(d.Seconds()))
	case d < 2*time.Hour:
		return fmt.Sprintf("%dm", int(d.Minutes()))
	case d < 48*time.Hour:
		return fmt.Sprintf("%dh", int(d.Hours()))
	}
	return fmt.Sprintf("%dd", int(d.Hours()/24))
}
