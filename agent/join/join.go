// Package join gets the agent its identity: the first one by evidence under the pinned system CA, later ones by renewal.
//
// It refuses a controller that cannot show the pinned root, and an answer whose certificate is not for the key that was
// made here or does not chain to the bundle that came with it. Asking again after a lost answer uses the same key, so the
// same token gives the same identity.
package join

import (
	"context"
	"crypto"
	"crypto/tls"
	"crypto/x509"
	"os"
	"strings"
	"time"

	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/status"

	"github.com/cassandra-security-manager/csm/agent/state"
	"github.com/cassandra-security-manager/csm/agent/sync"
	agentv1 "github.com/cassandra-security-manager/csm/protocol/agent/v1"
	"github.com/cassandra-security-manager/csm/shared/certificate"
	"github.com/cassandra-security-manager/csm/shared/fault"
	"github.com/cassandra-security-manager/csm/shared/identity"
)

// maxEvidence bounds the token file, in bytes.
const maxEvidence = 16 << 10

// joinFor bounds asking one controller. Where thousands join at once it lets each wait for its turn.
const joinFor = 70 * time.Second

// Options of joining.
type Options struct {
	Controllers []string
	Pin         string
	Cluster     string
	Method      string
	// EvidenceFile holds the token.
	EvidenceFile string
	// Cassandra gives the certificate and key that Cassandra uses today, for possession.
	Cassandra func() (*tls.Certificate, error)
	// Wish is what the agent asks to be called, for possession.
	Wish     Wish
	Agent    *agentv1.AgentFacts
	Instance *agentv1.InstanceFacts
	Now      func() time.Time
	// Dialer may be nil.
	Dialer sync.Dialer
	// Jitter draws from [0, 1), for the renewal time.
	Jitter func() float64
}

// Join asks each controller in turn until one answers, and keeps the identity. A refusal ends it: another controller would
// say the same.
func Join(ctx context.Context, f *state.Folder, o Options) (*state.Identity, error) {
	evidence, inUse, err := evidenceOf(o)
	if err != nil {
		return nil, err
	}
	defer clear(evidence)
	conf, err := sync.PinnedTLS(o.Pin, o.Now)
	if err != nil {
		return nil, err
	}
	key, err := f.NextKey()
	if err != nil {
		return nil, err
	}
	csr, err := certificate.NewRequest(key, certificate.Names{})
	if err != nil {
		return nil, err
	}
	req := &agentv1.JoinRequest{Method: o.Method, Evidence: evidence, Csr: csr, Cluster: o.Cluster, Agent: o.Agent, Instance: o.Instance}
	if inUse != nil {
		req.Node, req.Names = o.Wish.Node, &agentv1.Names{Dns: o.Wish.Names.DNS, Ips: o.Wish.Names.IPStrings()}
	}
	err = fault.New(fault.Invalid, "no-controllers", "no controller is configured").Do("name them in agent.yaml")
	for _, a := range o.Controllers {
		var r *agentv1.JoinResponse
		if r, err = ask(ctx, a, conf, o.Dialer, req, inUse); err == nil {
			return keep(f, key, r, o)
		}
		if final(err) || fault.HasReason(err, "approval-pending") {
			return nil, err
		}
	}
	return nil, err
}

// final says whether asking another controller makes no sense.
func final(err error) bool {
	for _, c := range []fault.Code{fault.Invalid, fault.Refused, fault.NotFound, fault.Conflict, fault.Unauthenticated} {
		if fault.Is(err, c) && !fault.HasReason(err, "pin-mismatch") {
			return true
		}
	}
	return false
}

// evidenceOf gives the token, or the certificate whose key is to be proved.
func evidenceOf(o Options) (token []byte, inUse *tls.Certificate, err error) {
	switch o.Method {
	case "token":
		token, err = readEvidence(o)
		return token, nil, err
	case "possession":
		inUse, err = o.Cassandra()
		return nil, inUse, err
	}
	return nil, nil, fault.New(fault.Invalid, "unknown-method", "joining by %q is not known", o.Method).Do("set join.method: token, or possession, in agent.yaml")
}

func readEvidence(o Options) ([]byte, error) {
	missing := func(err error) error {
		return fault.Wrap(err, fault.Invalid, "no-token", "the join token cannot be read").
			Do("put the token that `csm cluster join-command` prints into the file that join.file in agent.yaml names, readable by the agent's user alone")
	}
	fi, err := os.Stat(o.EvidenceFile)
	if err != nil {
		return nil, missing(err)
	}
	if fi.Size() > maxEvidence {
		return nil, fault.New(fault.Invalid, "no-token", "%s is larger than a token can be", o.EvidenceFile).Do("name the file that holds the token alone")
	}
	b, err := os.ReadFile(o.EvidenceFile)
	if err != nil {
		return nil, missing(err)
	}
	t := []byte(strings.TrimSpace(string(b)))
	clear(b)
	if len(t) == 0 {
		return nil, fault.New(fault.Invalid, "no-token", "%s is empty", o.EvidenceFile).Do("put the token in it")
	}
	return t, nil
}

