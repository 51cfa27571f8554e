package model

import (
	"flag"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

var update = flag.Bool("update", false, "write the traces that the real state machine is led through")

// traces is where the test of the real state machine finds them.
const traces = "../../controller/fleet/rotation/testdata/traces"

// File is a trace as it is kept: "event who | sentence" for each step.
func (t Trace) file() string {
	var b strings.Builder
	for _, s := range t {
		b.WriteString(s.Event + " " + s.Who + " | " + s.Text + "\n")
	}
	return b.String()
}

// The traces that are led through on the real state machine are the shortest that the checker finds, for each phase and for
// each gate that three members need. Checkers of other versions may find another one of the same length.
func TestTracesForTheRealMachineAreFresh(t *testing.T) {
	t.Parallel()
	c := build(t, "rotation.pml", "NODES=4")
	want := map[string]Run{"to-reissue": {Goal: reissue, Well: true}, "to-done": {Goal: done, Well: true}, "to-rolled-back": {Goal: backDone, Well: true}}
	for _, g := range c.Gates {
		switch g.Name {
		case "UNENROLLED", "TWO_PEERS", "JOINING", "JOIN_BUNDLE", "JOIN_CANARY", "CLIENT_TRUST", "CLIENT_RETIRE", "CLIENT_BACK":
			continue // of who joins, and of applications
		case "LINKS":
			continue // what dials is not told apart from what accepts there
		}
		want["without-"+strings.ToLower(g.Name)] = Run{Without: g.Number, Calm: true}
	}
	for name, run := range want {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			found, path := check(t, c, run).Trace, filepath.Join(traces, name+".trace")
			if *update {
				if err := os.WriteFile(path, []byte(found.file()), 0o644); err != nil {
					t.Fatal(err)
				}
			}
			kept, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			lines := strings.Split(strings.TrimSpace(string(kept)), "\n")
			if last := found[len(found)-1].Event; len(lines) != len(found) || !strings.HasPrefix(lines[len(lines)-1], last+" ") {
				t.Errorf("%s has %d steps and the checker finds %d: go test ./test/model -run Fresh -update", path, len(lines), len(found))
			}
		})
	}
}
