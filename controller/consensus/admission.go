package consensus

import (
	"context"
	"crypto/sha256"
	"crypto/x509"
	"time"

	"github.com/cassandra-security-manager/csm/controller/consensus/members"
	"github.com/cassandra-security-manager/csm/controller/state"
	clusterv1 "github.com/cassandra-security-manager/csm/protocol/cluster/v1"
	"github.com/cassandra-security-manager/csm/shared/fault"
	"github.com/cassandra-security-manager/csm/shared/resource"
)

// admission is the one service without a client certificate: a token, checked and burnt by Apply, and proof of the key.
type admission struct {
	clusterv1.UnimplementedAdmissionServiceServer
	n *Node
}

// Join implements cluster.proto.
func (s admission) Join(ctx context.Context, r *clusterv1.JoinRequest) (*clusterv1.JoinResponse, error) {
	n := s.n
	if !n.joins.Allow() {
		return nil, fault.New(fault.Exhausted, "too-many-joins", "too many controllers try to join at once").Do("try again in a few seconds")
	}
	key, err := s.check(r)
	if err != nil {
		return nil, err
	}
	hash := sha256.Sum256([]byte(r.GetToken()))
	m, known, err := s.admit(ctx, r, hash, key)
	if err != nil {
		return nil, err
	}
	// Who was let in just now is told at once that he waits; only then do his calls wait with him.
	if known {
		if m, err = s.awaitApproval(ctx, m); err != nil {
			return nil, err
		}
	}
	out := &clusterv1.JoinResponse{State: m.Proto().State, Key: key[:], ClusterId: n.cfg.ClusterID, TrustDomain: n.cfg.Identity.TrustDomain}
	if !m.Trusted() {
		return out, nil
	}
	if n.cfg.SignMember == nil {
		return nil, fault.New(fault.Unavailable, "cannot-sign", "%s cannot sign identities", n.cfg.Name).Do("join through another controller")
	}
	if out.Chain, out.Bundle, err = n.cfg.SignMember(ctx, m.Name, r.GetCsr()); err != nil {
		return nil, err
	}
	for _, o := range n.dir.trusted() {
		out.Members = append(out.Members, o.Proto())
	}
	return out, nil
}

// check refuses what needs no look into the state: sizes, the request's own signature, the clock.
func (s admission) check(r *clusterv1.JoinRequest) (key [32]byte, err error) {
	if len(r.GetToken()) > 128 || len(r.GetCsr()) > 16<<10 || len(r.GetKekPublic()) > 4096 || len(r.GetAddress()) > 261 {
		return key, fault.New(fault.Invalid, "too-large", "the join request is too large")
	}
	csr, err := x509.ParseCertificateRequest(r.GetCsr())
	if err != nil {
		return key, fault.Wrap(err, fault.Invalid, "bad-request", "the certificate request cannot be read").Do("use csm-controller of this version to join")
	}
	if err := csr.CheckSignature(); err != nil {
		return key, fault.Wrap(err, fault.Refused, "no-possession", "the certificate request is not signed by its own key")
	}
	offset := r.GetNow().AsTime().Sub(s.n.cfg.Clock.Now())
	if offset.Abs() > MaxClockOffset {
		return key, fault.New(fault.Refused, "clock-skew", "the clock of %q differs by %s from that of %s, %s are allowed", r.GetName(), offset.Round(time.Second), s.n.cfg.Name, MaxClockOffset).
			Do("set the clock (chrony, systemd-timesyncd) and join again")
	}
	return sha256.Sum256(csr.RawSubjectPublicKeyInfo), nil
}

// admit burns the token, unless this key has done so before: then the member is known.
func (s admission) admit(ctx context.Context, r *clusterv1.JoinRequest, hash, key [32]byte) (m Member, known bool, err error) {
	found := false
	err = s.n.store.View(ctx, func(ctx context.Context, q state.Querier) error {
		m, found, err = members.Admitted(ctx, q, hash, key)
		return err
	})
	if err != nil || found && m.ID == r.GetId() && m.Name == r.GetName() {
		return m, found, err
	}
	want := Member{Name: r.GetName(), ID: r.GetId(), Address: r.GetAddress(), Region: r.GetRegion(), Zone: r.GetZone(), Key: key,
		KEKPublic: r.GetKekPublic(), Version: r.GetVersion()}
	reply, err := state.Reply[*clusterv1.MemberReply](ctx, s.n, state.Proposal{Actor: "join-token", Reason: "join",
		Command: &clusterv1.RequestAdmission{TokenHash: hash[:], Member: want.Proto()}})
	if err != nil {
		return m, false, err
	}
	return members.FromProto(reply.Member), false, nil
}

// awaitApproval waits a while for an administrator and returns the member as it then is.
func (s admission) awaitApproval(ctx context.Context, m Member) (Member, error) {
	w := s.n.store.Watch(resource.Controller(m.Name))
	defer w.Close()
	patience := s.n.cfg.tuning.joinWait
	if end, ok := ctx.Deadline(); ok { // "not yet" arrives before the caller gives up
		patience = min(patience, time.Until(end)*3/4)
	}
	enough := time.NewTimer(patience)
	defer enough.Stop()
	for {
		var now Member
		err := s.n.store.View(ctx, func(ctx context.Context, q state.Querier) (err error) {
			now, err = members.Get(ctx, q, m.Name)
			return err
		})
		switch {
		case err == nil && now.Key != m.Key:
			return m, fault.New(fault.Conflict, "name-in-use", "the name %q belongs to another controller now", m.Name).
				Do("wipe the data folder, and join with a new token and another name; or remove the other first: `csm system remove %s`", m.Name)
		case err == nil && now.Trusted():
			return now, nil
		case err != nil && !fault.Is(err, fault.NotFound): // not found: the entry is not applied here yet, or it was removed
			return m, err
		}
		select {
		case <-w.C():
		case <-enough.C:
			return m, nil
		case <-ctx.Done():
			return m, fault.From(ctx.Err())
		case <-s.n.ctx.Done():
			return m, fault.New(fault.Unavailable, "shutting-down", "%s is shutting down", s.n.cfg.Name).Do("ask another controller")
		}
	}
}
