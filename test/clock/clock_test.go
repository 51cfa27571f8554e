package clock

import (
	"bufio"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

func TestAProgramLivesAtAnotherTime(t *testing.T) {
	dir := t.TempDir()
	for name, text := range map[string]string{"go.mod": "module what\n\ngo 1.26\n",
		"main.go": "package main\n\nimport (\n\t\"fmt\"\n\t\"time\"\n)\n\nfunc main() {\n\ta := time.Now()\n\ttime.Sleep(20 * time.Millisecond)\n\tfmt.Println(a.UTC().Format(time.RFC3339), time.Since(a) < 5*time.Second)\n}\n"} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	t.Chdir(dir)
	if err := Build(dir, "."); err != nil {
		t.Fatal(err)
	}
	for _, shift := range []time.Duration{-400 * 24 * time.Hour, 0, 48 * time.Hour} {
		c := exec.Command(filepath.Join(dir, "what"))
		c.Env = append(os.Environ(), Shift(shift))
		out, err := c.Output()
		if err != nil {
			t.Fatal(err)
		}
		at, timers, _ := strings.Cut(strings.TrimSpace(string(out)), " ")
		told, err := time.Parse(time.RFC3339, at)
		if off := time.Until(told) - shift; err != nil || off.Abs() > time.Minute || timers != "true" {
			t.Errorf("shifted by %s it says %q (%v)", shift, out, err)
		}
	}
}

func TestAHandSetsTheClockOfAProgramThatRuns(t *testing.T) {
	dir := t.TempDir()
	for name, text := range map[string]string{"go.mod": "module told\n\ngo 1.26\n",
		"main.go": "package main\n\nimport (\n\t\"bufio\"\n\t\"fmt\"\n\t\"os\"\n\t\"time\"\n)\n\nfunc main() {\n\tbegan := time.Now()\n\tfor s := bufio.NewScanner(os.Stdin); s.Scan(); {\n\t\tfmt.Println(time.Now().UTC().Format(time.RFC3339), time.Since(began) < 5*time.Minute)\n\t}\n}\n"} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	t.Chdir(dir)
	if err := Build(dir, "."); err != nil {
		t.Fatal(err)
	}
	hand, err := NewHand(filepath.Join(dir, "hand"))
	if err != nil {
		t.Fatal(err)
	}
	c := exec.Command(filepath.Join(dir, "told"))
	c.Env = append(os.Environ(), hand.Entry())
	in, err := c.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := c.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := c.Start(); err != nil {
		t.Fatal(err)
	}
	defer c.Wait()
	defer in.Close()
	lines := bufio.NewScanner(out)
	for _, d := range []time.Duration{0, 400 * 24 * time.Hour, -time.Hour, 0} {
		if err := hand.Set(d); err != nil {
			t.Fatal(err)
		}
		fmt.Fprintln(in)
		if !lines.Scan() {
			t.Fatal(lines.Err())
		}
		at, timers, _ := strings.Cut(lines.Text(), " ")
		told, err := time.Parse(time.RFC3339, at)
		if off := time.Until(told) - d; err != nil || off.Abs() > time.Minute || timers != "true" {
			t.Errorf("set by %s it says %q (%v)", d, lines.Text(), err)
		}
	}
}