func ask(ctx context.Context, address string, conf *tls.Config, through sync.Dialer, req *agentv1.JoinRequest, inUse *tls.Certificate) (*agentv1.JoinResponse, error) {
	// grpc tells a failed handshake as text only; the reason is wanted as it is.
	var refused error
	c := conf.Clone()
	c.VerifyConnection = func(cs tls.ConnectionState) error {
		refused = conf.VerifyConnection(cs)
		return refused
	}
	b := &bound{TransportCredentials: credentials.NewTLS(c)}
	conn, err := sync.Dial(address, b, through)
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	ctx, cancel := context.WithTimeout(ctx, joinFor)
	defer cancel()
	if inUse != nil {
		if err := prove(ctx, b, conn, req, inUse); err != nil {
			if refused != nil {
				return nil, refused
			}
			return nil, err
		}
	}
	r, err := agentv1.NewAgentServiceClient(conn).Join(ctx, req)
	if err != nil && refused != nil {
		return nil, refused
	}
	if err != nil {
		if _, ok := status.FromError(err); ok {
			return nil, fault.FromGRPC(err)
		}
		return nil, fault.From(err)
	}
	return r, nil
}

func keep(f *state.Folder, key crypto.Signer, r *agentv1.JoinResponse, o Options) (*state.Identity, error) {
	id := &state.Identity{Node: r.Node, UID: r.Uid, Incarnation: r.Incarnation, TrustDomain: r.TrustDomain, Key: key}
	if err := accept(id, r.Chain, r.Bundle, o.Now(), o.Jitter()); err != nil {
		return nil, err
	}
	pin, err := identity.ParsePin(o.Pin)
	if err != nil {
		return nil, err
	}
	if _, err := identity.PinnedRoot(id.Bundle, pin); err != nil {
		return nil, err
	}
	return id, f.SaveIdentity(id)
}

// accept checks an answer against the key and the identity that it must be for, and fills in chain, bundle and renewal time.
func accept(id *state.Identity, chain, bundle [][]byte, now time.Time, jitter float64) error {
	bad := func(err error, what string) error {
		return fault.Wrap(err, fault.Internal, "bad-identity", "the identity that the controller sent cannot be used: %s", what).Do("compare the versions of agent and controller")
	}
	var err error
	if id.Chain, err = certificate.ParseChain(chain); err != nil {
		return bad(err, "its chain")
	}
	if len(bundle) == 0 {
		return fault.New(fault.Internal, "bad-identity", "the controller sent no system bundle")
	}
	if id.Bundle, err = certificate.ParseAll(bundle); err != nil {
		return bad(err, "its bundle")
	}
	leaf := id.Chain[0]
	if !certificate.SameKey(leaf.PublicKey, id.Key.Public()) {
		return fault.New(fault.Internal, "bad-identity", "the certificate that the controller sent is for another key")
	}
	v := identity.Verifier{Roots: func() []*x509.Certificate { return id.Bundle }, TrustDomain: id.TrustDomain, Kinds: []identity.Kind{identity.Agent}, Now: func() time.Time { return now }}
	who, err := v.Verify(id.Chain)
	if err != nil {
		return bad(err, "its certificate")
	}
	if uid, inc, err := who.AgentParts(); err != nil || uid != id.UID || inc != id.Incarnation {
		return fault.New(fault.Internal, "bad-identity", "the certificate that the controller sent is for %s, not for %s/%d", who, id.UID, id.Incarnation)
	}
	id.RenewAt = RenewAt(leaf.NotBefore, leaf.NotAfter, jitter)
	return nil
}

// RenewAt draws when to renew: at 60 to 70 % of the lifetime, once for each certificate, so that agents that joined
// together do not come back together.
func RenewAt(notBefore, notAfter time.Time, jitter float64) time.Time {
	life := notAfter.Sub(notBefore)
	return notBefore.Add(time.Duration(float64(life) * (0.60 + 0.10*jitter)))
}

// Caller runs a call on a live connection; *sync.Client is one.
type Caller interface {
	Call(ctx context.Context, call func(context.Context, agentv1.AgentServiceClient) error) error
}

// Renew replaces the identity by one for a new key.
func Renew(ctx context.Context, f *state.Folder, c Caller, now time.Time, jitter float64) (*state.Identity, error) {
	old := f.Identity()
	key, err := f.NextKey()
	if err != nil {
		return nil, err
	}
	csr, err := certificate.NewRequest(key, certificate.Names{})
	if err != nil {
		return nil, err
	}
	var r *agentv1.RenewIdentityResponse
	if err := c.Call(ctx, func(ctx context.Context, s agentv1.AgentServiceClient) (err error) {
		r, err = s.RenewIdentity(ctx, &agentv1.RenewIdentityRequest{Csr: csr})
		return err
	}); err != nil {
		return nil, err
	}
	id := &state.Identity{Node: old.Node, UID: old.UID, Incarnation: old.Incarnation, TrustDomain: old.TrustDomain, Key: key}
	if err := accept(id, r.Chain, r.Bundle, now, jitter); err != nil {
		return nil, err
	}
	return id, f.SaveIdentity(id)
}
