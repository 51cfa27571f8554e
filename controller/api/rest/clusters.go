package rest

import (
	"context"
	"fmt"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/danielgtaylor/huma/v2"

	"github.com/cassandra-security-manager/csm/controller/fleet"
	"github.com/cassandra-security-manager/csm/shared/fault"
	"github.com/cassandra-security-manager/csm/shared/resource"
)

// Cluster is one Cassandra ring.
type Cluster struct {
	fleet.Cluster
	ETag   string            `json:"etag"`
	Labels map[string]string `json:"labels,omitempty"`
	State  string            `json:"state" enum:"active,frozen,released"`
}

func clusterOf(c fleet.Cluster) Cluster {
	out := Cluster{Cluster: c, ETag: frozenETag(c.Revision, c.Frozen), State: frozenState(c.Frozen)}
	if c.Released != nil {
		out.State = "released"
	}
	return out
}

func frozenState(z *fleet.Freeze) string {
	if z != nil {
		return "frozen"
	}
	return "active"
}

// frozenETag holds the freeze too, which is no change of the resource itself, so its revision does not show it.
func frozenETag(revision uint64, z *fleet.Freeze) string {
	if z == nil {
		return etag(revision)
	}
	return strconv.Quote(fmt.Sprintf("%d-%d", revision, z.Since.UnixMilli()))
}

// etag of a revision; equal etags mean an equal resource.
func etag(revision uint64) string { return strconv.Quote(strconv.FormatUint(revision, 10)) }

// Why is the body of verbs that stop or free something.
type Why struct {
	Reason string    `json:"reason" minLength:"1" maxLength:"1024" doc:"for the audit entry and for whoever asks why nothing moves"`
	Until  time.Time `json:"until,omitzero" required:"false" doc:"lifted by itself then"`
}

type ClusterPath struct {
	TenantPath
	Cluster string `path:"cluster" maxLength:"63"`
}

func (p ClusterPath) name() string { return resource.Cluster(p.Tenant, p.Cluster) }

// Created are the parameters of every creating POST.
type Created struct {
	IdempotencyKey string `header:"Idempotency-Key" maxLength:"128" doc:"the same key again is the same request, for as long as the controllers remember it (about a minute after its deadline)"`
	ValidateOnly   bool   `query:"validateOnly" doc:"check, change nothing"`
}

// JoinTokenBody asks for a token.
type JoinTokenBody struct {
	Node   string   `json:"node" maxLength:"63" doc:"short name of the node that it is for; made if it is new"`
	DNS    []string `json:"dns,omitempty" maxItems:"64" doc:"DNS names its certificates may carry"`
	IPs    []string `json:"ips,omitempty" maxItems:"64" doc:"addresses its certificates may carry"`
	TTL    string   `json:"ttl,omitempty" doc:"time span like 1h; default 1h, at most 720h" example:"1h"`
	Uses   int      `json:"uses,omitempty" minimum:"0" maximum:"100" doc:"default 1"`
	Rejoin bool     `json:"rejoin,omitempty" doc:"replace a node that has joined before: its incarnation counts up, the old identity is revoked"`
}

// JoinToken is what is known of a token; Token is set in the answer that made it and never again.
type JoinToken struct {
	fleet.Token
	Secret string `json:"token,omitempty" doc:"shown once"`
}

