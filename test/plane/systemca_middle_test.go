//go:build linux

package plane_test

import (
	"context"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/cassandra-security-manager/csm/test/plane"
)

// inTheMiddle are the tests of what happens in the middle of a rotation of the system CA to real programs. Each phase of the state machine is
// tried in controller/systemca; these try what is around it: files, listeners, the log, the commands of a host.
func inTheMiddle(t *testing.T) {
	t.Helper()
	if os.Getenv("CSM_TEST_FULL") == "" {
		t.Skip("takes minutes; runs with make test-full")
	}
	t.Parallel()
}

// bounce kills all controllers at once and starts them again.
func (w world) bounce() {
	w.t.Helper()
	for _, c := range w.Controllers {
		c.Kill()
	}
	for _, c := range w.Controllers {
		w.must(c.Start())
	}
	w.must(w.Ready(w.t.Context()))
}

func (w world) connected(hosts ...*host) {
	w.t.Helper()
	for _, h := range hosts {
		h.await("connected", connected)
	}
}

// finish gives the administrator a certificate of the root that stays, retires, and waits for the end.
func (w world) finish(s succession) {
	w.t.Helper()
	s = w.until(s, "reissued", func(s succession) bool { return s.Phase == "reissued" })
	file := filepath.Join(w.t.TempDir(), "next.pem")
	w.must(w.Controllers[1].Admin(w.t.Context(), "admin", file))
	w.must(w.Login(file))
	s = w.until(s, "nothing is in the way", func(s succession) bool { return len(s.Reasons) == 1 && s.Reasons[0].Code == "by-hand" })
	w.must(w.verb(s, "retire", map[string]any{}))
	w.until(s, "done", func(s succession) bool { return s.Phase == "done" })
}

// TestARotationOfTheSystemCAGoesOnWhateverBecomesOfItsControllers: all are killed in each phase, one is removed and joins anew, and all folders are
// lost and come back from a backup of the phase.
func TestARotationOfTheSystemCAGoesOnWhateverBecomesOfItsControllers(t *testing.T) {
	inTheMiddle(t)
	w, _ := copies(t, "")
	ctx := t.Context()
	w.must(w.cluster("prod"))
	n1, n2 := w.host("n1"), w.host("n2")
	w.connected(n1, n2)
	s := w.succeed("yearly")
	w.must(w.verb(s, "pause", map[string]any{}))
	w.bounce()
	w.connected(n1, n2)
	w.must(w.verb(s, "resume", map[string]any{}))
	w.until(s, "reissue", func(s succession) bool { return s.Phase != "distribute" })
	w.bounce()
	s = w.until(s, "reissued", func(s succession) bool { return s.Phase == "reissued" && s.Agents.Moved == 2 })
	w.bounce()

	lost := w.Controllers[2]
	w.wipe(lost)
	w.must(w.API.Do(ctx, http.MethodPost, "/v1/system/controllers/csm3:remove", map[string]string{"reason": "its disk is gone"}, nil))
	w.must(w.Admit(ctx, lost)) // by the pin of the root before
	w.must(w.Ready(ctx))
	s = w.until(s, "the one that joined is there", func(s succession) bool {
		return s.Phase == "reissued" && !s.waitsFor("controller-seen", "csm3") && !s.waitsFor("controller-leaf", "csm3") && len(s.Controllers) == 3
	})

	b := w.backup(w.Controllers[0])
	w.wipe(w.Controllers...)
	first := w.Controllers[1]
	if out, err := first.Command(ctx, "snapshot", "restore", b.Location, "--recovery-share", w.Recovery()); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	w.must(first.Start())
	w.must(w.Wait(ctx, 1))
	w.connected(n1, n2)
	for _, c := range []*plane.Controller{w.Controllers[0], w.Controllers[2]} {
		w.must(w.Admit(ctx, c))
	}
	w.must(w.Ready(ctx))
	w.finish(s)
	w.bounce()
	w.connected(n1, n2)
}

// TestABackupOfAnEarlierPhaseStrandsNoAgent: the backup is of distribute; the agents have moved since. Restored, the rotation is turned round, and
// they go back with it.
func TestABackupOfAnEarlierPhaseStrandsNoAgent(t *testing.T) {
	inTheMiddle(t)
	w, _ := copies(t, "")
	ctx := t.Context()
	w.must(w.cluster("prod"))
	n1 := w.host("n1")
	w.connected(n1)
	s := w.succeed("yearly")
	w.must(w.verb(s, "pause", map[string]any{}))
	b := w.backup(w.Controllers[0])
	w.must(w.verb(s, "resume", map[string]any{}))
	w.until(s, "reissued", func(s succession) bool { return s.Phase == "reissued" && s.Agents.Moved == 1 })
	file := filepath.Join(t.TempDir(), "next.pem")
	old := w.AdminFile
	w.must(w.Controllers[0].Admin(ctx, "admin", file))
	w.must(w.Login(file))
	s = w.until(s, "nothing is in the way", func(s succession) bool { return len(s.Reasons) == 1 && s.Reasons[0].Code == "by-hand" })
	w.must(w.verb(s, "retire", map[string]any{}))
	w.until(s, "done", func(s succession) bool { return s.Phase == "done" })

	w.wipe(w.Controllers...)
	first := w.Controllers[2]
	if out, err := first.Command(ctx, "snapshot", "restore", b.Location, "--recovery-share", w.Recovery()); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	w.must(first.Start())
	w.must(w.Login(old))
	w.must(w.Wait(ctx, 1))
	n1.await("connected, though it trusts the root that came only", connected)
	if err := w.verb(s, "rollback", map[string]any{}); err != nil {
		t.Fatal(err)
	}
	w.until(s, "rolled back", func(s succession) bool { return s.Phase == "rolled-back" && s.Agents.Moved == 1 })
	n1.kill()
	n1.start()
	n1.await("connected by the root before", connected)
}

