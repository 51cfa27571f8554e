package agentapi

import (
	"context"
	"time"

	"google.golang.org/protobuf/types/known/timestamppb"

	agentv1 "github.com/cassandra-security-manager/csm/protocol/agent/v1"

	"github.com/cassandra-security-manager/csm/controller/fleet"
	"github.com/cassandra-security-manager/csm/controller/issuance"
	"github.com/cassandra-security-manager/csm/controller/ledger"
	"github.com/cassandra-security-manager/csm/shared/certificate"
	"github.com/cassandra-security-manager/csm/shared/fault"
	"github.com/cassandra-security-manager/csm/shared/identity"
	"github.com/cassandra-security-manager/csm/shared/resource"
)

// ClaimMove asks Apply. Who finds the wave busy is told over its stream when it is worth asking again.
func (s *Server) ClaimMove(ctx context.Context, r *agentv1.ClaimMoveRequest) (*agentv1.ClaimMoveResponse, error) {
	c := callerOf(ctx)
	if r.Incarnation != c.Incarnation {
		return nil, fault.New(fault.Refused, "not-your-node", "the claim is for incarnation %d, the caller is %d", r.Incarnation, c.Incarnation)
	}
	claim, expires, err := s.Fleet.Claim(ctx, c.UID, r)
	if fault.HasReason(err, "wave-busy") {
		s.waits(c.Node, len(r.PlanHash) > 0)
	}
	if err != nil {
		return nil, err
	}
	return &agentv1.ClaimMoveResponse{Claim: claim, Expires: timestamppb.New(expires)}, nil
}

// IssueCertificate signs under the caller's open claim. The certificate carries the names that fleet allows the node;
// a request that asks for any other is refused whole.
func (s *Server) IssueCertificate(ctx context.Context, r *agentv1.IssueCertificateRequest) (*agentv1.IssueCertificateResponse, error) {
	c := callerOf(ctx)
	if r.RequestId == "" {
		return nil, fault.New(fault.Invalid, "no-request-id", "a request for a certificate needs an id")
	}
	o, err := fresh(ctx, s, func() (fleet.OpenClaim, error) { return s.Fleet.OpenClaim(ctx, r.Claim) })
	if err != nil {
		return nil, err
	}
	if o.Node != c.Node || o.Incarnation != c.Incarnation || o.Store != r.Store {
		return nil, fault.New(fault.Refused, "not-your-claim", "this claim is not that of store %.63q of this node", r.Store)
	}
	csr, err := certificate.ParseRequest(r.Csr)
	if err != nil {
		return nil, err
	}
	names, err := s.allowed(o.Node, o.Names, certificate.OfRequest(csr))
	if err != nil {
		return nil, err
	}
	due := o.Due
	if !due.IsZero() {
		emergency, err := s.Emergency(ctx, o.Cluster)
		if err != nil {
			return nil, err
		}
		if emergency { // what is in place lasts, but must go
			due = time.Time{}
		}
	}
	out, err := s.Issuer.Issue(ctx, issuance.Request{RequestID: r.RequestId, Due: due, Actor: c.id.String(), Tenant: resource.Segment(o.Node, "tenants"), Authority: o.Authority,
		Region: o.Region, Template: fleet.TemplateNode, CSR: r.Csr, Names: names, Node: o.Node, Incarnation: o.Incarnation, Store: o.Store, Claim: o.Claim})
	if err != nil {
		return nil, err
	}
	return &agentv1.IssueCertificateResponse{Chain: out.Chain, RenewAt: timestamppb.New(out.RenewAt), Certificate: out.Name}, nil
}

