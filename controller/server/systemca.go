package server

import (
	"context"
	"crypto/x509"
	"time"

	"github.com/cassandra-security-manager/csm/controller/api/agentapi"
	"github.com/cassandra-security-manager/csm/controller/systemca"
	"github.com/cassandra-security-manager/csm/shared/identity"
)

// systemCALoop does this controller's part in a rotation of the system CA: it tells what it sees of the other controllers and of the agents
// that are connected here, tells these what to do, and lets the leader look whether the rotation can go on.
func (s *Server) systemCALoop(ctx context.Context, agents *agentapi.Server) error {
	for wait(ctx, nil, time.Second) {
		if err := s.systemCATick(ctx, agents); err != nil && ctx.Err() == nil {
			s.log.Warn("the rotation of the system CA could not be served", "error", err)
		}
	}
	return nil
}

func (s *Server) systemCATick(ctx context.Context, agents *agentapi.Server) error {
	seen := s.dom.systemCA.Used()
	w, err := s.dom.systemCA.Wish(ctx)
	if err != nil {
		return err
	}
	if err := agents.Succeed(ctx, w); err != nil || !w.Running {
		return err
	}
	for _, p := range s.dom.node.Prove(ctx) {
		seen = append(seen, systemca.Sighting{Identity: identity.ControllerID(s.in.trustDomain(), p.Name).String(), Leaf: p.Leaf, Trusts: p.Trusts})
	}
	if err := s.dom.systemCA.Saw(ctx, s.in.Name, true, seen); err != nil {
		return err
	}
	if !s.dom.node.IsLeader() {
		return nil
	}
	return s.dom.systemCA.Watch(ctx)
}

// retiredRoots are those that the agents' port knows only to say what became of them.
func (s *Server) retiredRoots() []*x509.Certificate {
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	w, err := s.dom.systemCA.Wish(ctx)
	if err != nil {
		return nil
	}
	return w.Retired
}
