//go:build linux

package main

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"github.com/cassandra-security-manager/csm/test/plane"
	"os"
	"strings"
	"time"
)

// moment is when the agent is killed: seen returns what was seen, empty while it is not there yet.
type moment struct {
	name string
	seen func(a *plane.Agent, before pair) string
}

// agentKilled: SIGKILL while the agent writes, once before the first rename and once right after the keystore's. The
// files must be the old pair or the new one, and the agent that comes back must end what was begun.
func agentKilled(ctx context.Context, d *demo) (string, error) {
	a := d.agents[0]
	var out []string
	for _, m := range []moment{{"temporary files", staged}, {"the new keystore", replaced}} {
		saw, err := d.killAt(ctx, a, m)
		if err != nil {
			return "", fmt.Errorf("killed at %s: %w", m.name, err)
		}
		out = append(out, saw)
	}
	return strings.Join(out, "; "), nil
}

// staged sees the first file that is new in the store folder.
func staged(a *plane.Agent, _ pair) string {
	for _, name := range a.Written() {
		if strings.HasPrefix(name, ".csm-") {
			return name
		}
	}
	return ""
}

// replaced sees a keystore other than before.
func replaced(a *plane.Agent, before pair) string {
	b, err := os.ReadFile(a.Node.Keystore)
	if err != nil || sha256.Sum256(b) == before.keystore {
		return ""
	}
	return "the new keystore"
}

func (d *demo) killAt(ctx context.Context, a *plane.Agent, m moment) (string, error) {
	before, err := onDisk(a.Node)
	if err != nil {
		return "", err
	}
	if _, err := d.must(ctx, "csm", "node", "renew", clusterShort+"/"+a.Node.Name, "--reason", "the agent will be killed at "+m.name); err != nil {
		return "", err
	}
	deadline, what := time.Now().Add(30*time.Second), ""
	for what = m.seen(a, before); what == ""; what = m.seen(a, before) {
		if time.Now().After(deadline) {
			return "", errors.New("the agent did not come so far within 30 s")
		}
		time.Sleep(100 * time.Microsecond)
	}
	a.Process.KillAlone()
	now, err := onDisk(a.Node)
	if err != nil {
		return "", fmt.Errorf("after the kill the stores are no whole pair: %w", err)
	}
	which := "the old pair"
	if !now.same(before) {
		which = "a whole new pair"
	}
	if err := a.Restart(ctx); err != nil {
		return "", err
	}
	if err := d.settled(ctx, a.Node.Name); err != nil {
		return "", fmt.Errorf("the agent that came back did not end the move: %w", err)
	}
	after, err := onDisk(a.Node)
	if err != nil {
		return "", err
	}
	r := renewal{after: after.fingerprint()}
	if err := d.proved(ctx, a, &r); err != nil {
		return "", err
	}
	return fmt.Sprintf("killed at %s, %s on disk, back again it proved %s", what, which, brief(r.after)), nil
}

// settled waits until the node's store is proved and as new as wanted.
func (d *demo) settled(ctx context.Context, node string) error {
	return plane.Eventually(ctx, 90*time.Second, func() error {
		_, s, err := d.store(ctx, node)
		if err == nil && (s.State != "proven" || s.Installed < s.Generation) {
			err = fmt.Errorf("state is %s, generation %d of %d: %s", s.State, s.Installed, s.Generation, s.Detail)
		}
		return err
	})
}
