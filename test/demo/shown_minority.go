//go:build linux

package main

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"strings"
	"time"
)

// minority: two of three controllers are stopped. Nothing can be decided any more, and everybody is told so; Cassandra
// and the files of the agents do not care.
func minority(ctx context.Context, d *demo) (string, error) {
	var before []pair
	for _, a := range d.agents {
		p, err := onDisk(a.node)
		if err != nil {
			return "", err
		}
		before = append(before, p)
	}
	mark := d.load.Mark()
	stopped := d.controllers[1:]
	for _, c := range stopped {
		stop, cancel := context.WithTimeout(ctx, 10*time.Second)
		err := c.process.Stop(stop)
		cancel()
		if err != nil {
			return "", errors.Join(err, d.comeBack(ctx, stopped...))
		}
	}
	saw, err := d.withoutQuorum(ctx, before)
	began := time.Now()
	if err := errors.Join(err, d.comeBack(ctx, stopped...)); err != nil {
		return "", err
	}
	if r := d.load.Since(mark); r.Failed > 0 {
		return "", fmt.Errorf("%d queries failed meanwhile: %v", r.Failed, r.Errors)
	}
	return fmt.Sprintf("%s; whole again %.1f s after the restart", saw, time.Since(began).Seconds()), nil
}

// withoutQuorum looks at what people and agents are told.
func (d *demo) withoutQuorum(ctx context.Context, before []pair) (string, error) {
	o, err := d.command(ctx, "csm", "certificate", "issue", "--csr", filepath.Join(d.dir, "app.csr"), "--ca", authorityShort, "-o", "json")
	if err != nil {
		return "", err
	}
	if o.exit != 5 {
		return "", fmt.Errorf("csm certificate issue: exit %d, not 5: %s", o.exit, o.stderr)
	}
	for _, c := range d.controllers[1:] {
		if !strings.Contains(o.stderr, c.name) {
			return "", fmt.Errorf("the message does not say to start %s: %s", c.name, o.stderr)
		}
	}
	for i, a := range d.agents {
		now, err := onDisk(a.node)
		if err != nil || !now.same(before[i]) {
			return "", fmt.Errorf("the stores of %s changed: %v", a.node.Name, err)
		}
		s, err := d.command(ctx, "csm-agent", "status", "--config", a.config)
		if err != nil {
			return "", err
		}
		if until := now.leaf.NotAfter.UTC().Format("2006-01-02"); !strings.Contains(s.stdout, until) {
			return "", fmt.Errorf("csm-agent status of %s does not say that the certificate lives until %s: %s %s", a.node.Name, until, s.stdout, s.stderr)
		}
	}
	d.screen.note("%s", o.stderr)
	return fmt.Sprintf("csm: exit 5, 503 that names who to start; agents keep their files and say they live until %s", before[0].leaf.NotAfter.UTC().Format("2006-01-02")), nil
}
