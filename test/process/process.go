//go:build linux

// Package process runs the real programs of a test or a demonstration: controllers, agents, Cassandra's JVMs.
//
// It owns exactly the processes it started, each in a process group of its own, and ends only those, by their ids.
// Should the program that started them die itself, the kernel takes them down with it (PR_SET_PDEATHSIG), so that no
// ring is ever left behind.
package process

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"sync"
	"syscall"
	"time"
)

// Spec says what to start.
type Spec struct {
	// Name is for messages.
	Name string
	// Path and Args are the command. Path is absolute or is looked up in PATH.
	Path string
	Args []string
	// Env is added to the environment of this program.
	Env []string
	// Dir is the working folder; empty is the current one.
	Dir string
	// Log receives stdout and stderr; it is appended to.
	Log string
}

// Process is one running program.
type Process struct {
	Spec
	cmd  *exec.Cmd
	done chan struct{}
	err  error
}

// The parent-death signal follows the thread that forked, not the process, so one thread that never ends forks them all.
var spawner = sync.OnceValue(func() chan func() {
	work := make(chan func())
	go func() {
		runtime.LockOSThread()
		for f := range work {
			f()
		}
	}()
	return work
})

// Start starts a program and returns at once.
func Start(spec Spec) (*Process, error) {
	p := &Process{Spec: spec, cmd: exec.Command(spec.Path, spec.Args...), done: make(chan struct{})}
	log, err := os.OpenFile(spec.Log, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return nil, fmt.Errorf("log of %s: %w", spec.Name, err)
	}
	defer log.Close()
	p.cmd.Stdout, p.cmd.Stderr, p.cmd.Dir = log, log, spec.Dir
	p.cmd.Env = append(os.Environ(), spec.Env...)
	p.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	started := make(chan error)
	spawner() <- func() { started <- p.cmd.Start() }
	if err := <-started; err != nil {
		return nil, fmt.Errorf("starting %s: %w", spec.Name, err)
	}
	go func() {
		p.err = p.cmd.Wait()
		close(p.done)
	}()
	return p, nil
}

// Pid is the process id, which is also the id of its group.
func (p *Process) Pid() int { return p.cmd.Process.Pid }

// Done is closed when the process has ended.
func (p *Process) Done() <-chan struct{} { return p.done }

// Running reports whether the process has not ended yet.
func (p *Process) Running() bool {
	select {
	case <-p.done:
		return false
	default:
		return true
	}
}

// Err says how the process ended; nil while it runs and after a clean end.
func (p *Process) Err() error {
	if p.Running() {
		return nil
	}
	return p.err
}

// Signal sends a signal to this one process.
func (p *Process) Signal(s syscall.Signal) error {
	if !p.Running() {
		return os.ErrProcessDone
	}
	return p.cmd.Process.Signal(s)
}

// SignalGroup sends a signal to the process and its children.
func (p *Process) SignalGroup(s syscall.Signal) error {
	if err := syscall.Kill(-p.Pid(), s); err != nil && !errors.Is(err, syscall.ESRCH) {
		return fmt.Errorf("signal %v to %s: %w", s, p.Name, err)
	}
	return nil
}

// Kill ends the process and its children with SIGKILL and waits for the end.
func (p *Process) Kill() {
	// The group outlives its leader when a child does, so the signal goes out even if the leader is gone.
	_ = p.SignalGroup(syscall.SIGKILL)
	<-p.done
}

// KillAlone ends this one process with SIGKILL, as a crash would, and leaves its children to notice.
func (p *Process) KillAlone() {
	_ = p.Signal(syscall.SIGKILL)
	<-p.done
}

// Stop asks with SIGTERM and, when ctx ends first, kills.
func (p *Process) Stop(ctx context.Context) error {
	if err := p.SignalGroup(syscall.SIGTERM); err != nil {
		return err
	}
	select {
	case <-p.done:
		return p.SignalGroup(syscall.SIGKILL)
	case <-ctx.Done():
		p.Kill()
		return fmt.Errorf("%s did not stop when asked and was killed", p.Name)
	}
}

// Tail returns the last lines of the log, for the message of a failure.
func (p *Process) Tail(lines int) string { return Tail(p.Log, lines) }

// Settle waits for cond, asking at each interval, until ctx ends or the process does.
func (p *Process) Settle(ctx context.Context, interval time.Duration, cond func() bool) error {
	tick := time.NewTicker(interval)
	defer tick.Stop()
	for !cond() {
		select {
		case <-p.done:
			return fmt.Errorf("%s ended (%v); its log ends with:\n%s", p.Name, p.err, p.Tail(15))
		case <-ctx.Done():
			return fmt.Errorf("%s is not ready: %w; its log ends with:\n%s", p.Name, ctx.Err(), p.Tail(15))
		case <-tick.C:
		}
	}
	return nil
}
