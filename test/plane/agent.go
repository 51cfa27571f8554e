//go:build linux

package plane

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

// Agent is one csm-agent beside one Cassandra of a test ring. Dir takes its configuration and its state.
type Agent struct {
	Node *ring.Node
	Dir  string
	// Config is agent.yaml, State the state folder, Token the file of the join token, Hold the file that stops every effect.
	Config, State, Token, Hold string
	// Reload is the local reload command. While the file Trap is there, its next run spoils the keystore first.
	Reload, Trap string
	Process      *process.Process
	program      string
}

// Fleet is what an agent must know to join.
type Fleet struct {
	Controllers []string
	Pin         string
	Cluster     string
}

// NewAgent starts nothing; bin holds csm-agent.
func NewAgent(dir, bin string, n *ring.Node) *Agent {
	return &Agent{
		Node: n, Dir: dir, program: filepath.Join(bin, "csm-agent"),
		Config: filepath.Join(dir, "agent.yaml"), State: filepath.Join(dir, "state"), Token: filepath.Join(dir, "join.token"),
		Hold: filepath.Join(dir, "HOLD"), Reload: filepath.Join(dir, "reload"), Trap: filepath.Join(dir, "break-next-reload"),
	}
}

// Write makes the folder, the local configuration and the reload command, which is local too: no controller can name one.
func (a *Agent) Write(f Fleet, mode string) error {
	if err := os.MkdirAll(a.State, 0o700); err != nil {
		return err
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
    reload: {command: [%s], ring: [%s, status], netstats: [%s, netstats]}
log: {level: info, format: json}
`, strings.Join(f.Controllers, ", "), f.Pin, f.Cluster, a.Token, mode, a.State, a.Hold, a.Node.Config, a.Node.Stores, a.Reload, a.Node.Nodetool, a.Node.Nodetool)
	if err := os.WriteFile(a.Config, []byte(config), 0o600); err != nil {
		return err
	}
	// The trap leaves a keystore that was cut off, and nodetool exits 0 all the same.
	script := fmt.Sprintf("#!/bin/sh\nif [ -e %[1]s ]; then rm %[1]s; head -c 100 %[2]s > %[2]s.cut && cat %[2]s.cut > %[2]s && rm %[2]s.cut; fi\nexec %[3]s reloadssl\n",
		a.Trap, a.Node.Keystore, a.Node.Nodetool)
	return os.WriteFile(a.Reload, []byte(script), 0o755)
}

// Log is where the agent's log goes.
func (a *Agent) Log() string { return filepath.Join(a.Dir, "agent.log") }

// Start starts the agent, in the network namespace of its node if it has one, and returns at once.
func (a *Agent) Start() (err error) {
	words := append(append([]string{}, a.Node.Enter...), a.program, "run", "--config", a.Config)
	a.Process, err = process.Start(process.Spec{Name: "agent of " + a.Node.Name, Path: words[0], Args: words[1:], Dir: a.Dir, Log: a.Log()})
	return err
}

// Restart ends it as an operator does and starts it again.
func (a *Agent) Restart(ctx context.Context) error {
	if a.Process != nil {
		stop, cancel := context.WithTimeout(ctx, 15*time.Second)
		defer cancel()
		if err := a.Process.Stop(stop); err != nil {
			return err
		}
	}
	return a.Start()
}

// Written lists the files in the store folder.
func (a *Agent) Written() []string {
	entries, _ := os.ReadDir(a.Node.Stores)
	var out []string
	for _, e := range entries {
		out = append(out, e.Name())
	}
	return out
}

// Names are what the certificates of a node of a ring may carry. On loopback every outgoing link has the source 127.0.0.1.
func (a *Agent) Names(domain string) (dns, ips []string) {
	return []string{a.Node.Name + "." + domain}, []string{a.Node.Address.String(), "127.0.0.1"}
}
