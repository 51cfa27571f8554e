package model

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
)

// Checker is a model that has been turned into a program that searches all its states.
type Checker struct {
	program, name string
	// Gates are the safety gates of the model, in their order.
	Gates []Gate
}

// Gate is a condition that can be taken out of a model.
type Gate struct {
	Number     int
	Name, Text string
}

// Run says what is searched.
type Run struct {
	// Without is the number of the gate that is taken out; 0 leaves all in.
	Without int
	// Goal is the number of a state that must be reachable; the search then ends there. 0 looks for outages only.
	Goal int
	// Application and Joiner add the registered client and the node that joins to the rotation.
	Application, Joiner bool
	// Calm lets one node at most be down at a time, for plainer traces.
	Calm bool
	// Well lets none die: the shortest way to a phase is else one on which all are down and set aside.
	Well bool
}

func (r Run) environment() []string {
	env := []string{"PATH=" + os.Getenv("PATH"), "WITHOUT=" + strconv.Itoa(r.Without), "GOAL=" + strconv.Itoa(r.Goal)}
	if r.Application {
		env = append(env, "APP=1")
	}
	if r.Joiner {
		env = append(env, "JOIN=1")
	}
	if r.Calm {
		env = append(env, "CALM=1")
	}
	if r.Well {
		env = append(env, "WELL=1")
	}
	return env
}

// Result is what a search has found.
type Result struct {
	States int
	// Trace is the shortest way to what was found: an outage, or the goal. Empty: there is none, and every state was seen.
	Trace Trace
}

// Build makes the checker of a model in dir. Defines are macros, such as NODES=3.
func Build(ctx context.Context, dir, file string, defines ...string) (*Checker, error) {
	source, err := os.ReadFile(file)
	if err != nil {
		return nil, err
	}
	if err := os.WriteFile(filepath.Join(dir, filepath.Base(file)), source, 0o644); err != nil {
		return nil, err
	}
	args := []string{"-a"}
	for _, d := range defines {
		args = append(args, "-D"+d)
	}
	if out, err := command(ctx, dir, nil, "spin", append(args, filepath.Base(file))...); err != nil {
		return nil, fmt.Errorf("%w\n%s", err, out)
	}
	// Breadth first finds the shortest trace. Nothing runs beside the one process, so partial order has nothing to reduce.
	// Unoptimised on purpose: the compiler needs longer than the search it would speed up.
	if out, err := command(ctx, dir, nil, "gcc", "-O0", "-w", "-DSAFETY", "-DNOCLAIM", "-DBFS", "-DNOREDUCE", "-DNOFAIR", "-o", "pan", "pan.c"); err != nil {
		return nil, fmt.Errorf("%w\n%s", err, out)
	}
	return &Checker{program: filepath.Join(dir, "pan"), name: filepath.Base(file), Gates: gates(string(source))}, nil
}

func command(ctx context.Context, dir string, env []string, name string, args ...string) (string, error) {
	if _, err := exec.LookPath(name); err != nil {
		return "", fmt.Errorf("%s is missing: `make setup` installs it (Debian packages spin, gcc, libc6-dev)", name)
	}
	c := exec.CommandContext(ctx, name, args...)
	c.Dir, c.Env = dir, env
	out, err := c.CombinedOutput()
	if err != nil {
		err = fmt.Errorf("%s %s: %w", name, strings.Join(args, " "), err)
	}
	return string(out), err
}

var gateLine = regexp.MustCompile(`(?m)^#define (\w+)\s+(\d+)\s+/\* (.+) \*/$`)

// gates reads the switches from the model itself: they stand between "gates" and the macro that asks them.
func gates(source string) (out []Gate) {
	_, list, _ := strings.Cut(source, "/* gates */")
	list, _, _ = strings.Cut(list, "#define GATE(")
	for _, m := range gateLine.FindAllStringSubmatch(list, -1) {
		n, _ := strconv.Atoi(m[2])
		out = append(out, Gate{n, m[1], m[3]})
	}
	return out
}

var stored = regexp.MustCompile(`(\d+) states, stored`)

// Check searches. dir is a folder of its own for what is written on the way.
func (c *Checker) Check(ctx context.Context, dir string, r Run) (Result, error) {
	args := []string{"-m1000000", "-w22"}
	if r.Well {
		args = append(args, "-E") // where nothing dies there is an end
	}
	out, err := command(ctx, dir, r.environment(), c.program, args...)
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		return Result{}, err
	}
	var result Result
	if m := stored.FindStringSubmatch(out); m != nil {
		result.States, _ = strconv.Atoi(m[1])
	}
	trail := filepath.Join(dir, c.name+".trail")
	switch {
	case strings.Contains(out, "errors: 0"):
		if strings.Contains(out, "not completed") || strings.Contains(out, "too small") {
			return result, fmt.Errorf("the search was not exhaustive:\n%s", out)
		}
		return result, nil
	case !strings.Contains(out, "errors: 1"):
		return result, fmt.Errorf("the search did not end:\n%s", out)
	case !strings.Contains(out, "assertion violated"):
		return result, fmt.Errorf("the model stands still somewhere:\n%s", out)
	}
	played, err := command(ctx, dir, r.environment(), c.program, "-r", filepath.Base(trail))
	if err != nil && !errors.As(err, &exit) {
		return result, err
	}
	result.Trace = parse(played)
	if len(result.Trace) == 0 {
		return result, fmt.Errorf("something was found, and its trace cannot be read:\n%s", played)
	}
	return result, nil
}
