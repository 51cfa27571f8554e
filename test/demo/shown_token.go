//go:build linux

package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
)

// usedToken: somebody finds the token of a node that has joined, and tries to join as that node.
func usedToken(ctx context.Context, d *demo) (string, error) {
	a := d.agents[0]
	thief := newAgent(d, 0, a.node)
	thief.dir = filepath.Join(d.dir, "agents", "thief")
	thief.config, thief.state = filepath.Join(thief.dir, "agent.yaml"), filepath.Join(thief.dir, "state")
	thief.hold, thief.reload, thief.trap = filepath.Join(thief.dir, "HOLD"), filepath.Join(thief.dir, "reload"), filepath.Join(thief.dir, "trap")
	if err := os.MkdirAll(thief.dir, 0o700); err != nil {
		return "", err
	}
	if err := thief.write(d, "observe"); err != nil {
		return "", err
	}
	o, err := d.command(ctx, "csm-agent", "join", "--config", thief.config, "--timeout", "20s")
	if err != nil {
		return "", err
	}
	if o.exit == 0 {
		return "", errors.New("a used token let a second agent in")
	}
	if !strings.Contains(o.stderr, "token") {
		return "", fmt.Errorf("exit %d, but not because of the token: %s", o.exit, o.stderr)
	}
	n, err := d.node(ctx, a.node.Name)
	if err != nil {
		return "", err
	}
	if n.State != "active" || !n.Agent.Connected {
		return "", fmt.Errorf("the real agent is %s, connected %t", n.State, n.Agent.Connected)
	}
	return fmt.Sprintf("exit %d, %s", o.exit, cut(strings.SplitN(o.stderr, "\n", 2)[0], 90)), nil
}
