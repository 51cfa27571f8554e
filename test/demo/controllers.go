//go:build linux

package main

import (
	"context"
	"net/netip"
	"path/filepath"
	"strings"

	"github.com/cassandra-security-manager/csm/test/plane"
)

var regions = []string{"eu-west", "us-east", "ap-south"}

// newPlane writes the configurations of three controllers, each in a region that is a loopback address here.
func (d *demo) newPlane(host func(n int) netip.Addr) (err error) {
	d.plane, err = plane.New(plane.Options{Dir: filepath.Join(d.dir, "controllers"), Bin: d.bin, Host: host, Regions: regions, Root: "none", Administrator: d})
	return err
}

// startControllers makes the first controller's system, lets two others in by token and approval, and waits for a quorum.
func startControllers(ctx context.Context, d *demo) (string, error) {
	if err := d.plane.Found(ctx); err != nil {
		return "", err
	}
	if err := d.configure(ctx); err != nil {
		return "", err
	}
	if err := d.plane.Complete(ctx); err != nil {
		return "", err
	}
	s, err := d.status(ctx)
	if err != nil {
		return "", err
	}
	var where []string
	for _, c := range d.plane.Controllers {
		where = append(where, c.Region+" "+c.IP.String())
	}
	return strings.Join(where, ", ") + "; leader " + s.Leader, nil
}

// JoinToken and Approve let a controller in as people do, on the command line.
func (d *demo) JoinToken(ctx context.Context) (string, error) {
	made, err := mustJSON[struct {
		Token string `json:"token"`
	}](ctx, d, "csm", "system", "join-token")
	return made.Token, err
}

// Approve takes the fingerprint that the joining controller printed.
func (d *demo) Approve(ctx context.Context, controller, fingerprint string) error {
	_, err := d.must(ctx, "csm", "system", "approve", controller, "--fingerprint", fingerprint)
	return err
}
