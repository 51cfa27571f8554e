package cli

import (
	"fmt"
	"io"
	"os"
	"strings"
	"sync"

	"golang.org/x/term"
)

// Screen shows a picture that changes: drawn over itself on a terminal; elsewhere one plain line for each thing that is new.
type Screen struct {
	mu    sync.Mutex
	w     io.Writer
	width func() int // 0: no terminal
	drawn int
	said  map[string]bool
	quiet bool
}

// Screen on stderr.
func (g *Global) Screen() *Screen {
	s := &Screen{w: g.Err, width: func() int { return 0 }, said: map[string]bool{}, quiet: g.Quiet}
	if f, ok := g.Err.(*os.File); ok && Terminal(f) {
		s.width = func() int {
			w, _, err := term.GetSize(int(f.Fd()))
			if err != nil || w < 20 {
				return 80
			}
			return w
		}
	}
	return s
}

// Show replaces the picture. facts are what it says, one thing each, for where there is no terminal: each is told once until
// it is no longer true.
func (s *Screen) Show(picture, facts []string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.quiet {
		return
	}
	width := s.width()
	if width == 0 {
		now := map[string]bool{}
		for _, f := range facts {
			f = clean(f)
			if !s.said[f] && !now[f] {
				fmt.Fprintln(s.w, f)
			}
			now[f] = true
		}
		s.said = now
		return
	}
	var b strings.Builder
	if s.drawn > 0 {
		fmt.Fprintf(&b, "\x1b[%dA\x1b[J", s.drawn)
	}
	for _, line := range picture {
		if r := []rune(clean(line)); len(r) > width-1 {
			line = string(r[:width-2]) + "…"
		} else {
			line = string(r)
		}
		b.WriteString(line + "\n")
	}
	s.drawn = len(picture)
	_, _ = io.WriteString(s.w, b.String())
}
