package cli

import (
	"fmt"
	"io"
	"strings"
)

// Column of a table.
type Column struct {
	Name string
	// Wide shows it with -o wide only.
	Wide bool
	// Right aligns figures.
	Right bool
	// Style colours a cell on a terminal.
	Style func(cell string) Style
}

// Style is how a cell looks on a terminal.
type Style int

// Styles.
const (
	Plain Style = iota
	Good
	Warn
	Bad
	Dim
	Strong
)

var escapes = [...]string{Good: "\x1b[32m", Warn: "\x1b[33m", Bad: "\x1b[31m", Dim: "\x1b[2m", Strong: "\x1b[1m"}

// Table is columns and rows of the same length.
type Table struct {
	Columns []Column
	Rows    [][]string
}

// Add appends a row.
func (t *Table) Add(cells ...string) { t.Rows = append(t.Rows, cells) }

// write prints the table aligned, two spaces between columns, nothing at the end of lines.
func (t *Table) write(w io.Writer, wide, color bool) error {
	var shown []int
	for i, c := range t.Columns {
		if wide || !c.Wide {
			shown = append(shown, i)
		}
	}
	width := make([]int, len(t.Columns))
	for i, c := range t.Columns {
		width[i] = Columns(c.Name)
		for _, r := range t.Rows {
			if i < len(r) {
				width[i] = max(width[i], Columns(clean(r[i])))
			}
		}
	}
	var b strings.Builder
	line := func(cell func(i int) string, style func(i int, s string) Style) {
		var l strings.Builder
		for n, i := range shown {
			s := clean(cell(i))
			pad := strings.Repeat(" ", width[i]-Columns(s))
			if n > 0 {
				l.WriteString("  ")
			}
			painted := paint(s, style(i, s), color)
			switch {
			case t.Columns[i].Right:
				l.WriteString(pad + painted)
			case n == len(shown)-1:
				l.WriteString(painted)
			default:
				l.WriteString(painted + pad)
			}
		}
		b.WriteString(strings.TrimRight(l.String(), " ") + "\n")
	}
	line(func(i int) string { return t.Columns[i].Name }, func(int, string) Style { return Dim })
	for _, r := range t.Rows {
		line(func(i int) string {
			if i >= len(r) || r[i] == "" {
				return "-"
			}
			return r[i]
		}, func(i int, s string) Style {
			if t.Columns[i].Style == nil {
				return Plain
			}
			return t.Columns[i].Style(s)
		})
	}
	_, err := io.WriteString(w, b.String())
	return err
}

func paint(s string, st Style, color bool) string {
	if !color || st == Plain {
		return s
	}
	return escapes[st] + s + "\x1b[0m"
}

// Pairs are lines of "key: value" for one thing, aligned.
type Pairs [][2]string

// Add appends a line; an empty value is left out.
func (p *Pairs) Add(key, format string, args ...any) {
	if v := fmt.Sprintf(format, args...); v != "" {
		*p = append(*p, [2]string{key, v})
	}
}

func (p Pairs) write(w io.Writer) error {
	width := 0
	for _, kv := range p {
		width = max(width, Columns(kv[0]))
	}
	var b strings.Builder
	for _, kv := range p {
		lines := strings.Split(kv[1], "\n")
		fmt.Fprintf(&b, "%s:%s  %s\n", kv[0], strings.Repeat(" ", width-Columns(kv[0])), clean(lines[0]))
		for _, l := range lines[1:] {
			fmt.Fprintf(&b, "%s   %s\n", strings.Repeat(" ", width), clean(l))
		}
	}
	_, err := io.WriteString(w, b.String())
	return err
}
