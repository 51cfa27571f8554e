package rest

import (
	"context"
	"net/http"

	"github.com/danielgtaylor/huma/v2"

	"github.com/cassandra-security-manager/csm/controller/fleet"
	"github.com/cassandra-security-manager/csm/shared/fault"
	"github.com/cassandra-security-manager/csm/shared/resource"
)

// ResumeBody lets a suspended agent work again.
type ResumeBody struct {
	ReasonBody
	Keep string `json:"keep,omitempty" maxLength:"64" pattern:"^[0-9a-fA-F]*$" doc:"when two machines came with one identity: the one that stays, by the beginning of its hash"`
}

// ReplaceBody gives a node's name to another host.
type ReplaceBody struct {
	NamesBody
	TTL    string `json:"ttl,omitempty" doc:"how long the token for the new host lives; default 1h" example:"1h"`
	Reason string `json:"reason" minLength:"1" maxLength:"1024"`
}

// RejoinBody asks for a token by which the same host joins again.
type RejoinBody struct {
	TTL string `json:"ttl,omitempty" doc:"how long the token lives; default 1h" example:"1h"`
}

func (s *server) resumeNode() {
	handle(s, huma.Operation{OperationID: "resumeNode", Method: http.MethodPost, Path: "/v1/tenants/{tenant}/clusters/{cluster}/nodes/{node}:resume", Tags: []string{"nodes"},
		Summary: "Let a suspended agent work again"}, "node:resume",
		func(ctx context.Context, in *struct {
			NodePath
			Created
			Body ResumeBody
		}) (*One[Node], error) {
			if !in.ValidateOnly {
				do := func() error { return s.Fleet.Resume(ctx, in.name(), in.Body.Reason, actor(ctx)) }
				if in.Body.Keep != "" {
					do = func() error {
						return s.Fleet.ResumeMachine(ctx, in.name(), in.Body.Keep, in.Body.Reason, actor(ctx))
					}
				}
				if err := do(); err != nil {
					return nil, err
				}
			}
			return s.oneNode(ctx, in.name())
		})
}

// nodeTokens are the verbs whose answer is a token, shown once.
func (s *server) nodeTokens() {
	const base = "/v1/tenants/{tenant}/clusters/{cluster}/nodes/{node}"
	handle(s, huma.Operation{OperationID: "replaceNode", Method: http.MethodPost, Path: base + ":replace", Tags: []string{"nodes"},
		Summary:     "Give the node's name to another host: the old identity ends now, and a token for the new host is made",
		Description: "Names, where given, become those of the new host. The certificates of the old host stay valid until they expire or are revoked."}, "node:replace",
		func(ctx context.Context, in *struct {
			NodePath
			Created
			IfMatch string `header:"If-Match" doc:"etag that the node must still have"`
			Body    ReplaceBody
		}) (*body[JoinToken], error) {
			if err := s.matches(ctx, in.name(), in.IfMatch); err != nil {
				return nil, err
			}
			ttl, err := span("ttl", in.Body.TTL)
			if err != nil || in.ValidateOnly {
				return &body[JoinToken]{}, err
			}
			secret, t, err := s.Fleet.Replace(ctx, in.name(), fleet.Names{DNS: in.Body.DNS, IPs: in.Body.IPs}, ttl, in.Body.Reason, actor(ctx))
			return shownOnce(ctx, secret, t, err)
		})
	handle(s, huma.Operation{OperationID: "rejoinNode", Method: http.MethodPost, Path: base + ":rejoin", Tags: []string{"nodes"},
		Summary: "Make a token by which the same host joins again: its state folder is gone, or its identity is past its grace; the old identity ends when it does"}, "node:rejoin",
		func(ctx context.Context, in *struct {
			NodePath
			Created
			Body RejoinBody
		}) (*body[JoinToken], error) {
			n, err := s.Fleet.GetNode(ctx, in.name())
			if err != nil {
				return nil, err
			}
			if n.Incarnation == 0 {
				return nil, fault.New(fault.NotFound, "no-agent", "no agent has ever joined for this node").Do("let it join: `csm cluster join-command`")
			}
			ttl, err := span("ttl", in.Body.TTL)
			if err != nil || in.ValidateOnly {
				return &body[JoinToken]{}, err
			}
			secret, t, err := s.Fleet.CreateToken(ctx, resource.Parent(in.name()), fleet.TokenSpec{Node: in.Node, TTL: ttl, Rejoin: true}, actor(ctx))
			return shownOnce(ctx, secret, t, err)
		})
}

// shownOnce is the answer that holds a token: a repeated request cannot have it again.
func shownOnce(ctx context.Context, secret string, t fleet.Token, err error) (*body[JoinToken], error) {
	if err == nil && requestOf(ctx).repeated.Load() {
		err = fault.New(fault.Conflict, "token-shown", "this request made a token before, and a token is shown once").
			Do("revoke that token and ask with a new Idempotency-Key")
	}
	if err != nil {
		return nil, err
	}
	return &body[JoinToken]{JoinToken{Token: t, Secret: secret}}, nil
}
