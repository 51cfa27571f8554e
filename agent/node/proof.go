package node

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"net/netip"
	"slices"
	"time"

	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/cassandra-security-manager/csm/agent/cassandra"
	"github.com/cassandra-security-manager/csm/agent/install"
	"github.com/cassandra-security-manager/csm/agent/probe"
	agentv1 "github.com/cassandra-security-manager/csm/protocol/agent/v1"
	"github.com/cassandra-security-manager/csm/shared/certificate"
	"github.com/cassandra-security-manager/csm/shared/fault"
)

// neighbour asks the controllers that another node prove this one's ports, and waits. A prober that says nothing or knows
// nothing is replaced by another until the context ends. No proofs and no error means that there is nobody to ask.
func (n *Node) neighbour(claim, store string) install.Neighbour {
	return func(ctx context.Context, leaf [32]byte, ports []cassandra.Port) ([]*agentv1.Proof, error) {
		var seen error
		for {
			proofs, err := n.askOnce(ctx, claim, store, leaf, ports)
			if err == nil {
				return proofs, nil
			}
			if !fault.HasReason(err, "proof-unknown") || ctx.Err() != nil {
				if seen != nil && ctx.Err() != nil {
					err = seen
				}
				return nil, err
			}
			seen = err
			n.log.Warn("a neighbour could not prove this node; another is asked", "store", store, "error", err)
			select {
			case <-ctx.Done():
				return nil, seen
			case <-n.o.Clock.After(time.Second):
			}
		}
	}
}

func (n *Node) askOnce(ctx context.Context, claim, store string, leaf [32]byte, ports []cassandra.Port) ([]*agentv1.Proof, error) {
	req := &agentv1.RequestProofsRequest{Claim: claim, Store: store, LeafSha256: leaf[:]}
	for _, p := range ports {
		req.Ports = append(req.Ports, p.Proto())
	}
	var r *agentv1.RequestProofsResponse
	if err := n.call(ctx, n.o.ClaimFor, func(ctx context.Context, c agentv1.AgentServiceClient) (err error) {
		r, err = c.RequestProofs(ctx, req)
		return err
	}); err != nil {
		return nil, notAsked(err)
	}
	if len(r.Tasks) == 0 {
		return nil, nil
	}
	n.log.Info("proof asked", "store", store, "prober", r.Prober, "ports", len(ports))
	defer n.forget(r.Tasks)
	late := n.o.Clock.NewTimer(proofFor)
	defer late.Stop()
	var out []*agentv1.Proof
	for _, task := range r.Tasks {
		select {
		case p := <-n.expect(task):
			out = append(out, p)
			if v := p.GetVerdict(); v == agentv1.Verdict_VERDICT_UNKNOWN || v == agentv1.Verdict_VERDICT_DOWN || v == agentv1.Verdict_VERDICT_UNSPECIFIED {
				return nil, fault.New(fault.Unavailable, "proof-unknown", "%s could not tell of port %d: %s", r.Prober, p.GetPort().GetPort(), p.GetDetail())
			}
		case <-late.Chan():
			return nil, fault.New(fault.Unavailable, "proof-unknown", "%s has not answered within %s", r.Prober, proofFor)
		case <-ctx.Done():
			return nil, fault.New(fault.Unavailable, "proof-unknown", "%s has not answered in time", r.Prober)
		}
	}
	return out, nil
}

// notAsked says of a proof that no controller could ask for why that is: it is not the neighbours, if there are any.
func notAsked(err error) error {
	if !fault.Is(err, fault.Unavailable) && !fault.Is(err, fault.Unknown) {
		return err
	}
	return fault.Wrap(err, fault.Unavailable, "proof-not-asked", "the controllers could not be asked who proves this node").
		Do("bring back a quorum of controllers (`csm status`); the move is then tried again by itself")
}

// probeNeighbours proves other nodes when asked, one port after the other.
func (n *Node) probeNeighbours(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			return
		case t := <-n.tasks:
			p := n.probeNeighbour(ctx, t)
			err := n.call(ctx, proofFor, func(ctx context.Context, c agentv1.AgentServiceClient) error {
				_, err := c.ReportProof(ctx, &agentv1.ReportProofRequest{Task: t.Task, Proof: p})
				return err
			})
			n.doneTask(t.Task)
			n.log.Info("neighbour probed", "node", t.TargetNode, "port", t.GetPort().GetPort(), "verdict", p.Verdict.String(), "detail", p.Detail, "error", err)
		}
	}
}

