package model

import (
	"context"
	"os"
	"runtime"
	"sync"
	"testing"
	"time"
)

// limit bounds one search; the largest takes a minute on two slow cores.
const limit = 20 * time.Minute

func full() bool { return os.Getenv("CSM_TEST_FULL") != "" }

var built sync.Map // of what build has made: the compiler is the slowest part

// build makes a checker once for all tests.
func build(t *testing.T, file string, defines ...string) *Checker {
	t.Helper()
	type once struct {
		sync.Once
		c   *Checker
		err error
	}
	key := file
	for _, d := range defines {
		key += " " + d
	}
	v, _ := built.LoadOrStore(key, &once{})
	o := v.(*once)
	o.Do(func() {
		dir, err := os.MkdirTemp(root, "model")
		if err != nil {
			o.err = err
			return
		}
		o.c, o.err = Build(context.Background(), dir, file, defines...)
	})
	if o.err != nil {
		t.Fatal(o.err)
	}
	return o.c
}

var (
	root string
	// busy lets as many searches run as there are cores.
	busy = make(chan struct{}, runtime.NumCPU())
)

func TestMain(m *testing.M) {
	var err error
	if root, err = os.MkdirTemp("", "csm-model-"); err != nil {
		panic(err)
	}
	code := m.Run()
	os.RemoveAll(root)
	os.Exit(code)
}

func check(t *testing.T, c *Checker, r Run) Result {
	t.Helper()
	busy <- struct{}{}
	defer func() { <-busy }()
	ctx, cancel := context.WithTimeout(context.Background(), limit)
	defer cancel()
	result, err := c.Check(ctx, t.TempDir(), r)
	if err != nil {
		t.Fatal(err)
	}
	return result
}

func holds(t *testing.T, c *Checker, r Run, least int) {
	t.Helper()
	result := check(t, c, r)
	if len(result.Trace) > 0 {
		t.Fatalf("with all gates in place:\n%s", result.Trace)
	}
	if result.States < least {
		t.Fatalf("only %d states: the model has lost something", result.States)
	}
	t.Logf("%d states, no outage", result.States)
}

func TestInstallNeverCutsTheRing(t *testing.T) {
	t.Parallel()
	holds(t, build(t, "install.pml"), Run{}, 100_000)
}

func TestInstallNeedsEachGate(t *testing.T) {
	t.Parallel()
	c := build(t, "install.pml")
	if len(c.Gates) != 14 {
		t.Fatalf("%d gates", len(c.Gates))
	}
	for _, g := range c.Gates {
		t.Run(g.Name, func(t *testing.T) {
			t.Parallel()
			outage(t, check(t, c, Run{Without: g.Number}), g)
		})
	}
}

// outage demands that one was found, and shows it.
func outage(t *testing.T, r Result, g Gate) {
	t.Helper()
	if !r.Trace.Ends("OUTAGE") {
		t.Fatalf("without %q (%s) nothing happens in %d states: the gate is not needed, or the model does not see why", g.Name, g.Text, r.States)
	}
	t.Logf("without the gate %s (%s):\n%s", g.Name, g.Text, r.Trace)
}

func TestInstallReaches(t *testing.T) {
	t.Parallel()
	c := build(t, "install.pml")
	for goal, name := range map[int]string{1: "the ring counts the move", 2: "rolled back", 3: "recovered from a half-done move", 4: "given up after it was proved"} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			reached(t, check(t, c, Run{Goal: goal}))
		})
	}
}

func reached(t *testing.T, r Result) {
	t.Helper()
	if len(r.Trace) == 0 || r.Trace.Ends("OUTAGE") {
		t.Fatalf("not reached in %d states:\n%s", r.States, r.Trace)
	}
}

// The rotation is searched for three nodes with one that joins in any phase, for three nodes with an application, and for two
// with both; three with both, nine million states, by `make model` and `make test-full`.
func TestRotationNeverCutsTheRing(t *testing.T) {
	t.Parallel()
	for name, x := range map[string]struct {
		nodes string
		run   Run
		least int
	}{
		"three nodes and one that joins":         {"NODES=4", Run{Joiner: true}, 1_500_000},
		"three nodes and an application":         {"NODES=4", Run{Application: true}, 100_000},
		"two nodes, one that joins, application": {"NODES=3", Run{Joiner: true, Application: true}, 500_000},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			holds(t, build(t, "rotation.pml", x.nodes), x.run, x.least)
		})
	}
	if full() {
		t.Run("three nodes, one that joins, application", func(t *testing.T) {
			t.Parallel()
			holds(t, build(t, "rotation.pml", "NODES=4"), Run{Joiner: true, Application: true}, 5_000_000)
		})
	}
}

func TestRotationNeedsEachGate(t *testing.T) {
	t.Parallel()
	c := build(t, "rotation.pml", "NODES=4")
	if len(c.Gates) != 23 {
		t.Fatalf("%d gates", len(c.Gates))
	}
	for _, g := range c.Gates {
		t.Run(g.Name, func(t *testing.T) {
			t.Parallel()
			r := Run{Without: g.Number, Calm: true}
			switch g.Name { // what the gate is about must be there; less makes the trace plain
			case "UNENROLLED", "TWO_PEERS", "JOINING", "JOIN_BUNDLE":
				r.Joiner = true
			case "JOIN_CANARY", "CLIENT_TRUST", "CLIENT_RETIRE", "CLIENT_BACK":
				r.Application = true
			}
			outage(t, check(t, c, r), g)
		})
	}
}

// A model in which nothing can happen is safe as well: each phase, the end and the way back must be reachable.
func TestRotationReachesEachPhase(t *testing.T) {
	t.Parallel()
	c := build(t, "rotation.pml", "NODES=4")
	for goal, name := range []string{1: "distribute", 2: "reissue", 3: "retire", 4: "done", 5: "leaves back", 6: "anchors back", 7: "rolled back"} {
		if goal == 0 {
			continue
		}
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			reached(t, check(t, c, Run{Goal: goal, Application: true}))
		})
	}
}
