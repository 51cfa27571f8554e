//go:build linux

package main

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/cassandra-security-manager/csm/controller/api/rest"
	"github.com/cassandra-security-manager/csm/controller/fleet/rotation"
	"github.com/cassandra-security-manager/csm/shared/certificate"
)

// long are scenarios that take minutes and use up the reloads that a node has in an hour: each runs alone, by its name.
var long = []scenario{
	{"rotation", "the root is changed under load: distribute, proved, reissue, proved, retire", rotateRoot},
}

const nextShort = "next"

// rotateRoot changes the root of the ring by the command line, as an operator does, and tells the timeline.
func rotateRoot(ctx context.Context, d *demo) (string, error) {
	mark, began := d.load.Mark(), time.Now()
	next, err := d.makeAuthority(ctx, nextShort)
	if err != nil {
		return "", err
	}
	// The application learns the new root before anything else changes: nobody but its owner can do that.
	if err := d.client.use(d.client.config().Certificates[0], d.roots...); err != nil {
		return "", err
	}
	plan, err := mustJSON[rotation.RotationPlan](ctx, d, "csm", "rotation", "plan", "-c", clusterShort, "--to", nextShort)
	if err != nil {
		return "", err
	}
	d.screen.note("plan %s: %s, %d members, %d clients would break", plan.Hash[:12], plan.Kind, len(plan.Members), len(plan.Clients))
	if err := d.tooEarly(ctx); err != nil {
		return "", err
	}
	d.screen.step("distributing trust, then leaves")
	if _, err := d.must(ctx, "csm", "rotation", "start", "-c", clusterShort, "--to", nextShort, "--plan", plan.Hash, "--bake", "0s", "--except", "unseen", "--reason", "shown by the demonstration", "--wait", "--timeout", "4m"); err != nil {
		return "", errors.Join(err, d.rotationTimeline(ctx))
	}
	if err := d.retireWaitsForTheClient(ctx); err != nil {
		return "", err
	}
	d.screen.step("the application gets a certificate of the new CA, then the old root goes")
	d.roots = d.roots[1:]
	if err := d.application(ctx, nextShort); err != nil {
		return "", err
	}
	retire, err := mustJSON[rotation.RetirePlan](ctx, d, "csm", "rotation", "retire", "-c", clusterShort, "--dry-run")
	if err != nil {
		return "", err
	}
	if _, err := d.must(ctx, "csm", "rotation", "retire", "-c", clusterShort, "--plan", retire.Hash, "--except", "links", "--reason", "the application has the new root", "--wait", "--timeout", "3m"); err != nil {
		return "", errors.Join(err, d.rotationTimeline(ctx))
	}
	if err := errors.Join(d.rotationTimeline(ctx), d.onlyTrusts(next)); err != nil {
		return "", err
	}
	r := d.load.Since(mark)
	if r.Failed > 0 || r.Queries == 0 {
		return "", fmt.Errorf("%d of %d queries failed: %v", r.Failed, r.Queries, r.Errors)
	}
	return fmt.Sprintf("%.0f s, %d queries, %d new connections, 0 failed, p99 %s, max %s; every truststore holds the new root alone",
		time.Since(began).Seconds(), r.Queries, r.Connections, ms(r.P99), ms(r.Max)), nil
}

// tooEarly asks for the retire of a rotation that has not begun, and for a start with another plan's hash.
func (d *demo) tooEarly(ctx context.Context) error {
	for want, args := range map[int][]string{
		4: {"rotation", "retire", "-c", clusterShort, "--dry-run"},
		6: {"rotation", "start", "-c", clusterShort, "--to", nextShort, "--plan", "000000000000", "--reason", "a plan that was never made"},
	} {
		o, err := d.command(ctx, "csm", args...)
		if err != nil {
			return err
		}
		if o.exit != want {
			return fmt.Errorf("csm %v: exit %d, not %d: %s", args, o.exit, want, o.stderr)
		}
	}
	return nil
}

// retireWaitsForTheClient tries to retire while the load still uses a certificate of the CA before.
func (d *demo) retireWaitsForTheClient(ctx context.Context) error {
	p, err := mustJSON[rotation.RetirePlan](ctx, d, "csm", "rotation", "retire", "-c", clusterShort, "--dry-run")
	if err != nil {
		return err
	}
	o, err := d.command(ctx, "csm", "rotation", "retire", "-c", clusterShort, "--plan", p.Hash, "--except", "links", "--reason", "too early on purpose")
	switch {
	case err != nil:
		return err
	case o.exit != 3:
		return fmt.Errorf("a retire while a client has only the old CA: exit %d, not 3: %s", o.exit, o.stderr)
	}
	d.screen.note("retire is refused while the application has only the old CA: %s", cut(o.stderr, 200))
	return nil
}

// rotationTimeline prints what happened, from the rotation itself.
func (d *demo) rotationTimeline(ctx context.Context) error {
	r, err := mustJSON[rotation.Rotation](ctx, d, "csm", "rotation", "explain", "-c", clusterShort)
	if err != nil {
		return err
	}
	for _, e := range r.Timeline {
		d.screen.note("%s  %-12s %s", e.Time.Format("15:04:05"), e.Phase, e.Message)
	}
	for _, x := range r.Reasons {
		d.screen.note("waits for %s: %s %s", x.Code, x.Node, x.Message)
	}
	return nil
}

// onlyTrusts checks on disk that each node serves a leaf of the new CA and trusts its root alone.
func (d *demo) onlyTrusts(next rest.Authority) error {
	for _, a := range d.agents {
		p, err := onDisk(a.Node) // it verifies the chain up to the anchors
		if err != nil {
			return err
		}
		if len(p.anchors) != 1 {
			return fmt.Errorf("%s trusts %d roots", a.Node.Name, len(p.anchors))
		}
		sum := certificate.Hex(certificate.Fingerprint(p.anchors[0].Raw))
		found := false
		for _, i := range next.Issuers {
			found = found || i.Kind == "root" && i.SHA256 == sum
		}
		see, err := d.served(a.Node)
		switch {
		case err != nil:
			return err
		case !found:
			return fmt.Errorf("%s trusts %s, which is not the new root", a.Node.Name, brief(sum))
		case see != p.fingerprint():
			return fmt.Errorf("%s serves %s, on disk is %s", a.Node.Name, brief(see), brief(p.fingerprint()))
		}
	}
	return nil
}
