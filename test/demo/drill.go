//go:build linux

package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/cassandra-security-manager/csm/controller/fleet/rotation"
	"github.com/cassandra-security-manager/csm/shared/certificate"
	"github.com/cassandra-security-manager/csm/shared/resource"
	"github.com/cassandra-security-manager/csm/shared/workload"
	"github.com/cassandra-security-manager/csm/test/plane"
)

type event struct {
	Time    time.Time `json:"time"`
	Phase   string    `json:"phase,omitempty"`
	Message string    `json:"message"`
}

const nextShort = "next"

// waits is what it waits for first.
func waits(r rotation.Rotation) string {
	if len(r.Reasons) == 0 {
		return r.Next
	}
	return strings.TrimSpace(fmt.Sprintf("%s %s [%s]", r.Reasons[0].Node, r.Reasons[0].Message, r.Reasons[0].Code))
}

// drill is one rotation, what was done to it meanwhile, and what it cost.
type drill struct {
	*demo
	name     string
	began    map[string]workload.Mark
	Began    time.Time     `json:"began"`
	Took     time.Duration `json:"tookNs"`
	Timeline []event       `json:"timeline"`
	// Control is what a killed node cost without a rotation; Killed what the same kill cost during it; Outside what failed in
	// all the rest of the rotation.
	Control outage `json:"control"`
	Killed  outage `json:"killed"`
	Outside outage `json:"outside"`
	Proofs  int    `json:"proofs"`

	reconnected time.Time
}

func (d *drill) saw(format string, args ...any) {
	e := event{Time: time.Now(), Phase: "drill", Message: fmt.Sprintf(format, args...)}
	d.Timeline = append(d.Timeline, e)
	d.screen.note("%5.1f s  %s", e.Time.Sub(d.Began).Seconds(), e.Message)
}

// tellRotation replaces the root of a ring of two data centres under load, with everything that may happen meanwhile.
func tellRotation(ctx context.Context, d *demo) bool {
	r := &drill{demo: d}
	d.screen.title("What a killed node costs without a rotation")
	held := d.show(ctx, scenario{"control", "a node is killed and started again", r.control})
	d.screen.title("The root is replaced, and things go wrong meanwhile")
	for _, s := range []scenario{
		{"plan", "a second root, trusted by the applications, and a plan", r.plan},
		{"wrong", "leaves before trust are refused", r.wrongOrder},
		{"distribute", "every truststore takes the new root, while the leader of the controllers is killed", r.distribute},
		{"reissue", "leaves of the new root, while an agent and a node are killed and one more node bootstraps", r.reissue},
		{"clients", "the applications take certificates of the new root", r.clients},
		{"links", "connections that live on old certificates are ended", r.cycled},
		{"retire", "the old root is withdrawn, by hand", r.retire},
		{"end", "no query failed that would not have failed without a rotation", r.end},
	} {
		held = held && d.show(ctx, s)
	}
	if !held {
		d.logs()
	}
	return held
}

func (d *drill) control(ctx context.Context, _ *demo) (s string, err error) {
	d.Control, err = d.killedNode(ctx, d.ring.Nodes[3])
	return fmt.Sprintf("%d of %d queries and connections failed while it was away", d.Control.Failed, d.Control.Queries+d.Control.Connections), err
}

func (d *drill) plan(ctx context.Context, _ *demo) (string, error) {
	if _, err := d.makeAuthority(ctx, nextShort); err != nil {
		return "", err
	}
	if err := d.client.use(d.client.config().Certificates[0], d.roots...); err != nil {
		return "", err
	}
	// Agents tell of the ring half a minute after it has come up, and again when a busy host was too slow for nodetool.
	var p rotation.RotationPlan
	if err := plane.Eventually(ctx, 4*time.Minute, func() (err error) {
		p, err = mustJSON[rotation.RotationPlan](ctx, d.demo, "csm", "rotation", "plan", "-c", clusterShort, "--to", nextShort)
		if err == nil && len(p.Members) != len(d.ring.Nodes) {
			err = fmt.Errorf("%d members are known of %d", len(p.Members), len(d.ring.Nodes))
		}
		pause(ctx, time.Second)
		return err
	}); err != nil {
		return "", err
	}
	return fmt.Sprintf("plan %s…: %s, %d members, %d applications would break", brief(p.Hash), p.Kind, len(p.Members), len(p.Clients)), nil
}

// hash asks a command for its plan.
func (d *drill) hash(ctx context.Context, args ...string) (string, error) {
	p, err := mustJSON[struct{ Hash string }](ctx, d.demo, "csm", append([]string{"rotation"}, append(args, "-c", clusterShort)...)...)
	return p.Hash, err
}

