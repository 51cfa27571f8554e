package rest

import (
	"context"
	"crypto/x509"
	"net/http"
	"time"

	"github.com/danielgtaylor/huma/v2"

	"github.com/cassandra-security-manager/csm/controller/authority"
	"github.com/cassandra-security-manager/csm/shared/algorithm"
	"github.com/cassandra-security-manager/csm/shared/certificate"
	"github.com/cassandra-security-manager/csm/shared/fault"
	"github.com/cassandra-security-manager/csm/shared/resource"
)

// Authority is one logical CA.
type Authority struct {
	Name        string            `json:"name"`
	UID         string            `json:"uid"`
	ETag        string            `json:"etag"`
	Revision    uint64            `json:"revision"`
	CreateTime  time.Time         `json:"createTime"`
	UpdateTime  time.Time         `json:"updateTime"`
	Labels      map[string]string `json:"labels,omitempty"`
	State       string            `json:"state" enum:"active,retired"`
	DisplayName string            `json:"displayName,omitempty"`
	Algorithm   string            `json:"algorithm"`
	TrustDomain string            `json:"trustDomain,omitempty" doc:"of all system identities; empty for a tenant's authority"`
	Issuers     []Issuer          `json:"issuers" doc:"the root first"`
}

// Issuer is one certificate that signs.
type Issuer struct {
	Name       string    `json:"name"`
	ETag       string    `json:"etag"`
	Revision   uint64    `json:"revision"`
	CreateTime time.Time `json:"createTime"`
	State      string    `json:"state" enum:"active,retired"`
	Kind       string    `json:"kind" enum:"root,intermediate,issuing"`
	Region     string    `json:"region,omitempty" doc:"with software keys a policy, not a fact: the sealed key is on every controller"`
	PublicID   string    `json:"publicId" doc:"names it in the URLs of its certificate and revocation lists"`
	Parent     string    `json:"parent" doc:"the issuer that signed it; itself for a root"`
	Shards     int       `json:"shards" doc:"of its revocation list"`
	BaseURLs   []string  `json:"baseUrls,omitempty"`
	Subject    string    `json:"subject"`
	Serial     string    `json:"serial"`
	SHA256     string    `json:"sha256"`
	Algorithm  string    `json:"algorithm"`
	NotBefore  time.Time `json:"notBefore"`
	NotAfter   time.Time `json:"notAfter"`
	PEM        string    `json:"pem"`
}

func issuerOf(i authority.Issuer) Issuer {
	d := certificate.Describe(i.Certificate)
	return Issuer{Name: i.Name, ETag: etag(i.Revision), Revision: i.Revision, CreateTime: i.CreateTime, State: string(i.State), Kind: string(i.Kind),
		Region: i.Region, PublicID: i.PublicID, Parent: i.Parent, Shards: i.Shards, BaseURLs: i.BaseURLs, Subject: d.Subject, Serial: d.Serial,
		SHA256: d.SHA256, Algorithm: d.KeyAlgorithm, NotBefore: d.NotBefore, NotAfter: d.NotAfter, PEM: string(certificate.EncodePEM(i.Certificate))}
}

func authorityOf(a authority.Authority) Authority {
	out := Authority{Name: a.Name, ETag: etag(a.Revision), Revision: a.Revision, CreateTime: a.CreateTime, UpdateTime: a.CreateTime,
		State: string(a.State), DisplayName: a.DisplayName, Algorithm: string(a.Algorithm), TrustDomain: a.TrustDomain, Issuers: []Issuer{}}
	for _, i := range a.Issuers {
		iv := issuerOf(i)
		out.Issuers = append(out.Issuers, iv)
		if i.Kind == authority.Root && out.UID == "" {
			out.UID = iv.SHA256
		}
		if i.CreateTime.After(out.UpdateTime) {
			out.UpdateTime = i.CreateTime
		}
		out.Revision = max(out.Revision, i.Revision)
	}
	out.ETag = etag(out.Revision)
	return out
}

type AuthorityPath struct {
	TenantPath
	Authority string `path:"authority" maxLength:"63"`
}

func (p AuthorityPath) name() string { return resource.Authority(p.Tenant, p.Authority) }

// CreateAuthority asks for an authority with its root.
type CreateAuthority struct {
	ID          string   `json:"id" maxLength:"63" doc:"last segment of its name"`
	DisplayName string   `json:"displayName,omitempty" maxLength:"256"`
	Algorithm   string   `json:"algorithm,omitempty" maxLength:"16" doc:"default P-384"`
	Validity    string   `json:"validity,omitempty" doc:"time span of the root; default 15 years" example:"131400h"`
	Regions     []string `json:"regions,omitempty" maxItems:"16" doc:"an issuing CA is made for each"`
}

func (s *server) authority(ctx context.Context, name string) (Authority, error) {
	a, err := s.Authorities.Get(ctx, name)
	if err != nil {
		return Authority{}, err
	}
	return authorityOf(*a), nil
}

