//go:build linux

package rollouts_test

import (
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/cassandra-security-manager/csm/controller/fleet"
	"github.com/cassandra-security-manager/csm/controller/fleet/rotation"
	"github.com/cassandra-security-manager/csm/test/plane"
	"github.com/cassandra-security-manager/csm/test/process"
	"github.com/cassandra-security-manager/csm/test/ring"
)

// The gate that is taken out: who counts are the members of the ring as its nodes report them, whether their agents act or not.
const (
	gateOfAll    = `if !m.counts() || who`
	gateOfActive = `if !m.counts() || !m.Active || who`
)

// TestAMemberWhoseAgentMayNotActHoldsARotationAndWouldBeCutOff runs one rotation of a ring of three; the agent of one only
// observes. It is held, and the ring serves. Then the controllers are started from a build without that gate, and the outage that it prevents
// is there; with the gate back the rotation turns round, and the ring is whole again.
func TestAMemberWhoseAgentMayNotActHoldsARotationAndWouldBeCutOff(t *testing.T) {
	if os.Getenv("CSM_TEST_FULL") == "" {
		t.Skip("takes minutes; runs with make test-full")
	}
	e := begin(t)
	away := e.r.Nodes[2]
	a := e.agents[away.Name]
	a.Process.Kill()
	e.must(a.Write(e.p.Fleet("prod"), "observe"))
	e.must(a.Start())
	e.until(away.Name, "looking on only", func(v fleet.Node) bool { return v.Agent.Mode == "observe" && v.Instance.HostID != "" })
	e.csm("ca", "create", "next", "--region", "eu-west")
	load := e.load(e.root("root"), e.root("next"))
	var plan rotation.RotationPlan
	e.must(json.Unmarshal([]byte(e.csm("rotation", "plan", "--to", "next", "-o", "json")), &plan))
	e.csm("rotation", "start", "--to", "next", "--plan", plan.Hash, "--bake", "0s", "--reason", "a test")
	e.held("enrolled", away.Name, true)
	e.restart(away)
	e.must(away.WaitReady(t.Context()))
	e.must(e.r.WaitUp(t.Context()))
	mark := load.Mark()
	time.Sleep(5 * time.Second) // of load
	if r := load.Since(mark); r.Failed > 0 || r.Connections < 3 {
		t.Errorf("held in distribute, and %d of %d queries failed, %d new connections: %v", r.Failed, r.Queries, r.Connections, r.Errors)
	}

	e.controllers(e.without("controller/fleet/rotation/gate.go", gateOfAll, gateOfActive))
	e.follow(load, rotation.Reissued)
	mark = load.Mark()
	e.restart(away)
	e.must(plane.Eventually(t.Context(), patience, func() error {
		time.Sleep(time.Second)
		if away.Running() && len(away.Lines(ring.Mark(0), "Starting listening for CQL clients")) > 2 {
			t.Fatal("the member that was left out is back, though it trusts no leaf of its peers")
		}
		out, err := e.r.Nodes[0].RunNodetool(t.Context(), "status")
		if err == nil && !strings.Contains(out, "DN  "+away.Address.String()) {
			err = fmt.Errorf("its peers say\n%s", out)
		}
		if r := load.Since(mark); err == nil && r.Failed < 10 {
			err = fmt.Errorf("%d queries failed", r.Failed)
		}
		if err == nil && len(refusals(away)) == 0 {
			err = fmt.Errorf("its log says nothing of a certificate: %s", process.Tail(away.Log, 20))
		}
		return err
	}))
	lost := load.Since(mark)
	t.Logf("without the gate: %d of %d queries and new connections failed since the restart: %v; its log: %v", lost.Failed, lost.Queries, lost.Errors, tail(refusals(away), 1))

	e.controllers(e.bin)
	e.csm("rotation", "rollback", "--reason", "a member is cut off", "--yes")
	for _, n := range e.r.Nodes[:2] {
		e.until(n.Name, "serving a leaf of the CA before", func(v fleet.Node) bool { return proved(v) && e.chainsTo(n, e.root("root")) == nil })
	}
	e.restart(away) // it has given up, or is about to
	e.must(away.WaitReady(t.Context()))
	e.must(e.r.WaitUp(t.Context()))
}

// refusals are what a node's log says of peers whose certificates it does not trust, or who do not trust its own.
func refusals(n *ring.Node) []string {
	return slices.Concat(n.Lines(ring.Mark(0), "PKIX path"), n.Lines(ring.Mark(0), "Failed to handshake with peer"), n.Lines(ring.Mark(0), "SSLHandshakeException"))
}

func tail(lines []string, n int) []string { return lines[max(0, len(lines)-n):] }

func (e *estate) rotation() (r rotation.Rotation) {
	e.t.Helper()
	e.must(json.Unmarshal([]byte(e.csm("rotation", "explain", "-o", "json")), &r))
	return r
}

// held waits until a rotation of the ring waits in its first phase for one node; only: for nothing of any other.
func (e *estate) held(code, node string, only bool) {
	e.t.Helper()
	e.must(plane.Eventually(e.t.Context(), patience, func() error {
		time.Sleep(time.Second)
		r := e.rotation()
		if r.Phase != rotation.Distribute {
			e.t.Fatalf("phase %s, and %s was to hold it: %s", r.Phase, node, code)
		}
		if !slices.ContainsFunc(r.Reasons, func(x rotation.Reason) bool { return x.Code == code && x.Node == node }) ||
			only && slices.ContainsFunc(r.Reasons, func(x rotation.Reason) bool { return x.Node != node }) {
			return fmt.Errorf("it waits for %+v", r.Reasons)
		}
		return nil
	}))
}

func (e *estate) restart(n *ring.Node) {
	e.t.Helper()
	n.Kill()
	e.must(n.Start())
}

// controllers starts all controllers again from another folder of programs.
func (e *estate) controllers(bin string) {
	e.t.Helper()
	for _, c := range e.p.Controllers {
		c.Kill()
	}
	for _, c := range e.p.Controllers {
		c.Use(bin)
		e.must(c.Start())
	}
	e.must(e.p.Ready(e.t.Context()))
}

// without builds a controller in which one text of a source is another; the tree stays as it is.
func (e *estate) without(file, old, other string) string {
	e.t.Helper()
	file, err := filepath.Abs(filepath.Join("../..", file))
	e.must(err)
	source, err := os.ReadFile(file)
	e.must(err)
	if n := strings.Count(string(source), old); n != 1 {
		e.t.Fatalf("%s has %d times %s", file, n, old)
	}
	bin := e.t.TempDir()
	changed, overlay := filepath.Join(bin, "changed.go"), filepath.Join(bin, "overlay.json")
	e.must(os.WriteFile(changed, []byte(strings.Replace(string(source), old, other, 1)), 0o600))
	list, err := json.Marshal(map[string]map[string]string{"Replace": {file: changed}})
	e.must(err)
	e.must(os.WriteFile(overlay, list, 0o600))
	build := exec.Command("go", "build", "-overlay", overlay, "-o", bin+"/", "./controller/cmd/csm-controller")
	build.Dir, build.Env = "../..", append(os.Environ(), "CGO_ENABLED=0", "GOFLAGS=-trimpath")
	if out, err := build.CombinedOutput(); err != nil {
		e.t.Fatalf("%v: %s", err, out)
	}
	return bin
}
