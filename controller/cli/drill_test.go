package cli_test

import (
	"strings"
	"testing"
)

func TestADrillThatCannotBeIsRefusedBeforeAnythingIsDone(t *testing.T) {
	u := newUser(t)
	u.w.Cluster("prod")
	u.w.Join("tenants/default/clusters/prod", "n1")
	u.ok(u.run("ca", "create", "root-2028"))
	ask := func(more ...string) result {
		return u.run(append([]string{"drill", "rotation", "-c", "prod", "--reason", "spring"}, more...)...)
	}
	for reason, more := range map[string][]string{
		"no authority is named":           {},
		"cannot begin a keyspace's name":  {"--to", "root-2028", "--keyspace", "x; DROP KEYSPACE system"},
		"no load can be made":             {"--to", "root-2028", "--rate", "0"},
		"there is a password and no user": {"--to", "root-2028", "--cql-password-file", "pw"},
	} {
		if r := u.exits(2, ask(more...)); !strings.Contains(r.err, reason) {
			t.Errorf("%v: %s", more, r.err)
		}
	}
	r := u.exits(3, ask("--to", "root-2028", "--yes")) // nobody tells of a ring here
	if !strings.Contains(r.err, "the rotation would be refused") {
		t.Errorf("%s", r.err)
	}
	if r := u.ok(u.run("rotation", "list", "-c", "prod", "-o", "json")); strings.Contains(r.out, "distribute") {
		t.Errorf("a rotation began: %s", r.out)
	}
}