func (s *server) authorities() {
	tags := []string{"authorities"}
	const base = "/v1/tenants/{tenant}/authorities"
	list := func(ctx context.Context, l List, tenant string) (*PageOutput[Authority], error) {
		if err := plainList(l, "authorities"); err != nil {
			return nil, err
		}
		all, err := s.Authorities.List(ctx, tenant)
		if err != nil {
			return nil, err
		}
		name := func(a authority.Authority) string { return a.Name }
		return paged(ctx, s, l, authorityOf, func(token string) ([]authority.Authority, string, error) {
			page, next := slicePage(byName(all, name), name, l.size(), token)
			return page, next, nil
		})
	}
	handle(s, s.watchable(huma.Operation{OperationID: "listAuthorities", Method: http.MethodGet, Path: base, Tags: tags, Summary: "List a tenant's authorities"}), "authority:list",
		func(ctx context.Context, in *struct {
			TenantPath
			List
		}) (*PageOutput[Authority], error) {
			if in.Tenant == "-" {
				in.Tenant = resource.DefaultTenant
			}
			return list(ctx, in.List, in.Tenant)
		})
	handle(s, huma.Operation{OperationID: "listSystemAuthorities", Method: http.MethodGet, Path: "/v1/system/authorities", Tags: tags, Summary: "List the authority of the platform's own identities"}, "authority:list",
		func(ctx context.Context, in *struct{ List }) (*PageOutput[Authority], error) {
			return list(ctx, in.List, "")
		})
	one := func(ctx context.Context, name string) (*One[Authority], error) {
		a, err := s.authority(ctx, name)
		return &One[Authority]{ETag: a.ETag, Body: a}, err
	}
	handle(s, huma.Operation{OperationID: "getAuthority", Method: http.MethodGet, Path: base + "/{authority}", Tags: tags, Summary: "Get an authority with its issuers"}, "authority:get",
		func(ctx context.Context, in *struct {
			AuthorityPath
			Read
		}) (*One[Authority], error) {
			return one(ctx, in.name())
		})
	handle(s, huma.Operation{OperationID: "getSystemAuthority", Method: http.MethodGet, Path: "/v1/system/authorities/{authority}", Tags: tags, Summary: "Get the system authority"}, "authority:get",
		func(ctx context.Context, in *struct {
			Authority string `path:"authority" maxLength:"63"`
			Read
		}) (*One[Authority], error) {
			return one(ctx, "system/authorities/"+in.Authority)
		})
	s.createAuthority(base, tags)
	s.issuers(base, tags)
	s.chains(base, tags)
	s.external(base, tags)
}

func (s *server) createAuthority(base string, tags []string) {
	handle(s, huma.Operation{OperationID: "createAuthority", Method: http.MethodPost, Path: base, Tags: tags, DefaultStatus: http.StatusCreated,
		Summary: "Create an authority: its root, and an issuing CA for each region"}, "authority:create",
		func(ctx context.Context, in *struct {
			TenantPath
			Created
			Body CreateAuthority
		}) (*One[Authority], error) {
			validity, err := span("validity", in.Body.Validity)
			if err != nil {
				return nil, err
			}
			name := resource.Authority(in.Tenant, in.Body.ID)
			if in.ValidateOnly {
				return s.validateAuthority(ctx, name, in.Body)
			}
			_, err = s.Authorities.CreateRoot(ctx, in.Tenant, in.Body.ID, authority.CreateOptions{DisplayName: in.Body.DisplayName,
				Algorithm: algorithm.Key(in.Body.Algorithm), Validity: validity, Actor: actor(ctx), Reason: requestOf(ctx).reason})
			if err != nil {
				return nil, err
			}
			for _, region := range in.Body.Regions {
				if _, err := s.Authorities.CreateIssuer(ctx, name, region, actor(ctx)); err != nil {
					return nil, err
				}
			}
			a, err := s.authority(ctx, name)
			return &One[Authority]{ETag: a.ETag, Body: a}, err
		})
}

func (s *server) validateAuthority(ctx context.Context, name string, b CreateAuthority) (*One[Authority], error) {
	if err := resource.CheckID("authority", b.ID); err != nil {
		return nil, err
	}
	if _, err := s.Authorities.Get(ctx, name); err == nil {
		return nil, fault.New(fault.Conflict, "authority-exists", "there is an authority %s", name).Do("take another id, or use this one")
	} else if !fault.Is(err, fault.NotFound) {
		return nil, err
	}
	for _, r := range b.Regions {
		if err := resource.CheckID("region", r); err != nil {
			return nil, err
		}
	}
	return &One[Authority]{Body: Authority{Name: name, DisplayName: b.DisplayName, Algorithm: b.Algorithm, State: "active", Issuers: []Issuer{}}}, nil
}

