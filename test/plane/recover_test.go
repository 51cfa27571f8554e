//go:build linux

package plane_test

import (
	"fmt"
	"net/http"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/cassandra-security-manager/csm/test/plane"
	"github.com/cassandra-security-manager/csm/test/process"
)

var planHash = regexp.MustCompile(`(?m)^plan:?\s+([0-9a-f]{16})`)

func (w world) cluster(id string) error {
	return w.API.Do(w.t.Context(), http.MethodPost, "/v1/tenants/default/clusters", map[string]any{"id": id, "authority": "tenants/default/authorities/root"}, nil)
}

// killed runs a command of csm-controller several times and kills it each time a little later.
func (w world) killed(c *plane.Controller, args ...string) {
	w.t.Helper()
	for _, after := range []time.Duration{30, 90, 150, 210, 270} {
		p, err := process.Start(process.Spec{Name: args[0], Path: filepath.Join(w.Bin, "csm-controller"), Args: append(slices.Clone(args), "--config", c.Config),
			Dir: w.t.TempDir(), Log: filepath.Join(w.t.TempDir(), "killed.log")})
		w.must(err)
		select {
		case <-p.Done():
		case <-time.After(after * time.Millisecond):
		}
		p.Kill()
	}
}

// TestOneControllerGoesOnWhenTheMajorityIsGone: it says what may be lost, wants the hash of that, survives kills at any moment,
// and whoever it shut out stays out until it joins anew under its old name.
func TestOneControllerGoesOnWhenTheMajorityIsGone(t *testing.T) {
	t.Parallel()
	w := start(t)
	ctx := t.Context()
	w.must(w.cluster("before"))
	survivor, second, third := w.Controllers[1], w.Controllers[0], w.Controllers[2]
	if out, err := survivor.Command(ctx, "recover", "--dry-run"); err == nil || !strings.Contains(out, "runs") {
		t.Fatalf("it would recover a controller that runs: %v\n%s", err, out)
	}
	for _, c := range w.Controllers {
		c.Kill()
	}
	out, err := survivor.Command(ctx, "recover", "--dry-run")
	if err != nil || !strings.Contains(out, "may be lost") {
		t.Fatalf("%v\n%s", err, out)
	}
	m := planHash.FindAllStringSubmatch(out, -1)
	if m == nil {
		t.Fatalf("no plan in %s", out)
	}
	hash := m[len(m)-1][1]
	if out, err := survivor.Command(ctx, "recover", "--plan", "0123456789abcdef"); err == nil {
		t.Fatalf("another plan was taken: %s", out)
	}
	w.killed(survivor, "recover", "--plan", hash)
	// A kill after the last step leaves a controller that needs nobody any more; before it, the plan is still the same.
	if out, err := survivor.Command(ctx, "recover", "--plan", hash); err != nil && !strings.Contains(out, "the only controller") {
		t.Fatalf("%v\n%s", err, out)
	}
	w.must(survivor.Start())
	w.must(w.Wait(ctx, 1))
	w.must(w.cluster("after"))
	var list struct{ Items []struct{ Name string } }
	w.must(w.API.Do(ctx, http.MethodGet, "/v1/tenants/default/clusters", nil, &list))
	if len(list.Items) != 2 {
		t.Fatalf("clusters %+v", list)
	}

	w.must(second.Start()) // with its old folder: nobody follows it, and nobody lets it in
	outside := func() error {
		var sys struct{ State string }
		if err := w.API.On(ctx, second.Address(9640), http.MethodGet, "/v1/system", nil, &sys); err != nil {
			return err
		}
		if sys.State != "no-quorum" {
			return fmt.Errorf("it says %s", sys.State)
		}
		return nil
	}
	w.must(plane.Eventually(ctx, 20*time.Second, outside))
	var members struct{ Items []struct{ Name string } }
	w.must(w.API.On(ctx, survivor.Address(9640), http.MethodGet, "/v1/system/controllers", nil, &members))
	if len(members.Items) != 1 {
		t.Fatalf("controllers %+v", members)
	}
	second.Kill()

	for _, c := range []*plane.Controller{second, third} {
		if out, err := c.Command(ctx, "reset-identity", "--yes"); err != nil {
			t.Fatalf("%v\n%s", err, out)
		}
		w.must(w.Admit(ctx, c))
	}
	w.must(w.Wait(ctx, 3))
	survivor.Kill()
	w.must(w.cluster("last"))
}

// TestALostControllerIsReplacedUnderItsName: remove it, let an empty one join with the same name.
func TestALostControllerIsReplacedUnderItsName(t *testing.T) {
	t.Parallel()
	w := start(t)
	ctx := t.Context()
	lost := w.Controllers[2]
	w.wipe(lost)
	w.must(w.API.Do(ctx, http.MethodPost, "/v1/system/controllers/csm3:remove", map[string]string{"reason": "its disk is gone"}, nil))
	w.must(w.Admit(ctx, lost))
	w.must(w.Wait(ctx, 3))
	w.Controllers[0].Kill()
	w.must(w.cluster("after"))
}
