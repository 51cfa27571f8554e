//go:build linux

package main

import (
	"context"
	"os"
	"path/filepath"
)

// agent measures what an agent costs on a node.
func (b *bench) agent(_ context.Context) error {
	info, err := os.Stat(filepath.Join(b.bin, "csm-agent"))
	if err != nil {
		return err
	}
	size := float64(info.Size()) / 1e6
	b.add(figure{Name: "agent binary", Value: size, Unit: "MB", Goal: "< 25 MB", Holds: yes(size < 25), Load: "linux/amd64, stripped"})
	return nil
}
