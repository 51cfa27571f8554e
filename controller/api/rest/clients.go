package rest

import (
	"context"
	"net/http"

	"github.com/danielgtaylor/huma/v2"

	"github.com/cassandra-security-manager/csm/controller/fleet"
)

// Clients is who was seen to speak CQL to a cluster.
type Clients struct {
	Name string `json:"name"`
	fleet.SeenClients
}

// RingHealth is how a cluster's ring is, and what holds each of its nodes from being touched.
type RingHealth struct {
	Name string `json:"name"`
	fleet.RingHealth
	// Held has an entry for each enrolled node that must not be touched now.
	Held []Held `json:"held"`
}

// Held is a node that must not be touched, and why.
type Held struct {
	Node    string               `json:"node"`
	Reasons []fleet.HealthReason `json:"reasons"`
}

// Asked is a question to the agents of a cluster.
type Asked struct {
	Look uint64 `json:"look" doc:"answers to this question carry at least this number"`
}

func (s *server) seen() {
	tags := []string{"clusters"}
	handle(s, huma.Operation{OperationID: "listClusterClients", Method: http.MethodGet, Path: "/v1/tenants/{tenant}/clusters/{cluster}/clients", Tags: tags,
		Summary:     "List who was seen to speak CQL to the cluster in the last thirty days",
		Description: "Read by the agents from system_views.clients; `looks` says for each node when it looked last, and why it saw nothing."}, "cluster:listClients",
		func(ctx context.Context, in *struct {
			ClusterPath
			Read
		}) (*body[Clients], error) {
			c, err := s.Fleet.Clients(ctx, in.name())
			return &body[Clients]{Clients{Name: in.name(), SeenClients: c}}, err
		})
	handle(s, huma.Operation{OperationID: "checkClusterHealth", Method: http.MethodGet, Path: "/v1/tenants/{tenant}/clusters/{cluster}:checkHealth", Tags: tags,
		Summary:     "Say how the ring is in the eyes of its members",
		Description: "For each member what the others see: gossip, and whether a range that it owns can be read at each quorum. Judged from what the agents told last; it asks nobody."}, "cluster:checkHealth",
		func(ctx context.Context, in *struct {
			ClusterPath
			Read
		}) (*body[RingHealth], error) {
			h, err := s.Fleet.Health(ctx, in.name())
			out := RingHealth{Name: in.name(), RingHealth: h, Held: []Held{}}
			weighed := h.Weigh(fleet.HealthNeed{Look: h.Look})
			for _, m := range h.Members {
				if why := weighed.Holds(m.Node); m.Node != "" && len(why) > 0 {
					out.Held = append(out.Held, Held{m.Node, why})
				}
			}
			return &body[RingHealth]{out}, err
		})
	handle(s, huma.Operation{OperationID: "askClusterHealth", Method: http.MethodPost, Path: "/v1/tenants/{tenant}/clusters/{cluster}:askHealth", Tags: tags,
		Summary: "Have every agent of the cluster look at its ring and its clients now"}, "cluster:askHealth",
		func(ctx context.Context, in *struct {
			ClusterPath
			Created
		}) (*body[Asked], error) {
			if _, err := s.Fleet.GetCluster(ctx, in.name()); err != nil || in.ValidateOnly {
				return &body[Asked]{}, err
			}
			look, err := s.Fleet.AskHealth(ctx, in.name(), actor(ctx))
			return &body[Asked]{Asked{look}}, err
		})
}
