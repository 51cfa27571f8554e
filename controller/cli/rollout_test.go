package cli_test

import (
	"regexp"
	"strings"
	"testing"
)

var startLine = regexp.MustCompile(`to do it: csm (rollout start .*) --reason '…' --plan ([0-9a-f]{16})`)

// ringOf is a cluster whose nodes have a store of ours; their Cassandras have not started, so nobody tells of a ring.
func (u user) ringOf(cluster string, nodes ...string) {
	c := u.w.Cluster(cluster)
	for _, n := range nodes {
		u.w.Join(c, n).Install()
	}
}

func TestARolloutIsPlannedStartedExplainedStoppedAndListed(t *testing.T) {
	u := newUser(t)
	u.ringOf("prod", "n1", "n2", "n3")
	u.exits(2, u.run("rollout", "plan")) // no cluster
	u.exits(4, u.run("rollout", "plan", "-c", "nowhere"))
	u.exits(4, u.run("rollout", "status", "-c", "prod"))
	plan := u.ok(u.run("rollout", "plan", "-c", "prod", "--bake", "10m", "--failure-budget", "1"))
	for _, want := range []string{"renew of 3 nodes of prod in 2 waves", "canary", "prod/n2", "it would wait: no connected node tells"} {
		if !strings.Contains(plan.out, want) {
			t.Errorf("%q is not in the plan:\n%s", want, plan.out)
		}
	}
	if out := u.ok(u.run("rollout", "plan", "-c", "prod", "--window", "Mon-Fri 01:00-05:00", "--window", "Sat 00:00-24:00", "--node", "n1,n2")).out; !strings.Contains(out, "--node n1 --node n2 --window 'Mon-Fri 01:00-05:00' --window 'Sat 00:00-24:00' --reason") {
		t.Errorf("how to start it: %s", out)
	}
	line := startLine.FindStringSubmatch(plan.out)
	if line == nil {
		t.Fatalf("the plan does not say how to start it:\n%s", plan.out)
	}
	start := append(strings.Fields(line[1]), "--reason", "a test")
	u.exits(3, u.run(start...))                                                             // no plan
	u.exits(6, u.run(append(start, "--plan", "0123456789abcdef")...))                       // another
	u.exits(2, u.run(append(strings.Fields(line[1]), "--plan", line[2])...))                // no reason
	u.exits(6, u.run("rollout", "start", "-c", "prod", "--reason", "x", "--plan", line[2])) // other flags
	u.ok(u.run(append(start, "--plan", line[2], "--dry-run")...))
	u.exits(4, u.run("rollout", "explain", "-c", "prod")) // --dry-run began nothing
	began := u.ok(u.run(append(start, "--plan", line[2])...))
	if !strings.Contains(began.out, "running") || !strings.Contains(began.out, "stop:  csm rollout pause renew-") || !strings.Contains(began.out, "dc1/r1") {
		t.Errorf("start prints %s", began.out)
	}
	u.exits(3, u.run(append(start, "--plan", line[2])...)) // one at a time

	explained := u.ok(u.run("rollout", "explain", "-c", "prod"))
	why := u.ok(u.run("why", "prod/n1"))
	const words = "no connected node tells which members the ring has"
	if !strings.Contains(explained.out, words) || !strings.Contains(why.out, words) || !strings.Contains(explained.out, "do:") {
		t.Errorf("explain and why use other words:\n%s\n%s", explained.out, why.out)
	}
	u.exits(9, u.run("rollout", "status", "-c", "prod", "--wait", "--timeout", "100ms"))
	u.exits(3, u.run("node", "renew", "prod/n2"))
	u.exits(2, u.run("rollout", "pause", "-c", "prod"))
	u.ok(u.run("rollout", "pause", "-c", "prod", "--reason", "pager"))
	u.exits(9, u.run("rollout", "status", "-c", "prod", "--wait")) // paused: nothing happens by itself
	u.exits(3, u.run("rollout", "pause", "-c", "prod", "--reason", "again"))
	u.exits(3, u.run("rollout", "resume", "-c", "prod", "--reason", "over")) // not confirmed
	u.ok(u.run("rollout", "resume", "-c", "prod", "--reason", "over", "--yes"))
	u.ok(u.run("rollout", "abort", "-c", "prod", "--reason", "enough", "--yes"))
	u.exits(1, u.run("rollout", "status", "-c", "prod", "--wait"))
	list := u.ok(u.run("rollout", "list"))
	if !strings.Contains(list.out, "aborted") || !strings.Contains(list.out, "enough") {
		t.Errorf("list prints %s", list.out)
	}
	if out := u.ok(u.run("rollout", "list", "-c", "prod", "-o", "name")).out; !strings.HasPrefix(out, "tenants/default/clusters/prod/rollouts/renew-") {
		t.Errorf("names: %s", out)
	}
	if out := u.ok(u.run("__complete", "rollout", "status", "-c", "prod", "")).out; !strings.Contains(out, "renew-") {
		t.Errorf("completion offers %s", out)
	}
	if out := u.ok(u.run("rollout", "status", "-c", "prod", "-o", "json")).out; !strings.Contains(out, `"phase": "gone"`) || !strings.Contains(out, `"planHash"`) {
		t.Errorf("json: %s", out)
	}
}
