package ringview

import (
	"fmt"
	"slices"
	"strings"
	"time"

	ui "github.com/cassandra-security-manager/csm/shared/cli"
)

// widest is how wide a picture becomes on a terminal that is wider.
const widest = 120

// Lines draws the picture for a terminal; 0 for a width or height without bound. One row is left for the cursor.
func Lines(v View, now time.Time, width, height int) []ui.Line {
	if width <= 0 || width > widest {
		width = widest
	}
	width--
	head, foot := heading(v, now, width), footing(v, width)
	if height <= 0 {
		return slices.Concat(head, ring(v.Nodes, now, width, 0), WaitLines(v.Waits, now, width), foot)
	}
	room := max(height-1, 1)
	if len(head)+len(foot) > room-2 { // what is least needed goes first
		head, foot = head[:min(len(head), 2)], brief(v, width)
	}
	if len(head)+len(foot) > room {
		return slices.Concat(head[:min(len(head), room)], foot)[:room]
	}
	room -= len(head) + len(foot)
	waits := WaitLines(v.Waits, now, width)
	if len(waits) > room/2 {
		waits = fewer(v, now, width, room/2)
	}
	nodes := ring(v.Nodes, now, width, room-len(waits))
	if left := room - len(nodes); len(waits) < left {
		if waits = WaitLines(v.Waits, now, width); len(waits) > left {
			waits = fewer(v, now, width, left)
		}
	}
	return slices.Concat(head, nodes, waits, foot)
}

func heading(v View, now time.Time, width int) []ui.Line {
	title := ui.Line{{Text: v.Title, Style: ui.Strong}}
	if v.About != "" {
		title = append(title, ui.Piece{Text: "  " + v.About})
	}
	state := ui.Line{{Text: strings.TrimSpace(v.State + " " + span(now, v.Since)), Style: stateStyle(v.State)}}
	if v.Note != "" {
		state = append(state, ui.Piece{Text: ": " + v.Note})
	}
	out := []ui.Line{title, state}
	if !v.Lost.IsZero() {
		out[1] = ui.Text(ui.Bad, "no controller answers for %s: this is how it stood then; what was begun goes on", span(now, v.Lost))
	}
	if v.Notice != "" {
		out = append(out, ui.Text(ui.Warn, "%s", v.Notice))
	}
	if len(v.Steps) > 0 {
		out = append(out, steps(v.Steps))
	}
	if len(v.Nodes) > 0 {
		out = append(out, progress(v, now, width))
	}
	return out
}

func stateStyle(state string) ui.Style {
	switch state {
	case "done", "rolled-back":
		return ui.Good
	case "halted", "aborted":
		return ui.Bad
	case "paused", "aborting", "waiting", "rolling-back":
		return ui.Warn
	}
	return ui.Plain
}

func steps(all []Step) (l ui.Line) {
	for i, s := range all {
		if i > 0 {
			l = append(l, ui.Piece{Text: "  "})
		}
		switch s.At {
		case Over:
			l = append(l, ui.Piece{Text: "✓ " + s.Name, Style: ui.Good})
		case Now:
			l = append(l, ui.Piece{Text: "→ " + s.Name + " now", Style: ui.Strong})
		default:
			l = append(l, ui.Piece{Text: "· " + s.Name, Style: ui.Dim})
		}
	}
	return l
}

// progress is a bar, figures, and when it is over if nothing holds it.
func progress(v View, now time.Time, width int) ui.Line {
	n := counts(v.Nodes)
	done, all := n["proved"], len(v.Nodes)-n["gone"]
	l := ui.Line{}
	if width >= 60 && all > 0 {
		const cells = 20
		k := done * cells / all
		l = append(l, ui.Piece{Text: "[" + strings.Repeat("#", k), Style: ui.Good}, ui.Piece{Text: strings.Repeat(".", cells-k) + "] ", Style: ui.Dim})
	}
	l = append(l, ui.Piece{Text: fmt.Sprintf("%d of %d proved", done, all)})
	if v.Until.After(now) {
		l = append(l, ui.Piece{Text: fmt.Sprintf(", %s in about %s (%s) if nothing holds it", v.What, ui.Span(v.Until.Sub(now)), v.Until.UTC().Format("15:04 UTC"))})
	}
	return l
}

func footing(v View, width int) (out []ui.Line) {
	if v.Next != "" {
		out = append(out, labelled("next:  ", v.Next, ui.Plain, width)...)
	}
	for _, h := range v.Hands {
		out = append(out, labelled(fmt.Sprintf("%-7s", h.Does+":"), h.Command, ui.Plain, width)...)
	}
	if v.Leave != "" {
		out = append(out, labelled("leave: ", v.Leave, ui.Dim, width)...)
	}
	return out
}

// brief is the least that must be there: what holds it, and how to stop it.
func brief(v View, width int) (out []ui.Line) {
	if len(v.Waits) > 0 {
		out = append(out, ui.Line{{Text: ui.Cut("waits: "+v.Waits[0].Text, width)}})
	}
	if len(v.Hands) > 0 {
		out = append(out, ui.Line{{Text: v.Hands[0].Does + ": " + v.Hands[0].Command}})
	}
	return out
}

// fewer tells the first wait of each gate, and how many more there are, in at most room lines.
func fewer(v View, now time.Time, width, room int) (out []ui.Line) {
	if room <= 0 {
		return nil
	}
	first, more := []Wait{}, map[string]int{}
	for _, w := range v.Waits {
		if more[w.Code]++; more[w.Code] == 1 {
			first = append(first, w)
		}
	}
	left := 0
	for i, w := range first {
		if n := more[w.Code] - 1; n > 0 {
			w.Text += " (and " + plural(n, "reason") + " of that kind more)"
		}
		lines := WaitLines([]Wait{w}, now, width)
		last := i == len(first)-1
		if keep := room - len(out); !last && len(lines) > keep-1 || len(lines) > keep {
			if len(out) == 0 && keep > 1 { // as much of the first as there is room for
				out = append(out, lines[:min(len(lines), keep-1)]...)
				continue
			}
			left++
			continue
		}
		out = append(out, lines...)
	}
	if left > 0 && len(out) < room {
		out = append(out, labelled("waits: ", fmt.Sprintf("%s more: %s", plural(left, "gate"), v.More), ui.Dim, 0)...)
	}
	return out
}
