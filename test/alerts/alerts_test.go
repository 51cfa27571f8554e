package alerts

import (
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

const folder = "../../deploy/prometheus"

// runbookURL is where runbook_url of each alert must point.
const runbookURL = "https://github.com/cassandra-security-manager/csm/blob/main/docs/runbooks/"

func promtool(t *testing.T, args ...string) {
	t.Helper()
	path, err := exec.LookPath("promtool")
	if err != nil {
		t.Fatal("promtool is missing: `make setup` installs it (Debian's package prometheus)")
	}
	c := exec.Command(path, args...)
	c.Dir = folder
	if out, err := c.CombinedOutput(); err != nil {
		t.Errorf("promtool %s: %v\n%s", strings.Join(args, " "), err, out)
	}
}

func TestTheAlertRulesAreTried(t *testing.T) {
	promtool(t, "check", "rules", "csm.rules.yaml")
	promtool(t, "test", "rules", "csm.test.yaml")
}

func read(t *testing.T, path string) string {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

func TestEachAlertHasATestAndARunbook(t *testing.T) {
	rules, tests := read(t, filepath.Join(folder, "csm.rules.yaml")), read(t, filepath.Join(folder, "csm.test.yaml"))
	alerts := regexp.MustCompile(`(?m)^  - alert: (\S+)`).FindAllStringSubmatch(rules, -1)
	books := regexp.MustCompile(`(?m)^      runbook_url: (\S+)`).FindAllStringSubmatch(rules, -1)
	if len(alerts) == 0 || len(alerts) != len(books) {
		t.Fatalf("%d alerts and %d runbooks", len(alerts), len(books))
	}
	for i, a := range alerts {
		if !strings.Contains(tests, "- name: "+a[1]+"\n") {
			t.Errorf("%s has no test", a[1])
		}
		name, ok := strings.CutPrefix(books[i][1], runbookURL)
		if _, err := os.Stat(filepath.Join("../../docs/runbooks", name)); !ok || err != nil {
			t.Errorf("%s leads to %s, which is not there", a[1], books[i][1])
		}
	}
}

func TestEachMetricOfARuleIsOneThatAControllerGives(t *testing.T) {
	var code strings.Builder
	files, err := filepath.Glob("../../controller/server/*metrics.go")
	if err != nil || len(files) == 0 {
		t.Fatal(files, err)
	}
	for _, f := range files {
		code.WriteString(read(t, f))
	}
	for _, m := range regexp.MustCompile(`csm_[a-z_]+`).FindAllString(read(t, filepath.Join(folder, "csm.rules.yaml")), -1) {
		if !strings.Contains(code.String(), `"`+strings.TrimSuffix(m, "_bucket")+`"`) {
			t.Errorf("no controller gives %s", m)
		}
	}
}

func TestEachRunbookSaysWhatIsSeenWhatToDoAndWhoRehearsesIt(t *testing.T) {
	files, err := filepath.Glob("../../docs/runbooks/*.md")
	if err != nil || len(files) < 11 {
		t.Fatal(files, err)
	}
	for _, f := range files {
		text := read(t, f)
		for _, want := range []string{"## What you see", "## Do", "Rehearsed by"} {
			if !strings.Contains(text, want) && filepath.Base(f) != "README.md" {
				t.Errorf("%s has no %q", f, want)
			}
		}
	}
}
