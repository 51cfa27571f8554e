package rest

import (
	"context"
	"net/http"
	"time"

	"github.com/danielgtaylor/huma/v2"

	"github.com/cassandra-security-manager/csm/controller/fleet"
	"github.com/cassandra-security-manager/csm/shared/certificate"
	"github.com/cassandra-security-manager/csm/shared/fault"
	"github.com/cassandra-security-manager/csm/shared/resource"
)

type TrustDomainPath struct {
	TenantPath
	TrustDomain string `path:"trustDomain" maxLength:"63"`
}

func (p TrustDomainPath) name() string { return resource.TrustDomain(p.Tenant, p.TrustDomain) }

type AnchorPath struct {
	TrustDomainPath
	Anchor string `path:"anchor" maxLength:"64"`
}

func (p AnchorPath) name() string { return resource.Anchor(p.TrustDomainPath.name(), p.Anchor) }

// AnchorBody registers a CA that CSM does not own.
type AnchorBody struct {
	PEM     string     `json:"pem" maxLength:"65536" doc:"the CA certificate"`
	Owner   string     `json:"owner" minLength:"1" maxLength:"256" doc:"team or person who runs that CA"`
	Reason  string     `json:"reason" minLength:"1" maxLength:"1024"`
	Expires time.Time  `json:"expireTime" doc:"joining by it ends then"`
	Rule    fleet.Rule `json:"rule,omitempty" required:"false" doc:"which names a node may get without a person's approval; without it each join is asked"`
}

// TrustDomain is the trust between the nodes of one cluster.
type TrustDomain struct {
	fleet.TrustDomain
	ETag string `json:"etag"`
}

func trustDomainOf(d fleet.TrustDomain) TrustDomain {
	return TrustDomain{TrustDomain: d, ETag: etag(d.Revision)}
}

// anchorOf is an anchor as it stands within its trust domain too.
func anchorOf(a fleet.Anchor) fleet.Anchor { return a }

func (s *server) trust() {
	tags := []string{"trust"}
	const base = "/v1/tenants/{tenant}/trustDomains"
	handle(s, s.watchable(huma.Operation{OperationID: "listTrustDomains", Method: http.MethodGet, Path: base, Tags: tags, Summary: "List trust domains with their anchors"}), "trustDomain:list",
		func(ctx context.Context, in *struct {
			TenantPath
			List
		}) (*PageOutput[TrustDomain], error) {
			if err := plainList(in.List, "trust domains"); err != nil {
				return nil, err
			}
			all, err := s.Fleet.ListTrustDomains(ctx, in.Tenant)
			return listed(ctx, s, in.List, all, err, trustDomainOf, func(d fleet.TrustDomain) string { return d.Name })
		})
	handle(s, huma.Operation{OperationID: "getTrustDomain", Method: http.MethodGet, Path: base + "/{trustDomain}", Tags: tags, Summary: "Get a trust domain with its anchors"}, "trustDomain:get",
		func(ctx context.Context, in *struct {
			TrustDomainPath
			Read
		}) (*One[TrustDomain], error) {
			d, err := s.Fleet.GetTrustDomain(ctx, in.name())
			return &One[TrustDomain]{ETag: etag(d.Revision), Body: trustDomainOf(d)}, err
		})
	s.anchors(tags, base+"/{trustDomain}/anchors")
}

func (s *server) anchors(tags []string, base string) {
	handle(s, s.watchable(huma.Operation{OperationID: "listAnchors", Method: http.MethodGet, Path: base, Tags: tags, Summary: "List the anchors of a trust domain"}), "anchor:list",
		func(ctx context.Context, in *struct {
			TrustDomainPath
			List
		}) (*PageOutput[fleet.Anchor], error) {
			if err := plainList(in.List, "anchors"); err != nil {
				return nil, err
			}
			d, err := s.Fleet.GetTrustDomain(ctx, in.name())
			return listed(ctx, s, in.List, d.Anchors, err, anchorOf, func(a fleet.Anchor) string { return a.Name })
		})
	handle(s, huma.Operation{OperationID: "getAnchor", Method: http.MethodGet, Path: base + "/{anchor}", Tags: tags, Summary: "Get an anchor"}, "anchor:get",
		func(ctx context.Context, in *struct {
			AnchorPath
			Read
		}) (*One[fleet.Anchor], error) {
			a, err := s.Fleet.GetAnchor(ctx, in.name())
			return &One[fleet.Anchor]{ETag: etag(a.Revision), Body: anchorOf(a)}, err
		})
	handle(s, huma.Operation{OperationID: "addAnchor", Method: http.MethodPost, Path: base, Tags: tags, DefaultStatus: http.StatusCreated,
		Summary:     "Register a CA that CSM does not own",
		Description: "Nodes whose certificates of today chain to it may join by proving possession of their key. Registered again it gets the new owner, reason, end and rule. No truststore changes."}, "anchor:add",
		func(ctx context.Context, in *struct {
			TrustDomainPath
			Created
			Body AnchorBody
		}) (*One[fleet.Anchor], error) {
			spec, err := in.Body.spec()
			if err != nil {
				return nil, err
			}
			if in.ValidateOnly {
				if _, err := spec.Rule.Normalise(); err != nil {
					return nil, err
				}
				_, err := s.Fleet.GetTrustDomain(ctx, in.name())
				return &One[fleet.Anchor]{}, err
			}
			a, err := s.Fleet.AddAnchor(ctx, in.name(), spec, actor(ctx))
			return &One[fleet.Anchor]{ETag: etag(a.Revision), Body: anchorOf(a)}, err
		})
	handle(s, huma.Operation{OperationID: "removeAnchor", Method: http.MethodPost, Path: base + "/{anchor}:remove", Tags: tags,
		Summary: "End the registration of an external anchor; who joined by it stays, and no truststore changes"}, "anchor:remove",
		func(ctx context.Context, in *struct {
			AnchorPath
			Created
			Body Why
		}) (*One[fleet.Anchor], error) {
			a, err := s.Fleet.GetAnchor(ctx, in.name())
			if err == nil && a.Kind != "external" {
				err = fault.New(fault.Refused, "anchor-ours", "this anchor is one of the cluster's own authority").Do("an anchor of ours is taken away only as the last step of a rotation")
			}
			if err == nil && !in.ValidateOnly {
				err = s.Fleet.RemoveAnchor(ctx, in.name(), in.Body.Reason, actor(ctx))
			}
			return &One[fleet.Anchor]{ETag: etag(a.Revision), Body: anchorOf(a)}, err
		})
}

// listed answers a list that is short enough to be read whole.
func listed[S, T any](ctx context.Context, s *server, l List, all []S, err error, each func(S) T, name func(S) string) (*PageOutput[T], error) {
	if err != nil {
		return nil, err
	}
	return paged(ctx, s, l, each, func(token string) ([]S, string, error) {
		page, next := slicePage(byName(all, name), name, l.size(), token)
		return page, next, nil
	})
}

func (b AnchorBody) spec() (fleet.AnchorSpec, error) {
	cs, err := certificate.DecodePEM([]byte(b.PEM))
	if err != nil {
		return fleet.AnchorSpec{}, err
	}
	if len(cs) != 1 {
		return fleet.AnchorSpec{}, fault.New(fault.Invalid, "one-anchor", "%d certificates were sent", len(cs)).Do("register one CA certificate at a time")
	}
	return fleet.AnchorSpec{Certificate: cs[0], Owner: b.Owner, Reason: b.Reason, Expires: b.Expires, Rule: b.Rule}, nil
}
