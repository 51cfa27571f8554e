//go:build linux

package runbooks

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/cassandra-security-manager/csm/test/plane"
	"github.com/cassandra-security-manager/csm/test/process"
	"github.com/cassandra-security-manager/csm/test/ring"
)

// operator has csm and a context for three real controllers.
type operator struct {
	// t is the test at hand, whole the one that what outlives it belongs to.
	t   *testing.T
	p   *plane.Plane
	bin string
	env []string

	whole *testing.T
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

// begin runs three controllers of today, with an operator's context.
func begin(t *testing.T) operator {
	t.Helper()
	if testing.Short() {
		t.Skip("real programs are left out of -short runs")
	}
	bin, dir := must[string](t)(shipped()), t.TempDir()
	mount(t, filepath.Join(dir, "csm2", "data"), smallDisk)
	o := operator{t, found(t, plane.Options{Dir: dir, Bin: bin, Extra: "backup: {to: \"file://" + filepath.Join(dir, "backups") + "\", keep: 3}\n"}), bin, environment(dir), t}
	o.context()
	return o
}

// smallDisk is the size of the disk of csm2, in megabytes.
const smallDisk = 512

// found makes a system of three controllers.
func found(t *testing.T, o plane.Options) *plane.Plane {
	t.Helper()
	r, err := process.Claim(210, 7, 9640, 9641, 9642, 9643, 9644, ring.StoragePort, ring.NativePort)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(r.Release)
	o.Host, o.Regions, o.Root = r.Host, []string{"eu-west", "us-east", "ap-south"}, "lab"
	p, err := plane.Start(t.Context(), o)
	if p != nil {
		t.Cleanup(p.Stop)
	}
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func environment(home string) []string { return append(os.Environ(), "HOME="+home) }

// context tells csm of the controllers and of the administrator's certificate.
func (o operator) context() {
	o.t.Helper()
	var servers []string
	for _, c := range o.p.Controllers {
		servers = append(servers, "https://"+c.Address(9640))
	}
	o.expect(fmt.Sprintf("csm context set drill --server %s --ca-pin %s --cert %s --key %s", strings.Join(servers, ","), o.p.API.Pin, o.p.AdminFile, o.p.AdminFile), 0)
}

// JoinToken makes csm3's token as the runbook says.
func (o operator) JoinToken(context.Context) (string, error) {
	found := regexp.MustCompile(`echo '([^']+)'`).FindStringSubmatch(o.expect("csm system join-token --controller csm3", 0))
	if found == nil {
		return "", errors.New("no token was printed")
	}
	return found[1], nil
}

// Approve types what `csm system join-token` printed, with the fingerprint of the new controller's console.
func (o operator) Approve(_ context.Context, controller, fingerprint string) error {
	if code, out := o.csm("csm system approve " + controller + " --fingerprint " + fingerprint); code != 0 {
		return fmt.Errorf("exit %d: %s", code, out)
	}
	return nil
}

// metric reads the first figure of that name from a controller.
func (o operator) metric(c *plane.Controller, name string) float64 {
	o.t.Helper()
	all := o.metrics(c, name)
	if len(all) == 0 {
		o.t.Fatalf("there is no %s", name)
	}
	return all[0]
}

// total adds the figures of that name, whatever their labels; 0 when there is none.
func (o operator) total(c *plane.Controller, name string) (sum float64) {
	o.t.Helper()
	for _, v := range o.metrics(c, name) {
		sum += v
	}
	return sum
}

func (o operator) metrics(c *plane.Controller, name string) (out []float64) {
	o.t.Helper()
	client := http.Client{Timeout: 5 * time.Second}
	r, err := client.Get("http://" + c.Address(9644) + "/metrics")
	if err != nil {
		o.t.Fatal(err)
	}
	defer r.Body.Close()
	b, err := io.ReadAll(io.LimitReader(r.Body, 4<<20))
	if err != nil {
		o.t.Fatal(err)
	}
	for _, found := range regexp.MustCompile(`(?m)^`+name+`(?:\{[^}]*\})? (\S+)$`).FindAllSubmatch(b, -1) {
		v, err := strconv.ParseFloat(string(found[1]), 64)
		if err != nil {
			o.t.Fatal(err)
		}
		out = append(out, v)
	}
	return out
}

func (o operator) start(names ...int) {
	o.t.Helper()
	for _, i := range names {
		if err := o.p.Controllers[i].Start(); err != nil {
			o.t.Fatal(err)
		}
	}
}

// ofTheControlPlane are the runbooks that need no Cassandra, in an order that each leaves whole for the next.
var ofTheControlPlane = []struct {
	name     string
	rehearse func(operator)
}{
	{"frozen-too-long", frozen},
	{"backup-old", backupOld},
	{"no-quorum", withoutQuorum},
	{"all-controllers-lost", allLost},
	{"clock-wrong", clockWrong},
	{"disk-full", diskFull},
	{"agent-not-heard", agentNotHeard},
	{"identity-conflict", identityConflict},
	{"joins that wait", joinsThatWait},
	{"controller-lost", oneLost},
}

func TestTheRunbooksOfTheControlPlane(t *testing.T) {
	o := begin(t)
	o.controllerCommands()
	o.expect("csm doctor", 0)
	o.expect("csm check", 0, "CSM OK", "voters=3")
	for _, book := range ofTheControlPlane {
		t.Run(book.name, func(t *testing.T) {
			o := o
			o.t = t
			book.rehearse(o)
		})
	}
}

// controllerCommands asks csm-controller itself for the commands that runbooks name: no package exports them.
func (o operator) controllerCommands() {
	o.t.Helper()
	tried := 0
	for book, lines := range commands(o.t) {
		for _, line := range lines {
			_, args, ok := strings.Cut(line, "runuser -u csm -- csm-controller ")
			if !ok {
				continue
			}
			tried++
			verb, flags, _ := strings.Cut(args, " --")
			help := o.expect("csm-controller "+verb+" --help", 0)
			for _, f := range regexp.MustCompile(`--[a-z-]+`).FindAllString("--"+flags, -1) {
				if !strings.Contains(help, f+" ") {
					o.t.Errorf("%s: %s: there is no %s", book, line, f)
				}
			}
		}
	}
	if tried < 4 {
		o.t.Errorf("only %d commands of csm-controller were found", tried)
	}
}

func frozen(o operator) {
	o.t.Helper()
	o.planned("csm system freeze --reason 'INC-4711'")
	o.expect("csm doctor", 0, "frozen since", "next: csm system unfreeze")
	o.expect("csm system unfreeze --reason 'INC-4711 is over' --yes", 0)
	o.expect("csm check freeze expiry", 0, "freezes=0")
}

func withoutQuorum(o operator) {
	o.t.Helper()
	o.p.Controllers[1].Kill()
	o.p.Controllers[2].Kill()
	first := o.expect("csm doctor", 10, "the controllers have no quorum", "runbooks/no-quorum.md")
	if !strings.HasPrefix(first, "critical system: the controllers have no quorum") {
		o.t.Errorf("the worst does not come first: %s", first)
	}
	o.expect("csm check quorum controllers", 2, "CSM CRITICAL")
	o.start(1, 2)
	o.expect("csm status --verify", 0)
}

func allLost(o operator) {
	o.t.Helper()
	for _, c := range o.p.Controllers {
		c.Kill()
	}
	o.expect("csm doctor", 10, "no controller answers", "do NOT restart Cassandra", "csm-agent doctor")
	o.expect("csm check", 2, "CSM CRITICAL")
	signedWithoutControllers(o)
	o.expect("csm status --verify", 0)
	o.expect("csm doctor", 0)
}

func oneLost(o operator) {
	o.t.Helper()
	lost := o.p.Controllers[2]
	lost.Kill()
	o.expect("csm doctor", 10, "csm3")
	o.planned("csm system remove csm3 --reason 'host is gone'")
	o.expect("csm check quorum", 0, "voters=2")
	if err := os.RemoveAll(lost.Data()); err != nil {
		o.t.Fatal(err)
	}
	o.p.Administrator = o
	if err := o.p.Admit(o.t.Context(), lost); err != nil {
		o.t.Fatal(err)
	}
	o.expect("csm check quorum controllers", 0, "voters=3")
	o.expect("csm status", 0)
}
