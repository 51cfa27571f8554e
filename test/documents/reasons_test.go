// Package documents holds the documents to the code: whatever a person is told to wait for stands in them, with what to do.
package documents

import (
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/cassandra-security-manager/csm/controller/fleet/rollout"
	"github.com/cassandra-security-manager/csm/controller/fleet/rotation"
	"github.com/cassandra-security-manager/csm/controller/systemca"
)

// source is where codes of reasons are written: the first group of a pattern, after a prefix, in the files of a glob.
type source struct {
	glob, prefix string
	pattern      *regexp.Regexp
}

var (
	written = regexp.MustCompile(`(?:Code:\s*|r\.Code, r\.Message = )"([a-z-]+[a-z])"`)
	quoted  = regexp.MustCompile("`([a-z-]+)`")
)

// table is one of a document, whose first column has one of these heads.
type table struct {
	name, document string
	heads          []string
	sources        []source
	// codes that are made otherwise: gates, states, or put together of pieces.
	codes []string
	// hidden are never told to people.
	hidden []string
	least  int
}

var tables = []table{
	{"rollouts", "rollouts.md", []string{"Code"}, []source{
		{"fleet/rollout/*.go", "", written},
		{"fleet/ringof.go", "ring-", regexp.MustCompile(`RingDoubt\{"([a-z-]+)"`)},
		{"fleet/ringhealth.go", "", regexp.MustCompile(`say\("([a-z-]+)"`)},
	}, []string{rollout.Paused, rollout.Halted, rollout.Aborting, "ring-joining", "ring-leaving", "ring-moving"},
		[]string{"replica-down"}, // the gates count it: they know how many may be down
		25},
	{"rotations", "rotation.md", []string{"Gate", "Refused"}, []source{{"fleet/rotation/*.go", "", written}},
		gates(rotation.All(), func(g rotation.Gate) string { return g.Code }), nil, 20},
	{"the system CA", "rotation.md", []string{"System gate"}, []source{{"systemca/*.go", "", written}},
		gates(systemca.All(), func(g systemca.Gate) string { return g.Code }), nil, 12},
}

func gates[G any](all []G, code func(G) string) (out []string) {
	for _, g := range all {
		out = append(out, code(g))
	}
	return out
}

// reasons are all codes that people may be told.
func (x table) reasons(t *testing.T) []string {
	t.Helper()
	out := slices.Clone(x.codes)
	for _, s := range x.sources {
		files, err := filepath.Glob(filepath.Join("../../controller", s.glob))
		if err != nil || len(files) == 0 {
			t.Fatal(s.glob, err)
		}
		for _, f := range files {
			if strings.HasSuffix(f, "_test.go") {
				continue
			}
			text, err := os.ReadFile(f)
			if err != nil {
				t.Fatal(err)
			}
			for _, m := range s.pattern.FindAllStringSubmatch(string(text), -1) {
				out = append(out, s.prefix+m[1])
			}
		}
	}
	slices.Sort(out)
	return slices.DeleteFunc(slices.Compact(out), func(c string) bool { return slices.Contains(x.hidden, c) })
}

// rows are the cells of the table by each code that the first cell names.
func (x table) rows(t *testing.T) map[string][]string {
	t.Helper()
	text, err := os.ReadFile(filepath.Join("../../docs", x.document))
	if err != nil {
		t.Fatal(err)
	}
	out, in := map[string][]string{}, false
	for line := range strings.SplitSeq(string(text), "\n") {
		if !strings.HasPrefix(line, "|") {
			in = false
			continue
		}
		cells := strings.Split(strings.Trim(line, "| "), " | ")
		in = in || slices.Contains(x.heads, strings.TrimSpace(cells[0]))
		for _, m := range quoted.FindAllStringSubmatch(cells[0], -1) {
			if in {
				out[m[1]] = cells
			}
		}
	}
	return out
}

func TestEachReasonStandsInTheDocumentsWithWhatToDo(t *testing.T) {
	for _, x := range tables {
		t.Run(x.name, func(t *testing.T) {
			told, all := x.rows(t), x.reasons(t)
			if len(all) < x.least {
				t.Fatalf("only %d codes were found: %v", len(all), all)
			}
			for _, code := range all {
				if cells := told[code]; len(cells) != 4 || slices.Contains(cells, "") {
					t.Errorf("docs/%s does not say of %s what it means, why it is there, and what to do: %q", x.document, code, cells)
				}
			}
			for code := range told {
				if !slices.Contains(all, code) {
					t.Errorf("docs/%s tells of %s, which nothing says", x.document, code)
				}
			}
		})
	}
}
