//go:build linux

package runbooks

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/cassandra-security-manager/csm/test/plane"
	"github.com/cassandra-security-manager/csm/test/process"
)

// operator has csm and a context for three real controllers.
type operator struct {
	t   *testing.T
	p   *plane.Plane
	bin string
	env []string
}

// csm runs a command line of a runbook and gives its exit code and what it said.
func (o operator) csm(line string) (code int, out string) {
	o.t.Helper()
	words := quoted.FindAllString(line, -1)
	for i := range words {
		words[i] = strings.Trim(words[i], "'")
	}
	c := exec.Command(filepath.Join(o.bin, words[0]), words[1:]...)
	c.Env = o.env
	var b bytes.Buffer
	c.Stdout, c.Stderr = &b, &b
	err := c.Run()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		o.t.Fatal(err)
	}
	return c.ProcessState.ExitCode(), b.String()
}

// expect runs it until it ends with the code and says all of the words, as a person would look again.
func (o operator) expect(line string, code int, words ...string) string {
	o.t.Helper()
	var last string
	if err := plane.Eventually(o.t.Context(), 45*time.Second, func() error {
		got, out := o.csm(line)
		last = out
		for _, w := range words {
			if !strings.Contains(out, w) {
				return fmt.Errorf("exit %d, not %q in: %s", got, w, out)
			}
		}
		if got != code {
			return fmt.Errorf("exit %d, want %d: %s", got, code, out)
		}
		return nil
	}); err != nil {
		o.t.Fatalf("%s: %v\n%s", line, err, o.p.Tails(5))
	}
	return last
}

// planned runs a grave command with --dry-run and then with the plan's hash.
func (o operator) planned(line string) {
	o.t.Helper()
	shown := o.expect(line+" --dry-run", 0, "plan ")
	hash := regexp.MustCompile(`plan ([0-9a-f]{16})`).FindStringSubmatch(shown)
	if hash == nil {
		o.t.Fatalf("%s shows no plan: %s", line, shown)
	}
	o.expect(line+" --plan "+hash[1], 0)
}

func begin(t *testing.T) operator {
	t.Helper()
	if testing.Short() {
		t.Skip("real programs are left out of -short runs")
	}
	bin, dir := t.TempDir(), t.TempDir()
	c := exec.Command("go", "build", "-o", bin+"/", "./controller/cmd/csm-controller", "./controller/cmd/csm")
	c.Dir, c.Env = "../..", append(os.Environ(), "CGO_ENABLED=0")
	if out, err := c.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	r, err := process.Claim(210, 3, 9640, 9641, 9642, 9643, 9644)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(r.Release)
	p, err := plane.Start(t.Context(), plane.Options{Dir: dir, Bin: bin, Host: r.Host, Regions: []string{"eu-west", "us-east", "ap-south"}, Root: "lab"})
	if p != nil {
		t.Cleanup(p.Stop)
	}
	if err != nil {
		t.Fatal(err)
	}
	o := operator{t, p, bin, append(os.Environ(), "HOME="+dir)}
	var servers []string
	for _, c := range p.Controllers {
		servers = append(servers, "https://"+c.Address(9640))
	}
	o.expect(fmt.Sprintf("csm context set drill --server %s --ca-pin %s --cert %s --key %s", strings.Join(servers, ","), p.API.Pin, p.AdminFile, p.AdminFile), 0)
	return o
}

func (o operator) start(names ...int) {
	o.t.Helper()
	for _, i := range names {
		if err := o.p.Controllers[i].Start(); err != nil {
			o.t.Fatal(err)
		}
	}
}

func TestTheRunbooksOfTheControlPlane(t *testing.T) {
	o := begin(t)
	o.expect("csm doctor", 0)
	o.expect("csm check", 0, "CSM OK", "voters=3")

	t.Log("frozen-too-long")
	o.planned("csm system freeze --reason 'INC-4711'")
	o.expect("csm doctor", 0, "frozen since", "next: csm system unfreeze")
	o.expect("csm system unfreeze --reason 'INC-4711 is over' --yes", 0)
	o.expect("csm check freeze expiry", 0, "freezes=0")

	t.Log("no-quorum")
	o.p.Controllers[1].Kill()
	o.p.Controllers[2].Kill()
	first := o.expect("csm doctor", 10, "the controllers have no quorum", "runbooks/no-quorum.md")
	if !strings.HasPrefix(first, "critical system: the controllers have no quorum") {
		t.Errorf("the worst does not come first: %s", first)
	}
	o.expect("csm check quorum controllers", 2, "CSM CRITICAL")
	o.start(1, 2)
	o.expect("csm status --verify", 0)

	t.Log("all-controllers-lost")
	for _, c := range o.p.Controllers {
		c.Kill()
	}
	o.expect("csm doctor", 10, "no controller answers", "do NOT restart Cassandra", "csm-agent doctor")
	o.expect("csm check", 2, "CSM CRITICAL")
	o.start(0, 1, 2)
	o.expect("csm status --verify", 0)
	o.expect("csm doctor", 0)

	t.Log("controller-lost")
	o.p.Controllers[2].Kill()
	o.expect("csm doctor", 10, "csm3")
	o.planned("csm system remove csm3 --reason 'host is gone'")
	o.expect("csm check quorum", 0, "voters=2")
}
