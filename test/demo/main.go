//go:build linux

// Command demo is what `make run` shows: three controllers in three regions, three agents, a real Cassandra ring under
// load, every node renewed and proved, and everything that must not happen, tried. It builds nothing; it starts the
// programs of a folder, works in a folder of its own, and ends exactly what it started.
package main

import (
	"context"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"syscall"

	"golang.org/x/term"
)

func main() {
	bin := flag.String("bin", "build/bin", "folder of csm-controller, csm-agent and csm")
	dir := flag.String("dir", "build/run", "work folder; it is emptied first")
	cache := flag.String("cache", "build/cassandra", "folder where Cassandra's jars are kept")
	name := flag.String("story", "renewal", "what is told: renewal or rotation")
	only := flag.String("only", "", "run only the scenarios whose names contain this (for work on the demonstration itself)")
	stay := flag.Bool("stay", os.Getenv("CI") != "true", "stay up at the end until Ctrl-C (default unless CI=true)")
	flag.Parse()
	told, known := stories[*name]
	if !known {
		fmt.Fprintf(os.Stderr, "there is no story %q: renewal or rotation\n", *name)
		os.Exit(2)
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	s := newScreen(os.Stdout, term.IsTerminal(int(os.Stdout.Fd())))
	d := &demo{story: told, screen: s, only: *only, bin: absolute(*bin), dir: absolute(*dir), cache: absolute(*cache)}
	held := d.run(ctx)
	if *stay && held && ctx.Err() == nil {
		d.play(ctx)
	}
	s.step("stopping what was started")
	d.close()
	s.done("everything that was started has ended")
	switch {
	case held:
	case ctx.Err() != nil:
		os.Exit(130)
	default:
		os.Exit(1)
	}
}

func absolute(path string) string {
	a, err := filepath.Abs(path)
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(2)
	}
	return a
}
