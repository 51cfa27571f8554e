//go:build linux

package main

import (
	"context"
	"fmt"
	"os"
	"time"
)

// failedReload: the keystore is cut off while the reload runs, Cassandra logs an error, keeps the old certificate, and
// nodetool exits 0. Only the probe tells. The agent puts the old files back and proves them.
func failedReload(ctx context.Context, d *demo) (string, error) {
	a := d.agents[1]
	before, err := onDisk(a.Node)
	if err != nil {
		return "", err
	}
	mark := a.Node.Mark()
	if err := os.WriteFile(a.Trap, nil, 0o600); err != nil {
		return "", err
	}
	defer os.Remove(a.Trap)
	began := time.Now()
	o, err := d.askRenewal(ctx, a.Node.Name, "to be spoiled", 90*time.Second)
	if err != nil {
		return "", err
	}
	took := time.Since(began)
	if o.exit == 0 {
		return "", fmt.Errorf("the renewal was reported as done")
	}
	d.errorsBy[a.Node.Name] = append(d.errorsBy[a.Node.Name], a.Node.Errors(mark)...)
	move, err := d.lastMove(ctx, a.Node.Name)
	if err != nil {
		return "", err
	}
	after, err := onDisk(a.Node)
	switch {
	case err != nil:
		return "", fmt.Errorf("the stores on disk: %w", err)
	case move.Outcome != "rolled-back":
		return "", fmt.Errorf("the move ended as %q (%s), not as rolled-back", move.Outcome, move.Detail)
	case after.fingerprint() != before.fingerprint():
		return "", fmt.Errorf("on disk is %s, not %s from before", brief(after.fingerprint()), brief(before.fingerprint()))
	}
	see, err := d.served(a.Node)
	if err != nil || see != before.fingerprint() {
		return "", fmt.Errorf("%s is served, not %s: %v", brief(see), brief(before.fingerprint()), err)
	}
	r, err := d.renew(ctx, a.Node.Name, "once more, unspoiled")
	if err != nil {
		return "", fmt.Errorf("the next renewal: %w", err)
	}
	return fmt.Sprintf("nodetool exited 0, the probe saw the old leaf; rolled back and proved again in %.1f s, then renewed to %s (Cassandra logged %d ERROR for the spoiled file)",
		took.Seconds(), brief(r.after), len(d.errorsBy[a.Node.Name])), nil
}
