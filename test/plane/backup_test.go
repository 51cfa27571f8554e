//go:build linux

package plane_test

import (
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/cassandra-security-manager/csm/test/plane"
)

// copies is a control plane that can write backups into a folder of its own.
func copies(t *testing.T, more string) (world, string) {
	t.Helper()
	folder := t.TempDir()
	return startWith(t, "backup: {to: \"file://"+folder+"\", "+more+"keep: 3}\n"), folder
}

type backupView struct {
	Name, State, Location, Problem, Controller string
	VerifyTime                                 time.Time
	Index                                      uint64
	Scheduled                                  bool
}

// backup makes one on a controller and waits until it was read back.
func (w world) backup(c *plane.Controller) backupView {
	w.t.Helper()
	var b backupView
	w.must(w.API.On(w.t.Context(), c.Address(9640), http.MethodPost, "/v1/system/backups", map[string]string{}, &b))
	w.must(plane.Eventually(w.t.Context(), time.Minute, func() error {
		if err := w.API.On(w.t.Context(), c.Address(9640), http.MethodGet, "/v1/"+b.Name, nil, &b); err != nil {
			return err
		}
		if b.Problem != "" {
			w.t.Fatalf("backup: %+v", b)
		}
		if b.VerifyTime.IsZero() {
			return os.ErrDeadlineExceeded
		}
		return nil
	}))
	return b
}

func (w world) must(err error) {
	w.t.Helper()
	if err != nil {
		w.t.Log(w.Tails(15))
		w.t.Fatal(err)
	}
}

// scheduled waits for the backup that the leader makes by itself, and that it is the only one.
func (w world) scheduled() {
	w.t.Helper()
	leader, err := w.Leader(w.t.Context())
	w.must(err)
	var list struct{ Items []backupView }
	w.must(plane.Eventually(w.t.Context(), time.Minute, func() error {
		if err := w.API.Do(w.t.Context(), http.MethodGet, "/v1/system/backups", nil, &list); err != nil {
			return err
		}
		if len(list.Items) == 0 || list.Items[0].VerifyTime.IsZero() {
			return fmt.Errorf("backups %+v", list.Items)
		}
		return nil
	}))
	if b := list.Items[0]; len(list.Items) > 1 || !b.Scheduled || b.Controller != leader.Name {
		w.t.Fatalf("backups %+v, %s leads", list.Items, leader.Name)
	}
}

// wipe ends controllers at once and takes their folders away.
func (w world) wipe(cs ...*plane.Controller) {
	for _, c := range cs {
		c.Kill()
		w.must(os.RemoveAll(c.Data()))
	}
}

// TestAllFoldersAreLostAndTheSystemComesBackFromABackup is the worst day: three empty machines, a backup, a recovery share.
func TestAllFoldersAreLostAndTheSystemComesBackFromABackup(t *testing.T) {
	t.Parallel()
	w, _ := copies(t, "every: 1m, ")
	ctx := t.Context()
	w.scheduled()
	w.must(w.API.Do(ctx, http.MethodPost, "/v1/tenants/default/clusters", map[string]any{"id": "prod", "authority": "tenants/default/authorities/root"}, nil))
	b := w.backup(w.Controllers[1])
	pin := w.API.Pin
	w.wipe(w.Controllers...)

	first := w.Controllers[2] // another one than wrote the backup, and than made the system
	wrong := filepath.Join(t.TempDir(), "wrong.key")
	w.must(os.WriteFile(wrong, []byte("csm-recovery-1:AAAA"), 0o600))
	if out, err := first.Command(ctx, "snapshot", "restore", b.Location, "--recovery-share", wrong); err == nil {
		t.Fatalf("a wrong share restored: %s", out)
	}
	w.killed(first, "snapshot", "restore", b.Location, "--recovery-share", w.Recovery())
	// A kill after the last step leaves a whole controller; before it, the same command begins again.
	if out, err := first.Command(ctx, "snapshot", "restore", b.Location, "--recovery-share", w.Recovery()); err != nil && !strings.Contains(out, "already holds a controller") {
		t.Fatalf("restore: %v\n%s", err, out)
	}
	w.must(first.Start())
	w.must(w.Wait(ctx, 1))

	var cluster struct{ Name string }
	w.must(w.API.Do(ctx, http.MethodGet, "/v1/tenants/default/clusters/prod", nil, &cluster))
	w.must(w.API.Do(ctx, http.MethodPost, "/v1/tenants/default/clusters", map[string]any{"id": "next", "authority": "tenants/default/authorities/root"}, nil))
	var sys struct {
		CaPin   string
		Applied uint64
	}
	w.must(w.API.Do(ctx, http.MethodGet, "/v1/system", nil, &sys))
	if sys.CaPin != pin || sys.Applied <= b.Index {
		t.Fatalf("system %+v, want pin %s and an index above %d", sys, pin, b.Index)
	}
	for _, c := range w.Controllers[:2] {
		w.must(w.Admit(ctx, c))
	}
	w.must(w.Wait(ctx, 3))
	first.Kill()
	w.must(w.API.Do(ctx, http.MethodPost, "/v1/tenants/default/clusters", map[string]any{"id": "last", "authority": "tenants/default/authorities/root"}, nil))
}
