//go:build linux

package main

import (
	"context"
	"fmt"
	"os"
	"time"
)

// hold: the operator of a host puts a HOLD file there. No controller can make the agent act; when the file goes, it does.
func hold(ctx context.Context, d *demo) (string, error) {
	a := d.agents[2]
	before, err := onDisk(a.Node)
	if err != nil {
		return "", err
	}
	if err := os.WriteFile(a.Hold, []byte("the disk is being replaced\n"), 0o644); err != nil {
		return "", err
	}
	defer os.Remove(a.Hold)
	o, err := d.askRenewal(ctx, a.Node.Name, "while held", 5*time.Second)
	if err != nil {
		return "", err
	}
	after, err := onDisk(a.Node)
	switch {
	case err != nil:
		return "", err
	case o.exit == 0:
		return "", fmt.Errorf("the renewal was reported as done")
	case !after.same(before):
		return "", fmt.Errorf("the stores changed in spite of HOLD")
	}
	n, err := d.node(ctx, a.Node.Name)
	if err != nil {
		return "", err
	}
	if n.Agent.Hold == "" {
		return "", fmt.Errorf("the controllers do not know of the HOLD file; they say: %s", n.Why)
	}
	if err := os.Remove(a.Hold); err != nil {
		return "", err
	}
	if err := d.settled(ctx, a.Node.Name); err != nil {
		return "", fmt.Errorf("after HOLD was removed: %w", err)
	}
	return fmt.Sprintf("nothing written (csm: exit %d, %q); removed, the node moved by itself", o.exit, n.Agent.Hold), nil
}
