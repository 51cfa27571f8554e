package ringview_test

import (
	"bytes"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/cassandra-security-manager/csm/controller/cli/ringview"
	ui "github.com/cassandra-security-manager/csm/shared/cli"
)

var update = flag.Bool("update", false, "write the golden files")

var now = time.Date(2026, 11, 22, 3, 12, 7, 0, time.UTC)

func ago(d time.Duration) time.Time { return now.Add(-d) }

func golden(t *testing.T, name, got string) {
	t.Helper()
	path := filepath.Join("testdata", name+".golden")
	if *update {
		if err := os.WriteFile(path, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if got != string(want) {
		t.Errorf("%s differs; go test ./controller/cli/ringview -update writes it\ngot:\n%s\nwant:\n%s", path, got, want)
	}
}

// seen is what stands on a terminal of that size.
func seen(v ringview.View, width, height int) string {
	var out bytes.Buffer
	s := ui.NewScreen(&out, func() (int, int) { return width, height }, false, func() time.Time { return now })
	s.Show(func(w, h int) []ui.Line { return ringview.Lines(v, now, w, h) }, nil)
	return ours.ReplaceAllString(out.String(), "")
}

// ours are the controls that a Screen itself sends.
var ours = regexp.MustCompile(`\x1b\[(\?7[lh]|[KJ]|[0-9]+A\r|H|2J|[0-9]+m)`)

// small is a ring of six nodes in two data centres, in the middle of a reissue.
func small() ringview.View {
	v := ringview.View{Title: "root-1842 on prod-eu", About: "internal → root-2027 (root)", State: "running", Since: ago(4 * time.Minute),
		Steps: []ringview.Step{{Name: "distribute", At: ringview.Over}, {Name: "reissue", At: ringview.Now}, {Name: "reissued"}, {Name: "retire"}, {Name: "done"}},
		Waits: []ringview.Wait{
			{Code: "moving", Text: "prod-eu/n2 is on the move", Since: ago(12 * time.Second)},
			{Code: "up", Text: "n6 is down: what it will trust when it starts is not known", Remedy: "start it, or set it aside by name: `csm rotation set-aside`", Since: ago(5 * time.Minute)}},
		Next: "phase reissued", Until: now.Add(14 * time.Minute), What: "this phase",
		Hands: []ringview.Hand{{Does: "stop", Command: "csm rotation pause root-1842 -c prod-eu --reason '…'"}, {Does: "back", Command: "csm rotation rollback root-1842 -c prod-eu --reason '…'"}},
		Leave: "Ctrl-C ends this view only; the rotation goes on", More: "csm rotation explain root-1842 -c prod-eu"}
	for i, phase := range []string{"proved", "moving", "pending", "proved", "unproved", "down"} {
		n := ringview.Node{Name: fmt.Sprintf("n%d", i+1), Datacenter: fmt.Sprintf("dc%d", i/3+1), Rack: fmt.Sprintf("r%d", i%3+1), Phase: phase}
		if phase == "moving" || phase == "unproved" {
			n.Since = ago(12 * time.Second)
		}
		v.Nodes = append(v.Nodes, n)
	}
	return v
}

// large is a ring of a thousand nodes in five data centres of ten racks, of which few do something.
func large() ringview.View {
	v := small()
	v.Nodes, v.Waits = nil, nil
	for i := range 1000 {
		n := ringview.Node{Name: fmt.Sprintf("node-%04d", i), Datacenter: fmt.Sprintf("dc%d", i/200+1), Rack: fmt.Sprintf("r%d", i/20%10+1), Phase: "pending"}
		switch {
		case i < 420:
			n.Phase = "proved"
		case i < 424:
			n.Phase, n.Since = "moving", ago(9*time.Second)
		case i == 617:
			n.Phase, n.Since, n.Detail = "failed", ago(3*time.Minute), "the keystore cannot be read"
		}
		if n.Phase != "proved" {
			v.Waits = append(v.Waits, ringview.Wait{Code: "leaf-proved", Text: n.Name + " store node: no neighbour has proved which leaf it serves now", Remedy: "see `csm why NODE`", Since: ago(4 * time.Minute)})
		}
		v.Nodes = append(v.Nodes, n)
	}
	v.Waits = append(v.Waits, ringview.Wait{Code: "settled", Text: "node-0999 is joining in the ring", Remedy: "wait until it is done", Since: ago(time.Minute)})
	return v
}

func TestThePictureOfASmallRing(t *testing.T) {
	golden(t, "small", seen(small(), 100, 40))
	golden(t, "small_narrow", seen(small(), 42, 60))
	golden(t, "small_low", seen(small(), 100, 14))
	golden(t, "small_tiny", seen(small(), 60, 6))
}

func TestThePictureOfALargeRingCountsByRackAndKeepsToTheTerminal(t *testing.T) {
	golden(t, "large", seen(large(), 120, 80))
	golden(t, "large_24", seen(large(), 80, 24))
	for _, want := range []string{"420 of 1000 proved", "node-0617", "4 moving", "and 579 reasons of that kind more", "[settled]", "csm rotation pause"} {
		if got := seen(large(), 120, 80); !strings.Contains(got, want) {
			t.Errorf("%q is not in\n%s", want, got)
		}
	}
}

func TestWhatIsLostAndWhatHasEndedIsSaid(t *testing.T) {
	v := small()
	v.Lost, v.Notice = ago(40*time.Second), "csm1 does not answer any more; csm2 is asked"
	golden(t, "lost", seen(v, 100, 40))
	v = small()
	v.State, v.Waits, v.Next, v.Hands, v.Leave, v.Until = "done", nil, "", nil, "", time.Time{}
	for i := range v.Steps {
		v.Steps[i].At = ringview.Over
	}
	for i := range v.Nodes {
		v.Nodes[i].Phase = "proved"
	}
	golden(t, "ended", seen(v, 100, 40))
}

func TestLinesForALogTellEachThingOnce(t *testing.T) {
	var out bytes.Buffer
	clock := now
	s := ui.NewScreen(&out, func() (int, int) { return 0, 0 }, false, func() time.Time { return clock })
	tell := func(v ringview.View) { s.Show(nil, func() []string { return ringview.Facts(v) }) }
	v := small()
	tell(v)
	clock = clock.Add(time.Second)
	tell(v) // nothing is new
	v.Nodes[1].Phase = "proved"
	v.Waits = v.Waits[1:]
	tell(v)
	clock = clock.Add(time.Second)
	v.State, v.Note = "paused", "pager went off"
	tell(v)
	golden(t, "piped", out.String())
	if n := len(ringview.Facts(large())); n > 450+12+4 {
		t.Errorf("a ring of a thousand nodes is told in %d lines", n)
	}
}

func TestNoTextFromOutsideMovesTheCursor(t *testing.T) {
	v := small()
	bad := "n1\x1b[2J\x1b]0;owned\x07\r\nroot\u009b31m\u202eevil\u2066\u200b"
	v.Title, v.About, v.State, v.Note, v.Next, v.Notice = bad, bad, bad, bad, bad, bad
	v.Nodes[0] = ringview.Node{Name: bad, Datacenter: bad, Rack: bad, Phase: bad, Detail: bad}
	v.Waits = []ringview.Wait{{Code: bad, Text: bad, Remedy: bad}}
	for _, size := range [][2]int{{100, 40}, {30, 12}} {
		if got := seen(v, size[0], size[1]); strings.ContainsAny(got, "\x1b\x07\r\u009b\u202e\u2066\u200b") {
			t.Errorf("%q", got)
		}
	}
	var out bytes.Buffer
	s := ui.NewScreen(&out, func() (int, int) { return 0, 0 }, false, func() time.Time { return now })
	s.Show(nil, func() []string { return ringview.Facts(v) })
	if got := out.String(); strings.ContainsAny(got, "\x1b\x07\r\u009b\u202e\u2066\u200b") {
		t.Errorf("%q", got)
	}
}

func TestAPictureIsNeverLargerThanTheTerminalAndSaysHowToStop(t *testing.T) {
	all := []ringview.View{small(), large()}
	rapid.Check(t, func(t *rapid.T) {
		v := rapid.SampledFrom(all).Draw(t, "view")
		v.Waits = v.Waits[:rapid.IntRange(0, len(v.Waits)).Draw(t, "waits")]
		v.Nodes = v.Nodes[:rapid.IntRange(0, len(v.Nodes)).Draw(t, "nodes")]
		width, height := rapid.IntRange(12, 180).Draw(t, "width"), rapid.IntRange(2, 90).Draw(t, "height")
		lines := strings.Split(strings.TrimSuffix(seen(v, width, height), "\n"), "\n")
		if len(lines) > height-1 {
			t.Fatalf("%d lines on %d rows", len(lines), height)
		}
		for _, l := range lines {
			if ui.Columns(l) > width-1 {
				t.Fatalf("%q is wider than %d columns", l, width)
			}
		}
		if text := strings.Join(lines, "\n"); height >= 6 && !strings.Contains(text, "stop:") {
			t.Fatalf("how to stop it is not said:\n%s", text)
		}
	})
}
