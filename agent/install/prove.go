package install

import (
	"context"
	"fmt"
	"net/netip"
	"time"

	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/cassandra-security-manager/csm/agent/cassandra"
	"github.com/cassandra-security-manager/csm/agent/probe"
	agentv1 "github.com/cassandra-security-manager/csm/protocol/agent/v1"
	"github.com/cassandra-security-manager/csm/shared/fault"
)

// probe asks one port with the pair's own certificate, again while it says nothing. Only an error of the gate is an error.
func (t *transaction) probe(ctx context.Context, port cassandra.Port, with pair, expect [32]byte) (probe.Result, error) {
	q := probe.Request{Kind: port.Kind, Address: port.Address.String(), Port: port.Port, Local: localFor(t.site.Instance, port),
		Certificate: with.certificate(), Roots: with.anchors, ExpectLeaf: expect, Now: t.i.o.Now}
	until := t.i.o.Clock.Now().Add(t.i.o.ProveFor)
	wrong := 0
	for {
		if err := t.gateProbe(port); err != nil {
			return probe.Result{}, err
		}
		r := t.i.o.Probe(ctx, q)
		switch r.Verdict {
		case agentv1.Verdict_VERDICT_UNKNOWN, agentv1.Verdict_VERDICT_DOWN:
		case agentv1.Verdict_VERDICT_WRONG_LEAF:
			if wrong++; wrong > 2 {
				return r, nil
			}
		default:
			return r, nil // a refusal is not tried again: each one costs an ERROR in Cassandra's log
		}
		if ctx.Err() != nil || !t.i.o.Clock.Now().Before(until) {
			return r, nil
		}
		t.wait(ctx, t.i.o.ProveEvery)
	}
}

// gateProbe lets tests stop at a probe; looking is free under HOLD and freeze.
func (t *transaction) gateProbe(port cassandra.Port) error {
	return t.i.o.Before(Op{Step: t.step, Do: "probe", Path: fmt.Sprintf("%s:%d", port.Address, port.Port)})
}

// localFor is the address a probe of this host must come from: with endpoint verification a certificate passes only from
// an address that it names.
func localFor(i *cassandra.Instance, port cassandra.Port) netip.Addr {
	if i.Listen.IsValid() && !i.Listen.IsUnspecified() && i.Listen.Is4() == port.Address.Is4() {
		return i.Listen
	}
	return netip.Addr{}
}

// prove demands the pair's leaf on every port. All ports are asked even when one fails: the first handshake after a
// reload is what makes Cassandra read the files again.
func (t *transaction) prove(ctx context.Context, p pair) error {
	var first error
	for _, port := range t.ports() {
		r, err := t.probe(ctx, port, p, p.leaf())
		if err != nil {
			return err
		}
		t.proofs = append(t.proofs, proofOf(port, r, t.i.o.Clock.Now()))
		if r.Proven() || first != nil {
			continue
		}
		reason := map[agentv1.Verdict]string{agentv1.Verdict_VERDICT_REFUSED: "proof-refused", agentv1.Verdict_VERDICT_WRONG_LEAF: "proof-wrong-leaf",
			agentv1.Verdict_VERDICT_UNKNOWN: "proof-unknown", agentv1.Verdict_VERDICT_DOWN: "proof-down"}[r.Verdict]
		detail := r.Detail
		if reason == "" {
			reason, detail = "proof-untrusted", r.Untrusted
		}
		first = fault.New(fault.Unavailable, reason, "%s:%d is not proved: %s", port.Address, port.Port, detail).Do("look into Cassandra's log for SSLFactory")
	}
	return first
}

func proofOf(port cassandra.Port, r probe.Result, now time.Time) *agentv1.Proof {
	p := &agentv1.Proof{Port: port.Proto(), Verdict: r.Verdict, Took: durationpb.New(r.Took), Detail: r.Detail, Time: timestamppb.New(now)}
	if r.Served != ([32]byte{}) {
		p.ServedSha256 = r.Served[:]
	}
	if r.Untrusted != "" {
		p.Verdict, p.Detail = agentv1.Verdict_VERDICT_UNKNOWN, "untrusted chain: "+r.Untrusted
	}
	r.Tell(p)
	return p
}

// doReload runs the reload command, or waits for Cassandra's poll. Its exit code is kept for people; whether the stores were
// loaded only the proof tells.
func (t *transaction) doReload(ctx context.Context, p pair) error {
	if err := t.i.o.Before(Op{Step: t.step, Do: "reload"}); err != nil {
		return err
	}
	if t.i.o.Poll {
		err := t.awaitPoll(ctx, p)
		if err != nil {
			t.note = clip("reload: " + err.Error())
		}
		return err
	}
	out, err := t.i.o.Reloader.Reload(ctx)
	t.reload = &out
	switch {
	case err != nil:
		t.note = clip("reload: " + err.Error())
	case out.ExitCode != 0:
		t.note = clip(fmt.Sprintf("reload: exit %d: %s %s", out.ExitCode, out.Stderr, out.Stdout))
		err = fault.New(fault.Unavailable, "reload-failed", "the reload command ended with %d", out.ExitCode).Do("%s", t.note)
	}
	if err != nil {
		t.i.o.Logger.Warn("reload command failed; the proof decides", "store", t.site.Store.Name, "error", err)
	}
	return err
}

func clip(s string) string {
	if len(s) > 1000 {
		return s[:1000]
	}
	return s
}

// askNeighbour lets other nodes prove. What they do not prove is taken back.
func (t *transaction) askNeighbour(ctx context.Context) error {
	if t.site.Neighbour == nil {
		return nil
	}
	if err := t.i.o.Before(Op{Step: t.step, Do: "ask"}); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, t.i.o.NeighbourFor)
	defer cancel()
	proofs, err := t.site.Neighbour(ctx, t.new.leaf(), t.ports())
	if err != nil {
		return unproved(err)
	}
	t.proofs = append(t.proofs, proofs...)
	leaf := t.new.leaf()
	for _, p := range proofs {
		if p.Verdict != agentv1.Verdict_VERDICT_ACCEPTED || string(p.ServedSha256) != string(leaf[:]) {
			return fault.New(fault.Unavailable, "neighbour-not-proved", "%s says %s of port %d: %s", p.Prober, p.Verdict, p.GetPort().GetPort(), p.Detail).
				Do("compare the truststores of both nodes")
		}
	}
	return nil
}

// unproved tells a neighbour that gave no answer from controllers that could not even name one.
func unproved(err error) error {
	if fault.HasReason(err, "proof-not-asked") {
		return err
	}
	return fault.Wrap(err, fault.Unavailable, "neighbour-unknown", "no neighbour has proved this node").Do("`csm node moves` shows who was asked")
}
