package rest

import (
	"context"
	"net/http"

	"github.com/danielgtaylor/huma/v2"

	"github.com/cassandra-security-manager/csm/controller/fleet"
	"github.com/cassandra-security-manager/csm/shared/resource"
)

// Tenant is an owner of clusters.
type Tenant struct {
	fleet.Tenant
	ETag  string `json:"etag"`
	State string `json:"state" enum:"active,frozen"`
}

func tenantOf(t fleet.Tenant) Tenant {
	return Tenant{Tenant: t, ETag: frozenETag(0, t.Frozen), State: frozenState(t.Frozen)}
}

func (s *server) tenants() {
	handle(s, huma.Operation{OperationID: "getTenant", Method: http.MethodGet, Path: "/v1/tenants/{tenant}", Tags: []string{"tenants"}, Summary: "Get a tenant"}, "tenant:get",
		func(ctx context.Context, in *struct {
			TenantPath
			Read
		}) (*One[Tenant], error) {
			return s.oneTenant(ctx, resource.Tenant(in.Tenant))
		})
	s.tenantVerb("freezeTenant", "freeze", "Let no effect begin on any node of the tenant", func(ctx context.Context, name string, w Why) error {
		return s.Fleet.Freeze(ctx, name, w.Reason, w.Until, actor(ctx))
	})
	s.tenantVerb("unfreezeTenant", "unfreeze", "Lift the freeze of this tenant; wider and narrower ones stay", func(ctx context.Context, name string, w Why) error {
		return s.Fleet.Unfreeze(ctx, name, w.Reason, actor(ctx))
	})
}

func (s *server) tenantVerb(id, verb, summary string, do func(ctx context.Context, name string, w Why) error) {
	handle(s, huma.Operation{OperationID: id, Method: http.MethodPost, Path: "/v1/tenants/{tenant}:" + verb, Tags: []string{"tenants"}, Summary: summary}, "tenant:"+verb,
		func(ctx context.Context, in *struct {
			TenantPath
			Created
			Body Why
		}) (*One[Tenant], error) {
			name := resource.Tenant(in.Tenant)
			if !in.ValidateOnly {
				if err := do(ctx, name, in.Body); err != nil {
					return nil, err
				}
			}
			return s.oneTenant(ctx, name)
		})
}

func (s *server) oneTenant(ctx context.Context, name string) (*One[Tenant], error) {
	t, err := s.Fleet.GetTenant(ctx, name)
	out := tenantOf(t)
	return &One[Tenant]{ETag: out.ETag, Body: out}, err
}
