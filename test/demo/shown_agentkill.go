//go:build linux

package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"
)

// agentKilled: SIGKILL while the agent writes. The files must be the old pair or the new one, and the agent that comes
// back must finish or undo what was begun.
func agentKilled(ctx context.Context, d *demo) (string, error) {
	a := d.agents[0]
	before, err := onDisk(a.node)
	if err != nil {
		return "", err
	}
	files := entries(a.node.Stores)
	if _, err := d.must(ctx, "csm", "node", "renew", clusterShort+"/"+a.node.Name, "--reason", "the agent will be killed"); err != nil {
		return "", err
	}
	deadline := time.Now().Add(30 * time.Second)
	for changed(a.node.Stores, files) == "" {
		if time.Now().After(deadline) {
			return "", errors.New("the agent began no write within 30 s")
		}
		time.Sleep(200 * time.Microsecond)
	}
	what := changed(a.node.Stores, files)
	a.process.KillAlone()
	now, err := onDisk(a.node)
	if err != nil {
		return "", fmt.Errorf("after the kill the stores are no whole pair: %w", err)
	}
	which := "the old pair"
	if !now.same(before) {
		which = "a whole new pair"
	}
	if err := a.restart(ctx); err != nil {
		return "", err
	}
	err = eventually(ctx, 90*time.Second, func() error {
		_, s, err := d.store(ctx, a.node.Name)
		if err == nil && (s.State != "proven" || s.Installed < s.Generation) {
			err = fmt.Errorf("state is %s, generation %d of %d: %s", s.State, s.Installed, s.Generation, s.Detail)
		}
		return err
	})
	if err != nil {
		return "", fmt.Errorf("the agent that came back did not end the move: %w", err)
	}
	r := renewal{}
	after, err := onDisk(a.node)
	if err != nil {
		return "", err
	}
	r.after = after.fingerprint()
	if err := d.proved(ctx, a, &r); err != nil {
		return "", err
	}
	return fmt.Sprintf("killed when %s appeared, on disk %s; back again, it proved %s", what, which, brief(r.after)), nil
}

// entries are the names in a folder with their sizes and times.
func entries(dir string) map[string]string {
	out := map[string]string{}
	list, _ := os.ReadDir(dir)
	for _, e := range list {
		if i, err := e.Info(); err == nil {
			out[e.Name()] = fmt.Sprint(i.Size(), i.ModTime().UnixNano())
		}
	}
	return out
}

// changed names the first entry that is new or other than it was.
func changed(dir string, was map[string]string) string {
	for name, what := range entries(dir) {
		if was[name] != what {
			return filepath.Base(name)
		}
	}
	return ""
}
