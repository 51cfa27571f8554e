//go:build linux

package plane_test

import (
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/cassandra-security-manager/csm/test/plane"
	"github.com/cassandra-security-manager/csm/test/process"
)

const systemRotations = "/v1/system/authorities/system/rotations"

// succession is a rotation of the system CA as the API shows it.
type succession struct {
	Name, Phase, State, Turn string
	Reasons                  []struct{ Code, Node, Message string }
	Controllers              []struct {
		Name, Leaf                string
		TrustsBefore, TrustsAfter bool
	}
	Agents   struct{ Total, Trusting, Moved, Named int }
	Timeline []struct{ Phase, Message string }
}

func (s succession) String() string {
	return fmt.Sprintf("%s (turn %s) controllers %+v agents %+v reasons %+v", s.Phase, s.Turn, s.Controllers, s.Agents, s.Reasons)
}

func (s succession) waitsFor(code, node string) bool {
	return slices.ContainsFunc(s.Reasons, func(r struct{ Code, Node, Message string }) bool {
		return r.Code == code && strings.HasSuffix(r.Node, "/"+node)
	})
}

// succeed begins a rotation of the system CA.
func (w world) succeed(reason string) succession {
	w.t.Helper()
	var p struct {
		Hash string
		Away []string
	}
	var s succession
	w.must(w.API.Do(w.t.Context(), http.MethodPost, systemRotations+":plan", nil, &p))
	w.must(w.API.Do(w.t.Context(), http.MethodPost, systemRotations, map[string]any{"planHash": p.Hash, "reason": reason}, &s))
	return s
}

// until waits for a rotation to be as wanted.
func (w world) until(s succession, what string, want func(succession) bool) succession {
	w.t.Helper()
	err := plane.Eventually(w.t.Context(), 2*time.Minute, func() error {
		var now succession
		if err := w.API.Do(w.t.Context(), http.MethodGet, "/v1/"+s.Name, nil, &now); err != nil {
			return err
		}
		if s = now; !want(now) {
			return fmt.Errorf("%s: %s", what, now)
		}
		return nil
	})
	if err != nil {
		w.t.Logf("%s", w.Tails(8))
	}
	w.must(err)
	return s
}

func (w world) verb(s succession, verb string, body map[string]any) error {
	if verb == "retire" {
		var p struct{ Hash string }
		if err := w.API.Do(w.t.Context(), http.MethodPost, "/v1/"+s.Name+":planRetire", nil, &p); err != nil {
			return err
		}
		body["planHash"] = p.Hash
	}
	body["reason"] = "test"
	return w.API.Do(w.t.Context(), http.MethodPost, "/v1/"+s.Name+":"+verb, body, nil)
}

// roots counts the certificates in a file.
func (w world) roots(path string) int {
	w.t.Helper()
	b, err := os.ReadFile(path)
	w.must(err)
	return strings.Count(string(b), "BEGIN CERTIFICATE")
}

func connected(v nodeView) bool { return v.Agent.Connected }

// TestTheSystemCAIsRotatedUnderControllersAndAgents goes through all phases with a leader and an agent killed, an agent that is away while the
// new root is distributed, a join by the old pin, a rollback; then once more to the end, with an agent that is named and comes too late.
func TestTheSystemCAIsRotatedUnderControllersAndAgents(t *testing.T) {
	t.Parallel()
	w := start(t)
	ctx := t.Context()
	w.must(w.cluster("prod"))
	n1, n2, n3 := w.host("n1"), w.host("n2"), w.host("n3")
	for _, h := range []*host{n1, n2, n3} {
		h.await("connected", connected)
	}
	n3.kill()
	n3.await("away", func(v nodeView) bool { return !v.Agent.Connected })

	s := w.succeed("yearly")
	lead, err := w.Leader(ctx)
	w.must(err)
	lead.Kill()
	n1.kill()
	s = w.until(s, "it waits for the controller that is down", func(s succession) bool {
		return s.waitsFor("controller-seen", lead.Name) || s.waitsFor("controller-trusts", lead.Name)
	})
	if s.Phase != "distribute" && s.Phase != "reissue" {
		t.Fatalf("with a controller down it went on to %s", s.Phase)
	}
	w.must(lead.Start())
	n1.start()
	s = w.until(s, "all but the agent that is away have moved", func(s succession) bool {
		return s.Phase == "reissue" && s.waitsFor("agent-leaf", "n3") && s.Agents.Moved == 2 && len(s.Reasons) == 1
	})
	for _, c := range s.Controllers {
		if c.Leaf != "after" {
			t.Errorf("agents moved before %s: %s", c.Name, s)
		}
	}
	n4 := w.host("n4") // w.API.Pin is that of the root before
	n4.await("joined by the old pin", connected)
	n3.start() // knows the root before only
	s = w.until(s, "reissued", func(s succession) bool { return s.Phase == "reissued" && s.Agents.Moved == 4 })
	if err := w.verb(s, "retire", map[string]any{}); err == nil || !strings.Contains(err.Error(), "gate-administrator") {
		t.Errorf("the administrator would have been cut off: %v", err)
	}
	w.must(w.verb(s, "rollback", map[string]any{}))
	s = w.until(s, "rolled back", func(s succession) bool { return s.Phase == "rolled-back" })
	if s.Agents.Moved != 4 {
		t.Errorf("not all agents are back: %s", s)
	}

	n3.kill()
	n3.await("away", func(v nodeView) bool { return !v.Agent.Connected })
	s = w.until(w.succeed("once more"), "all but one have moved", func(s succession) bool { return s.Phase == "reissue" && s.Agents.Moved == 3 && len(s.Reasons) == 1 })
	away := "tenants/default/clusters/prod/nodes/n3"
	w.must(w.verb(s, "resume", map[string]any{"except": []string{away}}))
	s = w.until(s, "reissued", func(s succession) bool { return s.Phase == "reissued" })
	file := filepath.Join(t.TempDir(), "admin2.pem")
	w.must(w.Controllers[0].Admin(ctx, "admin", file))
	w.must(w.Login(file))
	s = w.until(s, "nothing is in the way", func(s succession) bool { return len(s.Reasons) == 1 && s.Reasons[0].Code == "by-hand" })
	w.must(w.verb(s, "retire", map[string]any{}))
	s = w.until(s, "done", func(s succession) bool { return s.Phase == "done" })
	for _, c := range w.Controllers {
		if n := w.roots(filepath.Join(c.Data(), "identity", "bundle.pem")); n != 1 {
			t.Errorf("%s trusts %d roots", c.Name, n)
		}
	}
	for _, c := range s.Controllers {
		if c.TrustsBefore || !c.TrustsAfter || c.Leaf != "after" {
			t.Errorf("%+v", c)
		}
	}
	n3.start()
	w.must(plane.Eventually(ctx, time.Minute, func() error {
		if log := process.Tail(n3.log, 20); !strings.Contains(log, "--rejoin") {
			return fmt.Errorf("the agent that was away is not told the way back: %s", log)
		}
		return nil
	}))
	for _, h := range []*host{n1, n2, n4} {
		h.await("connected", connected)
	}
	for _, c := range w.Controllers { // one after the other is away for a moment: each comes back with what it has on disk
		c.Kill()
		w.must(c.Start())
		w.must(w.Ready(ctx))
	}
}
