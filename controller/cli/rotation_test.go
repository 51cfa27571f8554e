package cli_test

import (
	"strings"
	"testing"
)

func TestAnEmergencyRotationSaysWhatItGivesUp(t *testing.T) {
	u := newUser(t)
	u.w.Cluster("prod")
	u.w.Join("tenants/default/clusters/prod", "n1")
	u.ok(u.run("ca", "create", "root-2028"))
	ask := []string{"-c", "prod", "--to", "root-2028", "--emergency"}
	plan := func(more ...string) result {
		return u.run(append(append([]string{"rotation", "plan"}, ask...), more...)...)
	}
	r := u.exits(3, plan()) // nobody tells of a ring here
	for _, want := range []string{"EMERGENCY: root of prod", "retire: by itself", "[width]", "[canary]", "[seen]", "[by-hand]", "risk:", "no pair can lose it before the last leaf is proved"} {
		if !strings.Contains(r.out, want) {
			t.Errorf("not %q in: %s", want, r.out)
		}
	}
	if r := u.exits(3, plan("--keep", "by-hand,seen")); strings.Contains(r.out, "[by-hand]") || strings.Contains(r.out, "[seen]") || !strings.Contains(r.out, "[canary]") || !strings.Contains(r.out, "retire: by hand") {
		t.Errorf("what is kept is given up: %s", r.out)
	}
	u.exits(2, plan("--keep", "trust-proved"))
	u.exits(2, u.run("rotation", "plan", "-c", "prod", "--to", "root-2028", "--keep", "seen"))
	u.exits(3, u.run(append([]string{"rotation", "start", "--reason", "INC-4711"}, ask...)...))
	u.exits(3, u.run("rotation", "plan", "-c", "prod", "--to", "internal", "--emergency"))
}