func (s *server) issuers(base string, tags []string) {
	handle(s, huma.Operation{OperationID: "listIssuers", Method: http.MethodGet, Path: base + "/{authority}/issuers", Tags: tags, Summary: "List the issuers of an authority, the root first"}, "issuer:list",
		func(ctx context.Context, in *struct {
			AuthorityPath
			List
		}) (*PageOutput[Issuer], error) {
			if err := plainList(in.List, "issuers"); err != nil {
				return nil, err
			}
			a, err := s.Authorities.Get(ctx, in.name())
			if err != nil {
				return nil, err
			}
			return paged(ctx, s, in.List, issuerOf, func(string) ([]authority.Issuer, string, error) { return a.Issuers, "", nil })
		})
	handle(s, huma.Operation{OperationID: "createIssuer", Method: http.MethodPost, Path: base + "/{authority}/issuers", Tags: tags, DefaultStatus: http.StatusCreated,
		Summary: "Create an issuing CA for a region"}, "issuer:create",
		func(ctx context.Context, in *struct {
			AuthorityPath
			Created
			Body struct {
				Region string `json:"region" maxLength:"63"`
			}
		}) (*One[Issuer], error) {
			if in.ValidateOnly {
				if err := resource.CheckID("region", in.Body.Region); err != nil {
					return nil, err
				}
				_, err := s.Authorities.Get(ctx, in.name())
				return &One[Issuer]{}, err
			}
			i, err := s.Authorities.CreateIssuer(ctx, in.name(), in.Body.Region, actor(ctx))
			if err != nil {
				return nil, err
			}
			out := issuerOf(*i)
			return &One[Issuer]{ETag: out.ETag, Body: out}, nil
		})
	handle(s, huma.Operation{OperationID: "retireIssuer", Method: http.MethodPost, Path: base + "/{authority}/issuers/{issuer}:retire", Tags: tags,
		Summary: "Let an issuer sign revocation lists and nothing else"}, "issuer:retire",
		func(ctx context.Context, in *struct {
			AuthorityPath
			Issuer string `path:"issuer" maxLength:"63"`
			Created
			Body ReasonBody
		}) (*One[Issuer], error) {
			name := resource.Issuer(in.name(), in.Issuer)
			if !in.ValidateOnly {
				if err := s.Authorities.SetState(ctx, name, authority.Retired, actor(ctx), in.Body.Reason); err != nil {
					return nil, err
				}
			}
			i, err := s.Authorities.Issuer(ctx, name)
			if err != nil {
				return nil, err
			}
			out := issuerOf(*i)
			return &One[Issuer]{ETag: out.ETag, Body: out}, nil
		})
}

// pemOutput is a bare PEM document.
type pemOutput struct {
	ContentType string `header:"Content-Type"`
	Body        []byte
}

// chains serves PEM: what a server sends after its leaf, and what who trusts it must have.
func (s *server) chains(base string, tags []string) {
	pem := map[string]*huma.Response{"200": {Description: "PEM", Content: map[string]*huma.MediaType{"application/x-pem-file": {Schema: &huma.Schema{Type: "string"}}}}}
	out := func(certs []*x509.Certificate, err error) (*pemOutput, error) {
		return &pemOutput{ContentType: "application/x-pem-file", Body: certificate.EncodePEM(certs...)}, err
	}
	handle(s, huma.Operation{OperationID: "getAnchors", Method: http.MethodGet, Path: base + "/{authority}:anchors", Tags: tags, Summary: "Trust anchors of an authority, as PEM", Responses: pem}, "authority:get",
		func(ctx context.Context, in *struct {
			AuthorityPath
			Read
		}) (*pemOutput, error) {
			return out(s.Authorities.Anchors(ctx, in.name()))
		})
	handle(s, huma.Operation{OperationID: "getChain", Method: http.MethodGet, Path: base + "/{authority}:chain", Tags: tags,
		Summary: "Issuing CAs and root of an authority, as PEM", Responses: pem}, "authority:get",
		func(ctx context.Context, in *struct {
			AuthorityPath
			Read
			Region string `query:"region" maxLength:"63" doc:"only the issuer that signs for this region"`
		}) (*pemOutput, error) {
			return out(s.chain(ctx, in.name(), in.Region))
		})
}

func (s *server) chain(ctx context.Context, name, region string) ([]*x509.Certificate, error) {
	a, err := s.Authorities.Get(ctx, name)
	if err != nil {
		return nil, err
	}
	if region != "" {
		i, err := s.Authorities.IssuerFor(ctx, name, region)
		if err != nil {
			return nil, err
		}
		chain, err := s.Authorities.Chain(ctx, i)
		if err != nil {
			return nil, err
		}
		anchors, err := s.Authorities.Anchors(ctx, name)
		return append(chain, anchors...), err
	}
	var issuing, roots []*x509.Certificate
	for _, i := range a.Issuers {
		if i.Kind == authority.Root {
			roots = append(roots, i.Certificate)
		} else if i.State == authority.Active {
			issuing = append(issuing, i.Certificate)
		}
	}
	return append(issuing, roots...), nil
}