func (s *server) clusters() {
	tags := []string{"clusters"}
	handle(s, s.watchable(huma.Operation{OperationID: "listClusters", Method: http.MethodGet, Path: "/v1/tenants/{tenant}/clusters", Tags: tags, Summary: "List clusters"}), "cluster:list",
		func(ctx context.Context, in *struct {
			TenantPath
			List
		}) (*PageOutput[Cluster], error) {
			if err := plainList(in.List, "clusters"); err != nil {
				return nil, err
			}
			return paged(ctx, s, in.List, clusterOf, func(token string) ([]fleet.Cluster, string, error) {
				return s.Fleet.ListClusters(ctx, in.Tenant, fleet.Page{Size: in.size(), Token: token})
			})
		})
	handle(s, huma.Operation{OperationID: "getCluster", Method: http.MethodGet, Path: "/v1/tenants/{tenant}/clusters/{cluster}", Tags: tags, Summary: "Get a cluster"}, "cluster:get",
		func(ctx context.Context, in *struct {
			ClusterPath
			Read
		}) (*One[Cluster], error) {
			return s.oneCluster(ctx, in.name())
		})
	handle(s, huma.Operation{OperationID: "createCluster", Method: http.MethodPost, Path: "/v1/tenants/{tenant}/clusters", Tags: tags, DefaultStatus: http.StatusCreated, Summary: "Create a cluster"}, "cluster:create",
		func(ctx context.Context, in *struct {
			TenantPath
			Created
			Body struct {
				ID            string `json:"id" maxLength:"63" doc:"last segment of its name"`
				Authority     string `json:"authority" maxLength:"256" doc:"authority that signs for its nodes; name or id"`
				CassandraName string `json:"cassandraName,omitempty" maxLength:"256" doc:"cluster_name of cassandra.yaml; joins with another are refused"`
				Region        string `json:"region,omitempty" maxLength:"63" doc:"prefer issuers of this region"`
			}
		}) (*One[Cluster], error) {
			spec := fleet.ClusterSpec{Name: resource.Cluster(in.Tenant, in.Body.ID), CassandraName: in.Body.CassandraName,
				Authority: s.fullName(in.Tenant, "authority", in.Body.Authority), Region: in.Body.Region}
			if in.ValidateOnly {
				return s.validateCluster(ctx, spec)
			}
			c, err := s.Fleet.CreateCluster(ctx, spec, actor(ctx))
			out := clusterOf(c)
			return &One[Cluster]{ETag: out.ETag, Body: out}, err
		})
	s.clusterVerb("freezeCluster", "freeze", "Let no effect begin on any node of the cluster", func(ctx context.Context, name string, w Why) error {
		return s.Fleet.Freeze(ctx, name, w.Reason, w.Until, actor(ctx))
	})
	s.clusterVerb("unfreezeCluster", "unfreeze", "Lift the freeze of this cluster; wider and narrower ones stay", func(ctx context.Context, name string, w Why) error {
		return s.Fleet.Unfreeze(ctx, name, w.Reason, actor(ctx))
	})
	s.clusterVerb("growClusterTrust", "growTrust", "Trust the new anchors of the cluster's authority too; each store moves, one node at a time", func(ctx context.Context, name string, _ Why) error {
		_, err := s.Fleet.GrowTrust(ctx, name, actor(ctx))
		return err
	})
	s.clusterVerb("onboardCluster", "onboard", "Let stores of another CA take our anchors beside theirs, one node at a time; their leaves stay", func(ctx context.Context, name string, w Why) error {
		return s.Fleet.Onboard(ctx, name, w.Reason, actor(ctx))
	})
	s.clusterVerb("releaseCluster", "release", "Let the cluster go for good: files stay, nothing on its nodes is changed any more", func(ctx context.Context, name string, w Why) error {
		return s.Fleet.Release(ctx, name, w.Reason, actor(ctx))
	})
	s.joinTokens()
}

func (s *server) clusterVerb(id, verb, summary string, do func(ctx context.Context, name string, w Why) error) {
	handle(s, huma.Operation{OperationID: id, Method: http.MethodPost, Path: "/v1/tenants/{tenant}/clusters/{cluster}:" + verb, Tags: []string{"clusters"}, Summary: summary}, "cluster:"+verb,
		func(ctx context.Context, in *struct {
			ClusterPath
			Created
			Body Why
		}) (*One[Cluster], error) {
			if _, err := s.Fleet.GetCluster(ctx, in.name()); err != nil {
				return nil, err
			}
			if !in.ValidateOnly {
				if err := do(ctx, in.name(), in.Body); err != nil {
					return nil, err
				}
			}
			return s.oneCluster(ctx, in.name())
		})
}

func (s *server) oneCluster(ctx context.Context, name string) (*One[Cluster], error) {
	c, err := s.Fleet.GetCluster(ctx, name)
	out := clusterOf(c)
	return &One[Cluster]{ETag: out.ETag, Body: out}, err
}

// validateCluster checks what can be checked without changing anything; the decision is made by Apply.
func (s *server) validateCluster(ctx context.Context, spec fleet.ClusterSpec) (*One[Cluster], error) {
	if err := resource.CheckID("cluster", resource.Last(spec.Name)); err != nil {
		return nil, err
	}
	if _, err := s.Authorities.Get(ctx, spec.Authority); err != nil {
		return nil, err
	}
	if _, err := s.Fleet.GetCluster(ctx, spec.Name); err == nil {
		return nil, fault.New(fault.Conflict, "cluster-exists", "the cluster %s exists already", spec.Name).Do("choose another name")
	} else if !fault.Is(err, fault.NotFound) {
		return nil, err
	}
	out := Cluster{Cluster: fleet.Cluster{Name: spec.Name, Authority: spec.Authority, CassandraName: spec.CassandraName, Region: spec.Region}, State: "active"}
	return &One[Cluster]{Body: out}, nil
}

