//go:build linux

package main

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"strings"

	"github.com/cassandra-security-manager/csm/test/plane"
)

// usedToken: somebody finds the token of a node that has joined, and tries to join as that node.
func usedToken(ctx context.Context, d *demo) (string, error) {
	a := d.agents[0]
	thief := plane.NewAgent(filepath.Join(d.dir, "agents", "thief"), d.bin, a.Node)
	thief.Token = a.Token
	if err := thief.Write(d.plane.Fleet(clusterShort), "observe"); err != nil {
		return "", err
	}
	o, err := d.command(ctx, "csm-agent", "join", "--config", thief.Config, "--timeout", "20s")
	if err != nil {
		return "", err
	}
	if o.exit == 0 {
		return "", errors.New("a used token let a second agent in")
	}
	if !strings.Contains(o.stderr, "token") {
		return "", fmt.Errorf("exit %d, but not because of the token: %s", o.exit, o.stderr)
	}
	n, err := d.node(ctx, a.Node.Name)
	if err != nil {
		return "", err
	}
	if n.State != "active" || !n.Agent.Connected {
		return "", fmt.Errorf("the real agent is %s, connected %t", n.State, n.Agent.Connected)
	}
	return fmt.Sprintf("exit %d, %s", o.exit, cut(strings.SplitN(o.stderr, "\n", 2)[0], 90)), nil
}
