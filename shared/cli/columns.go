package cli

import (
	"strings"
	"unicode"

	"golang.org/x/text/width"
)

// clean keeps a cell in its line, takes terminal control characters out, and what turns the direction of writing or is not seen:
// names come from others.
func clean(s string) string {
	return strings.Map(func(r rune) rune {
		if r == '\n' || r == '\t' || r == '\u2028' || r == '\u2029' {
			return ' '
		}
		if r < 0x20 || r == 0x7f || (r >= 0x80 && r < 0xa0) || unicode.Is(unicode.Cf, r) {
			return -1
		}
		return r
	}, s)
}

// cleanText is clean for a text of several lines.
func cleanText(s string) string {
	lines := strings.Split(s, "\n")
	for i, l := range lines {
		cells := strings.Split(l, "\t")
		for j, c := range cells {
			cells[j] = clean(c)
		}
		lines[i] = strings.Join(cells, "\t")
	}
	return strings.Join(lines, "\n")
}

// Columns of a terminal that a text takes: two for wide characters of East Asia, none for marks above or below others.
func Columns(s string) (n int) {
	for _, r := range s {
		n += columns(r)
	}
	return n
}

func columns(r rune) int {
	if unicode.In(r, unicode.Mn, unicode.Me) {
		return 0
	}
	switch width.LookupRune(r).Kind() {
	case width.EastAsianWide, width.EastAsianFullwidth:
		return 2
	}
	return 1
}

// Cut shortens a text to columns; one that is cut ends in "…".
func Cut(s string, most int) string {
	if Columns(s) <= most {
		return s
	}
	n := 0
	for i, r := range s {
		if n += columns(r); n > most-1 {
			if most < 1 {
				return ""
			}
			return s[:i] + "…"
		}
	}
	return s
}

// Wrap breaks a text between words so that no line takes more columns; a word that is longer is broken.
func Wrap(s string, most int) (out []string) {
	most = max(most, 2)
	line := ""
	for _, word := range strings.Fields(clean(s)) {
		for {
			switch {
			case line == "" && Columns(word) <= most:
				line = word
			case line != "" && Columns(line)+1+Columns(word) <= most:
				line += " " + word
			case line != "":
				out, line = append(out, line), ""
				continue
			default:
				head := prefix(word, most)
				out, word = append(out, head), word[len(head):]
				continue
			}
			break
		}
	}
	return append(out, line)
}

// prefix is as much of a word as fits.
func prefix(word string, most int) string {
	n := 0
	for i, r := range word {
		if n += columns(r); n > most {
			return word[:i]
		}
	}
	return word
}
