//go:build linux

package main

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"path/filepath"
	"strings"
	"time"

	"github.com/cassandra-security-manager/csm/controller/api/rest"
	"github.com/cassandra-security-manager/csm/test/plane"
)

// minority: two of three controllers are stopped. Nothing can be decided any more, and everybody is told so; Cassandra
// and the files of the agents do not care.
func minority(ctx context.Context, d *demo) (string, error) {
	var before []pair
	for _, a := range d.agents {
		p, err := onDisk(a.Node)
		if err != nil {
			return "", err
		}
		before = append(before, p)
	}
	mark := d.load.Mark()
	stopped := d.plane.Controllers[1:]
	for _, c := range stopped {
		stop, cancel := context.WithTimeout(ctx, 10*time.Second)
		err := c.Stop(stop)
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

// withoutQuorum looks at what people and agents are told once the controller that is left has seen that it is alone. (A
// write under way at that very moment is a 504: nobody can know yet whether it will be kept.)
func (d *demo) withoutQuorum(ctx context.Context, before []pair) (string, error) {
	left := d.plane.Controllers[0]
	err := plane.Eventually(ctx, 30*time.Second, func() error {
		var s rest.Status
		err := d.plane.API.On(ctx, left.Address(9640), http.MethodGet, "/v1/system", nil, &s)
		if err == nil && s.Quorum {
			err = errors.New("it still believes in a quorum")
		}
		return err
	})
	if err != nil {
		return "", fmt.Errorf("the controller that is left: %w", err)
	}
	count, err := d.certificates(ctx, left)
	if err != nil {
		return "", err
	}
	o, err := d.command(ctx, "csm", "certificate", "issue", "--csr", filepath.Join(d.dir, "app.csr"), "--ca", authorityShort)
	if err != nil {
		return "", err
	}
	d.screen.note("%s", o.stderr)
	if o.exit != 5 {
		return "", fmt.Errorf("csm certificate issue: exit %d, not 5: %s", o.exit, o.stderr)
	}
	for _, c := range d.plane.Controllers[1:] {
		if !strings.Contains(o.stderr, c.Name) {
			return "", fmt.Errorf("the message does not say to start %s: %s", c.Name, o.stderr)
		}
	}
	_, csr, err := request("nobody.demo.example")
	if err != nil {
		return "", err
	}
	var p *plane.Problem
	err = d.plane.API.On(ctx, left.Address(9640), http.MethodPost, issuePath, rest.IssueBody{CSR: string(csr), Authority: authorityShort}, nil)
	if !errors.As(err, &p) || p.Status != http.StatusServiceUnavailable || p.Remedy == "" {
		return "", fmt.Errorf("REST answers %v, not a 503 with a remedy", err)
	}
	if now, err := d.certificates(ctx, left); err != nil || len(now) != len(count) {
		return "", fmt.Errorf("%d certificates are listed, %d were before: %v", len(now), len(count), err)
	}
	for i, a := range d.agents {
		if err := d.saysUntilWhen(ctx, a, before[i]); err != nil {
			return "", err
		}
	}
	return fmt.Sprintf("503, csm exits 5 and names who to start; agents keep their files and say they live until %s", before[0].leaf.NotAfter.UTC().Format(time.DateOnly)), nil
}

// saysUntilWhen checks that an agent kept its files, and that it knows without a controller how long they are good.
func (d *demo) saysUntilWhen(ctx context.Context, a *plane.Agent, before pair) error {
	now, err := onDisk(a.Node)
	if err != nil || !now.same(before) {
		return fmt.Errorf("the stores of %s changed: %v", a.Node.Name, err)
	}
	s, err := d.command(ctx, "csm-agent", "status", "--config", a.Config)
	if err != nil {
		return err
	}
	if until := now.leaf.NotAfter.UTC().Format(time.DateOnly); !strings.Contains(s.stdout, until) {
		return fmt.Errorf("csm-agent status of %s does not say that the certificate lives until %s: %s %s", a.Node.Name, until, s.stdout, s.stderr)
	}
	return nil
}
