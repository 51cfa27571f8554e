package cli_test

import (
	"encoding/hex"
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/cassandra-security-manager/csm/controller/api/rest/resttest"
	agentv1 "github.com/cassandra-security-manager/csm/protocol/agent/v1"
)

// begun starts something with a plan, and gives what it printed.
func (u user) begun(noun string, flags ...string) result {
	u.t.Helper()
	plan := u.ok(u.run(append([]string{noun, "plan", "-c", "prod"}, flags...)...))
	hash := regexp.MustCompile(`--plan ([0-9a-f]{16})`).FindStringSubmatch(plan.out)
	if hash == nil {
		u.t.Fatalf("the plan does not say how to start it:\n%s", plan.out)
	}
	return u.ok(u.run(append([]string{noun, "start", "-c", "prod", "--reason", "a test", "--plan", hash[1]}, flags...)...))
}

// following runs a command that follows something, does something when the command has read so often, and gives what it came to.
func (u user) following(reads int, then func(), args ...string) result {
	u.t.Helper()
	done := make(chan result)
	before := u.w.Quorum.Looks()
	go func() { done <- u.run(args...) }()
	for deadline := time.Now().Add(time.Minute); u.w.Quorum.Looks() < before+reads; time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			u.t.Fatal("it does not look")
		}
	}
	then()
	select {
	case r := <-done:
		return r
	case <-time.After(time.Minute):
		u.t.Fatal("it does not end")
	}
	return result{}
}

// ring is a cluster of three nodes whose Cassandras run and tell of each other; the last is down.
func (u user) ring() {
	c := u.w.Cluster("prod")
	v := &agentv1.RingView{Source: "nodetool"}
	var agents []*resttest.Agent
	for i := range 3 {
		a := u.w.Join(c, fmt.Sprintf("n%d", i+1))
		a.Install()
		agents = append(agents, a)
		id := []byte(strings.Repeat(string(rune('a'+i)), 16))
		v.Members = append(v.Members, &agentv1.RingMember{HostId: id, Address: []byte{10, 0, 0, byte(i + 1)}, Up: true, State: agentv1.RingState_RING_STATE_NORMAL})
	}
	for _, last := range []bool{true, false} { // it was there, and goes down
		v.Members[2].Up = last
		for i, a := range agents {
			h := hex.EncodeToString(v.Members[i].HostId)
			a.Instance.HostId = h[:8] + "-" + h[8:12] + "-" + h[12:16] + "-" + h[16:20] + "-" + h[20:]
			if a.Instance.Running = last || i < 2; a.Instance.Running {
				a.Instance.Ring = v
			}
			a.Report()
		}
	}
}

func TestAFollowedRolloutIsToldInLinesUntilAPersonStopsIt(t *testing.T) {
	u := newUser(t)
	u.ring()
	u.begun("rollout")
	pause := func() { u.ok(u.run("rollout", "pause", "-c", "prod", "--reason", "pager")) }
	r := u.exits(9, u.following(1, pause, "rollout", "status", "-c", "prod", "--wait"))
	for _, want := range []string{"on prod: running\n", "Z  waits: prod/n3 is down as its peers see it  [member-down]\n", "Z  stop: csm rollout pause renew-", "on prod: paused: pager (ada)\n", "Z  go on: csm rollout resume renew-"} {
		if !strings.Contains(r.out, want) {
			t.Errorf("%q is not in\n%s", want, r.out)
		}
	}
	if strings.Count(r.out, "[member-down]") != 1 || strings.Contains(r.out, "\x1b") {
		t.Errorf("a line is told twice, or moves the cursor:\n%s", r.out)
	}
	resume := func() { u.ok(u.run("rollout", "resume", "-c", "prod", "--reason", "over", "--yes")) }
	resume()
	r = u.exits(9, u.following(1, pause, "rollout", "status", "-c", "prod", "--wait", "-o", "json"))
	var states []string
	for line := range strings.Lines(r.out) {
		var x struct{ State, PlanHash string }
		if err := json.Unmarshal([]byte(line), &x); err != nil || x.PlanHash == "" {
			t.Fatalf("%q is no resource: %v", line, err)
		}
		states = append(states, x.State)
	}
	if len(states) < 2 || states[0] != "running" || states[len(states)-1] != "paused" {
		t.Errorf("one object for each change: %v", states)
	}
	resume()
	ended := u.exits(0, u.run("rollout", "abort", "-c", "prod", "--reason", "enough", "--yes", "--wait"))
	if !strings.Contains(ended.out, "aborted: enough") {
		t.Errorf("abort --wait says %s", ended.out)
	}
}

