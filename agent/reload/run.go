package reload

import (
	"bytes"
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"github.com/cassandra-security-manager/csm/shared/fault"
)

// maxOutput bounds what is kept of each of stdout and stderr, in bytes.
const maxOutput = 16 << 10

// maxRing bounds what is kept of the list of a ring: some two thousand members.
const maxRing = 192 << 10

// run executes the command to its end or its timeout, and kills what it has started. It keeps the last of what was printed.
func (c Command) run(ctx context.Context, kept int) (Output, error) {
	timeout := c.Timeout
	if timeout <= 0 {
		timeout = DefaultTimeout
	}
	c, done, err := c.ready()
	if err != nil {
		return Output{ExitCode: -1}, err
	}
	defer done()
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	cmd := exec.CommandContext(ctx, c.Path, c.Args...)
	stdout, stderr := tail{max: kept}, tail{max: maxOutput}
	cmd.Stdout, cmd.Stderr, cmd.Dir, cmd.Env = &stdout, &stderr, c.Dir, c.Env
	if cmd.Env == nil {
		cmd.Env = keep("PATH", "HOME", "JAVA_HOME", "CASSANDRA_HOME", "CASSANDRA_CONF", "SystemRoot")
	}
	if c.Home != "" {
		home, leave := enter(c.Home)
		defer leave()
		cmd.Env = atHome(cmd.Env, home)
	}
	cmd.WaitDelay = 2 * time.Second
	ownGroup(cmd)
	start := time.Now()
	err = cmd.Run()
	out := Output{ExitCode: -1, Stdout: stdout.String(), Stderr: stderr.String(), Took: time.Since(start)}
	if cmd.ProcessState != nil {
		out.ExitCode = cmd.ProcessState.ExitCode()
	}
	if ctx.Err() != nil {
		return out, fault.New(fault.Unavailable, "reload-timeout", "the command did not end within %s", timeout).
			Do("run it by hand: %s", c.Path)
	}
	var exit *exec.ExitError
	if err == nil || errors.As(err, &exit) && out.ExitCode >= 0 {
		return out, nil
	}
	return out, fault.Wrap(err, fault.Unavailable, "reload-not-run", "the reload command could not be run").
		Do("check `reload` in agent.yaml: %s must be there and executable for the helper's user", c.Path)
}

func keep(names ...string) []string {
	env := []string{}
	for _, n := range names {
		if v, ok := os.LookupEnv(n); ok {
			env = append(env, n+"="+v)
		}
	}
	return env
}

// enter makes home, or a folder that leave removes where it cannot be made, as under systemd's read-only view: nodetool of
// Cassandra 5.0 fails when it cannot make the folder of its history.
func enter(home string) (dir string, leave func()) {
	if os.MkdirAll(filepath.Join(home, ".cassandra"), 0o700) == nil {
		return home, func() {}
	}
	dir, err := os.MkdirTemp("", "csm-nodetool-")
	if err != nil {
		return home, func() {}
	}
	return dir, func() { os.RemoveAll(dir) }
}

const javaOptions = "JAVA_TOOL_OPTIONS="

// atHome makes each JVM of the command keep its files in home, and none of its performance data in /tmp. Options that env has already stay and, being last, win.
func atHome(env []string, home string) []string {
	options := javaOptions + "-Duser.home='" + home + "' -XX:-UsePerfData"
	out := []string{}
	for _, e := range env {
		if given, ok := strings.CutPrefix(e, javaOptions); ok {
			options += " " + given
			continue
		}
		out = append(out, e)
	}
	return append(out, options)
}

// tail keeps the last max bytes written.
type tail struct {
	max int
	b   bytes.Buffer
}

func (t *tail) Write(p []byte) (int, error) {
	n := len(p)
	if len(p) > t.max {
		p = p[len(p)-t.max:]
	}
	if over := t.b.Len() + len(p) - t.max; over > 0 {
		t.b.Next(over)
	}
	t.b.Write(p)
	return n, nil
}

func (t *tail) String() string { return t.b.String() }