// wrongOrder starts with a plan that nobody has seen, and asks for the retire before the start.
func (d *drill) wrongOrder(ctx context.Context, _ *demo) (string, error) {
	for _, args := range [][]string{
		{"start", "--to", nextShort, "--plan", strings.Repeat("0", 16)},
		{"retire", "--plan", strings.Repeat("0", 16)},
	} {
		o, err := d.command(ctx, "csm", append([]string{"rotation"}, append(args, "-c", clusterShort, "--reason", "drill")...)...)
		if err != nil {
			return "", err
		}
		if o.exit == 0 {
			return "", fmt.Errorf("csm rotation %s was taken", args[0])
		}
	}
	return "neither a start without its plan nor a retire before the start", nil
}

func (d *drill) distribute(ctx context.Context, _ *demo) (string, error) {
	hash, err := d.hash(ctx, "plan", "--to", nextShort)
	if err != nil {
		return "", err
	}
	d.Began, d.began = time.Now(), d.marks()
	started, err := mustJSON[rotation.Rotation](ctx, d.demo, "csm", "rotation", "start", "-c", clusterShort, "--to", nextShort, "--plan", hash, "--bake", "0s", "--reason", "drill")
	if err != nil {
		return "", err
	}
	d.name = started.Name
	d.saw("begun: %s", resource.Last(d.name))
	leader, err := d.leader(ctx)
	if err != nil {
		return "", err
	}
	leader.Kill()
	d.saw("SIGKILL for %s, the leader of the controllers", leader.Name)
	pause(ctx, 3*time.Second)
	if err := d.comeBack(ctx, leader); err != nil {
		return "", err
	}
	d.saw("%s is back", leader.Name)
	// Leaves before trust: whoever asks now is refused by the state itself.
	if o, err := d.command(ctx, "csm", "rotation", "retire", "-c", clusterShort, "--plan", strings.Repeat("0", 16), "--reason", "drill"); err != nil || o.exit == 0 {
		return "", errors.Join(err, errors.New("a retire was taken in phase distribute"))
	}
	return d.until(ctx, 10*time.Minute, "reissue", "reissued")
}

// reconnect restarts the applications when the rotation waits for clients that live on old connections: at most once a minute.
func (d *drill) reconnect(reasons []rotation.Reason, code string) error {
	i := slices.IndexFunc(reasons, func(r rotation.Reason) bool { return r.Code == code })
	if i < 0 || time.Since(d.reconnected) < time.Minute {
		return nil
	}
	d.reconnected = time.Now()
	for _, l := range d.loads {
		if err := l.Reconnect(); err != nil {
			return err
		}
	}
	d.saw("the applications connect anew, for %s", cut(reasons[i].Message, 200))
	return nil
}

// look reads the rotation, and does what people do for one that waits for them.
func (d *drill) look(ctx context.Context) (r rotation.Rotation, err error) {
	pause(ctx, 300*time.Millisecond)
	if err := d.get(ctx, "/v1/"+d.name, &r); err != nil {
		return r, err
	}
	return r, d.reconnect(r.Reasons, "canary")
}

// until follows the rotation to one of the phases.
func (d *drill) until(ctx context.Context, atMost time.Duration, phases ...string) (string, error) {
	var last rotation.Rotation
	began := time.Now()
	err := plane.Eventually(ctx, atMost, func() error {
		r, err := d.look(ctx)
		if err != nil {
			return err
		}
		if r.Phase != last.Phase || r.State != last.State {
			d.saw("phase %s, %s", r.Phase, r.State)
		}
		last = r
		for _, p := range phases {
			if string(r.Phase) == p {
				return nil
			}
		}
		return fmt.Errorf("phase %s, %s: %s", r.Phase, r.State, waits(r))
	})
	return fmt.Sprintf("phase %s after %.1f s", last.Phase, time.Since(began).Seconds()), err
}

func (d *drill) reissue(ctx context.Context, _ *demo) (string, error) {
	a := d.agents[2]
	a.Process.KillAlone()
	d.saw("SIGKILL for the agent of %s", a.Node.Name)
	pause(ctx, 2*time.Second)
	if err := a.Restart(ctx); err != nil {
		return "", err
	}
	d.saw("the agent of %s is back", a.Node.Name)
	var err error
	n := d.ring.Nodes[3]
	d.saw("SIGKILL for the Cassandra of %s", n.Name)
	if d.Killed, err = d.killedNode(ctx, n); err != nil {
		return "", err
	}
	d.saw("%s is back; %d of %d queries and connections failed meanwhile", n.Name, d.Killed.Failed, d.Killed.Queries+d.Killed.Connections)
	if err := d.bootstrap(ctx); err != nil {
		return "", err
	}
	return d.until(ctx, 12*time.Minute, "reissued")
}

