package cli

import (
	"fmt"
	"io"
	"os"
	"strings"
	"sync"
	"time"

	"golang.org/x/term"
)

// Piece of a line, and how it looks on a terminal. Its text may come from others: control characters are taken out of it.
type Piece struct {
	Text  string
	Style Style
}

// Line of a picture.
type Line []Piece

// Text is a line of one look.
func Text(st Style, format string, args ...any) Line {
	return Line{{fmt.Sprintf(format, args...), st}}
}

// String is the line without its looks.
func (l Line) String() string {
	var b strings.Builder
	for _, p := range l {
		b.WriteString(clean(p.Text))
	}
	return strings.TrimRight(b.String(), " ")
}

// Screen shows a picture that changes: drawn over itself on a terminal, coloured where that is wanted; elsewhere one plain line, with
// the time, for each thing that is new.
type Screen struct {
	mu           sync.Mutex
	w            io.Writer
	size         func() (width, height int) // 0: no terminal
	now          func() time.Time
	color, quiet bool
	// What was drawn last, and on how large a terminal.
	drawn, width, height int
	said                 map[string]bool
}

// Screen on stdout: what it shows is the answer. A terminal that cannot move its cursor gets plain lines.
func (g *Global) Screen() *Screen {
	size := func() (int, int) { return 0, 0 }
	if f, ok := g.Out.(*os.File); ok && Terminal(f) && g.Env("TERM") != "dumb" {
		size = func() (int, int) {
			w, h, err := term.GetSize(int(f.Fd()))
			if err != nil || w < 1 || h < 1 { // a serial line tells nothing
				return 80, 24
			}
			return w, h
		}
	}
	s := NewScreen(g.Out, size, g.Color(g.Out), g.Now)
	s.quiet = g.Quiet
	return s
}

// NewScreen draws on a terminal of a size that may change, 0 for none.
func NewScreen(w io.Writer, size func() (width, height int), color bool, now func() time.Time) *Screen {
	return &Screen{w: w, size: size, color: color, now: now, said: map[string]bool{}}
}

// Live says whether pictures are drawn over themselves.
func (s *Screen) Live() bool { w, _ := s.size(); return w > 0 && !s.quiet }

// Show replaces the picture that draw makes for the size of the terminal; what is higher than it is cut. facts are what it
// says, one thing each, for where there is no terminal: each is told once until it is no longer true.
func (s *Screen) Show(draw func(width, height int) []Line, facts func() []string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.quiet {
		return
	}
	width, height := s.size()
	if width == 0 {
		s.tell(facts())
		return
	}
	lines := draw(width, height)
	if len(lines) > height-1 {
		lines = lines[:max(height-1, 0)]
	}
	var b strings.Builder
	b.WriteString("\x1b[?7l") // a line that some font makes wider than we think is cut, not wrapped
	switch {
	case s.drawn > 0 && (width != s.width || height != s.height): // terminals wrap what is there anew, each in its own way
		b.WriteString("\x1b[H\x1b[2J")
	case s.drawn > 0:
		fmt.Fprintf(&b, "\x1b[%dA\r", s.drawn)
	}
	for _, l := range lines {
		b.WriteString(l.fit(width-1, s.color) + "\x1b[K\n")
	}
	b.WriteString("\x1b[J\x1b[?7h")
	s.drawn, s.width, s.height = len(lines), width, height
	_, _ = io.WriteString(s.w, b.String())
}

func (s *Screen) tell(facts []string) {
	now := map[string]bool{}
	for _, f := range facts {
		f = clean(f)
		if !s.said[f] && !now[f] {
			fmt.Fprintf(s.w, "%s  %s\n", s.now().UTC().Format("15:04:05Z"), f)
		}
		now[f] = true
	}
	s.said = now
}

// fit cuts a line to columns of a terminal.
func (l Line) fit(width int, color bool) string {
	var b strings.Builder
	line := l.String()
	left, whole, rest := width, Columns(line) <= width, len(line)
	for _, p := range l {
		text := clean(p.Text)
		text = text[:min(len(text), rest)] // no blanks at the end
		rest -= len(text)
		if n := Columns(text); !whole && n >= left {
			b.WriteString(paint(Cut(text+" ", left), p.Style, color)) // the blank makes it too long, so that it ends in …
			break
		}
		left -= Columns(text)
		b.WriteString(paint(text, p.Style, color))
	}
	return b.String()
}
