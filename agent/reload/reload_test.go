package reload_test

import (
	"context"
	"errors"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/jonboulle/clockwork"

	"github.com/cassandra-security-manager/csm/agent/reload"
	"github.com/cassandra-security-manager/csm/shared/fault"
)

// The test binary is its own helper, as the agent is: it execs itself with the word helper.
func TestMain(m *testing.M) {
	switch {
	case len(os.Args) == 3 && os.Args[1] == "helper":
		err := reload.Serve(context.Background(), struct {
			io.Reader
			io.Writer
		}{os.Stdin, os.Stdout}, commands(os.Args[2]))
		if err != nil {
			os.Exit(1)
		}
		os.Exit(0)
	case len(os.Args) == 2 && os.Args[1] == "nodetool":
		os.Stdout.WriteString(strings.Repeat("x", 40<<10) + "last words")
		os.Stderr.WriteString("a warning")
		os.Exit(3)
	case len(os.Args) == 3 && os.Args[1] == "ringtool" && os.Args[2] == "status":
		os.Stdout.WriteString(strings.Repeat("UN 10.0.0.1\n", 10_000))
		os.Exit(0)
	case len(os.Args) == 3 && os.Args[1] == "ringtool":
		os.Exit(2)
	case len(os.Args) == 2 && os.Args[1] == "options":
		os.Stdout.WriteString(os.Getenv("JAVA_TOOL_OPTIONS") + "|" + os.Getenv("OTHER"))
		os.Exit(0)
	case len(os.Args) >= 2 && os.Args[1] == "sleep":
		time.Sleep(time.Minute) // longer than any test waits; nothing is left for long when its helper is killed
	}
	os.Exit(m.Run())
}

func commands(self string) map[string]reload.Command {
	return map[string]reload.Command{
		"good":     {Path: self, Args: []string{"nodetool"}},
		"slow":     {Path: self, Args: []string{"sleep"}, Timeout: 100 * time.Millisecond},
		"stuck":    {Path: self, Args: []string{"sleep"}},
		"none":     {Path: "/no/such/nodetool"},
		"home":     {Path: self, Args: []string{"options"}, Home: self + ".home"},
		"homeless": {Path: self, Args: []string{"options"}, Home: self + "/home"},
		"mine":     {Path: self, Args: []string{"options"}, Home: self + ".home", Env: []string{"JAVA_TOOL_OPTIONS=-Xmx64m", "OTHER=x"}},
		"ring":     {Path: self, Args: []string{"ringtool", "reloadssl"}},
	}
}

func start(t *testing.T) *reload.Helper {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	h, err := reload.Start(self, "helper", self)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { h.Close() })
	return h
}

func TestTheHelperRunsItsFixedCommandAndCarriesTheExitCode(t *testing.T) {
	h := start(t)
	for range 2 {
		out, err := h.Reloader("good").Reload(context.Background())
		if err != nil || out.ExitCode != 3 || out.Stderr != "a warning" || !strings.HasSuffix(out.Stdout, "last words") || len(out.Stdout) > 16<<10 {
			t.Fatalf("%d %q %v", out.ExitCode, out.Stderr, err)
		}
	}
}

func TestTheCommandsJVMIsToldAHomeOfItsOwn(t *testing.T) {
	h := start(t)
	self, _ := os.Executable()
	told := "-Duser.home='" + self + ".home' -XX:-UsePerfData"
	for instance, want := range map[string]string{"home": told + "|", "mine": told + " -Xmx64m|x"} {
		if out, err := h.Reloader(instance).Reload(context.Background()); err != nil || out.Stdout != want {
			t.Errorf("%s: %q, %v", instance, out.Stdout, err)
		}
	}
	if _, err := os.Stat(self + ".home/.cassandra"); err != nil {
		t.Error(err)
	}
	out, err := h.Reloader("homeless").Reload(context.Background())
	dir, _, ok := strings.Cut(strings.TrimPrefix(out.Stdout, "-Duser.home='"), "'")
	if err != nil || !ok || !strings.HasPrefix(dir, os.TempDir()) || strings.HasPrefix(dir, self) {
		t.Errorf("%q, %v", out.Stdout, err)
	}
	if _, err := os.Stat(dir); !os.IsNotExist(err) {
		t.Errorf("%s is left behind: %v", dir, err)
	}
}

func TestWhatIsNotInTheLocalConfigurationIsRefused(t *testing.T) {
	_, err := start(t).Reloader("/bin/sh").Reload(context.Background())
	if !fault.HasReason(err, "helper-refused") || fault.From(err).Remedy == "" {
		t.Error(err)
	}
}

func TestACommandThatHangsIsKilledAndTheHelperGoesOn(t *testing.T) {
	h := start(t)
	if _, err := h.Reloader("slow").Reload(context.Background()); !fault.HasReason(err, "reload-timeout") {
		t.Error(err)
	}
	if _, err := h.Reloader("none").Reload(context.Background()); !fault.HasReason(err, "reload-not-run") {
		t.Error(err)
	}
	if out, err := h.Reloader("good").Reload(context.Background()); err != nil || out.ExitCode != 3 {
		t.Error(out.ExitCode, err)
	}
}

