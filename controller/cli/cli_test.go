package cli_test

import (
	"bytes"
	"context"
	"encoding/json"
	"flag"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/cassandra-security-manager/csm/controller/api/rest/resttest"
	"github.com/cassandra-security-manager/csm/controller/cli"
	ui "github.com/cassandra-security-manager/csm/shared/cli"
	"github.com/cassandra-security-manager/csm/shared/fault"
)

var update = flag.Bool("update", false, "write the golden files")

// user is somebody at a terminal-less shell, with a home of his own.
type user struct {
	t   *testing.T
	w   *resttest.World
	env map[string]string
}

type result struct {
	code     int
	out, err string
}

func newUser(t *testing.T) user {
	w := resttest.New(t, nil)
	u := user{t, w, map[string]string{"HOME": t.TempDir()}}
	u.ok(u.run("context", "set", "test", "--server", w.Server.URL, "--ca-pin", w.Pin, "--cert", w.AdaCert, "--key", w.AdaKey))
	return u
}

func (u user) run(args ...string) result { u.t.Helper(); return u.runIn(context.Background(), args...) }

func (u user) runIn(ctx context.Context, args ...string) result {
	u.t.Helper()
	return u.runUntil(ctx, func(string) bool { return false }, args...)
}

// runUntil interrupts when what was printed says so.
func (u user) runUntil(ctx context.Context, enough func(printed string) bool, args ...string) result {
	u.t.Helper()
	ctx, interrupt := context.WithCancel(ctx)
	defer interrupt()
	root := cli.Root()
	g := ui.Of(root)
	var out, errs bytes.Buffer
	g.In, g.Out, g.Err, g.Now = strings.NewReader(""), writer(func(b []byte) {
		if out.Write(b); enough(out.String()) {
			interrupt()
		}
	}), &errs, u.w.Log.Clock.Now
	g.Env = func(k string) string { return u.env[k] }
	code := ui.Run(ctx, root, args)
	return result{code, out.String(), errs.String()}
}

type writer func([]byte)

func (w writer) Write(b []byte) (int, error) { w(b); return len(b), nil }

func (u user) ok(r result) result { u.t.Helper(); return u.exits(0, r) }

func (u user) exits(code int, r result) result {
	u.t.Helper()
	if r.code != code {
		u.t.Fatalf("exit %d, want %d\nstdout: %s\nstderr: %s", r.code, code, r.out, r.err)
	}
	return r
}

var changing = regexp.MustCompile(`[0-9a-f]{64}|csm[tj]_[A-Za-z0-9_-]+|sha256:\S+|\b[0-9a-f]{12}\b|\b[a-z2-7]{26}\b|https://127[0-9.:]+|applied: .*|-> \d+`)

