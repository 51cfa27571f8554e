package cli_test

import (
	"encoding/json"
	"strings"
	"testing"
)

func TestTheSystemCAIsRotatedByTheSameCommands(t *testing.T) {
	u := newUser(t)
	u.exits(2, u.run("rotation", "plan", "--system", "--to", "internal"))
	u.exits(4, u.run("rotation", "status", "--system"))
	r := u.ok(u.run("rotation", "plan", "--system"))
	for _, want := range []string{"system CA: a new root after root;", "1 administrators", "retire, by hand", "ca_pin in contexts", "to do it: csm rotation start --system"} {
		if !strings.Contains(r.out, want) {
			t.Errorf("not %q in: %s", want, r.out)
		}
	}
	var p struct{ Hash string }
	if err := json.Unmarshal([]byte(u.ok(u.run("rotation", "plan", "--system", "-o", "json")).out), &p); err != nil {
		t.Fatal(err)
	}
	u.exits(3, u.run("rotation", "start", "--system", "--reason", "yearly"))
	u.exits(6, u.run("rotation", "start", "--system", "--reason", "yearly", "--plan", "0123456789abcdef"))
	u.ok(u.run("rotation", "start", "--system", "--reason", "yearly", "--plan", p.Hash, "--dry-run"))
	u.exits(4, u.run("rotation", "explain", "--system"))
	r = u.ok(u.run("rotation", "start", "--system", "--reason", "yearly", "--plan", p.Hash))
	if !strings.Contains(r.out, "of the system CA") || !strings.Contains(r.out, "root → root-2 (system)") || !strings.Contains(r.out, "admins/ada") {
		t.Errorf("%s", r.out)
	}
	u.exits(3, u.run("rotation", "plan", "--system")) // one at a time
	if r := u.ok(u.run("rotation", "list", "--system")); !strings.Contains(r.out, "distribute") {
		t.Errorf("%s", r.out)
	}
	u.ok(u.run("rotation", "pause", "--system", "--reason", "pager"))
	if r := u.ok(u.run("rotation", "explain", "--system")); !strings.Contains(r.out, "paused: pager") || !strings.Contains(r.out, "csm rotation resume") || !strings.Contains(r.out, "--system") {
		t.Errorf("%s", r.out)
	}
	u.exits(4, u.run("rotation", "resume", "--system", "--reason", "gone", "--except", "prod/n9", "--yes"))
	u.ok(u.run("rotation", "resume", "--system", "--reason", "gone", "--except", "ada", "--yes"))
	u.ok(u.run("rotation", "retire", "--system", "--dry-run"))
	u.exits(2, u.run("rotation", "set-aside", "n1", "--system", "--reason", "x"))
	if r := u.ok(u.run("rotation", "rollback", "--system", "--reason", "enough", "--yes")); !strings.Contains(r.out, "undo-reissue") {
		t.Errorf("%s", r.out)
	}
}
