package model

import (
	"fmt"
	"regexp"
	"strconv"
	"strings"
)

// Step is one step of a trace.
type Step struct {
	// Event is the word of the model for what happens, Who the node ("0" to "3"), "app", or "-".
	Event, Who string
	// Text is the same for people.
	Text string
}

// Trace is a way through a model.
type Trace []Step

// String numbers the steps, for people.
func (t Trace) String() string {
	var b strings.Builder
	for i, s := range t {
		fmt.Fprintf(&b, "%4d. %s\n", i+1, s.Text)
	}
	return b.String()
}

// Ends says whether the last step is of this event.
func (t Trace) Ends(event string) bool { return len(t) > 0 && t[len(t)-1].Event == event }

var (
	phases = []string{"idle", "distribute", "reissue", "retire", "done", "leaves back", "anchors back", "rolled back"}
	kinds  = []string{"nothing", "trust grows", "leaf of the new CA", "trust shrinks", "leaf of the old CA", "new anchors out"}
	coded  = regexp.MustCompile(`\b(phase|move) ([0-7])\b`)
)

// words puts the names of phases and moves of the rotation in the place of their numbers.
func words(text string) string {
	return coded.ReplaceAllStringFunc(text, func(m string) string {
		word, n, _ := strings.Cut(m, " ")
		list := phases
		if word == "move" {
			list = kinds
		}
		if i, _ := strconv.Atoi(n); i < len(list) {
			return word + " \"" + list[i] + "\""
		}
		return m
	})
}

var numbers = regexp.MustCompile(`\b(node|nodes|and) ([0-3])\b`)

// parse reads the lines "@ event who | text" that a model prints. The rotation keeps its members sorted, and says so by
// "@ swap i j": from there on the two have each other's place. Here every node keeps its name.
func parse(out string) (t Trace) {
	names := []string{"0", "1", "2", "3"}
	name := func(s string) string {
		if i, err := strconv.Atoi(s); err == nil && i < len(names) {
			return names[i]
		}
		return s
	}
	for _, line := range strings.Split(out, "\n") {
		line = strings.TrimSpace(line)
		if !strings.HasPrefix(line, "@ ") {
			continue
		}
		head, text, _ := strings.Cut(line[2:], " | ")
		fields := append(strings.Fields(head), "-", "-")
		if fields[0] == "swap" {
			i, _ := strconv.Atoi(fields[1])
			j, _ := strconv.Atoi(fields[2])
			names[i], names[j] = names[j], names[i]
			continue
		}
		text = numbers.ReplaceAllStringFunc(text, func(m string) string {
			word, n, _ := strings.Cut(m, " ")
			return word + " " + name(n)
		})
		who := fields[1]
		if fields[0] != "phase" { // its number is no node
			who = name(who)
		}
		t = append(t, Step{Event: fields[0], Who: who, Text: words(text)})
	}
	return t
}