// golden compares with a file of testdata; what differs from run to run is blanked.
func (u user) golden(name, got string) {
	u.t.Helper()
	got = changing.ReplaceAllString(got, "…")
	path := filepath.Join("testdata", name+".golden")
	if *update {
		if err := os.WriteFile(path, []byte(got), 0o644); err != nil {
			u.t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		u.t.Fatal(err)
	}
	if got != string(want) {
		u.t.Errorf("%s differs; go test ./controller/cli -update writes it\ngot:\n%s\nwant:\n%s", path, got, want)
	}
}

func TestTheFirstClusterByHand(t *testing.T) {
	u := newUser(t)
	u.golden("whoami", u.ok(u.run("whoami")).out)
	u.golden("ca_create", u.ok(u.run("ca", "create", "main", "--region", "eu,us")).out)
	u.golden("cluster_create", u.ok(u.run("cluster", "create", "prod-eu", "--ca", "main", "--cassandra-name", "ring")).out)
	join := u.ok(u.run("cluster", "join-command", "prod-eu/n7", "--dns", "n7.example", "--ip", "10.0.0.7"))
	u.golden("join_command", join.out)
	u.golden("node_list_pending", u.ok(u.run("node", "list")).out)
	u.w.Join("tenants/default/clusters/prod-eu", "n8")
	u.golden("node_list", u.ok(u.run("node", "list", "-c", "prod-eu")).out)
	u.golden("node_get", u.ok(u.run("node", "get", "prod-eu/n8")).out)
	u.golden("why", u.ok(u.run("why", "n8", "-c", "prod-eu")).out)
	u.golden("cluster_list", u.ok(u.run("cluster", "list")).out)
	u.golden("ca_list", u.ok(u.run("ca", "list")).out)
	u.golden("status", u.ok(u.run("status")).out)
	u.golden("certificate_list_system", u.ok(u.run("certificate", "list", "--system")).out)
	u.ok(u.run("events"))
	if names := u.ok(u.run("node", "list", "-o", "name")).out; names != "tenants/default/clusters/prod-eu/nodes/n7\ntenants/default/clusters/prod-eu/nodes/n8\n" {
		t.Errorf("%q", names)
	}
}

func TestJSONIsTheResourceUnchanged(t *testing.T) {
	u := newUser(t)
	u.w.Cluster("prod")
	viaCLI := u.ok(u.run("cluster", "get", "prod", "-o", "json")).out
	raw := u.ok(u.run("api", "GET", "/v1/tenants/default/clusters/prod", "-o", "json")).out
	if viaCLI != raw || !strings.Contains(raw, `"etag"`) {
		t.Fatalf("%s\n%s", viaCLI, raw)
	}
}

func TestExitCodesSayWhatHappened(t *testing.T) {
	u := newUser(t)
	u.w.Cluster("prod")
	u.exits(2, u.run("cluster", "lsit"))
	u.exits(2, u.run("node", "get", "n1"))
	u.exits(4, u.run("node", "get", "prod/n1"))
	u.exits(4, u.run("cluster", "get", "nothing"))
	u.exits(3, u.run("cluster", "create", "prod", "--ca", "internal"))
	u.exits(4, u.run("status", "--context", "nothing"))
	r := u.exits(5, u.run("status", "--server", "https://127.0.0.1:1"))
	if !strings.Contains(r.err, "cannot be reached") || !strings.Contains(r.err, "do:") {
		t.Errorf("%s", r.err)
	}
	u.exits(7, u.run("status", "--ca-pin", "sha256:"+strings.Repeat("00", 32)))
	if err := u.w.People.RevokeAdmin(context.Background(), "ada", "test", "left"); err != nil {
		t.Fatal(err)
	}
	u.exits(3, u.run("status"))
	u.env["HOME"] = t.TempDir()
	if r := u.exits(2, u.run("status")); !strings.Contains(r.err, "csm context set") {
		t.Errorf("%s", r.err)
	}
}

func TestADegradedSystemExitsWithTen(t *testing.T) {
	u := newUser(t)
	u.ok(u.run("status", "--verify"))
	u.w.Quorum.Differ()
	u.exits(10, u.run("status", "--verify"))
	u.w.Quorum.Lose()
	r := u.exits(10, u.run("status"))
	if !strings.Contains(r.out, "start csm2 or csm3") {
		t.Errorf("%s", r.out)
	}
}

func TestTheNextControllerIsAskedWhenOneIsAway(t *testing.T) {
	u := newUser(t)
	r := u.ok(u.run("whoami", "-v", "--server", "https://127.0.0.1:1,"+u.w.Server.URL))
	if !strings.Contains(r.err, "asking the next controller") {
		t.Errorf("%s", r.err)
	}
}

func TestAControllersAnswerIsToldRatherThanThatOthersAreAway(t *testing.T) {
	u := newUser(t)
	u.w.Cluster("prod")
	u.w.Log.Fail(fault.New(fault.Unavailable, "no-quorum", "there is no quorum: 1 of 3 controllers answers").Do("start csm2 or csm3"))
	r := u.exits(5, u.run("cluster", "create", "other", "--ca", "internal", "--server", u.w.Server.URL+",https://127.0.0.1:1"))
	if !strings.Contains(r.err, "start csm2 or csm3") {
		t.Errorf("%s", r.err)
	}
}

func TestGraveChangesNeedTheHashOfTheirPlan(t *testing.T) {
	u := newUser(t)
	u.w.Cluster("prod")
	freeze := []string{"cluster", "freeze", "prod", "--reason", "incident"}
	u.exits(2, u.run(freeze[:3]...)) // no reason
	if r := u.exits(3, u.run(append(freeze, "--yes")...)); !strings.Contains(r.err, "--dry-run") {
		t.Errorf("%s", r.err)
	}
	plan := u.ok(u.run(append(freeze, "--dry-run")...))
	hash := regexp.MustCompile(`--plan ([0-9a-f]{16})`).FindStringSubmatch(plan.err)
	if hash == nil {
		t.Fatalf("%s", plan.err)
	}
	if out := u.ok(u.run("cluster", "get", "prod", "-o", "json")).out; !strings.Contains(out, `"state": "active"`) {
		t.Fatalf("--dry-run changed something: %s", out)
	}
	u.exits(6, u.run(append(freeze, "--plan", strings.Repeat("0", 16))...))
	u.ok(u.run(append(freeze, "--plan", hash[1])...))
	u.exits(6, u.run(append(freeze, "--plan", hash[1])...)) // the cluster is another now
	u.exits(3, u.run("cluster", "unfreeze", "prod", "--reason", "over"))
	u.ok(u.run("cluster", "unfreeze", "prod", "--reason", "over", "--yes"))
	u.ok(u.run("context", "set", "test", "--protected"))
	u.exits(3, u.run("cluster", "unfreeze", "prod", "--reason", "over", "--yes"))
}

func TestACertificateIsIssuedShownFoundAndRevoked(t *testing.T) {
	u := newUser(t)
	dir := t.TempDir()
	csr := filepath.Join(dir, "app.csr")
	if err := os.WriteFile(csr, []byte(u.w.CSR("app.example")), 0o600); err != nil {
		t.Fatal(err)
	}
	u.ok(u.run("certificate", "issue", "--csr", csr, "--ca", "internal", "--dry-run"))
	pem := filepath.Join(dir, "app.pem")
	u.ok(u.run("certificate", "issue", "--csr", csr, "--ca", "internal", "--out", pem))
	if b, err := os.ReadFile(pem); err != nil || bytes.Count(b, []byte("BEGIN CERTIFICATE")) != 2 {
		t.Fatalf("%s %v", b, err)
	}
	name := strings.TrimSpace(u.ok(u.run("certificate", "search", "app.example", "-o", "name")).out)
	id := name[strings.LastIndexByte(name, '/')+1:]
	if show := u.ok(u.run("certificate", "show", id[:10])).out; !strings.HasPrefix(show, "-----BEGIN CERTIFICATE") {
		t.Fatalf("%s", show)
	}
	u.golden("certificate_list", u.ok(u.run("certificate", "list", "--filter", "template=application")).out)
	u.exits(3, u.run("certificate", "revoke", id[:10]))
	r := u.ok(u.run("certificate", "revoke", id[:10], "--why", "keyCompromise", "--yes"))
	if !strings.Contains(r.err, "Cassandra") || !strings.Contains(r.out, "revoked") {
		t.Fatalf("%+v", r)
	}
	u.exits(4, u.run("certificate", "get", "ffffffff"))
	u.exits(2, u.run("certificate", "list", "--filter", "colour=red"))
	u.golden("certificate_found_none", u.ok(u.run("certificate", "list", "--found")).out)
}

func TestARenewalIsFollowedToItsEnd(t *testing.T) {
	u := newUser(t)
	agent := u.w.Join(u.w.Cluster("prod"), "n1")
	done := make(chan result)
	go func() { done <- u.run("node", "renew", "prod/n1", "--wait", "--timeout", "20s") }()
	ctx, stop := context.WithTimeout(context.Background(), 20*time.Second)
	defer stop()
	w := u.w.Log.Store.Watch("tenants/")
	defer w.Close()
	for asked := false; !asked; {
		n, err := u.w.Fleet.GetNode(ctx, agent.Node)
		if err != nil {
			t.Fatal(err)
		}
		if asked = n.Stores[0].Reason == "renewal asked for"; asked {
			break
		}
		select {
		case <-w.C():
		case <-ctx.Done():
			t.Fatal("no renewal was asked for")
		}
	}
	agent.Install()
	r := u.ok(<-done)
	if !strings.Contains(r.out, "installed-unproven") || !strings.Contains(r.err, "prod/n1:") {
		t.Fatalf("%+v", r)
	}
}

func TestAnInterruptedCommandExitsWith130(t *testing.T) {
	u := newUser(t)
	ctx, stop := context.WithCancel(context.Background())
	stop()
	u.exits(130, u.runIn(ctx, "events", "-f"))
}

func TestTheCAOfARingIsRegisteredShownAndRemoved(t *testing.T) {
	u := newUser(t)
	u.w.Cluster("prod")
	u.exits(3, u.run("cluster", "join-command", "prod/n7", "--method", "possession")) // no CA is registered yet
	root := filepath.Join(t.TempDir(), "root.pem")
	if err := os.WriteFile(root, u.w.ForeignCA(), 0o600); err != nil {
		t.Fatal(err)
	}
	add := []string{"trust", "anchor-add", "prod", "--file", root, "--owner", "PKI team", "--expires", "720h", "--dns", "*.example", "--network", "10.0.0.0/8", "--first-nodes", "2"}
	u.exits(2, u.run(add...)) // no reason
	add = append(add, "--reason", "ring of today")
	u.exits(2, u.run(append(add, "--network", "10.0.0.0/99")...))
	u.ok(u.run(append(add, "--dry-run")...))
	u.golden("trust_list_before", u.ok(u.run("trust", "list")).out)
	u.golden("anchor_add", u.ok(u.run(add...)).out)
	u.golden("trust_get", u.ok(u.run("trust", "get", "prod")).out)
	u.golden("join_command_possession", u.ok(u.run("cluster", "join-command", "prod/n7", "--method", "possession")).out)
	u.golden("request_list", u.ok(u.run("node", "list", "--pending")).out)
	u.exits(4, u.run("node", "approve", "prod/n7", "--yes"))
	u.exits(4, u.run("request", "get", "nobody"))

	var d struct {
		Anchors []struct{ Kind, SHA256 string }
	}
	if err := json.Unmarshal([]byte(u.ok(u.run("trust", "get", "prod", "-o", "json")).out), &d); err != nil || len(d.Anchors) != 2 {
		t.Fatalf("%+v, %v", d, err)
	}
	u.exits(4, u.run("trust", "anchor-remove", "prod", d.Anchors[0].SHA256, "--reason", "x", "--dry-run")) // ours is not removed so
	remove := []string{"trust", "anchor-remove", "prod", d.Anchors[1].SHA256[:12], "--reason", "all have joined"}
	u.exits(3, u.run(append(remove, "--yes")...))
	plan := regexp.MustCompile(`--plan ([0-9a-f]{16})`).FindStringSubmatch(u.ok(u.run(append(remove, "--dry-run")...)).err)
	if plan == nil {
		t.Fatal("no plan")
	}
	u.ok(u.run(append(remove, "--plan", plan[1])...))
	u.exits(4, u.run(append(remove, "--plan", plan[1])...))
}

func TestAClusterIsLetGoWithAHandOverFile(t *testing.T) {
	u := newUser(t)
	u.w.Cluster("prod")
	u.w.Join("tenants/default/clusters/prod", "n8")
	planOf := func(args ...string) string {
		m := regexp.MustCompile(`--plan ([0-9a-f]{16})`).FindStringSubmatch(u.ok(u.run(append(args, "--dry-run")...)).err)
		if m == nil {
			t.Fatal("no plan")
		}
		return m[1]
	}
	onboard := []string{"cluster", "onboard", "prod", "--reason", "trust first"}
	u.exits(3, u.run(append(onboard, "--yes")...))
	u.ok(u.run(append(onboard, "--plan", planOf(onboard...))...))
	file := filepath.Join(t.TempDir(), "handover.json")
	release := []string{"cluster", "release", "prod", "--reason", "goes to team B", "--to", file}
	u.exits(3, u.run(append(release, "--yes")...))
	if _, err := os.Stat(file); err == nil {
		t.Fatal("a release that was refused left its file")
	}
	hash := planOf(release...)
	u.exits(6, u.run(append(release, "--plan", strings.Repeat("0", 16))...))
	u.ok(u.run(append(release, "--plan", hash)...))
	b, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	var h struct {
		Cluster string
		Nodes   []struct{ Name string }
		Anchors []struct{ PEM string }
	}
	if err := json.Unmarshal(b, &h); err != nil || len(h.Nodes) != 1 || len(h.Anchors) != 1 || !strings.Contains(h.Anchors[0].PEM, "BEGIN CERTIFICATE") {
		t.Errorf("%s, %v", b, err)
	}
	if out := u.ok(u.run("cluster", "get", "prod", "-o", "json")).out; !strings.Contains(out, `"state": "released"`) {
		t.Errorf("%s", out)
	}
	u.exits(3, u.run(append(release, "--plan", hash)...)) // the file is there
}

func TestContextsAreKeptAndChosen(t *testing.T) {
	u := newUser(t)
	u.ok(u.run("context", "set", "other", "--server", "https://csm9.example:9640", "--cluster", "prod"))
	u.golden("context_list", u.ok(u.run("context", "list")).out)
	u.ok(u.run("context", "use", "other"))
	if r := u.ok(u.run("context", "list", "-o", "name")); r.out != "test\nother\n" {
		t.Errorf("%q", r.out)
	}
	u.exits(4, u.run("context", "use", "nothing"))
	u.env["CSM_CONTEXT"] = "test"
	u.ok(u.run("whoami"))
	path := filepath.Join(u.env["HOME"], ".config", "csm", "config.yaml")
	if info, err := os.Stat(path); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("%v %v", info.Mode(), err)
	}
	if err := os.WriteFile(path, []byte("contexts:\n- name: a\n  sevrers: [x]\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if r := u.exits(2, u.run("whoami")); !strings.Contains(r.err, ":3:") || !strings.Contains(r.err, `did you mean "servers"?`) {
		t.Errorf("%s", r.err)
	}
}

func TestControllersJoinByTokenAndApproval(t *testing.T) {
	u := newUser(t)
	u.golden("system_join_token", u.ok(u.run("system", "join-token", "--controller", "csm4")).out)
	u.w.Quorum.Pending("csm4", strings.Repeat("ab", 32))
	u.golden("system_controllers", u.ok(u.run("system", "controllers")).out)
	u.exits(3, u.run("system", "approve", "csm4", "--fingerprint", strings.Repeat("00", 32)))
	for _, malformed := range []string{"", "abab", strings.Repeat("xy", 32), strings.Repeat("ab", 33)} {
		r := u.exits(2, u.run("system", "approve", "csm4", "--fingerprint", malformed))
		if !strings.Contains(r.err, "64 hexadecimal digits") || !strings.Contains(r.err, "csm-controller join") {
			t.Errorf("%q: %s", malformed, r.err)
		}
	}
	u.ok(u.run("system", "approve", "csm4", "--fingerprint", "SHA256:"+strings.Repeat("AB:", 31)+"AB"))
}

func TestNamesAreCompleted(t *testing.T) {
	u := newUser(t)
	u.w.Join(u.w.Cluster("prod"), "n1")
	for want, args := range map[string][]string{"prod/n1": {"node", "get", ""}, "prod": {"node", "list", "-c", ""}, "internal": {"ca", "get", ""}, "csm1": {"system", "remove", ""}} {
		if r := u.ok(u.run(append([]string{"__complete"}, args...)...)); !strings.HasPrefix(r.out, want+"\n") {
			t.Errorf("%v: %q", args, r.out)
		}
	}
}

func TestEachCommandHasHelpWithAnExample(t *testing.T) {
	u := newUser(t)
	root := cli.Root()
	for _, noun := range root.Commands() {
		for _, c := range append(noun.Commands(), noun) {
			if c.Name() == "help" || c.Name() == "completion" || c.Parent().Name() == "completion" || c.Name() == "version" || c.HasSubCommands() {
				continue
			}
			if c.Example == "" || c.Short == "" {
				t.Errorf("%s has no example", c.CommandPath())
			}
			if r := u.run(append(strings.Fields(c.CommandPath())[1:], "--help")...); r.code != 0 {
				t.Errorf("%s --help: %+v", c.CommandPath(), r)
			}
		}
	}
	var doc map[string]any
	if err := json.Unmarshal([]byte(u.ok(u.run("version", "-o", "json")).out), &doc); err != nil || doc["version"] == nil {
		t.Error(err)
	}
}

func TestCheckSpeaksNagiosAndNothingElse(t *testing.T) {
	u := newUser(t)
	if r := u.exits(0, u.run("check", "quorum", "freeze")); r.err != "" || !strings.HasPrefix(r.out, "CSM OK - all is well | voters=1;1:;1:;0;1 freezes=0") {
		t.Errorf("%q %q", r.out, r.err)
	}
	u.w.Quorum.Lose()
	if r := u.exits(2, u.run("check")); r.err != "" || !strings.HasPrefix(r.out, "CSM CRITICAL - ") {
		t.Errorf("%q %q", r.out, r.err)
	}
	u.exits(2, u.run("check", "--server", "https://127.0.0.1:1"))
	for _, wrong := range [][]string{{"check", "moon"}, {"check", "--moon"}, {"check", "--context", "nothing"}, {"check", "--ca-pin", "sha256:" + strings.Repeat("00", 32)}} {
		if r := u.exits(3, u.run(wrong...)); r.err != "" || !strings.HasPrefix(r.out, "CSM UNKNOWN - ") {
			t.Errorf("%v: %q %q", wrong, r.out, r.err)
		}
	}
}

func TestTheDoctorNamesTheNextCommand(t *testing.T) {
	u := newUser(t)
	if r := u.exits(0, u.run("doctor")); r.out != "" || !strings.Contains(r.err, "nothing was found") {
		t.Errorf("%q %q", r.out, r.err)
	}
	u.ok(u.run("system", "freeze", "--reason", "x", "--plan", strings.Fields(u.ok(u.run("system", "freeze", "--reason", "x", "--dry-run")).err)[1][:16]))
	u.w.Quorum.Lose()
	r := u.exits(10, u.run("doctor"))
	if !strings.HasPrefix(r.out, "critical system: the controllers have no quorum") || !strings.Contains(r.out, "next: csm system unfreeze") || !strings.Contains(r.out, "not-ready") && !strings.Contains(r.out, "leader: ") {
		t.Errorf("%s", r.out)
	}
	r = u.exits(10, u.run("doctor", "--server", "https://127.0.0.1:1", "-o", "json"))
	if !strings.Contains(r.out, `"code": "no-controller"`) && !strings.Contains(r.out, `"code":"no-controller"`) {
		t.Errorf("%s", r.out)
	}
}

func TestAGraceIsGivenShownAndTakenBack(t *testing.T) {
	u := newUser(t)
	u.exits(2, u.run("system", "grace", "--until", "24h", "--yes"))
	u.exits(2, u.run("system", "grace", "--until", "soon", "--reason", "x", "--yes"))
	u.exits(3, u.run("system", "grace", "--until", "24h", "--reason", "x"))
	u.exits(3, u.run("system", "grace", "--until", "999h", "--reason", "x", "--yes"))
	u.ok(u.run("system", "grace", "--until", "24h", "--reason", "the site was off", "--yes"))
	if st := u.ok(u.run("status")).out; !strings.Contains(st, "the site was off") {
		t.Errorf("%s", st)
	}
	if !u.w.Grace.Open() {
		t.Error("no grace is in force")
	}
	u.ok(u.run("system", "grace", "--end", "--reason", "all are back"))
	if u.w.Grace.Open() {
		t.Error("the grace was not taken back")
	}
	if r := u.ok(u.run("audit", "search", "--filter", "resource=system/grace", "-o", "name")); strings.Count(r.out, "system/auditEntries/") != 2 {
		t.Errorf("%s", r.out)
	}
}

func TestAnEmergencyNeedsThePlanAndSaysWhoIsLeftOut(t *testing.T) {
	u := newUser(t)
	u.w.Cluster("prod")
	u.w.Join("tenants/default/clusters/prod", "n1")
	u.exits(3, u.run("emergency", "reissue", "-c", "prod", "--reason", "x", "--yes"))
	plan := u.ok(u.run("emergency", "reissue", "-c", "prod", "--reason", "x", "--dry-run"))
	hash := strings.TrimSuffix(strings.Fields(plan.err)[1], ":")
	u.exits(6, u.run("emergency", "reissue", "-c", "prod", "--reason", "x", "--plan", "0000"))
	if r := u.exits(8, u.run("emergency", "reissue", "-c", "prod", "--reason", "x", "--plan", hash, "--each", "1s")); !strings.Contains(r.out, "failed") || !strings.Contains(r.err, "Do NOT restart") {
		t.Errorf("%s %s", r.out, r.err)
	}
}
