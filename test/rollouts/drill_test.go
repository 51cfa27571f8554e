//go:build linux

package rollouts_test

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// TestADrillOnARingOfOnesOwn is `csm drill rotation` as an operator runs it: look, agree, and read what it found.
func TestADrillOnARingOfOnesOwn(t *testing.T) {
	if os.Getenv("CSM_TEST_FULL") == "" {
		t.Skip("takes minutes; runs with make test-full")
	}
	e := begin(t)
	e.csm("ca", "create", "next", "--region", "eu-west")
	drill := []string{"drill", "rotation", "--to", "next", "--bake", "0s", "--rest", "10s", "--retire", "--reason", "a test"}
	out, said, err := e.run(append(drill, "--yes")...)
	if err == nil || !strings.Contains(said, "needs the hash of its plan") {
		t.Fatalf("a drill went without a word: %v %s%s", err, out, said)
	}

	other := e.loadOf("mine_0", e.root("root")) // somebody's
	out, said, err = e.run(append(drill, "--keyspace", "mine", "--dry-run")...)
	e.must(err)
	hash := shownPlan.FindStringSubmatch(out + said)
	out, said, err = e.run(append(drill, "--keyspace", "mine", "--plan", hash[1])...)
	if err == nil || !strings.Contains(said, "no keyspace that it has not made") || strings.Contains(e.csm("rotation", "list"), "distribute") {
		t.Fatalf("a drill takes the keyspace of another: %v %s%s", err, out, said)
	}
	if r := other.Since(other.Begin()); r.Failed > 0 || r.Queries == 0 {
		t.Errorf("the other's load: %+v", r)
	}
	other.Stop()

	var p struct {
		Clients []struct{ Name, Detail string }
	}
	e.must(json.Unmarshal([]byte(e.csm("rotation", "plan", "--to", "next", "-o", "json")), &p))
	if len(p.Clients) != 1 || !strings.Contains(p.Clients[0].Detail, "load.rollouts.example") {
		t.Fatalf("clients %v", p.Clients)
	}
	if _, said, err := e.run(append(drill, "--except", "nobody", "--dry-run")...); err == nil || !strings.Contains(said, `no client "nobody"`) {
		t.Fatalf("nobody is named: %v %s", err, said)
	}
	report := filepath.Join(e.dir, "drill.json")
	e.planned(append(drill, "--out", report, "--except", p.Clients[0].Name)...)
	b, err := os.ReadFile(report)
	e.must(err)
	t.Logf("%s", b)
	var r struct {
		Phase        string
		Seconds      float64
		Rest, During []struct{ Queries, Connections, Failed, Wrong uint64 }
	}
	e.must(json.Unmarshal(b, &r))
	if r.Phase != "done" || len(r.Rest) != 1 || len(r.During) != 1 || r.Rest[0].Queries < 100 || r.During[0].Failed > 0 || float64(r.During[0].Queries) < 20*r.Seconds {
		t.Errorf("%+v", r)
	}
	if left := e.csm("certificate", "search", "csm-drill.prod", "-o", "json"); strings.Contains(left, `"active"`) || !strings.Contains(left, `"revoked"`) {
		t.Errorf("the drill's certificates: %s", left)
	}
	for _, n := range e.r.Nodes {
		if err := e.chainsTo(n, e.root("next")); err != nil {
			t.Errorf("%s: %v", n.Name, err)
		}
	}
}
