//go:build linux

package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"
)

// outcome is what a command line gave.
type outcome struct {
	stdout, stderr string
	exit           int
}

// command runs one of our programs to its end, as a user would.
func (d *demo) command(ctx context.Context, program string, args ...string) (outcome, error) {
	c := exec.CommandContext(ctx, filepath.Join(d.bin, program), args...)
	c.Env = append(os.Environ(), d.environment()...)
	c.Cancel = func() error { return c.Process.Signal(os.Interrupt) }
	c.WaitDelay = 3 * time.Second
	var out, errs bytes.Buffer
	c.Stdout, c.Stderr = &out, &errs
	err := c.Run()
	o := outcome{out.String(), strings.TrimSpace(errs.String()), c.ProcessState.ExitCode()}
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		return o, fmt.Errorf("%s %s: %w", program, strings.Join(args, " "), err)
	}
	return o, nil
}

// must runs a command that has to succeed and gives its stdout.
func (d *demo) must(ctx context.Context, program string, args ...string) (string, error) {
	o, err := d.command(ctx, program, args...)
	if err != nil {
		return "", err
	}
	if o.exit != 0 {
		return o.stdout, fmt.Errorf("%s %s: exit %d: %s", program, strings.Join(args, " "), o.exit, cut(o.stderr, 600))
	}
	return o.stdout, nil
}

// mustJSON runs a command with -o json and reads what it prints.
func mustJSON[T any](ctx context.Context, d *demo, program string, args ...string) (T, error) {
	var v T
	out, err := d.must(ctx, program, append(args, "-o", "json")...)
	if err != nil {
		return v, err
	}
	if err := json.Unmarshal([]byte(out), &v); err != nil {
		return v, fmt.Errorf("%s %s -o json printed %.200q: %w", program, strings.Join(args, " "), out, err)
	}
	return v, nil
}

// shell runs what is printed for the user to try.
func shell(ctx context.Context, script string) (string, error) {
	out, err := exec.CommandContext(ctx, "sh", "-c", script).CombinedOutput()
	return string(out), err
}
