package cli_test

import (
	"regexp"
	"strings"
	"testing"
)

var planHash = regexp.MustCompile(`--plan ([0-9a-f]{16})`)

// planned runs a command with --dry-run, then with the hash of its plan.
func (u user) planned(args ...string) result {
	u.t.Helper()
	dry := u.ok(u.run(append(args, "--dry-run")...))
	hash := planHash.FindStringSubmatch(dry.err)
	if hash == nil {
		u.t.Fatalf("no plan: %s", dry.err)
	}
	return u.ok(u.run(append(args, "--plan", hash[1])...))
}

func TestANodeIsReplacedByItsPlanAndRejoinsByOneLine(t *testing.T) {
	u := newUser(t)
	u.w.Join(u.w.Cluster("prod"), "n1")
	again := u.ok(u.run("node", "rejoin", "prod/n1"))
	if !strings.Contains(again.out, "csmt_") || !strings.Contains(again.out, "csm-agent") {
		t.Errorf("rejoin prints %s", again.out)
	}
	if out := u.ok(u.run("node", "get", "prod/n1", "-o", "json")).out; !strings.Contains(out, `"state": "active"`) {
		t.Errorf("rejoin alone ended the old identity: %s", out)
	}
	replace := []string{"node", "replace", "prod/n1", "--ip", "10.0.0.17", "--reason", "disk died"}
	u.exits(2, u.run(replace[:5]...)) // no reason
	u.exits(3, u.run(append(replace, "--yes")...))
	out := u.planned(replace...).out
	if !strings.Contains(out, "csmt_") {
		t.Errorf("replace prints %s", out)
	}
	after := u.ok(u.run("node", "get", "prod/n1", "-o", "json")).out
	for _, want := range []string{`"state": "revoked"`, "10.0.0.17", "disk died"} {
		if !strings.Contains(after, want) {
			t.Errorf("%s is not in %s", want, after)
		}
	}
}

func TestATenantIsFrozenUntilATimeAndEveryoneSeesIt(t *testing.T) {
	u := newUser(t)
	u.w.Join(u.w.Cluster("prod"), "n1")
	u.planned("tenant", "freeze", "default", "--reason", "audit", "--until", "2099-01-31T18:00:00Z")
	for _, args := range [][]string{{"tenant", "get"}, {"cluster", "get", "prod"}, {"node", "get", "prod/n1"}, {"status"}, {"why", "prod/n1"}, {"node", "list"}} {
		r := u.run(args...)
		if all := r.out + r.err; !strings.Contains(all, "audit") || !strings.Contains(all, "frozen") && !strings.Contains(all, "freeze") {
			t.Errorf("%v does not show it: %s", args, all)
		}
	}
	u.exits(4, u.run("tenant", "freeze", "defualt", "--reason", "x", "--dry-run"))
	u.ok(u.run("tenant", "unfreeze", "default", "--reason", "over", "--yes"))
	u.planned("system", "freeze", "--reason", "incident")
	u.ok(u.run("system", "unfreeze", "--reason", "over", "--yes"))
}
