package rest

import (
	"context"
	"net/http"

	"github.com/danielgtaylor/huma/v2"

	"github.com/cassandra-security-manager/csm/controller/fleet"
	"github.com/cassandra-security-manager/csm/shared/fault"
	"github.com/cassandra-security-manager/csm/shared/resource"
)

// JoinRequest is a join that no rule covers; a person decides.
type JoinRequest struct {
	fleet.JoinRequest
	ETag string `json:"etag"`
}

func joinRequestOf(r fleet.JoinRequest) JoinRequest {
	return JoinRequest{JoinRequest: r, ETag: etag(r.Revision)}
}

type RequestPath struct {
	TenantPath
	Request string `path:"request" maxLength:"63"`
}

func (p RequestPath) name() string { return resource.JoinRequest(p.Tenant, p.Request) }

// Word is a decision's reason; it may be left out of an approval.
type Word struct {
	Reason string `json:"reason,omitempty" maxLength:"1024" doc:"for the audit entry, and for the agent that is denied"`
}

func (s *server) requests() {
	tags := []string{"requests"}
	const base = "/v1/tenants/{tenant}/requests"
	handle(s, s.watchable(huma.Operation{OperationID: "listRequests", Method: http.MethodGet, Path: base, Tags: tags, Summary: "List joins that wait, or waited, for a person's decision"}), "request:list",
		func(ctx context.Context, in *struct {
			TenantPath
			List
		}) (*PageOutput[JoinRequest], error) {
			if err := plainList(in.List, "requests"); err != nil {
				return nil, err
			}
			all, err := s.Fleet.ListJoinRequests(ctx, in.Tenant)
			return listed(ctx, s, in.List, all, err, joinRequestOf, func(r fleet.JoinRequest) string { return r.Name })
		})
	handle(s, huma.Operation{OperationID: "getRequest", Method: http.MethodGet, Path: base + "/{request}", Tags: tags, Summary: "Get a request: who asks for what, and why the rule does not cover it"}, "request:get",
		func(ctx context.Context, in *struct {
			RequestPath
			Read
		}) (*One[JoinRequest], error) {
			return oneRequest(s.Fleet.GetJoinRequest(ctx, in.name()))
		})
	for verb, approve := range map[string]bool{"approve": true, "deny": false} {
		summary := map[bool]string{true: "Approve a join; the agent gets its identity when it asks again", false: "Deny a join; the agent is told why"}[approve]
		handle(s, huma.Operation{OperationID: verb + "Request", Method: http.MethodPost, Path: base + "/{request}:" + verb, Tags: tags, Summary: summary}, "request:"+verb,
			func(ctx context.Context, in *struct {
				RequestPath
				Created
				Body Word
			}) (*One[JoinRequest], error) {
				if in.ValidateOnly {
					return oneRequest(s.Fleet.GetJoinRequest(ctx, in.name()))
				}
				return oneRequest(s.Fleet.DecideJoin(ctx, in.name(), approve, in.Body.Reason, actor(ctx)))
			})
	}
	handle(s, huma.Operation{OperationID: "approveNode", Method: http.MethodPost, Path: "/v1/tenants/{tenant}/clusters/{cluster}/nodes/{node}:approve", Tags: tags,
		Summary: "Approve the one pending request to join as this node"}, "node:approve",
		func(ctx context.Context, in *struct {
			NodePath
			Created
			Body Word
		}) (*One[JoinRequest], error) {
			r, err := s.pendingFor(ctx, in.Tenant, in.name())
			if err != nil || in.ValidateOnly {
				return oneRequest(r, err)
			}
			return oneRequest(s.Fleet.DecideJoin(ctx, r.Name, true, in.Body.Reason, actor(ctx)))
		})
}

func oneRequest(r fleet.JoinRequest, err error) (*One[JoinRequest], error) {
	return &One[JoinRequest]{ETag: etag(r.Revision), Body: joinRequestOf(r)}, err
}

// pendingFor finds the request of a node. Of several a person must choose: two hosts want to be the same node.
func (s *server) pendingFor(ctx context.Context, tenant, node string) (fleet.JoinRequest, error) {
	all, err := s.Fleet.ListJoinRequests(ctx, tenant)
	if err != nil {
		return fleet.JoinRequest{}, err
	}
	var found []fleet.JoinRequest
	var last fleet.JoinRequest
	for _, r := range all {
		if r.Node != node {
			continue
		}
		if last = r; r.State == "pending" {
			found = append(found, r)
		}
	}
	switch {
	case len(found) == 1:
		return found[0], nil
	case len(found) > 1:
		return fleet.JoinRequest{}, fault.New(fault.Conflict, "requests-differ", "%d hosts ask to be %s", len(found), node).
			Do("compare them with `csm request list`, deny the wrong one, approve the right one by `csm request approve`")
	case last.Name != "":
		return fleet.JoinRequest{}, fault.New(fault.Conflict, "request-decided", "the request of %s is %s", node, last.State).Do("see `csm request get %s`", resource.Last(last.Name))
	}
	return fleet.JoinRequest{}, fault.New(fault.NotFound, "no-request", "nobody asks to be %s", node).Do("see `csm request list`")
}
