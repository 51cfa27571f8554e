//go:build linux

package rollouts_test

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/cassandra-security-manager/csm/agent/install"
	"github.com/cassandra-security-manager/csm/controller/fleet/rotation"
	"github.com/cassandra-security-manager/csm/test/plane"
	"github.com/cassandra-security-manager/csm/test/ring"
)

// TestARotationGoesOnWithoutAHostThatIsSetAside takes one host of three away, agent and all, changes the root of the ring without it to the
// end, and brings it back: its agent renews it before Cassandra starts, and it is a member like the others.
func TestARotationGoesOnWithoutAHostThatIsSetAside(t *testing.T) {
	if os.Getenv("CSM_TEST_FULL") == "" {
		t.Skip("takes minutes; runs with make test-full")
	}
	e := begin(t)
	away := e.r.Nodes[2]
	e.csm("ca", "create", "next", "--region", "eu-west")
	load := e.load(e.root("root"), e.root("next"))
	e.agents[away.Name].Process.Kill()
	away.Kill()
	var plan rotation.RotationPlan
	e.must(json.Unmarshal([]byte(e.csm("rotation", "plan", "--to", "next", "-o", "json")), &plan))
	e.csm("rotation", "start", "--to", "next", "--plan", plan.Hash, "--bake", "0s", "--reason", "a test")
	e.held("up", away.Name, false)
	mark, began := load.Mark(), time.Now()
	e.csm("rotation", "set-aside", "prod/"+away.Name, "--reason", "its board is broken", "--yes")
	e.follow(load, rotation.Reissued)
	r := load.Since(mark)
	t.Logf("reissued without %s in %s, under %d queries and %d new connections: %d failed, p99 %s\n%s", away.Name, time.Since(began).Round(time.Second), r.Queries, r.Connections, r.Failed, r.P99, e.csm("rotation", "explain"))
	for what := range r.Errors {
		if !strings.Contains(what, away.Address.String()) { // a driver dials who is down again and again
			t.Errorf("beside the host that is away: %s", what)
		}
	}
	if r.Wrong > 0 || r.Queries < 200 {
		t.Errorf("%d queries, %d wrong", r.Queries, r.Wrong)
	}
	load.Stop()
	retire := []string{"rotation", "retire", "--reason", "a test"}
	for _, x := range e.rotation().Reasons {
		if x.Code == "clients" || x.Code == "seen" {
			retire = append(retire, "--except", x.Node)
		}
	}
	e.must(plane.Eventually(t.Context(), patience, func() error { // connections of before are ended one node after the other
		time.Sleep(time.Second)
		out, said, err := e.run(append(retire, "--dry-run")...)
		if hash := shownPlan.FindStringSubmatch(out + said); hash != nil {
			out, said, err = e.run(append(retire, "--plan", hash[1])...)
		}
		if err != nil {
			return fmt.Errorf("%w: %s%s", err, out, said)
		}
		return nil
	}))
	e.must(plane.Eventually(t.Context(), patience, func() error {
		time.Sleep(time.Second)
		if out := e.csm("rotation", "list", "-o", "json"); !slices.ContainsFunc(listed(t, out), func(r rotation.Rotation) bool { return r.Phase == rotation.Done }) {
			return errors.New(out)
		}
		return nil
	}))

	back := time.Now()
	e.must(e.agents[away.Name].Start())
	old, next := e.root("root"), e.root("next")
	renewed := func(n *ring.Node) error {
		if trusted := install.Trusted(e.store(n)); slices.ContainsFunc(trusted, old.Equal) || !slices.ContainsFunc(trusted, next.Equal) {
			return fmt.Errorf("%s trusts %d CAs, that of before: %v", n.Name, len(trusted), slices.ContainsFunc(trusted, old.Equal))
		}
		return nil
	}
	e.must(plane.Eventually(t.Context(), patience, func() error { return renewed(away) }))
	t.Logf("%s was brought up to date in %s", away.Name, time.Since(back).Round(time.Second))
	e.must(away.Start())
	e.must(away.WaitReady(t.Context()))
	e.must(e.r.WaitUp(t.Context()))
	for _, n := range e.r.Nodes {
		e.until(n.Name, "proved", proved)
		e.must(e.chainsTo(n, next))
		e.must(renewed(n))
	}
	t.Logf("back after %s\n%s", time.Since(back).Round(time.Second), e.csm("node", "moves", "prod/"+away.Name))
}

func listed(t *testing.T, out string) []rotation.Rotation {
	t.Helper()
	var all struct{ Items []rotation.Rotation }
	if err := json.Unmarshal([]byte(out), &all); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	return all.Items
}
