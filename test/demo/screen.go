//go:build linux

package main

import (
	"fmt"
	"io"
	"strings"
	"sync"
	"time"
)

// screen tells what happens: a line per step with the time since the start. On a terminal the step under way has a
// live line; elsewhere only finished lines are printed, and a sign of life when a step takes long.
type screen struct {
	w     io.Writer
	live  bool
	begin time.Time

	mu     sync.Mutex
	doing  string
	detail func() string
	since  time.Time
	told   time.Time
	frame  int
}

const (
	frameEvery = 120 * time.Millisecond
	lifeEvery  = 15 * time.Second
)

var frames = []rune("⠋⠙⠹⠸⠼⠴⠦⠧⠇⠏")

func newScreen(w io.Writer, live bool) *screen {
	s := &screen{w: w, live: live, begin: time.Now()}
	go func() {
		for range time.Tick(frameEvery) {
			s.refresh()
		}
	}()
	return s
}

// step says what is under way.
func (s *screen) step(format string, args ...any) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.doing, s.since, s.told = fmt.Sprintf(format, args...), time.Now(), time.Now()
	s.draw()
}

// watch adds live figures to the line under way.
func (s *screen) watch(detail func() string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.detail = detail
}

// done ends the step under way with what came of it.
func (s *screen) done(format string, args ...any) {
	s.end(s.paint("32", "✓"), fmt.Sprintf(format, args...))
}

// failed ends the step under way with what was seen instead.
func (s *screen) failed(format string, args ...any) {
	s.end(s.paint("31", "✗"), fmt.Sprintf(format, args...))
}

func (s *screen) end(sign, text string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.doing = ""
	s.clear()
	lines := strings.Split(text, "\n")
	fmt.Fprintf(s.w, "%6s %s %s\n", clock(time.Since(s.begin)), sign, lines[0])
	for _, l := range lines[1:] {
		fmt.Fprintf(s.w, "         %s\n", l)
	}
}

// note prints a line that belongs to the step under way.
func (s *screen) note(format string, args ...any) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.clear()
	for l := range strings.SplitSeq(fmt.Sprintf(format, args...), "\n") {
		fmt.Fprintf(s.w, "         %s\n", l)
	}
	s.told = time.Now()
	s.draw()
}

// title begins a part.
func (s *screen) title(text string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.clear()
	fmt.Fprintf(s.w, "\n%s\n", s.paint("1", text))
}

// text prints a block as it is.
func (s *screen) text(block string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.clear()
	fmt.Fprintln(s.w, strings.TrimRight(block, "\n"))
}

func (s *screen) refresh() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.doing == "" {
		return
	}
	s.frame++
	if s.live {
		s.draw()
		return
	}
	if time.Since(s.told) >= lifeEvery {
		s.told = time.Now()
		fmt.Fprintf(s.w, "%6s … %s%s\n", clock(time.Since(s.begin)), s.doing, s.figures())
	}
}

func (s *screen) draw() {
	if !s.live || s.doing == "" {
		return
	}
	line := fmt.Sprintf("%6s %c %s", clock(time.Since(s.begin)), frames[s.frame%len(frames)], s.doing)
	if took := time.Since(s.since); took > 2*time.Second {
		line += fmt.Sprintf(" (%.0f s)", took.Seconds())
	}
	s.clear()
	// One line only: a wrapped one could not be cleared.
	fmt.Fprint(s.w, cut(line+s.figures(), 118))
}

func (s *screen) figures() string {
	if s.detail == nil {
		return ""
	}
	return "  " + s.detail()
}

func (s *screen) clear() {
	if s.live {
		fmt.Fprint(s.w, "\r\x1b[K")
	}
}

func (s *screen) paint(code, text string) string {
	if !s.live {
		return text
	}
	return "\x1b[" + code + "m" + text + "\x1b[0m"
}

func cut(s string, runes int) string {
	if r := []rune(s); len(r) > runes {
		return string(r[:runes-1]) + "…"
	}
	return s
}

// clock is minutes and seconds.
func clock(d time.Duration) string {
	sec := int(d.Seconds())
	return fmt.Sprintf("%d:%02d", sec/60, sec%60)
}

// table aligns columns; the first row is the head.
func table(rows [][]string) string {
	var width []int
	for _, r := range rows {
		for i, c := range r {
			if i == len(width) {
				width = append(width, 0)
			}
			width[i] = max(width[i], len([]rune(c)))
		}
	}
	var b strings.Builder
	for _, r := range rows {
		var line strings.Builder
		for i, c := range r {
			line.WriteString(c + strings.Repeat(" ", width[i]-len([]rune(c))+2))
		}
		b.WriteString("  " + strings.TrimRight(line.String(), " ") + "\n")
	}
	return b.String()
}
