//go:build linux

package runbooks

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"time"

	"github.com/cassandra-security-manager/csm/test/clock"
	"github.com/cassandra-security-manager/csm/test/plane"
	"github.com/cassandra-security-manager/csm/test/process"
)

// agent is a real one of a node of prod-eu whose Cassandra does not run, with the number of its address. It is not started.
func (o operator) agent(name string, number int) *plane.Agent {
	o.t.Helper()
	if code, _ := o.csm("csm cluster get prod-eu"); code != 0 {
		o.expect("csm cluster create prod-eu --ca root --cassandra-name ring", 0, "prod-eu")
	}
	a := plane.NewAgent(filepath.Join(o.p.Dir, name, "agent"), o.bin, stopped(o.t, filepath.Join(o.p.Dir, name), name, o.p.Host(number)))
	if err := a.Write(o.p.Fleet("prod-eu"), "manage"); err != nil {
		o.t.Fatal(err)
	}
	o.t.Cleanup(func() {
		if a.Process != nil {
			a.Process.Kill()
		}
	})
	return a
}

// paste puts the token where the lines that a command printed put it.
func (o operator) paste(a *plane.Agent, printed string) {
	o.t.Helper()
	found := regexp.MustCompile(`csmt_[A-Za-z0-9_-]+`).FindString(printed)
	if found == "" {
		o.t.Fatalf("no token was printed: %s", printed)
	}
	if err := os.WriteFile(a.Token, []byte(found+"\n"), 0o600); err != nil {
		o.t.Fatal(err)
	}
}

// run starts an agent and waits until the controllers hear it.
func (o operator) run(a *plane.Agent) {
	o.t.Helper()
	if err := a.Start(); err != nil {
		o.t.Fatal(err)
	}
	o.heard(a)
}

func (o operator) heard(a *plane.Agent) {
	o.t.Helper()
	var m member
	if err := plane.Eventually(o.t.Context(), 60*time.Second, func() error {
		m = member{}
		err := o.p.API.Do(o.t.Context(), "GET", "/v1/tenants/default/clusters/prod-eu/nodes/"+a.Node.Name, nil, &m)
		if err == nil && (!m.Agent.Connected || m.ends().IsZero() || m.State != "active") {
			err = fmt.Errorf("%+v", m)
		}
		return err
	}); err != nil {
		o.t.Fatalf("%v\n%s", err, process.Tail(a.Log(), 10))
	}
}

// node runs a line of a runbook that is for the host of a node.
func (o operator) node(a *plane.Agent, line string, code int, words ...string) string {
	o.t.Helper()
	return o.expect(line+" --config "+a.Config, code, words...)
}

// later is csm of an operator who looks 20 minutes later.
func (o operator) later(line string, code int, words ...string) {
	o.t.Helper()
	o.bin, o.env = must[string](o.t)(shifted()), append(o.env, clock.Shift(20*time.Minute))
	o.expect(line, code, words...)
}

// n7 is a node whose agent has joined and written its stores.
func (o operator) n7() *plane.Agent {
	o.t.Helper()
	a := o.agent("n7", 4)
	o.paste(a, o.expect("csm cluster join-command prod-eu/n7 --dns n7.example --ip 127.0.0.1 --ip "+a.Node.Address.String(), 0, "csm-agent join"))
	o.run(a)
	return a
}

func agents(state string) string { return `csm_agents\{[^}]*state="` + state + `"\}` }

// agentNotHeard: the agent is gone, then its state folder too.
func agentNotHeard(o operator) {
	o.t.Helper()
	a := o.n7()
	o.expect("csm doctor", 0)
	a.Process.Kill()
	o.until(o.p.Controllers[0], agents("disconnected"), is(1))
	o.later("csm doctor", 10, "nothing is heard of the agent", "next: csm-agent doctor", "runbooks/agent-not-heard.md")
	o.later("csm check agents", 1, "CSM WARNING")
	o.node(a, "csm-agent doctor", 0, "the agent does not run", "start csm-agent")
	o.node(a, "csm-agent status", 1, "prod-eu/nodes/n7", "the agent does not run")
	o.run(a)
	o.expect("csm node get prod-eu/n7", 0, "active")
	o.expect("csm check agents", 0)

	a.Process.Kill()
	if err := os.RemoveAll(a.State); err != nil {
		o.t.Fatal(err)
	}
	o.node(a, "csm-agent doctor", 0, "has not run here yet")
	o.paste(a, o.expect("csm node rejoin prod-eu/n7", 0, "csm-agent join"))
	o.run(a)
	o.expect("csm node get prod-eu/n7", 0, "incarnation")
	o.expect("csm check agents", 0)
	o.expect("csm doctor", 0)
	a.Process.Kill()
}

