package rollout

import (
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// codes are all that a reason of a rollout may carry: what is written here, what the ring's members disagree in and do, and what their
// neighbours hold against touching a node.
func codes(t *testing.T) []string {
	t.Helper()
	out := []string{Paused, Halted, Aborting, "ring-joining", "ring-leaving", "ring-moving"}
	collect := func(file, prefix string, pattern string) {
		text, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		for _, m := range regexp.MustCompile(pattern).FindAllStringSubmatch(string(text), -1) {
			out = append(out, prefix+m[1])
		}
	}
	files, err := filepath.Glob("*.go")
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range files {
		if !strings.HasSuffix(f, "_test.go") {
			collect(f, "", `(?:Code:\s*|r\.Code, r\.Message = )"([a-z-]+[a-z])"`)
		}
	}
	collect("../ringof.go", "ring-", `RingDoubt\{"([a-z-]+)"`)
	collect("../ringhealth.go", "", `say\("([a-z-]+)"`)
	slices.Sort(out)
	// A member that is down is counted by the gates, which know how many may be (see look).
	return slices.DeleteFunc(slices.Compact(out), func(c string) bool { return c == "replica-down" })
}

func TestEachReasonStandsInTheDocumentsWithWhatToDo(t *testing.T) {
	text, err := os.ReadFile("../../../docs/rollouts.md")
	if err != nil {
		t.Fatal(err)
	}
	told := map[string][]string{}
	in := false
	for line := range strings.SplitSeq(string(text), "\n") {
		if in = strings.HasPrefix(line, "|") && (in || strings.HasPrefix(line, "| Code")); !in {
			continue
		}
		cells := strings.Split(strings.Trim(line, "| "), " | ")
		for _, m := range regexp.MustCompile("`([a-z-]+)`").FindAllStringSubmatch(cells[0], -1) {
			told[m[1]] = cells
		}
	}
	all := codes(t)
	if len(all) < 25 {
		t.Fatalf("only %d codes were found: %v", len(all), all)
	}
	for _, code := range all {
		if cells := told[code]; len(cells) != 4 || slices.Contains(cells, "") {
			t.Errorf("docs/rollouts.md does not say of %s what it means, why it is there, and what to do: %q", code, cells)
		}
	}
	for code := range told {
		if !slices.Contains(all, code) {
			t.Errorf("docs/rollouts.md tells of %s, which nothing says", code)
		}
	}
}
