// Package ringview draws a change of a ring for the person who watches it, perhaps at night: where each node stands, what is waited
// for since when, what comes next, and how to stop it. All of it is pure: a View in, lines out.
//
// It keeps these promises: a picture is never higher or wider than the terminal; what does not fit is counted, not left out; the last
// lines still say how to stop; each node's phase is a sign and a word, so no colour is needed to read it.
package ringview

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
	"time"

	ui "github.com/cassandra-security-manager/csm/shared/cli"
)

// View is all that a picture is drawn from. Its texts may come from others.
type View struct {
	Title, About string
	State        string
	// Since when it is in that state; Note is why.
	Since time.Time
	Note  string
	// Steps are the phases of the whole, in order; none for a change of one phase.
	Steps []Step
	Nodes []Node
	Waits []Wait
	Next  string
	// Until is when it would be over if nothing held it, zero when nobody can tell. What says what would be over.
	Until time.Time
	What  string
	Hands []Hand
	// Leave says that what is shown goes on when the view ends.
	Leave string
	// More is the command that tells all reasons.
	More string
	// Notice is something that happened to the view itself.
	Notice string
	// Lost is since when no controller answers, zero when one does.
	Lost time.Time
}

// Step is one phase of the whole.
type Step struct {
	Name string
	At   Place
}

// Place of a step in time.
type Place int

// The places.
const (
	Later Place = iota
	Now
	Over
)

// Node is one node of the ring.
type Node struct {
	Name, Datacenter, Rack string
	// Phase is one of the words below.
	Phase  string
	Since  time.Time
	Detail string
}

// rack is where it stands, "?" for a member of which nobody tells.
func (n Node) rack() string { return cmp.Or(strings.Trim(n.Datacenter+"/"+n.Rack, "/"), "?") }

// Wait is one reason for which it does not go on, in the words of the gate.
type Wait struct {
	Code, Text, Remedy string
	Since, Until       time.Time
	// AtLeast: it held already when Since began.
	AtLeast bool
}

// Hand is what a person may do to it.
type Hand struct{ Does, Command string }

// sign of a phase, how it looks, and whether nothing happens on the node meanwhile.
type sign struct {
	word, mark string
	style      ui.Style
	rest       bool
}

// signs in the order in which they are told.
var signs = []sign{
	{"failed", "✗", ui.Bad, false},
	{"down", "↓", ui.Bad, false},
	{"no-agent", "!", ui.Bad, false},
	{"unproved", "?", ui.Warn, false},
	{"moving", "→", ui.Warn, false},
	{"told", "○", ui.Warn, false},
	{"unsettled", "~", ui.Warn, false},
	{"set-aside", "-", ui.Warn, false},
	{"not-started", "~", ui.Warn, false},
	{"proved", "✓", ui.Good, true},
	{"pending", "·", ui.Dim, true},
	{"gone", "-", ui.Dim, true},
}

func signOf(phase string) sign {
	for _, s := range signs {
		if s.word == phase {
			return s
		}
	}
	return sign{phase, "~", ui.Plain, false}
}

// counts of the nodes by phase.
func counts(nodes []Node) map[string]int {
	n := map[string]int{}
	for _, x := range nodes {
		n[x.Phase]++
	}
	return n
}

// span is since when, in short; empty when that is not known.
func span(now, since time.Time) string {
	if since.IsZero() {
		return ""
	}
	return ui.Span(max(now.Sub(since), 0))
}

// Sentence is a wait as explain, status and the picture tell it.
func (w Wait) Sentence(now time.Time) string {
	out := w.Text
	if w.Code != "" {
		out += "  [" + w.Code + "]"
	}
	if s := span(now, w.Since); s != "" {
		out += " since " + s
		if w.AtLeast {
			out += " at least"
		}
	}
	return out
}

// WaitLines tell all that is waited for and what to do about it, each in lines of at most so many columns; 0 for any length.
func WaitLines(waits []Wait, now time.Time, width int) (out []ui.Line) {
	for _, w := range waits {
		out = append(out, labelled("waits: ", w.Sentence(now), ui.Plain, width)...)
		if w.Remedy != "" {
			out = append(out, labelled("  do:  ", w.Remedy, ui.Dim, width)...)
		}
	}
	return out
}

// labelled is a text behind a label, wrapped.
func labelled(label, text string, st ui.Style, width int) (out []ui.Line) {
	lines := []string{text}
	if width > 0 {
		lines = ui.Wrap(text, width-len(label))
	}
	for i, l := range lines {
		if i > 0 {
			label = strings.Repeat(" ", len(label))
		}
		out = append(out, ui.Line{{Text: label, Style: ui.Dim}, {Text: l, Style: st}})
	}
	return out
}

// likeIt bounds how many waits of one code are told in plain lines.
const likeIt = 10

// Facts are what is true now, one line each, for logs and pipes.
func Facts(v View) []string {
	state := v.Title + ": " + v.State
	for _, s := range v.Steps {
		if s.At == Now {
			state += ", phase " + s.Name
		}
	}
	if v.Note != "" {
		state += ": " + v.Note
	}
	out := []string{state}
	if v.Notice != "" {
		out = append(out, v.Notice)
	}
	if !v.Lost.IsZero() {
		return append(out, "no controller answers; what was begun goes on, and is asked for again")
	}
	for _, n := range v.Nodes {
		if n.Phase == "pending" {
			continue
		}
		line := n.Name + ": " + n.Phase
		if n.Detail != "" {
			line += ": " + n.Detail
		}
		out = append(out, line)
	}
	told := map[string]int{}
	for _, w := range v.Waits {
		switch told[w.Code]++; {
		case told[w.Code] <= likeIt:
			out = append(out, "waits: "+w.Text+"  ["+w.Code+"]")
		case told[w.Code] == likeIt+1:
			out = append(out, "waits: more of the same  ["+w.Code+"]: "+v.More)
		}
	}
	if v.Next != "" {
		out = append(out, "next: "+v.Next)
	}
	for _, h := range v.Hands {
		out = append(out, h.Does+": "+h.Command)
	}
	return out
}

// byRack groups nodes, in the order of their names of data centre and rack.
func byRack(nodes []Node, key func(Node) string) (order []string, groups map[string][]Node) {
	groups = map[string][]Node{}
	for _, n := range nodes {
		k := key(n)
		if groups[k] == nil {
			order = append(order, k)
		}
		groups[k] = append(groups[k], n)
	}
	slices.SortFunc(order, natural)
	return order, groups
}

// natural orders r2 before r10.
func natural(a, b string) int {
	for a != "" && b != "" {
		x, y := digits(a), digits(b)
		if x != "" && y != "" {
			if c := cmp.Or(cmp.Compare(len(strings.TrimLeft(x, "0")), len(strings.TrimLeft(y, "0"))), cmp.Compare(strings.TrimLeft(x, "0"), strings.TrimLeft(y, "0"))); c != 0 {
				return c
			}
			a, b = a[len(x):], b[len(y):]
			continue
		}
		if a[0] != b[0] {
			return cmp.Compare(a[0], b[0])
		}
		a, b = a[1:], b[1:]
	}
	return cmp.Compare(len(a), len(b))
}

func digits(s string) string {
	return s[:len(s)-len(strings.TrimLeft(s, "0123456789"))]
}

func plural(n int, what string) string {
	if n == 1 {
		return "1 " + what
	}
	return fmt.Sprintf("%d %ss", n, what)
}
