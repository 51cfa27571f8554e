package cli_test

import (
	"bytes"
	"strings"
	"testing"
	"time"

	"github.com/cassandra-security-manager/csm/shared/cli"
)

func TestAScreenDrawsOverItselfAndBeginsAnewWhenTheTerminalIsResized(t *testing.T) {
	var out bytes.Buffer
	width, height := 20, 5
	s := cli.NewScreen(&out, func() (int, int) { return width, height }, true, time.Now)
	show := func(lines ...string) string {
		out.Reset()
		s.Show(func(int, int) (l []cli.Line) {
			for _, x := range lines {
				l = append(l, cli.Text(cli.Good, "%s", x))
			}
			return l
		}, nil)
		return out.String()
	}
	if got := show("a", "b"); got != "\x1b[?7l\x1b[32ma\x1b[0m\x1b[K\n\x1b[32mb\x1b[0m\x1b[K\n\x1b[J\x1b[?7h" {
		t.Errorf("the first: %q", got)
	}
	if got := show("c"); !strings.Contains(got, "\x1b[2A\r") || strings.Contains(got, "\x1b[2J") {
		t.Errorf("the second is drawn over the first: %q", got)
	}
	width = 10
	if got := show("0123456789abc"); !strings.Contains(got, "\x1b[H\x1b[2J") || !strings.Contains(got, "01234567…") {
		t.Errorf("after a resize: %q", got)
	}
	if got := show("1", "2", "3", "4", "5", "6"); strings.Count(got, "\n") != 4 {
		t.Errorf("higher than the terminal: %q", got)
	}
}

func TestTextIsMeasuredInColumnsCutAndWrapped(t *testing.T) {
	for s, want := range map[string]int{"abc": 3, "日本": 4, "e\u0301": 1, "✓ n1": 4} {
		if got := cli.Columns(s); got != want {
			t.Errorf("%q takes %d columns, not %d", s, got, want)
		}
	}
	if got := cli.Cut("日本語です", 7); got != "日本語…" || cli.Columns(got) > 7 {
		t.Errorf("%q", got)
	}
	if got := cli.Wrap("one two  three-and-more x", 5); strings.Join(got, "|") != "one|two|three|-and-|more|x" {
		t.Errorf("%q", got)
	}
	for _, most := range []int{-1, 0, 1, 2} {
		if got := cli.Wrap("日本 ab", most); len(got) < 3 {
			t.Errorf("%d: %q", most, got)
		}
	}
}

func TestATextForPeopleCannotMoveTheCursor(t *testing.T) {
	got := cli.Text(cli.Plain, "%s", "n1\x1b[2J\u202ex\ny").String()
	if got != "n1[2Jx y" {
		t.Errorf("%q", got)
	}
}
