package server

import (
	"context"
	"crypto/x509"
	"encoding/hex"
	"slices"
	"time"

	"github.com/cassandra-security-manager/csm/controller/api/agentapi"
	"github.com/cassandra-security-manager/csm/controller/tickets"
	"github.com/cassandra-security-manager/csm/shared/certificate"
	"github.com/cassandra-security-manager/csm/shared/fault"
	"github.com/cassandra-security-manager/csm/shared/identity"
	"github.com/cassandra-security-manager/csm/shared/resource"
)

// unsealLoop opens the keyring as soon as a data key is wrapped to this controller, and again whenever wraps change.
func (s *Server) unsealLoop(ctx context.Context) error {
	w := s.dom.store.Watch("system/")
	defer w.Close()
	reported := false
	for {
		retry := time.Minute
		err := s.dom.keyring.Unseal(ctx)
		switch {
		case err == nil && !reported:
			if err = s.dom.node.ReportUnsealed(ctx); err == nil {
				reported = true
				s.log.Info("keyring open")
			} else {
				retry = 2 * time.Second
			}
		case fault.HasReason(err, "not-wrapped"):
			s.log.Debug("no data key is wrapped to this controller yet")
		case err != nil:
			s.log.Warn("keyring stays closed", "error", err)
			retry = 5 * time.Second
		}
		if reported {
			retry = time.Hour
		}
		if !wait(ctx, w.C(), retry) {
			return nil
		}
	}
}

// withoutLeader is how long this controller may be cut off from a leader before its agents are sent to another one, which
// may have a quorum.
const withoutLeader = 20 * time.Second

// agentsLoop keeps agents from staying with a controller that can do nothing for them.
func (s *Server) agentsLoop(ctx context.Context, agents *agentapi.Server) error {
	for wait(ctx, nil, withoutLeader/4) {
		if age := s.dom.node.Age(); age > withoutLeader {
			if n := agents.SendAway(); n > 0 {
				s.log.Warn("no leader for a while: agents are sent to other controllers", "agents", n)
			}
		}
	}
	return nil
}

// ticketLoop keeps the keys of session tickets in use that the state holds, and lets the leader turn them.
func (s *Server) ticketLoop(ctx context.Context) error {
	w := s.dom.store.Watch(tickets.Name)
	defer w.Close()
	for ok := true; ok; {
		retry := time.Minute
		if !s.dom.keyring.Unsealed() {
			retry = time.Second
		} else if err := s.dom.tickets.Load(ctx); err != nil && ctx.Err() == nil {
			s.log.Warn("session tickets of other controllers are not taken", "error", err)
		} else if s.dom.node.IsLeader() {
			if err := s.dom.tickets.Turn(ctx); err != nil && ctx.Err() == nil {
				s.log.Warn("the key of session tickets is not turned", "error", err)
				retry = 5 * time.Second
			}
		}
		ok = wait(ctx, w.C(), retry)
	}
	return nil
}

// freezeLoop lets the leader say what will expire under a freeze.
func (s *Server) freezeLoop(ctx context.Context) error {
	for wait(ctx, nil, time.Minute) {
		if !s.dom.node.IsLeader() {
			continue
		}
		if err := s.dom.fleet.WatchFreezes(ctx); err != nil && ctx.Err() == nil {
			s.log.Warn("what expires under a freeze is not said yet", "error", err)
		}
	}
	return nil
}

// rolloutLoop lets the leader look whether a rollout can go on: most of them do so with an agent's report, the rest with time.
func (s *Server) rolloutLoop(ctx context.Context) error {
	for wait(ctx, nil, time.Second) {
		if !s.dom.node.IsLeader() {
			continue
		}
		if err := s.dom.rollouts.Watch(ctx); err != nil && ctx.Err() == nil {
			s.log.Warn("a rollout could not be looked at", "error", err)
		}
	}
	return nil
}

// rotationLoop lets the leader look whether a rotation can go on. What it proposes, Apply decides again.
func (s *Server) rotationLoop(ctx context.Context) error {
	for wait(ctx, nil, time.Second) {
		if !s.dom.node.IsLeader() {
			continue
		}
		if err := s.dom.rotations.Watch(ctx); err != nil && ctx.Err() == nil {
			s.log.Warn("a rotation could not be looked at", "error", err)
		}
	}
	return nil
}

