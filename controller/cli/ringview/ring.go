package ringview

import (
	"fmt"
	"slices"
	"strings"
	"time"

	ui "github.com/cassandra-security-manager/csm/shared/cli"
)

// ring draws the racks in at most room lines, 0 for any: each node if that fits, else what the nodes of each rack do, else what those of
// each data centre do, with the racks where something happens as far as there is room.
func ring(nodes []Node, now time.Time, width, room int) []ui.Line {
	if len(nodes) == 0 {
		return nil
	}
	each := cells(nodes, now, width)
	if room <= 0 || len(each) <= room {
		return each
	}
	racks := sums(nodes, Node.rack, now, width)
	if len(racks) <= room {
		return racks
	}
	out := sums(nodes, func(n Node) string { return n.Datacenter }, now, width)
	if len(out) > room {
		return sums(nodes, func(Node) string { return "ring" }, now, width)[:1]
	}
	busy := []Node{}
	for _, n := range nodes {
		if !signOf(n.Phase).rest {
			busy = append(busy, n)
		}
	}
	if len(busy) == 0 {
		return out
	}
	for _, l := range sums(busy, Node.rack, now, width) {
		if len(out) == room {
			break
		}
		out = append(out, append(ui.Line{{Text: "  "}}, l...))
	}
	return out
}

// label is the name of a rack before what stands there.
func label(name string, wide int) string {
	name = ui.Cut(name, wide)
	return "  " + name + strings.Repeat(" ", wide-ui.Columns(name)) + "  "
}

func labelWidth(names []string, width int) int {
	most := 4
	for _, n := range names {
		most = max(most, ui.Columns(n))
	}
	return min(most, 20, max(width/3, 4))
}

// cells draws each node: sign, name, word, and since when where something happens.
func cells(nodes []Node, now time.Time, width int) (out []ui.Line) {
	order, groups := byRack(nodes, Node.rack)
	wide := labelWidth(order, width)
	cell := 0
	for _, n := range nodes {
		cell = max(cell, ui.Columns(cellOf(n, now)))
	}
	perLine := max((width-wide-4+2)/(cell+2), 1)
	for _, rack := range order {
		for i, n := range groups[rack] {
			if i%perLine == 0 {
				name := ""
				if i == 0 {
					name = rack
				}
				out = append(out, ui.Line{{Text: label(name, wide)}})
			}
			text := cellOf(n, now)
			pad := strings.Repeat(" ", cell-ui.Columns(text)+2)
			l := &out[len(out)-1]
			*l = append(*l, ui.Piece{Text: text, Style: signOf(n.Phase).style}, ui.Piece{Text: pad})
		}
	}
	return out
}

func cellOf(n Node, now time.Time) string {
	s := signOf(n.Phase)
	text := fmt.Sprintf("%s %s %s", s.mark, n.Name, s.word)
	if !s.rest {
		text = strings.TrimSpace(text + " " + span(now, n.Since))
	}
	return text
}

// sums draws one line for each group: how many nodes are in which phase, and the names of those where something happens.
func sums(nodes []Node, key func(Node) string, now time.Time, width int) (out []ui.Line) {
	order, groups := byRack(nodes, key)
	wide := labelWidth(order, width)
	for _, k := range order {
		l := ui.Line{{Text: label(k, wide)}}
		n := counts(groups[k])
		for _, s := range inOrder(n) {
			text := fmt.Sprintf("%s %d %s", s.mark, n[s.word], s.word)
			if !s.rest {
				text += named(groups[k], s.word, now, 3)
			}
			l = append(l, ui.Piece{Text: text, Style: s.style}, ui.Piece{Text: "  "})
		}
		out = append(out, l)
	}
	return out
}

// inOrder are the signs of the phases that occur, known or not.
func inOrder(n map[string]int) (out []sign) {
	for _, s := range signs {
		if n[s.word] > 0 {
			out = append(out, s)
		}
	}
	order := []string{}
	for word := range n {
		if signOf(word).style == ui.Plain {
			order = append(order, word)
		}
	}
	slices.Sort(order)
	for _, word := range order {
		out = append(out, signOf(word))
	}
	return out
}

func named(nodes []Node, phase string, now time.Time, most int) string {
	var names []string
	k := 0
	for _, n := range nodes {
		if n.Phase != phase {
			continue
		}
		if k++; k <= most {
			names = append(names, strings.TrimSpace(n.Name+" "+span(now, n.Since)))
		}
	}
	if k > most {
		names = append(names, "…")
	}
	return " (" + strings.Join(names, ", ") + ")"
}