func TestAFollowedRotationSaysInTheSameWordsWhatItWaitsFor(t *testing.T) {
	u := newUser(t)
	u.ring()
	u.ok(u.run("ca", "create", "root-2027", "--region", "eu"))
	u.begun("rotation", "--to", "root-2027")
	const words = "n3 is down: what it will trust when it starts is not known"
	pause := func() { u.ok(u.run("rotation", "pause", "-c", "prod", "--reason", "pager")) }
	r := u.exits(9, u.following(1, pause, "rotation", "status", "-c", "prod", "--wait"))
	for _, want := range []string{"on prod: running, phase distribute\n", "waits: " + words + "  [up]\n", "Z  n3: down\n", "Z  stop: csm rotation pause ", "on prod: paused, phase distribute\n"} {
		if !strings.Contains(r.out, want) {
			t.Errorf("%q is not in\n%s", want, r.out)
		}
	}
	u.ok(u.run("rotation", "resume", "-c", "prod", "--reason", "over", "--yes"))
	explained, why, status := u.ok(u.run("rotation", "explain", "-c", "prod")), u.ok(u.run("why", "prod/n3")), u.ok(u.run("rotation", "status", "-c", "prod"))
	for name, out := range map[string]string{"explain": explained.out, "why": why.out, "status": status.out} {
		if !strings.Contains(out, words) {
			t.Errorf("%s uses other words:\n%s", name, out)
		}
	}
	for _, want := range []string{"→ distribute now  · reissue", "dc1/r1  ", "↓ n3 down", "  do:  start it, or set it aside", "back:  csm rotation rollback "} {
		if !strings.Contains(status.out, want) {
			t.Errorf("%q is not in the picture:\n%s", want, status.out)
		}
	}
	u.exits(9, u.run("rotation", "status", "-c", "prod", "--wait", "--timeout", "300ms"))
	if r := u.exits(0, u.run("rotation", "rollback", "-c", "prod", "--reason", "enough", "--yes")); !strings.Contains(r.out, "undo-") {
		t.Errorf("rollback prints %s", r.out)
	}
}

// renamed answers as another controller over the same state.
type renamed struct{ http.ResponseWriter }

func (r renamed) WriteHeader(code int) {
	r.Header().Set("CSM-Controller", "csm0")
	r.ResponseWriter.WriteHeader(code)
}

func (r renamed) Write(b []byte) (int, error) {
	r.Header().Set("CSM-Controller", "csm0")
	return r.ResponseWriter.Write(b)
}

func (r renamed) Unwrap() http.ResponseWriter { return r.ResponseWriter }

func TestAViewOutlivesTheControllerThatItAsked(t *testing.T) {
	u := newUser(t)
	u.ring()
	u.begun("rollout")
	first := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { u.w.Handler.ServeHTTP(renamed{w}, r) }))
	first.TLS, first.EnableHTTP2 = u.w.Server.TLS.Clone(), true
	first.StartTLS()
	defer first.Close()
	r := u.exits(9, u.following(3, func() { // one is of the events, and the first of the view has ended
		first.CloseClientConnections()
		first.Close()
		u.ok(u.run("rollout", "pause", "-c", "prod", "--reason", "pager"))
	}, "rollout", "status", "-c", "prod", "--wait", "--server", first.URL+","+u.w.Server.URL))
	if !strings.Contains(r.out, "csm0 does not answer any more; csm1 is asked") || !strings.Contains(r.out, "paused: pager") {
		t.Errorf("%s\n%s", r.out, r.err)
	}
}

func TestAViewSaysWhenNoControllerAnswersAndWhenItIsInterrupted(t *testing.T) {
	u := newUser(t)
	u.ring()
	u.begun("rollout")
	u.w.Quorum.Lose()
	if r := u.exits(9, u.run("rollout", "status", "-c", "prod", "--wait", "--timeout", "500ms")); !strings.Contains(r.out, "no controller answers") {
		t.Errorf("%s", r.out)
	}
	seen := func(printed string) bool { return strings.Contains(printed, "no controller answers") }
	if r := u.exits(130, u.runUntil(t.Context(), seen, "rollout", "status", "-c", "prod", "--wait")); !strings.Contains(r.err, "csm rollout status renew-") || !strings.Contains(r.err, "goes on where it runs") {
		t.Errorf("%s", r.err)
	}
}