// identityConflict: the machine of n7 is cloned with its state folder; later somebody comes with its token.
func identityConflict(o operator) {
	o.t.Helper()
	a := plane.NewAgent(filepath.Join(o.p.Dir, "n7", "agent"), o.bin, stopped(o.t, filepath.Join(o.p.Dir, "n7"), "n7", o.p.Host(4)))
	o.t.Cleanup(func() { a.Process.Kill() })
	o.run(a)
	before := o.metric(o.p.Controllers[0], "csm_agent_identity_conflicts_total")
	clone := o.clone(a)
	o.expect("csm doctor", 10, "critical prod-eu/n7: the agent is suspended", "runbooks/identity-conflict.md")
	o.until(o.p.Controllers[0], agents("suspended"), is(1))
	o.until(o.p.Controllers[0], "csm_agent_identity_conflicts_total", func(v float64) bool { return v > before })
	o.expect("csm node get prod-eu/n7", 0, "suspended", "machine")
	o.expect("csm audit search --filter resource=tenants/default/clusters/prod-eu/nodes/n7", 0, "n7")
	clone.Kill()
	if err := os.RemoveAll(filepath.Join(o.p.Dir, "clone", "agent", "state")); err != nil {
		o.t.Fatal(err)
	}
	o.expect("csm node resume prod-eu/n7 --reason 'the clone is gone' --yes", 0, "active")
	o.heard(a)
	o.expect("csm doctor", 0)

	before = o.metric(o.p.Controllers[0], "csm_agent_identity_conflicts_total")
	thief := plane.NewAgent(filepath.Join(o.p.Dir, "thief"), o.bin, a.Node)
	if err := thief.Write(o.p.Fleet("prod-eu"), "observe"); err != nil {
		o.t.Fatal(err)
	}
	token, err := os.ReadFile(a.Token)
	if err != nil {
		o.t.Fatal(err)
	}
	o.paste(thief, string(token))
	o.node(thief, "csm-agent join --timeout 20s", 3, "was used before, by another key")
	o.until(o.p.Controllers[0], "csm_agent_identity_conflicts_total", func(v float64) bool { return v > before })
	o.expect("csm node suspend prod-eu/n7 --reason 'its token came with two keys' --yes", 0, "suspended")
	o.expect("csm certificate list --filter node=prod-eu/n7", 0, "n7")
	o.paste(a, o.expect("csm node rejoin prod-eu/n7", 0, "csm-agent join"))
	a.Process.Kill()
	if err := os.RemoveAll(a.State); err != nil {
		o.t.Fatal(err)
	}
	o.run(a)
	o.expect("csm doctor", 0)
	a.Process.Kill()
}

// clone starts the agent's program on a copy of its state folder, where the machine's id is another.
func (o operator) clone(a *plane.Agent) *process.Process {
	o.t.Helper()
	asRoot(o.t)
	dir, etc := filepath.Join(o.p.Dir, "clone", "agent"), filepath.Join(o.p.Dir, "clone", "etc")
	if err := os.MkdirAll(dir, 0o700); err != nil {
		o.t.Fatal(err)
	}
	// An image is of one moment: nothing is written while it is taken.
	if err := a.Process.Signal(syscall.SIGSTOP); err != nil {
		o.t.Fatal(err)
	}
	defer a.Process.Signal(syscall.SIGCONT)
	for to, from := range map[string]string{filepath.Join(dir, "state"): a.State, etc: "/etc"} {
		if out, err := exec.Command("cp", "-a", from, to).CombinedOutput(); err != nil {
			o.t.Fatalf("%v: %s", err, out)
		}
	}
	id := filepath.Join(etc, "machine-id")
	os.Remove(id)
	if err := os.WriteFile(id, []byte("00112233445566778899aabbccddeeff\n"), 0o444); err != nil {
		o.t.Fatal(err)
	}
	config, err := os.ReadFile(a.Config)
	if err != nil {
		o.t.Fatal(err)
	}
	file := filepath.Join(dir, "agent.yaml")
	if err := os.WriteFile(file, []byte(strings.ReplaceAll(string(config), a.State, filepath.Join(dir, "state"))), 0o600); err != nil {
		o.t.Fatal(err)
	}
	p, err := process.Start(process.Spec{Name: "the clone", Path: "unshare", Dir: dir, Log: filepath.Join(dir, "agent.log"),
		Args: []string{"--mount", "sh", "-c", `mount --bind "$1" /etc && exec "$2" run --config "$3"`, "sh", etc, filepath.Join(o.bin, "csm-agent"), file}})
	if err != nil {
		o.t.Fatal(err)
	}
	o.t.Cleanup(p.Kill)
	return p
}