// wait returns when the channel wakes or the time is over; false when the context ended.
func wait(ctx context.Context, wake <-chan struct{}, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-wake:
	case <-t.C:
	}
	return true
}

// identityLoop renews this controller's certificate at two thirds of its life and follows the system bundle.
func (s *Server) identityLoop(ctx context.Context) error {
	w := s.dom.store.Watch("system/")
	defer w.Close()
	for {
		if err := s.followBundle(ctx); err != nil {
			s.log.Warn("the system bundle cannot be read", "error", err)
		}
		next := 12 * time.Hour
		moves, err := s.hasTurn(ctx)
		if err != nil {
			s.log.Warn("it is not known whether another root signs", "error", err)
		}
		if due := s.id.leaf().NotBefore.Add(identityRenewAt); moves || time.Now().After(due) {
			if err := s.renewIdentity(ctx); err != nil {
				s.log.Warn("this controller's certificate is not renewed yet", "not_after", s.id.leaf().NotAfter, "error", err)
				next = time.Minute
				if moves || time.Now().After(s.id.leaf().NotAfter) {
					// Agents and administrators do not trust an expired controller: after a long absence this is urgent. So is a turn
					// for which the others wait.
					next = 2 * time.Second
				}
			}
		} else {
			next = min(next, time.Until(due)+time.Second)
		}
		if !wait(ctx, w.C(), next) {
			return nil
		}
	}
}

// followBundle takes the roots that the state trusts, and what leads between them, into every listener and dialler.
func (s *Server) followBundle(ctx context.Context) error {
	w, err := s.dom.systemCA.Wish(ctx)
	if err != nil {
		return err
	}
	bundle, err := s.dom.authorities.SystemBundle(ctx)
	if err != nil {
		return err
	}
	var cross []*x509.Certificate
	if len(w.Cross) > 0 {
		if cross, err = parseAll(w.Cross); err != nil {
			return err
		}
	}
	now := s.id.current.Load()
	if len(bundle) == 0 || slices.EqualFunc(bundle, now.bundle, (*x509.Certificate).Equal) && slices.EqualFunc(cross, now.cross, (*x509.Certificate).Equal) {
		return nil
	}
	chain, _, err := s.id.dir.readChain()
	if err != nil {
		return err
	}
	s.log.Info("the system bundle changed", "certificates", len(bundle))
	return s.id.follow(chain, bundle, cross)
}

// hasTurn says whether this controller is to take an identity of another root now.
func (s *Server) hasTurn(ctx context.Context) (bool, error) {
	w, err := s.dom.systemCA.Wish(ctx)
	if err != nil || !w.Moves(resource.Controller(s.in.Name)) {
		return false, err
	}
	return w.Due(identity.ControllerID(s.in.trustDomain(), s.in.Name).String(), s.id.leaf()), nil
}

func (s *Server) renewIdentity(ctx context.Context) error {
	csr, err := certificate.NewRequest(s.id.key, certificate.Names{})
	if err != nil {
		return err
	}
	serial := s.id.leaf().SerialNumber.Bytes()
	chain, bundle, err := s.issueController(ctx, s.in.Name, csr, "renew-"+hex.EncodeToString(serial[:min(len(serial), 12)]))
	if err != nil {
		return err
	}
	return s.id.replace(chain, bundle)
}

// signController signs the request of an approved joiner. The request id is made of its key, so that a lost answer is
// answered the same.
func (s *Server) signController(ctx context.Context, name string, csr []byte) (chain, bundle [][]byte, err error) {
	req, err := certificate.ParseRequest(csr)
	if err != nil {
		return nil, nil, err
	}
	key, err := keyHash(req.PublicKey)
	if err != nil {
		return nil, nil, err
	}
	return s.issueController(ctx, name, csr, "join-"+hex.EncodeToString(key[:16]))
}

func (s *Server) issueController(ctx context.Context, name string, csr []byte, requestID string) (chain, bundle [][]byte, err error) {
	id := identity.ControllerID(s.in.trustDomain(), name)
	return s.dom.issuance.IssueIdentity(ctx, id, csr, id.String(), requestID)
}
