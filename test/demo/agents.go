//go:build linux

package main

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/cassandra-security-manager/csm/test/process"
	"github.com/cassandra-security-manager/csm/test/ring"
)

// agent is one csm-agent beside one Cassandra.
type agent struct {
	node    *ring.Node
	dir     string
	config  string
	state   string
	token   string
	hold    string
	reload  string
	trap    string
	process *process.Process
	program string
}

func newAgent(d *demo, i int, n *ring.Node) *agent {
	dir := filepath.Join(d.dir, "agents", n.Name)
	return &agent{
		node: n, dir: dir, program: filepath.Join(d.bin, "csm-agent"),
		config: filepath.Join(dir, "agent.yaml"), state: filepath.Join(dir, "state"), token: filepath.Join(dir, "join.token"),
		hold: filepath.Join(dir, "HOLD"), reload: filepath.Join(dir, "reload"), trap: filepath.Join(dir, "break-next-reload"),
	}
}

// write makes the folder, the local configuration and the reload command, which is local too: no controller can name one.
func (a *agent) write(d *demo, mode string) error {
	if err := os.MkdirAll(a.state, 0o700); err != nil {
		return err
	}
	var controllers []string
	for _, c := range d.controllers {
		controllers = append(controllers, c.address(9641))
	}
	config := fmt.Sprintf(`controllers: [%s]
pin: %s
cluster: %s
join: {method: token, file: %s}
mode: %s
state_dir: %s
hold_file: %s
cassandra:
  - config: %s
    store_roots: [%s]
    reload: {command: [%s]}
log: {level: info, format: json}
`, strings.Join(controllers, ", "), d.pin, clusterShort, a.token, mode, a.state, a.hold, a.node.Config, a.node.Stores, a.reload)
	if err := os.WriteFile(a.config, []byte(config), 0o600); err != nil {
		return err
	}
	// The trap is the demonstration's: while its file is there, the next reload finds a keystore that was cut off, and
	// nodetool exits 0 all the same.
	script := fmt.Sprintf("#!/bin/sh\nif [ -e %[1]s ]; then rm %[1]s; head -c 100 %[2]s > %[2]s.cut && cat %[2]s.cut > %[2]s && rm %[2]s.cut; fi\nexec %[3]s reloadssl\n",
		a.trap, a.node.Keystore, a.node.Nodetool)
	return os.WriteFile(a.reload, []byte(script), 0o755)
}

func (a *agent) log() string { return filepath.Join(a.dir, "agent.log") }

func (a *agent) start() (err error) {
	a.process, err = process.Start(process.Spec{Name: "agent of " + a.node.Name, Path: a.program, Args: []string{"run", "--config", a.config}, Dir: a.dir, Log: a.log()})
	return err
}

func (a *agent) restart(ctx context.Context) error {
	if a.process != nil {
		stop, cancel := context.WithTimeout(ctx, 15*time.Second)
		defer cancel()
		if err := a.process.Stop(stop); err != nil {
			return err
		}
	}
	return a.start()
}

// written lists the files in the store folder.
func (a *agent) written() []string {
	entries, _ := os.ReadDir(a.node.Stores)
	var out []string
	for _, e := range entries {
		out = append(out, e.Name())
	}
	return out
}