// plainList refuses what a short list does not do, instead of ignoring it.
func plainList(l List, what string) error {
	if l.Filter != "" || (l.OrderBy != "" && l.OrderBy != "name") {
		return fault.New(fault.Invalid, "bad-filter", "%s are neither filtered nor ordered", what).Do("leave filter and orderBy out; they come by name")
	}
	return nil
}

func (s *server) joinTokens() {
	tags := []string{"clusters"}
	handle(s, s.watchable(huma.Operation{OperationID: "listJoinTokens", Method: http.MethodGet, Path: "/v1/tenants/{tenant}/clusters/{cluster}/joinTokens", Tags: tags,
		Summary: "List the join tokens of a cluster; the tokens themselves are kept by nobody"}), "joinToken:list",
		func(ctx context.Context, in *struct {
			ClusterPath
			List
		}) (*PageOutput[JoinToken], error) {
			if err := plainList(in.List, "join tokens"); err != nil {
				return nil, err
			}
			all, err := s.Fleet.ListTokens(ctx, in.name())
			if err != nil {
				return nil, err
			}
			return paged(ctx, s, in.List, func(t fleet.Token) JoinToken { return JoinToken{Token: t} }, func(token string) ([]fleet.Token, string, error) {
				page, next := slicePage(byName(all, func(t fleet.Token) string { return t.Name }), func(t fleet.Token) string { return t.Name }, in.size(), token)
				return page, next, nil
			})
		})
	handle(s, huma.Operation{OperationID: "createJoinToken", Method: http.MethodPost, Path: "/v1/tenants/{tenant}/clusters/{cluster}/joinTokens", Tags: tags, DefaultStatus: http.StatusCreated,
		Summary: "Create a one-time token by which the agent of one node joins"}, "joinToken:create",
		func(ctx context.Context, in *struct {
			ClusterPath
			Created
			Body JoinTokenBody
		}) (*body[JoinToken], error) {
			spec, err := in.Body.spec()
			if err != nil {
				return nil, err
			}
			if in.ValidateOnly {
				_, err := s.Fleet.GetCluster(ctx, in.name())
				return &body[JoinToken]{}, err
			}
			secret, t, err := s.Fleet.CreateToken(ctx, in.name(), spec, actor(ctx))
			if requestOf(ctx).repeated.Load() {
				return nil, fault.New(fault.Conflict, "token-shown", "this request made a token before, and a token is shown once").
					Do("revoke that token and ask with a new Idempotency-Key")
			}
			return &body[JoinToken]{JoinToken{Token: t, Secret: secret}}, err
		})
	handle(s, huma.Operation{OperationID: "revokeJoinToken", Method: http.MethodPost, Path: "/v1/tenants/{tenant}/clusters/{cluster}/joinTokens/{token}:revoke", Tags: tags,
		Summary: "Make a token useless; who has joined by it stays"}, "joinToken:revoke",
		func(ctx context.Context, in *struct {
			ClusterPath
			Token string `path:"token" maxLength:"63"`
		}) (*body[JoinToken], error) {
			name := resource.JoinToken(in.name(), in.Token)
			if err := s.Fleet.RevokeToken(ctx, name, actor(ctx)); err != nil {
				return nil, err
			}
			t, err := s.Fleet.GetToken(ctx, name)
			return &body[JoinToken]{JoinToken{Token: t}}, err
		})
}

func (b JoinTokenBody) spec() (fleet.TokenSpec, error) {
	spec := fleet.TokenSpec{Node: b.Node, Names: fleet.Names{DNS: b.DNS, IPs: b.IPs}, Uses: b.Uses, Rejoin: b.Rejoin}
	var err error
	spec.TTL, err = span("ttl", b.TTL)
	return spec, err
}

func span(field, v string) (time.Duration, error) {
	if v == "" {
		return 0, nil
	}
	d, err := time.ParseDuration(v)
	if err != nil || d <= 0 {
		return 0, fault.New(fault.Invalid, "bad-"+field, "%s: %.40q is not a time span", field, v).Do("write it like 30m, 1h or 720h")
	}
	return d, nil
}

func byName[T any](all []T, name func(T) string) []T {
	return slices.SortedFunc(slices.Values(all), func(a, b T) int { return strings.Compare(name(a), name(b)) })
}