// TestOneControllerGoesOnWithARotationWhenTheMajorityIsGone: in reissue, with an agent away; recovered, it goes on alone, then with those that
// join anew, to the end.
func TestOneControllerGoesOnWithARotationWhenTheMajorityIsGone(t *testing.T) {
	inTheMiddle(t)
	w := start(t)
	ctx := t.Context()
	w.must(w.cluster("prod"))
	n1, n2 := w.host("n1"), w.host("n2")
	w.connected(n1, n2)
	n2.kill()
	n2.await("away", func(v nodeView) bool { return !v.Agent.Connected })
	s := w.until(w.succeed("yearly"), "it waits for the agent that is away", func(s succession) bool {
		return s.Phase == "reissue" && s.Agents.Moved == 1 && s.waitsFor("agent-leaf", "n2")
	})
	survivor := w.Controllers[1]
	for _, c := range w.Controllers {
		c.Kill()
	}
	out, err := survivor.Command(ctx, "recover", "--dry-run")
	m := planHash.FindAllStringSubmatch(out, -1)
	if err != nil || m == nil {
		t.Fatalf("%v\n%s", err, out)
	}
	if out, err := survivor.Command(ctx, "recover", "--plan", m[len(m)-1][1]); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	w.must(survivor.Start())
	w.must(w.Wait(ctx, 1))
	n2.start()
	w.connected(n1, n2)
	s = w.until(s, "reissued, with the only controller there is", func(s succession) bool { return s.Phase == "reissued" && s.Agents.Moved == 2 })
	for _, c := range []*plane.Controller{w.Controllers[0], w.Controllers[2]} {
		if out, err := c.Command(ctx, "reset-identity", "--yes"); err != nil {
			t.Fatalf("%v\n%s", err, out)
		}
		w.must(w.Admit(ctx, c))
	}
	w.must(w.Ready(ctx))
	w.finish(s)
	w.connected(n1, n2)
}

// TestControllersOfAnotherReleaseTakeOverInTheMiddleOfARotation: one host after the other gets another build, one in each phase.
func TestControllersOfAnotherReleaseTakeOverInTheMiddleOfARotation(t *testing.T) {
	inTheMiddle(t)
	w := start(t)
	ctx := t.Context()
	bin := t.TempDir()
	const version = "v99.0.0-another"
	build := exec.Command("go", "build", "-ldflags", "-X github.com/cassandra-security-manager/csm/shared/cli.Version="+version, "-o", bin+"/", "./controller/cmd/csm-controller")
	build.Dir, build.Env = "../..", append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	upgrade := func(c *plane.Controller) {
		t.Helper()
		stop, cancel := context.WithTimeout(ctx, 30*time.Second)
		defer cancel()
		w.must(c.Stop(stop))
		c.Use(bin)
		w.must(c.Start())
		w.must(w.Ready(ctx))
	}
	w.must(w.cluster("prod"))
	n1, n2 := w.host("n1"), w.host("n2")
	w.connected(n1, n2)
	s := w.succeed("yearly")
	w.must(w.verb(s, "pause", map[string]any{}))
	upgrade(w.Controllers[0])
	n2.kill()
	n2.await("away", func(v nodeView) bool { return !v.Agent.Connected })
	w.must(w.verb(s, "resume", map[string]any{}))
	s = w.until(s, "it waits for the agent that is away", func(s succession) bool { return s.Phase == "reissue" && s.waitsFor("agent-leaf", "n2") })
	lead, err := w.Leader(ctx)
	w.must(err)
	if lead == w.Controllers[0] { // the leader is one of the old ones or the new one: both ways are tried in the end
		lead = w.Controllers[1]
	}
	upgrade(lead)
	n2.start()
	s = w.until(s, "reissued", func(s succession) bool { return s.Phase == "reissued" && s.Agents.Moved == 2 })
	last := w.Controllers[slices.IndexFunc(w.Controllers, func(c *plane.Controller) bool { return c != w.Controllers[0] && c != lead })]
	upgrade(last)
	w.finish(s)
	w.connected(n1, n2)
	var list struct {
		Items []struct{ Name, Version string }
	}
	w.must(plane.Eventually(ctx, time.Minute, func() error {
		if err := w.API.Do(ctx, http.MethodGet, "/v1/system/controllers", nil, &list); err != nil {
			return err
		}
		for _, c := range list.Items {
			if !strings.Contains(c.Version, "99.0.0") {
				return fmt.Errorf("controllers %+v", list.Items)
			}
		}
		return nil
	}))
}
