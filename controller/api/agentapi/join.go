package agentapi

import (
	"context"
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"time"

	"google.golang.org/protobuf/types/known/timestamppb"

	agentv1 "github.com/cassandra-security-manager/csm/protocol/agent/v1"

	"github.com/cassandra-security-manager/csm/controller/fleet"
	"github.com/cassandra-security-manager/csm/shared/certificate"
	"github.com/cassandra-security-manager/csm/shared/fault"
	"github.com/cassandra-security-manager/csm/shared/identity"
)

// Join takes evidence for an identity. All that can be checked without the state is checked before a command is spent.
func (s *Server) Join(ctx context.Context, r *agentv1.JoinRequest) (*agentv1.JoinResponse, error) {
	methods := map[string]func(context.Context, *agentv1.JoinRequest, *x509.CertificateRequest) (fleet.Joined, string, error){
		fleet.MethodToken: s.byToken, fleet.MethodPossession: s.byPossession}
	method, known := methods[r.Method]
	if !known {
		return nil, fault.New(fault.Invalid, "join-method", "joining by %q is not known here", r.Method).Do("set join: {method: token, file: ...} or join: {method: possession} in agent.yaml")
	}
	if err := s.sameTime(r.GetAgent().GetClock()); err != nil {
		return nil, err
	}
	csr, err := certificate.ParseRequest(r.Csr)
	if err != nil {
		return nil, err
	}
	host, _ := s.transport(ctx)
	j, requestID, err := method(ctx, r, csr)
	if err != nil {
		s.Logger.WarnContext(ctx, "a join was refused", "peer", host, "method", r.Method, "cluster", r.Cluster, "error", err)
		return nil, err
	}
	id := identity.AgentID(s.TrustDomain, j.UID, j.Incarnation)
	chain, bundle, err := s.Issuer.IssueIdentity(ctx, id, r.Csr, id.String(), requestID)
	if err != nil {
		return nil, err
	}
	s.Logger.InfoContext(ctx, "an agent joined", "node", j.Node, "incarnation", j.Incarnation, "peer", host, "method", r.Method, "repeated", j.Repeated)
	return &agentv1.JoinResponse{Node: j.Node, Uid: j.UID, Incarnation: j.Incarnation, Chain: chain, Bundle: bundle, TrustDomain: s.TrustDomain}, nil
}

func (s *Server) byToken(ctx context.Context, r *agentv1.JoinRequest, csr *x509.CertificateRequest) (fleet.Joined, string, error) {
	sum, err := fleet.HashToken(string(r.Evidence))
	if err != nil {
		return fleet.Joined{}, "", err
	}
	if err := s.knownToken(ctx, sum); err != nil {
		return fleet.Joined{}, "", err
	}
	host, _ := s.transport(ctx)
	key := keyHash(csr)
	j, err := s.Fleet.Join(ctx, fleet.JoinSpec{Token: string(r.Evidence), Key: key, Cluster: r.Cluster, Agent: r.Agent, Instance: r.Instance, Peer: host})
	return j, joinID(sum, key), err
}

// knownToken keeps strangers from spending commands. A token that was made a moment ago on another controller is known
// once this one has caught up.
func (s *Server) knownToken(ctx context.Context, sum [sha256.Size]byte) error {
	known, err := s.Fleet.TokenKnown(ctx, sum)
	if err != nil || known {
		return err
	}
	if err := s.Linearize(ctx); err != nil {
		return err
	}
	if known, err = s.Fleet.TokenKnown(ctx, sum); err == nil && !known {
		err = fleet.UnknownToken()
	}
	return err
}

// keyHash is the SHA-256 of a request's SubjectPublicKeyInfo.
func keyHash(csr *x509.CertificateRequest) [sha256.Size]byte {
	return sha256.Sum256(csr.RawSubjectPublicKeyInfo)
}

// joinID makes the request id of a join out of token and key: a lost reply is answered the same.
func joinID(token, key [sha256.Size]byte) string {
	sum := sha256.Sum256(append(token[:], key[:]...))
	return "join-" + hex.EncodeToString(sum[:20])
}

// RenewIdentity signs a new key for the caller's identity. Apply is not asked: the incarnation stays, and the
// identity was found good a moment ago; issuance records what it signs.
func (s *Server) RenewIdentity(ctx context.Context, r *agentv1.RenewIdentityRequest) (*agentv1.RenewIdentityResponse, error) {
	c := callerOf(ctx)
	csr, err := certificate.ParseRequest(r.Csr)
	if err != nil {
		return nil, err
	}
	if string(csr.RawSubjectPublicKeyInfo) == string(c.leaf) {
		return nil, fault.New(fault.Invalid, "key-reused", "a renewal needs a new key")
	}
	key := keyHash(csr)
	chain, bundle, err := s.Issuer.IssueIdentity(ctx, c.id, r.Csr, c.id.String(), "renew-"+hex.EncodeToString(key[:20]))
	if err != nil {
		return nil, err
	}
	return &agentv1.RenewIdentityResponse{Chain: chain, Bundle: bundle}, nil
}

// sameTime refuses a peer whose clock is off: certificates and deadlines would mean different things to both.
func (s *Server) sameTime(says *timestamppb.Timestamp) error {
	if says == nil {
		return fault.New(fault.Invalid, "no-clock", "the agent does not say what time it has")
	}
	now := s.Clock.Now()
	off := says.AsTime().Sub(now)
	if off.Abs() <= MaxSkew {
		return nil
	}
	return fault.New(fault.Refused, "clock-skew", "the agent's clock is %s off: it says %s, this controller %s", off.Round(time.Second),
		says.AsTime().UTC().Format(time.RFC3339), now.UTC().Format(time.RFC3339)).Do("set both clocks by NTP; at most %s are allowed", MaxSkew)
}
