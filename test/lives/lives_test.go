//go:build linux

package lives_test

import (
	"fmt"
	"os"
	"strings"
	"testing"

	"github.com/cassandra-security-manager/csm/controller/fleet"
	"github.com/cassandra-security-manager/csm/test/plane"
	"github.com/cassandra-security-manager/csm/test/process"
)

// TestTheLivesOfNodesOnARealRing is one ring and one story, because starting Cassandras is most of the time.
func TestTheLivesOfNodesOnARealRing(t *testing.T) {
	if os.Getenv("CSM_TEST_FULL") == "" {
		t.Skip(errFull)
	}
	e := begin(t)
	for _, part := range []struct {
		name string
		tell func(*estate)
	}{
		{"a host that is gone is replaced by another under its name", (*estate).replaced},
		{"a host whose disks are empty is rebuilt and rejoins", (*estate).rebuilt},
		{"an agent that lost its state folder beside a running Cassandra rejoins", (*estate).forgot},
		{"a node that is decommissioned is proposed for removal and removed by a person", (*estate).decommissioned},
	} {
		if !t.Run(part.name, func(t *testing.T) { part.tell(e.as(t)) }) {
			return
		}
	}
}

// replaced: same name, new host id, new address, Cassandra started with -Dcassandra.replace_address_first_boot.
func (e *estate) replaced() {
	old := e.r.Nodes[2]
	before, err := e.node("n3")
	e.must(err)
	old.Kill()
	oldAgent := e.agents["n3"]
	oldAgent.Process.Kill()
	e.status(e.r.Nodes[0], "DN", 1)

	n, err := e.r.Add(e.address(4), "dc1")
	e.must(err)
	out := e.planned("node", "replace", "prod/n3", "--ip", n.Address.String(), "--ip", "127.0.0.1", "--dns", "n3.lives.example", "--reason", "disk died")
	if v := e.until("n3", "its old identity to end", func(v fleet.Node) bool { return v.State == fleet.Revoked }); strings.Contains(strings.Join(v.Names.IPs, " "), old.Address.String()) {
		e.t.Errorf("the names are still those of the old host: %+v", v.Names)
	}
	e.enrol(n, e.secret(out))
	e.agents["n3"] = e.agents[n.Name]
	delete(e.agents, n.Name)
	e.until("n3", "installed on the new host", func(v fleet.Node) bool { return v.Incarnation == 2 && v.State == fleet.Active && installed(v) })
	n.JVM = append(n.JVM, quick, "-Dcassandra.replace_address_first_boot="+old.Address.String())
	e.must(n.Start())
	e.must(n.WaitReady(e.t.Context()))
	e.status(e.r.Nodes[0], "UN", 3)
	after := e.until("n3", "proved on the new host", proved)
	if after.Instance.HostID == before.Instance.HostID || after.Instance.ListenAddress != n.Address.String() || after.UID != before.UID {
		e.t.Errorf("before %+v, after %+v", before.Instance, after.Instance)
	}

	// The old host comes back: its identity is over, and it changes nothing.
	e.must(oldAgent.Start())
	e.must(plane.Eventually(e.t.Context(), patience, func() error {
		if log := process.Tail(oldAgent.Log(), 30); !strings.Contains(log, "revoked") && !strings.Contains(log, "replaced") {
			return fmt.Errorf("the old host is not told: %s", log)
		}
		return nil
	}))
	oldAgent.Process.Kill()
	if v, err := e.node("n3"); err != nil || v.Incarnation != 2 || v.State != fleet.Active {
		e.t.Errorf("the old host did something: %+v %v", v, err)
	}

	// Its neighbours' gossip knows the new one; nothing is proposed.
	e.relist("n1", "n2")
	for _, name := range []string{"n1", "n2", "n3"} {
		v, err := e.node(name)
		e.must(err)
		if c, is := e.proposal(v); is {
			e.t.Errorf("%s: %s", name, c.Message)
		}
	}
}

