//go:build linux

package ring

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"time"

	"github.com/cassandra-security-manager/csm/test/process"
)

func (d *Distribution) archive() string     { return filepath.Join(d.Dir, "cassandra.jsa") }
func (d *Distribution) toolArchive() string { return filepath.Join(d.Dir, "nodetool.jsa") }

// Warm makes the class archives that let later JVMs start faster, unless they are there: one node is started, asked by
// nodetool and stopped. The node's stores must be in place. It takes about 15 s, once per cache folder.
func (d *Distribution) Warm(ctx context.Context, n *Node) error {
	if _, err := os.Stat(d.archive()); err == nil {
		return nil
	}
	unlock, err := lock(filepath.Join(d.Dir, "lock"))
	if err != nil {
		return err
	}
	defer unlock()
	args, err := d.daemonArgs(n, false)
	if err != nil {
		return err
	}
	n.ready = int64(n.Mark())
	n.process, err = process.Start(process.Spec{Name: "Cassandra " + n.Name, Path: args[0], Args: args[1:], Dir: n.Dir, Log: n.Log})
	if err != nil {
		return err
	}
	defer n.Kill()
	if err := n.WaitReady(ctx); err != nil {
		return err
	}
	if err := d.warmNodetool(ctx, n); err != nil {
		return err
	}
	stop, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	if err := n.Stop(stop); err != nil {
		return err
	}
	if err := os.RemoveAll(filepath.Join(n.Dir, "data")); err != nil {
		return err
	}
	return os.Rename(d.archive()+".new", d.archive())
}

// warmNodetool runs nodetool once with the switch that writes its archive at exit.
func (d *Distribution) warmNodetool(ctx context.Context, n *Node) error {
	c := exec.CommandContext(ctx, n.Nodetool, "status")
	c.Env = append(os.Environ(), "JAVA_TOOL_OPTIONS=-XX:ArchiveClassesAtExit="+d.toolArchive()+".new")
	if out, err := c.CombinedOutput(); err != nil {
		return fmt.Errorf("nodetool for its class archive: %w\n%s", err, tail(string(out), 5))
	}
	return os.Rename(d.toolArchive()+".new", d.toolArchive())
}
