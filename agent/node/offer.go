package node

import (
	"context"
	"crypto"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"sync"
	"time"

	"github.com/cassandra-security-manager/csm/agent/cassandra"
	agentv1 "github.com/cassandra-security-manager/csm/protocol/agent/v1"
	"github.com/cassandra-security-manager/csm/shared/algorithm"
	"github.com/cassandra-security-manager/csm/shared/certificate"
	"github.com/cassandra-security-manager/csm/shared/fault"
)

// offers are certificates of other authorities that this node may offer to its neighbours' ports. Their keys are nowhere
// but here, and end with the process; the certificates live for minutes.
type offers struct {
	mu   sync.Mutex
	held map[string]*tls.Certificate // by authority
}

// offerLeft is how much of its life a held certificate must have left to be offered.
const offerLeft = 2 * time.Minute

func (o *offers) get(authority string, now time.Time) *tls.Certificate {
	o.mu.Lock()
	defer o.mu.Unlock()
	for a, c := range o.held {
		if now.Add(offerLeft).After(c.Leaf.NotAfter) {
			delete(o.held, a)
		}
	}
	return o.held[authority]
}

func (o *offers) keep(authority string, c *tls.Certificate) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.held == nil {
		o.held = map[string]*tls.Certificate{}
	}
	o.held[authority] = c
}

// offered is the certificate that a task is answered with: the node's own, or one of the authority that the task names.
func (n *Node) offered(ctx context.Context, inst *cassandra.Instance, t *agentv1.ProofTask) (*tls.Certificate, error) {
	if t.Authority == "" {
		return ownCertificate(inst, t.GetPort().GetKind())
	}
	if c := n.offers.get(t.Authority, n.now()); c != nil {
		return c, nil
	}
	c, err := n.askOffer(ctx, t)
	if err != nil {
		return nil, err
	}
	n.offers.keep(t.Authority, c)
	return c, nil
}

// askOffer makes a key and has it signed for the task.
func (n *Node) askOffer(ctx context.Context, t *agentv1.ProofTask) (*tls.Certificate, error) {
	key, err := algorithm.Generate(algorithm.Default, rand.Reader)
	if err != nil {
		return nil, err
	}
	csr, err := certificate.NewRequest(key, certificate.Names{})
	if err != nil {
		return nil, err
	}
	var r *agentv1.IssueProbeResponse
	if err := n.call(ctx, n.o.ClaimFor, func(ctx context.Context, c agentv1.AgentServiceClient) (err error) {
		r, err = c.IssueProbe(ctx, &agentv1.IssueProbeRequest{Task: t.Task, Csr: csr})
		return err
	}); err != nil {
		return nil, err
	}
	chain, err := certificate.ParseChain(r.GetChain())
	if err != nil {
		return nil, err
	}
	return offerOf(key, chain, n.now())
}

// offerOf puts key and chain together, and refuses what must not be shown to a neighbour's port: each refusal is an ERROR in
// its log.
func offerOf(key crypto.Signer, chain []*x509.Certificate, now time.Time) (*tls.Certificate, error) {
	leaf := chain[0]
	switch {
	case !certificate.SameKey(key.Public(), leaf.PublicKey):
		return nil, fault.New(fault.Refused, "bad-offer", "the certificate to offer is for another key than the one it was asked for")
	case !usable(leaf) || leaf.IsCA || now.Before(leaf.NotBefore) || now.After(leaf.NotAfter):
		return nil, fault.New(fault.Refused, "bad-offer", "the certificate to offer is not for a client now")
	}
	c := &tls.Certificate{PrivateKey: key, Leaf: leaf}
	for _, x := range chain {
		c.Certificate = append(c.Certificate, x.Raw)
	}
	return c, nil
}
