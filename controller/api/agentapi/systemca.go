package agentapi

import (
	"bytes"
	"context"
	"crypto/sha256"
	"crypto/x509"
	"slices"
	"time"

	agentv1 "github.com/cassandra-security-manager/csm/protocol/agent/v1"

	"github.com/cassandra-security-manager/csm/controller/systemca"
	"github.com/cassandra-security-manager/csm/shared/fault"
	"github.com/cassandra-security-manager/csm/shared/resource"
)

// SystemCA is what this port needs of package systemca; *systemca.Rotations is one.
type SystemCA interface {
	Wish(ctx context.Context) (systemca.Wish, error)
	Saw(ctx context.Context, by string, keep bool, seen []systemca.Sighting) error
}

// told is what an agent was told on its stream, so that it is told once. Of the stream's goroutine alone.
type told struct {
	bundle [sha256.Size]byte
	signer string
}

// note is what of a session was told the state: what it said of its roots, during which rotation.
type note struct {
	rotation string
	trusts   *[][]byte
	at       time.Time
}

// noteAgain is when a session is looked up in the state again, should that have lost it.
const noteAgain = 30 * time.Second

// renewalPause is the time that each agent adds to the span over which all of them renew: 50 a second.
const renewalPause = 20 * time.Millisecond

// shortest is the least of such spans.
const shortestSpan = 2 * time.Second

// Succeed does what a change of the system CA asks of this port: it tells what was seen of the agents that are connected here, and wakes
// the streams that have something to say or no right to go on.
func (s *Server) Succeed(ctx context.Context, w systemca.Wish) error {
	s.mu.Lock()
	var seen []systemca.Sighting
	noted := map[*session]note{}
	now := s.Clock.Now()
	for node, x := range s.sessions {
		if x.checked != w.Signers && s.current(x.cert) != nil {
			close(x.retired)
			delete(s.sessions, node)
			continue
		}
		x.checked = w.Signers
		said := x.trusts.Load()
		trusts := *said
		if w.Running && (x.noted.rotation != w.Rotation || x.noted.trusts != said || now.Sub(x.noted.at) > noteAgain) {
			noted[x] = note{w.Rotation, said, now}
			seen = append(seen, systemca.Sighting{Identity: x.id.String(), Leaf: sha256.Sum256(x.cert.Raw), Trusts: trusts})
		}
		if !same(trusts, w.Sums) || asked(x, w) {
			poke(x.system)
		}
	}
	s.mu.Unlock()
	if s.SystemCA == nil {
		return nil
	}
	if err := s.SystemCA.Saw(ctx, s.Controller, false, seen); err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for x, n := range noted {
		x.noted = n
	}
	return nil
}

// system tells the agent which roots to trust, and to renew when another one signs.
func (p *pusher) system(ctx context.Context) error {
	if p.s.SystemCA == nil {
		return nil
	}
	w, err := p.s.SystemCA.Wish(ctx)
	if err != nil || w.Signing == nil {
		return err
	}
	c, send := &agentv1.Control{}, false
	if !same(*p.x.trusts.Load(), w.Sums) {
		h := sha256.New()
		for _, i := range w.Bundle {
			c.Bundle = append(c.Bundle, i.Certificate.Raw)
			h.Write(i.Certificate.Raw)
		}
		sum := [sha256.Size]byte(h.Sum(nil))
		send = sum != p.x.told.bundle
		p.x.told.bundle = sum
	}
	if asked(p.x, w) && p.x.told.signer != w.Signing.Name {
		p.x.told.signer, send = w.Signing.Name, true
		c.RenewWithinMs = max(shortestSpan, time.Duration(w.Agents)*renewalPause).Milliseconds()
	}
	if !send {
		return nil
	}
	return p.send(c)
}

// asked says whether an agent is to renew now.
func asked(x *session, w systemca.Wish) bool {
	return w.Moves(systemca.Agents) && w.Due(x.id.String(), x.cert)
}

// same says whether an agent trusts just the roots that it is to trust.
func same(trusts, wanted [][]byte) bool {
	if len(trusts) != len(wanted) {
		return false
	}
	for _, sum := range wanted {
		if !slices.ContainsFunc(trusts, func(t []byte) bool { return bytes.Equal(t, sum) }) {
			return false
		}
	}
	return true
}

// current refuses a leaf of a root that is trusted no more. Its handshake was let through so that it can be told why.
func (s *Server) current(leaf *x509.Certificate) error {
	if len(s.RetiredRoots()) == 0 {
		return nil
	}
	for _, r := range s.roots() {
		if leaf.CheckSignatureFrom(r) == nil {
			return nil
		}
	}
	return errRetired()
}

func errRetired() *fault.Error {
	return fault.New(fault.Unauthenticated, "identity-retired", "the identity of this agent is of a root of the system CA that is trusted no more")
}

// withNode adds the way back, with the node's name if it is known.
func (s *Server) withNode(ctx context.Context, err error, uid string, incarnation uint64) error {
	name := "NODE"
	if c, known := s.Fleet.Caller(ctx, uid, incarnation); known == nil {
		name = resource.Last(c.Cluster) + "/" + resource.Last(c.Node)
	}
	return fault.From(err).Do("`csm cluster join-command %s --rejoin`; put its token into the file of join.file and its pin into agent.yaml, remove identity.json from the state folder, and start csm-agent", name)
}