// allowed gives the names of the certificate: those of the node, and its SPIFFE ID.
func (s *Server) allowed(node string, held fleet.Names, asked certificate.Names) (certificate.Names, error) {
	names, err := held.Certificate()
	if err != nil {
		return names, err
	}
	names.URIs = []string{identity.NodeID(s.TrustDomain, resource.Segment(node, "tenants"), resource.Segment(node, "clusters"), resource.Last(node)).String()}
	if missing := names.Missing(asked); !missing.Empty() {
		return names, fault.New(fault.Refused, "name-not-allowed", "this node may not carry %.300s", missing).
			Do("an administrator sets its names: `csm node set-names %s/%s`", resource.Segment(node, "clusters"), resource.Last(node))
	}
	return names, nil
}

// RequestProofs gives a neighbour tasks; their results come over Sync.
func (s *Server) RequestProofs(ctx context.Context, r *agentv1.RequestProofsRequest) (*agentv1.RequestProofsResponse, error) {
	tasks, prober, err := s.Fleet.RequestProofs(ctx, callerOf(ctx).Caller, r, s.present)
	if err != nil {
		return nil, err
	}
	return &agentv1.RequestProofsResponse{Tasks: tasks, Prober: prober}, nil
}

// IssueProbe signs what an open task of the caller is answered with.
func (s *Server) IssueProbe(ctx context.Context, r *agentv1.IssueProbeRequest) (*agentv1.IssueProbeResponse, error) {
	c := callerOf(ctx)
	t, err := fresh(ctx, s, func() (fleet.ProbeTask, error) { return s.Fleet.OpenProbe(ctx, r.Task) })
	if err != nil {
		return nil, err
	}
	if t.Prober != c.Node || t.Incarnation != c.Incarnation {
		return nil, fault.New(fault.Refused, "not-your-task", "this node was not asked for this proof")
	}
	csr, err := certificate.ParseRequest(r.Csr)
	if err != nil {
		return nil, err
	}
	names, err := s.allowed(t.Prober, t.Names, certificate.OfRequest(csr))
	if err != nil {
		return nil, err
	}
	out, err := s.Issuer.Issue(ctx, issuance.Request{RequestID: t.Task, Actor: c.id.String(), Tenant: resource.Segment(t.Prober, "tenants"), Authority: t.Authority,
		Region: t.Region, Template: fleet.TemplateProbe, CSR: r.Csr, Names: names, Node: t.Prober, Incarnation: t.Incarnation, Task: t.Task})
	if err != nil {
		return nil, err
	}
	return &agentv1.IssueProbeResponse{Chain: out.Chain}, nil
}

// ReportProof records what this agent saw of its neighbour.
func (s *Server) ReportProof(ctx context.Context, r *agentv1.ReportProofRequest) (*agentv1.ReportProofResponse, error) {
	c := callerOf(ctx)
	if err := s.Fleet.RecordProof(ctx, c.UID, c.Incarnation, r.Task, r.Proof); err != nil {
		return nil, err
	}
	return &agentv1.ReportProofResponse{}, nil
}

// ReportMove ends a claim.
func (s *Server) ReportMove(ctx context.Context, r *agentv1.ReportMoveRequest) (*agentv1.ReportMoveResponse, error) {
	c := callerOf(ctx)
	if err := s.Fleet.Complete(ctx, c.UID, c.Incarnation, r); err != nil {
		return nil, err
	}
	return &agentv1.ReportMoveResponse{}, nil
}

// ReportInventory replaces what this node's scan found.
func (s *Server) ReportInventory(ctx context.Context, r *agentv1.ReportInventoryRequest) (*agentv1.ReportInventoryResponse, error) {
	c := callerOf(ctx)
	seen := make([]ledger.Seen, 0, len(r.Found))
	for _, f := range r.Found {
		seen = append(seen, ledger.Seen{DER: f.Der, Path: f.Path, Entry: f.Entry, Format: f.Format, Owner: f.Owner, HasPrivateKey: f.HasPrivateKey, Mode: f.Mode})
	}
	if _, err := ledger.ReportFound(ctx, s.Store, s.Log, c.Node, c.id.String(), seen); err != nil {
		return nil, err
	}
	return &agentv1.ReportInventoryResponse{}, nil
}
