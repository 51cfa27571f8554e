//go:build linux

package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"github.com/cassandra-security-manager/csm/test/plane"
)

// truncated: something cuts a keystore off right after a good reload. Cassandra would read it at its next poll, at a
// restart, or at a handshake after an emptied cache; the agent notices and puts it back.
func truncated(ctx context.Context, d *demo) (string, error) {
	a := d.agents[2]
	if _, err := d.renew(ctx, a.Node.Name, "a good reload"); err != nil {
		return "", err
	}
	before, err := onDisk(a.Node)
	if err != nil {
		return "", err
	}
	began := time.Now()
	if err := os.Truncate(a.Node.Keystore, 100); err != nil {
		return "", err
	}
	err = plane.Eventually(ctx, 30*time.Second, func() error {
		now, err := onDisk(a.Node)
		if err == nil && !now.same(before) {
			err = errors.New("other stores than before")
		}
		return err
	})
	if err != nil {
		return "", fmt.Errorf("the truncated keystore was not put back: %w", err)
	}
	took := time.Since(began)
	err = plane.Eventually(ctx, 60*time.Second, func() error {
		_, s, err := d.store(ctx, a.Node.Name)
		if err == nil && s.State != "proven" {
			err = fmt.Errorf("state is %s: %s", s.State, s.Detail)
		}
		return err
	})
	if err != nil {
		return "", fmt.Errorf("the restored store was not proved again: %w", err)
	}
	see, err := d.served(a.Node)
	if err != nil || see != before.fingerprint() {
		return "", fmt.Errorf("%s is served, not %s: %v", brief(see), brief(before.fingerprint()), err)
	}
	return fmt.Sprintf("noticed and restored byte for byte in %.1f s", took.Seconds()), nil
}
