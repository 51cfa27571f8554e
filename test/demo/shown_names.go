//go:build linux

package main

import (
	"context"
	"fmt"
	"time"
)

// wrongNames: somebody records a wrong address for a node. The controllers sign what is recorded; the agent knows which
// addresses Cassandra uses and refuses the certificate before it writes a byte.
func wrongNames(ctx context.Context, d *demo) (string, error) {
	a := d.agents[0]
	before, err := onDisk(a.Node)
	if err != nil {
		return "", err
	}
	node := clusterShort + "/" + a.Node.Name
	if _, err := d.must(ctx, "csm", "node", "set-names", node, "--ip", "127.0.99.99", "--dns", "elsewhere.example", "--yes"); err != nil {
		return "", err
	}
	// Whatever is seen, the names are put right for those who come after.
	right := func() error {
		_, err := d.must(ctx, "csm", setNames(a)...)
		return err
	}
	defer right()
	o, err := d.askRenewal(ctx, a.Node.Name, "names were changed", 60*time.Second)
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
		return "", fmt.Errorf("the stores on disk changed")
	}
	move, err := d.lastMove(ctx, a.Node.Name)
	if err != nil {
		return "", err
	}
	if move.Outcome != "refused" {
		return "", fmt.Errorf("the move ended as %q (%s), not as refused", move.Outcome, move.Detail)
	}
	if err := right(); err != nil {
		return "", err
	}
	r, err := d.renew(ctx, a.Node.Name, "names are right again")
	if err != nil {
		return "", fmt.Errorf("after the names were put right: %w", err)
	}
	return fmt.Sprintf("refused (%s), csm exits %d, no file touched; names put right, %s proved by %s", cut(move.Detail, 110), o.exit, brief(r.after), r.by), nil
}
