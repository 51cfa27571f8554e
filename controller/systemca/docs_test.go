package systemca_test

import (
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/cassandra-security-manager/csm/controller/systemca"
)

var (
	written = regexp.MustCompile(`Code:\s*"([a-z-]+)"`)
	quoted  = regexp.MustCompile("`([a-z-]+)`")
)

// reasonCodes are those of the gates, and those that are written in the package beside them.
func reasonCodes(t *testing.T) (out []string) {
	t.Helper()
	for _, g := range systemca.All() {
		out = append(out, g.Code)
	}
	files, err := filepath.Glob("*.go")
	if err != nil || len(files) == 0 {
		t.Fatal(err)
	}
	for _, f := range files {
		if strings.HasSuffix(f, "_test.go") {
			continue
		}
		text, err := os.ReadFile(f)
		if err != nil {
			t.Fatal(err)
		}
		for _, m := range written.FindAllStringSubmatch(string(text), -1) {
			out = append(out, m[1])
		}
	}
	slices.Sort(out)
	return slices.Compact(out)
}

// rows are the cells of the tables of a document whose first column is one of these, by each code that the first cell names.
func rows(t *testing.T, path string, heads ...string) map[string][]string {
	t.Helper()
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	out, in := map[string][]string{}, false
	for line := range strings.SplitSeq(string(text), "\n") {
		if !strings.HasPrefix(line, "|") {
			in = false
			continue
		}
		cells := strings.Split(strings.Trim(line, "|"), "|")
		for i := range cells {
			cells[i] = strings.TrimSpace(cells[i])
		}
		in = in || slices.Contains(heads, cells[0])
		for _, m := range quoted.FindAllStringSubmatch(cells[0], -1) {
			if in {
				out[m[1]] = cells
			}
		}
	}
	return out
}

func TestEachReasonStandsInTheDocumentsWithWhatToDo(t *testing.T) {
	told, all := rows(t, "../../docs/rotation.md", "System gate"), reasonCodes(t)
	if len(all) < 12 {
		t.Fatalf("only %d codes were found: %v", len(all), all)
	}
	for _, code := range all {
		if cells := told[code]; len(cells) < 3 || slices.Contains(cells, "") {
			t.Errorf("docs/rotation.md does not say of %s what it means, why, and what to do: %q", code, cells)
		}
	}
	for code := range told {
		if !slices.Contains(all, code) {
			t.Errorf("docs/rotation.md tells of %s, which nothing says", code)
		}
	}
}