// rebuilt: the same host and address with empty disks. A Cassandra that replaces its own address takes its old host id.
func (e *estate) rebuilt() {
	n := e.r.Nodes[1]
	before, err := e.node("n2")
	e.must(err)
	n.Kill()
	e.agents["n2"].Process.Kill()
	e.status(e.r.Nodes[0], "DN", 1)
	e.must(e.r.Rebuild(n))
	e.must(os.RemoveAll(e.agents["n2"].Dir))
	e.enrol(n, e.token("node", "rejoin", "prod/n2"))
	e.until("n2", "installed anew", func(v fleet.Node) bool {
		return v.Incarnation == before.Incarnation+1 && v.State == fleet.Active && installed(v)
	})
	n.JVM = append(n.JVM, quick, "-Dcassandra.replace_address_first_boot="+n.Address.String())
	e.must(n.Start())
	e.must(n.WaitReady(e.t.Context()))
	e.status(e.r.Nodes[0], "UN", 3)
	after := e.until("n2", "proved anew", proved)
	if after.Instance.HostID != before.Instance.HostID || after.Stores[0].Leaf == before.Stores[0].Leaf {
		e.t.Errorf("before %+v, after %+v", before, after)
	}
}

// forgot: only the agent's state folder is gone; the files under the running Cassandra are those that CSM gave.
func (e *estate) forgot() {
	before, err := e.node("n1")
	e.must(err)
	a := e.agents["n1"]
	a.Process.Kill()
	e.must(os.RemoveAll(a.State))
	e.enrol(e.r.Nodes[0], e.token("node", "rejoin", "prod/n1"))
	after := e.until("n1", "renewed and proved", func(v fleet.Node) bool {
		return v.Incarnation == before.Incarnation+1 && proved(v) && v.Stores[0].Leaf != before.Stores[0].Leaf
	})
	if after.Instance.HostID != before.Instance.HostID {
		e.t.Errorf("host id %s, was %s", after.Instance.HostID, before.Instance.HostID)
	}
	e.status(e.r.Nodes[0], "UN", 3)
}

// decommissioned: a fourth node comes and goes; it is n5, since the folder n4 is the host that replaced n3.
func (e *estate) decommissioned() {
	n, err := e.r.Add(e.address(5), "dc1")
	e.must(err)
	e.enrol(n, e.token("cluster", "join-command", "prod/n5", "--yes", "--ip", n.Address.String(), "--ip", "127.0.0.1", "--dns", "n5.lives.example"))
	e.until("n5", "installed before the first start", installed)
	n.JVM = append(n.JVM, quick)
	e.must(n.Start())
	e.must(n.WaitReady(e.t.Context()))
	e.until("n5", "proved", proved)
	e.relist("n1", "n2", "n3")
	if _, err := n.RunNodetool(e.t.Context(), "decommission"); err != nil {
		e.must(err)
	}
	n.Kill()
	e.agents["n5"].Process.Kill()
	e.status(e.r.Nodes[0], "UN", 3)
	e.relist("n1")
	if v, err := e.node("n5"); err != nil {
		e.must(err)
	} else if c, is := e.proposal(v); is {
		e.t.Errorf("by the word of one: %s", c.Message)
	}
	e.relist("n2", "n3")
	v := e.until("n5", "proposed for removal", func(v fleet.Node) bool { _, is := e.proposal(v); return is })
	if c, _ := e.proposal(v); v.State != fleet.Active || !strings.Contains(c.Remedy, "csm node remove prod/n5") {
		e.t.Errorf("state %s, %+v", v.State, c)
	}
	for _, args := range [][]string{{"cluster", "get", "prod"}, {"node", "get", "prod/n5"}, {"node", "list"}} {
		if out := e.csm(args...); !strings.Contains(out, "gone from the ring") && !strings.Contains(out, "removal") {
			e.t.Errorf("csm %v says nothing: %s", args, out)
		}
	}
	if out, err := e.try("node", "remove", "prod/n5", "--reason", "decommissioned", "--yes"); err == nil {
		e.t.Errorf("removed without a plan: %s", out)
	}
	e.planned("node", "remove", "prod/n5", "--reason", "decommissioned")
	v = e.until("n5", "removed", func(v fleet.Node) bool { return v.State == fleet.Revoked })
	if c, is := e.proposal(v); is {
		e.t.Errorf("still proposed: %s", c.Message)
	}
	// The others go on.
	before, err := e.node("n1")
	e.must(err)
	e.csm("node", "renew", "prod/n1", "--yes", "--reason", "after the removal")
	e.until("n1", "renewed", func(v fleet.Node) bool { return proved(v) && v.Stores[0].Leaf != before.Stores[0].Leaf })
}
