//go:build linux

package runbooks

import (
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/spf13/cobra"

	agent "github.com/cassandra-security-manager/csm/agent/cli"
	"github.com/cassandra-security-manager/csm/controller/cli"
)

var quoted = regexp.MustCompile(`'[^']*'|\S+`)

// commands are the lines of the runbooks' shell blocks.
func commands(t *testing.T) map[string][]string {
	t.Helper()
	files, err := filepath.Glob("../../docs/runbooks/*.md")
	if err != nil || len(files) == 0 {
		t.Fatal(files, err)
	}
	out := map[string][]string{}
	for _, f := range files {
		b, err := os.ReadFile(f)
		if err != nil {
			t.Fatal(err)
		}
		for _, block := range regexp.MustCompile("(?s)```sh\n(.*?)```").FindAllStringSubmatch(string(b), -1) {
			out[filepath.Base(f)] = append(out[filepath.Base(f)], strings.Split(strings.TrimSpace(block[1]), "\n")...)
		}
	}
	return out
}

func TestEveryRunbookIsRehearsed(t *testing.T) {
	rehearsed := []string{"long-absence"} // by TestASystemThatWasOffFor400DaysComesBack
	for _, b := range ofTheControlPlane {
		rehearsed = append(rehearsed, b.name)
	}
	for _, b := range ofARing {
		rehearsed = append(rehearsed, b.name)
	}
	for book := range commands(t) {
		if name := strings.TrimSuffix(book, ".md"); name != "README" && !slices.Contains(rehearsed, name) {
			t.Errorf("nobody rehearses %s", book)
		}
	}
}

func TestEveryCommandOfARunbookExistsWithItsFlags(t *testing.T) {
	tried := 0
	for book, lines := range commands(t) {
		for _, line := range lines {
			words := quoted.FindAllString(line, -1)
			for i := range words {
				words[i] = strings.Trim(words[i], "'")
			}
			var root *cobra.Command
			switch words[0] {
			case "csm":
				root = cli.Root()
			case "csm-agent":
				root = agent.Root()
			case "csm-controller":
				t.Errorf("%s: %s: root is refused: write `cd /var/lib/csm && runuser -u csm -- csm-controller ...`", book, line)
				continue
			default:
				continue
			}
			tried++
			c, rest, err := root.Find(words[1:])
			if err != nil || c == root {
				t.Errorf("%s: %s: there is no such command (%v)", book, line, err)
				continue
			}
			c.InitDefaultHelpFlag()
			if err := c.ParseFlags(rest); err != nil {
				t.Errorf("%s: %s: %v", book, line, err)
				continue
			}
			if help, _ := c.Flags().GetBool("help"); help {
				continue
			}
			if err := c.ValidateArgs(c.Flags().Args()); err != nil {
				t.Errorf("%s: %s: %v", book, line, err)
			}
		}
	}
	if tried < 30 {
		t.Errorf("only %d commands were found", tried)
	}
}
