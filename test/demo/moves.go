//go:build linux

package main

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/cassandra-security-manager/csm/controller/fleet"
	"github.com/cassandra-security-manager/csm/shared/workload"
	"github.com/cassandra-security-manager/csm/test/plane"
)

// renewal is one line of the table.
type renewal struct {
	node, format  string
	before, after string
	proofs        string
	by            string
	took          time.Duration
	load          workload.Report
}

// askRenewal asks for a new certificate as a user does and waits for its end, good or bad.
func (d *demo) askRenewal(ctx context.Context, node, reason string, wait time.Duration) (outcome, error) {
	return d.command(ctx, "csm", "node", "renew", clusterShort+"/"+node, "--reason", reason, "--wait", "--timeout", wait.String(), "-o", "json")
}

// renew asks for a new certificate that has to be proved.
func (d *demo) renew(ctx context.Context, node, reason string) (renewal, error) {
	a := d.agent(node)
	before, err := onDisk(a.Node)
	if err != nil {
		return renewal{}, err
	}
	mark, began := d.load.Mark(), time.Now()
	o, err := d.askRenewal(ctx, node, reason, 90*time.Second)
	if err != nil {
		return renewal{}, err
	}
	if o.exit != 0 {
		return renewal{}, fmt.Errorf("csm node renew: exit %d: %s", o.exit, o.stderr)
	}
	took := time.Since(began)
	after, err := onDisk(a.Node)
	if err != nil {
		return renewal{}, err
	}
	r := renewal{node: node, format: a.Node.Format, before: before.fingerprint(), after: after.fingerprint(), took: took, load: d.load.Since(mark)}
	if r.before == r.after {
		return r, fmt.Errorf("%s still holds %s", node, brief(r.before))
	}
	return r, d.proved(ctx, a, &r)
}

// proved checks that what is on disk is what the ports serve, by a neighbour's word and by our own look.
func (d *demo) proved(ctx context.Context, a *plane.Agent, r *renewal) error {
	_, s, err := d.store(ctx, a.Node.Name)
	if err != nil {
		return err
	}
	if s.State != "proven" || s.Leaf != r.after {
		return fmt.Errorf("the controllers hold %s for %s (%s), on disk is %s: %s", s.State, a.Node.Name, brief(s.Leaf), brief(r.after), s.Detail)
	}
	see, err := d.served(a.Node)
	if err != nil {
		return err
	}
	if see != r.after {
		return fmt.Errorf("%s serves %s on 9042, on disk is %s", a.Node.Name, brief(see), brief(r.after))
	}
	move, err := d.lastMove(ctx, a.Node.Name)
	if err != nil {
		return err
	}
	var by, what []string
	for _, p := range move.Proofs {
		prober := p.Prober[strings.LastIndexByte(p.Prober, '/')+1:]
		if prober == a.Node.Name || p.Verdict != "accepted" || p.Served != r.after {
			continue
		}
		what = append(what, fmt.Sprintf("%d accepted in %d ms", p.Port.Port, p.Millis))
		if !slices.Contains(by, prober) {
			by = append(by, prober)
		}
	}
	slices.Sort(what)
	r.proofs, r.by = strings.Join(what, ", "), strings.Join(by, " ")
	if len(what) < len(ports) {
		return fmt.Errorf("another node's agent proved only %q of both ports of %s", what, a.Node.Name)
	}
	return nil
}

func (d *demo) lastMove(ctx context.Context, node string) (fleet.Move, error) {
	var list struct {
		Items []fleet.Move `json:"items"`
	}
	if err := d.get(ctx, "/v1/"+nodeName(node)+"/moves?pageSize=1", &list); err != nil {
		return fleet.Move{}, err
	}
	if len(list.Items) == 0 {
		return fleet.Move{}, errors.New("no move is recorded for " + node)
	}
	return list.Items[0], nil
}

func (d *demo) agent(node string) *plane.Agent {
	i := slices.IndexFunc(d.agents, func(a *plane.Agent) bool { return a.Node.Name == node })
	return d.agents[i]
}