// bootstrap lets one more node join the ring in the middle.
func (d *drill) bootstrap(ctx context.Context) error {
	n, err := d.ring.Add(d.nodes.Host(len(d.ring.Nodes)+1), "dc1")
	if err != nil {
		return err
	}
	a := plane.NewAgent(filepath.Join(d.dir, "agents", n.Name), d.bin, n)
	d.agents = append(d.agents, a)
	if err := errors.Join(d.giveToken(ctx, a), a.Write(d.plane.Fleet(clusterShort), "manage"), a.Start()); err != nil {
		return err
	}
	if err := plane.Eventually(ctx, 5*time.Minute, func() error { // the ring must be seen with the node that was down, and the canary by its clients
		if _, err := d.look(ctx); err != nil {
			return err
		}
		_, err := onDisk(n)
		return err
	}); err != nil {
		return fmt.Errorf("%s got no stores: %w", n.Name, err)
	}
	d.saw("%s bootstraps", n.Name)
	if err := n.Start(); err != nil {
		return err
	}
	wait, cancel := context.WithTimeout(ctx, 3*time.Minute)
	defer cancel()
	if err := n.WaitReady(wait); err != nil {
		return err
	}
	d.saw("%s has joined the ring", n.Name)
	return d.settled(ctx, n.Name)
}

// clients shows that the old root cannot go while an application has nothing else, then gives the applications new certificates.
func (d *drill) clients(ctx context.Context, _ *demo) (string, error) {
	hash, err := d.hash(ctx, "retire", "--dry-run")
	if err != nil {
		return "", err
	}
	o, err := d.command(ctx, "csm", "rotation", "retire", "-c", clusterShort, "--plan", hash, "--except", "links", "--reason", "too early on purpose")
	switch {
	case err != nil:
		return "", err
	case o.exit != 3:
		return "", fmt.Errorf("a retire while the application has only the old CA: exit %d, not 3: %s", o.exit, o.stderr)
	}
	if err := d.application(ctx, nextShort); err != nil {
		return "", err
	}
	d.saw("the applications use certificates of the new root")
	return "a retire before was refused: " + cut(o.stderr, 120), nil
}

// cycled waits until no node holds connections from before the swap: they are ended one peer after the other, without a restart.
func (d *drill) cycled(ctx context.Context, _ *demo) (string, error) {
	began := time.Now()
	err := plane.Eventually(ctx, 8*time.Minute, func() error {
		pause(ctx, time.Second)
		r, err := mustJSON[rotation.RetirePlan](ctx, d.demo, "csm", "rotation", "retire", "-c", clusterShort, "--dry-run")
		if err != nil {
			return err
		}
		if err := d.reconnect(r.Reasons, "seen"); err != nil {
			return err
		}
		for _, x := range r.Reasons {
			if x.Code == "links" || x.Code == "seen" {
				return fmt.Errorf("%s: %s", x.Node, x.Message)
			}
		}
		return nil
	})
	return fmt.Sprintf("no connection from before the swap is left, and every client has come back, after %.1f s", time.Since(began).Seconds()), err
}

func (d *drill) retire(ctx context.Context, _ *demo) (string, error) {
	hash, err := d.hash(ctx, "retire", "--dry-run")
	if err != nil {
		return "", err
	}
	if _, err := d.must(ctx, "csm", "rotation", "retire", "-c", clusterShort, "--plan", hash, "--reason", "drill: every application has the new root"); err != nil {
		return "", err
	}
	d.saw("retire")
	if _, err := d.until(ctx, 10*time.Minute, "done"); err != nil {
		return "", err
	}
	// Only the new root is trusted by the application from here on, as it is by the nodes.
	return "", d.client.use(d.client.config().Certificates[0], d.roots[len(d.roots)-1])
}

// end looks at every node's files and port with the new root alone, and weighs the loads.
func (d *drill) end(ctx context.Context, _ *demo) (string, error) {
	d.Took = time.Since(d.Began)
	for _, n := range d.ring.Nodes {
		p, err := onDisk(n)
		if err != nil {
			return "", err
		}
		if len(p.anchors) != 1 {
			return "", fmt.Errorf("%s trusts %d anchors, not the new root alone", n.Name, len(p.anchors))
		}
		served, err := d.served(n)
		if err != nil {
			return "", err
		}
		if served != p.fingerprint() {
			return "", fmt.Errorf("%s serves %s, on disk is %s", n.Name, brief(served), brief(p.fingerprint()))
		}
		d.Proofs++
		d.screen.note("%s serves %s, which leads to %s, its only anchor", n.Name, brief(served), brief(certificate.Hex(certificate.Fingerprint(p.anchors[0].Raw))))
	}
	pause(ctx, 3*time.Second)
	all := d.since(d.began)
	d.Outside = all.without(d.Killed)
	file := filepath.Join(filepath.Dir(d.dir), "drill-rotation.json")
	out, err := json.MarshalIndent(d, "", "  ")
	if err == nil {
		err = os.WriteFile(file, append(out, '\n'), 0o644)
	}
	if err != nil {
		return "", err
	}
	if d.Outside.Failed > 0 || all.Wrong > 0 {
		return "", fmt.Errorf("%d queries failed and %d were wrong outside of the time when a node was dead: %v", d.Outside.Failed, all.Wrong, d.Outside.Errors)
	}
	return fmt.Sprintf("%d queries and %d new connections in %.0f s, 0 failed but while a node was dead: %d then, %d when the same node died without a rotation; %s",
		all.Queries, all.Connections, d.Took.Seconds(), d.Killed.Failed, d.Control.Failed, short(d.demo, file)), nil
}
