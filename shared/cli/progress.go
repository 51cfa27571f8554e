package cli

import (
	"fmt"
	"io"
	"sync"
	"unicode/utf8"
)

// Progress shows one changing line on a terminal, and a plain line per change elsewhere.
type Progress struct {
	mu    sync.Mutex
	w     io.Writer
	live  bool
	quiet bool
	last  string
}

// Progress on stderr.
func (g *Global) Progress() *Progress {
	return &Progress{w: g.Err, live: Terminal(g.Err), quiet: g.Quiet}
}

// Show replaces the line.
func (p *Progress) Show(format string, args ...any) {
	p.mu.Lock()
	defer p.mu.Unlock()
	s := clean(fmt.Sprintf(format, args...))
	if p.quiet || s == p.last {
		return
	}
	if p.live {
		if r := []rune(s); len(r) > 200 {
			s = string(r[:200])
		}
		fmt.Fprintf(p.w, "\r\x1b[K%s", s)
	} else {
		fmt.Fprintln(p.w, s)
	}
	p.last = s
}

// Done ends the line.
func (p *Progress) Done() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.live && !p.quiet && utf8.RuneCountInString(p.last) > 0 {
		fmt.Fprintln(p.w)
	}
	p.last = ""
}