func (n *Node) probeNeighbour(ctx context.Context, t *agentv1.ProofTask) *agentv1.Proof {
	n.mu.Lock()
	inst, roots, foreign := n.ownCert, n.roots, livesByAnother(n.target)
	n.mu.Unlock()
	p := &agentv1.Proof{Port: t.Port, Time: timestamppb.New(n.o.Clock.Now()), Verdict: agentv1.Verdict_VERDICT_UNKNOWN}
	if id := n.folder.Identity(); id != nil {
		p.Prober = id.Node
	}
	if t.Deadline != nil && n.now().After(t.Deadline.AsTime()) {
		p.Detail = "asked too late"
		return p
	}
	cert, err := n.offered(ctx, inst, t)
	if err != nil {
		p.Detail = clip(err.Error(), 1024)
		return p
	}
	p.Authority = t.Authority
	q := probe.Request{Kind: t.GetPort().GetKind(), Address: t.GetPort().GetAddress(), Port: uint16(t.GetPort().GetPort()), Local: local(inst), Certificate: cert, Now: n.now}
	copy(q.ExpectLeaf[:], t.LeafSha256)
	q.Roots, _ = certificate.ParseAll(roots)
	if foreign { // the ring lives by another CA: what this node's Cassandra trusts is what counts
		q.Roots = append(q.Roots, install.Trusted(storeFor(inst, t.GetPort().GetKind()))...)
	}
	r := n.o.Probe(ctx, q)
	if r.Verdict == agentv1.Verdict_VERDICT_DOWN && q.Local.IsValid() {
		// An address of another family, or one that this host does not have: let the system choose.
		q.Local = netip.Addr{}
		r = n.o.Probe(ctx, q)
	}
	p.Verdict, p.Detail, p.Took = r.Verdict, clip(r.Detail, 1024), durationpb.New(r.Took)
	if r.Served != ([32]byte{}) {
		p.ServedSha256 = r.Served[:]
	}
	r.Tell(p)
	switch {
	case r.Untrusted != "":
		p.Verdict, p.Detail = agentv1.Verdict_VERDICT_UNKNOWN, clip("untrusted chain: "+r.Untrusted, 1024)
	case t.Authority != "" && r.Verdict == agentv1.Verdict_VERDICT_ACCEPTED && !r.Asked:
		p.Verdict, p.Detail = agentv1.Verdict_VERDICT_UNKNOWN, "the port asked for no certificate, so it says nothing of whom it trusts"
	}
	return p
}

// livesByAnother says whether nodes of the ring may serve certificates of another CA: this one's stores hold one, or held it before a
// take-over whose way back is open, so that neighbours may serve theirs again.
func livesByAnother(t *agentv1.Target) bool {
	return slices.ContainsFunc(t.GetStores(), func(s *agentv1.StoreTarget) bool {
		return s.TrustOnly || len(s.KeptSha256) > 0 && !s.KeptDone
	})
}

// storeFor is the store that serves a kind of port, else any.
func storeFor(inst *cassandra.Instance, kind agentv1.PortKind) *cassandra.Store {
	best := inst.Stores[0]
	for _, s := range inst.Stores {
		for _, p := range s.Ports {
			if p.Kind == kind {
				best = s
			}
		}
	}
	return best
}

// ownCertificate is the node's certificate that a neighbour's port of this kind should accept: that of the store that
// serves the same kind of port here, else any.
func ownCertificate(inst *cassandra.Instance, kind agentv1.PortKind) (*tls.Certificate, error) {
	if inst == nil || len(inst.Stores) == 0 {
		return nil, fault.New(fault.Unavailable, "no-store", "this node has no certificate to prove with")
	}
	c, err := install.Certificate(storeFor(inst, kind))
	if err != nil {
		return nil, err
	}
	if l := c.Leaf; l != nil && !usable(l) {
		return nil, fault.New(fault.Unavailable, "no-store", "the certificate of this node is not for clients")
	}
	return c, nil
}

// usable: a certificate that would be refused must not be shown, since each refusal is an ERROR in a neighbour's log.
func usable(l *x509.Certificate) bool {
	if len(l.ExtKeyUsage)+len(l.UnknownExtKeyUsage) == 0 {
		return true
	}
	for _, u := range l.ExtKeyUsage {
		if u == x509.ExtKeyUsageClientAuth || u == x509.ExtKeyUsageAny {
			return true
		}
	}
	return false
}
