package config

import (
	"errors"
	"fmt"
	"maps"
	"reflect"
	"slices"
	"strings"

	"github.com/cassandra-security-manager/csm/shared/fault"
)

// Problem is one thing wrong with a configuration.
type Problem struct {
	// File and Line (from 1) where it stands; Line is 0 when it stands in no file.
	File    string `json:"file,omitempty"`
	Line    int    `json:"line,omitempty"`
	Key     string `json:"key,omitempty"`
	Message string `json:"message"`
	Remedy  string `json:"remedy,omitempty"`
}

// String is "file:line: key: message".
func (p Problem) String() string {
	var b strings.Builder
	if p.File != "" && p.Line > 0 {
		fmt.Fprintf(&b, "%s:%d: ", p.File, p.Line)
	}
	if p.Key != "" {
		b.WriteString(p.Key + ": ")
	}
	b.WriteString(p.Message)
	return b.String()
}

// Problems collects what is wrong.
type Problems struct {
	// Path of the file.
	Path  string
	lines map[string]int
	list  []Problem
}

// Add tells a problem of a key ("listen.api", "cassandra[0].config"); its line is found by the key, or by the nearest
// key above it that the file holds.
func (p *Problems) Add(key, message, remedy string) {
	line := 0
	for k := key; k != "" && line == 0; k = k[:max(strings.LastIndexAny(k, ".["), 0)] {
		line = p.lines[k]
	}
	p.addLine(line, key, message, remedy)
}

func (p *Problems) addLine(line int, key, message, remedy string) {
	pr := Problem{Line: line, Key: key, Message: message, Remedy: remedy}
	if line > 0 {
		pr.File = p.Path
	}
	p.add(pr)
}

func (p *Problems) add(pr Problem) { p.list = append(p.list, pr) }

// List is what was told, in order.
func (p *Problems) List() []Problem { return slices.Clone(p.list) }

// Err is nil when nothing was told, else a fault that lists every problem; Of takes it apart again.
func (p *Problems) Err() error {
	if len(p.list) == 0 {
		return nil
	}
	lines := make([]string, len(p.list))
	for i, pr := range p.list {
		lines[i] = pr.String()
		if i > 0 && pr.Remedy != "" {
			lines[i] += " (" + pr.Remedy + ")"
		}
	}
	if len(lines) > 1 && p.list[0].Remedy != "" {
		lines[0] += " (" + p.list[0].Remedy + ")"
	}
	f := fault.Wrap(&problemsError{p.List()}, fault.Invalid, "bad-config", "")
	f.Message = strings.Join(lines, "\n")
	if len(lines) == 1 {
		return f.Do("%s", p.list[0].Remedy)
	}
	return f.Do("correct these %d problems; `config check` looks again", len(lines))
}

type problemsError struct{ list []Problem }

func (e *problemsError) Error() string { return fmt.Sprintf("%d problems", len(e.list)) }

// suggest names the nearest known key.
func suggest(key string, known map[string]reflect.Type) string {
	names := slices.Sorted(maps.Keys(known))
	best, at := "", 1<<30
	for _, n := range names {
		if d := distance(strings.ToLower(key), n); d < at {
			best, at = n, d
		}
	}
	if best != "" && at <= 1+len(key)/3 {
		return fmt.Sprintf("did you mean %q?", best)
	}
	return "remove it; known here: " + strings.Join(names, ", ")
}

// distance is the Levenshtein distance.
func distance(a, b string) int {
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		prev := row[0]
		row[0] = i + 1
		for j := range len(b) {
			cost := prev
			if a[i] != b[j] {
				cost = 1 + min(prev, row[j], row[j+1])
			}
			prev, row[j+1] = row[j+1], cost
		}
	}
	return row[len(b)]
}

// Of gives the problems in an error of Load; nil when it holds none.
func Of(err error) []Problem {
	var p *problemsError
	if errors.As(err, &p) {
		return p.list
	}
	return nil
}