func TestACallerThatGivesUpDoesNotPoisonTheNext(t *testing.T) {
	h := start(t)
	ctx, cancel := context.WithTimeout(context.Background(), 100*time.Millisecond)
	defer cancel()
	if _, err := h.Reloader("stuck").Reload(ctx); !fault.Is(err, fault.Unavailable) {
		t.Error(err)
	}
	if out, err := h.Reloader("good").Reload(context.Background()); err != nil || out.ExitCode != 3 {
		t.Errorf("%d %v", out.ExitCode, err)
	}
}

func TestAClosedHelperSaysWhatToDo(t *testing.T) {
	h := start(t)
	h.Close()
	if _, err := h.Reloader("good").Reload(context.Background()); !fault.HasReason(err, "no-helper") || fault.From(err).Remedy == "" {
		t.Error(err)
	}
	if _, err := reload.Start("/no/such/agent"); !fault.HasReason(err, "no-helper") {
		t.Error(err)
	}
}

// rude answers a request wrongly once, then serves well.
func TestAHelperThatAnswersRubbishIsLeftAndDialledAgain(t *testing.T) {
	self, _ := os.Executable()
	var mu sync.Mutex
	dials := 0
	h, err := reload.Over(func() (io.ReadWriteCloser, error) {
		mu.Lock()
		defer mu.Unlock()
		dials++
		mine, theirs := net.Pipe()
		if dials == 1 {
			go func() {
				theirs.Read(make([]byte, 4096))
				theirs.Write([]byte{0xff, 0xff, 0xff, 0xff})
			}()
			return mine, nil
		}
		go reload.Serve(context.Background(), theirs, commands(self))
		return mine, nil
	})
	if err != nil {
		t.Fatal(err)
	}
	defer h.Close()
	if _, err := h.Reloader("good").Reload(context.Background()); err == nil {
		t.Error("rubbish was taken for an answer")
	}
	if out, err := h.Reloader("good").Reload(context.Background()); err != nil || out.ExitCode != 3 {
		t.Errorf("%d %v", out.ExitCode, err)
	}
}

func TestOnlyOneCommandRunsAtATime(t *testing.T) {
	mine, theirs := net.Pipe()
	h, err := reload.Over(func() (io.ReadWriteCloser, error) { return mine, nil })
	if err != nil {
		t.Fatal(err)
	}
	defer h.Close()
	first := make(chan error, 1)
	ctx, cancel := context.WithCancel(context.Background())
	go func() {
		_, err := h.Reloader("a").Reload(ctx)
		first <- err
	}()
	theirs.Read(make([]byte, 4)) // the first request is on its way, and stays there
	second, stop := context.WithTimeout(context.Background(), 20*time.Millisecond)
	defer stop()
	if _, err := h.Reloader("b").Reload(second); !fault.Is(err, fault.Unavailable) {
		t.Error(err)
	}
	cancel()
	if err := <-first; err == nil {
		t.Error("a cancelled reload said that all is well")
	}
}

func TestTheBudgetIsSixAnHourAndSurvivesARestart(t *testing.T) {
	path := filepath.Join(t.TempDir(), "state", "budget.json")
	clock := clockwork.NewFakeClock()
	for range reload.BudgetReloads {
		if err := reload.NewBudget(path, clock).Take(); err != nil {
			t.Fatal(err)
		}
		clock.Advance(time.Minute)
	}
	b := reload.NewBudget(path, clock)
	if err := b.Take(); !fault.HasReason(err, "reload-budget") || !fault.Is(err, fault.Exhausted) || fault.From(err).RetryAfter != time.Hour-6*time.Minute {
		t.Errorf("%v, again after %s", err, fault.From(err).RetryAfter)
	}
	left, next := b.Left()
	if left != 0 || next.Sub(clock.Now()) != time.Hour-6*time.Minute {
		t.Errorf("%d left, next in %v", left, next.Sub(clock.Now()))
	}
	clock.Advance(next.Sub(clock.Now()))
	if err := b.Take(); err != nil {
		t.Error(err)
	}
}

func TestABudgetThatCannotBeReadOrKeptIsUsedUp(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "budget.json")
	os.WriteFile(path, []byte("{"), 0o600)
	if err := reload.NewBudget(path, clockwork.NewRealClock()).Take(); !fault.HasReason(err, "reload-budget") {
		t.Error(err)
	}
	os.WriteFile(filepath.Join(dir, "file"), nil, 0o600)
	err := reload.NewBudget(filepath.Join(dir, "file", "budget.json"), clockwork.NewRealClock()).Take()
	if err == nil || errors.Is(err, context.Canceled) {
		t.Error("a budget that cannot be kept must not be spent")
	}
}

func TestTheRingIsListedByTheSameCommandWithAnotherWord(t *testing.T) {
	h := start(t)
	out, err := h.Reloader("ring").(reload.Lister).Ring(context.Background())
	if err != nil || strings.Count(out, "\n") != 10_000 {
		t.Errorf("%d lines, %v", strings.Count(out, "\n"), err)
	}
	if _, err := h.Reloader("ring").(reload.Streamer).Netstats(context.Background()); !fault.HasReason(err, "streams-unknown") {
		t.Errorf("a nodetool that fails at netstats: %v", err)
	}
	if _, err := h.Reloader("good").(reload.Lister).Ring(context.Background()); !fault.HasReason(err, "no-ring-command") {
		t.Errorf("a command that is not nodetool: %v", err)
	}
}
