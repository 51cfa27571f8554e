// Package documents holds the documents to the code: whatever a person is told to wait for stands in them, with what to do.
package documents

import (
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/cassandra-security-manager/csm/controller/fleet/rotation"
	"github.com/cassandra-security-manager/csm/controller/systemca"
)

var (
	written = regexp.MustCompile(`Code:\s*"([a-z-]+)"[,}]`)
	quoted  = regexp.MustCompile("`([a-z-]+)`")
)

func gates[G any](all []G, code func(G) string) (out []string) {
	for _, g := range all {
		out = append(out, code(g))
	}
	return out
}

// reasons are the codes of a package's gates, and those that are written in it beside them.
func reasons(t *testing.T, folder string, gates []string) []string {
	t.Helper()
	files, err := filepath.Glob(filepath.Join("../..", folder, "*.go"))
	if err != nil || len(files) == 0 {
		t.Fatal(folder, err)
	}
	out := slices.Clone(gates)
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
func rows(t *testing.T, document string, heads []string) map[string][]string {
	t.Helper()
	text, err := os.ReadFile(filepath.Join("../../docs", document))
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
	for _, tt := range []struct {
		folder, document string
		heads            []string
		gates            []string
		least            int
		// pieces: some of its codes are put together from pieces, or are those of other packages.
		pieces bool
	}{
		{"controller/fleet/rollout", "rollouts.md", []string{"Code"}, nil, 12, true},
		{"controller/fleet/rotation", "rotation.md", []string{"Gate", "Refused"}, gates(rotation.All(), func(g rotation.Gate) string { return g.Code }), 20, false},
		{"controller/systemca", "rotation.md", []string{"System gate"}, gates(systemca.All(), func(g systemca.Gate) string { return g.Code }), 12, false},
	} {
		t.Run(tt.folder, func(t *testing.T) {
			told, all := rows(t, tt.document, tt.heads), reasons(t, tt.folder, tt.gates)
			if len(all) < tt.least {
				t.Fatalf("only %d codes were found: %v", len(all), all)
			}
			for _, code := range all {
				if cells := told[code]; len(cells) < 3 || slices.Contains(cells, "") {
					t.Errorf("docs/%s does not say of %s what it means, why, and what to do: %q", tt.document, code, cells)
				}
			}
			for code := range told {
				if !tt.pieces && !slices.Contains(all, code) {
					t.Errorf("docs/%s tells of %s, which nothing says", tt.document, code)
				}
			}
		})
	}
}
