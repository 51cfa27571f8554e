//go:build unix

package reload_test

import (
	"context"
	"net"
	"os"
	"path/filepath"
	"testing"

	"github.com/cassandra-security-manager/csm/agent/reload"
	"github.com/cassandra-security-manager/csm/shared/fault"
)

// systemd accepts, starts a helper for the connection, and forgets it.
func TestBehindASocketEachReloadHasAHelperOfItsOwn(t *testing.T) {
	self, _ := os.Executable()
	socket := filepath.Join(t.TempDir(), "reload.sock")
	h := reload.Dial(socket)
	defer h.Close()
	if err := h.Check(); !fault.HasReason(err, "no-helper") || fault.From(err).Remedy == "" {
		t.Errorf("a socket that is not there: %v", err)
	}
	l, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	ended := make(chan error)
	go func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			ended <- reload.Serve(context.Background(), conn, commands(self))
			conn.Close()
		}
	}()
	if err := h.Check(); err != nil {
		t.Error(err)
	}
	if err := <-ended; err != nil {
		t.Error(err)
	}
	for range 2 {
		out, err := h.Reloader("good").Reload(context.Background())
		if err != nil || out.ExitCode != 3 {
			t.Error(out.ExitCode, err)
		}
		if err := <-ended; err != nil { // the helper does not outlive the reload
			t.Error(err)
		}
	}
}
