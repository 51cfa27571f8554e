package rest

import (
	"context"
	"fmt"
	"net/http"
	"strings"
	"time"

	"github.com/danielgtaylor/huma/v2"

	"github.com/cassandra-security-manager/csm/controller/ledger"
	"github.com/cassandra-security-manager/csm/shared/certificate"
	"github.com/cassandra-security-manager/csm/shared/fault"
	"github.com/cassandra-security-manager/csm/shared/resource"
)

// Certificate is one issued certificate.
type Certificate struct {
	Name         string            `json:"name" example:"tenants/default/certificates/9f2c…"`
	UID          string            `json:"uid" doc:"SHA-256 of the DER in hex"`
	ETag         string            `json:"etag"`
	Revision     uint64            `json:"revision"`
	CreateTime   time.Time         `json:"createTime"`
	UpdateTime   time.Time         `json:"updateTime"`
	Labels       map[string]string `json:"labels,omitempty"`
	State        string            `json:"state" enum:"active,revoked,expired"`
	Serial       string            `json:"serial" doc:"hex"`
	Subject      string            `json:"subject"`
	DNS          []string          `json:"dns,omitempty"`
	IPs          []string          `json:"ips,omitempty"`
	URIs         []string          `json:"uris,omitempty"`
	Issuer       string            `json:"issuer" doc:"name of the issuer"`
	Cluster      string            `json:"cluster,omitempty"`
	Node         string            `json:"node,omitempty"`
	Store        string            `json:"store,omitempty"`
	Incarnation  uint64            `json:"incarnation,omitempty"`
	Identity     string            `json:"identity,omitempty" doc:"SPIFFE ID of a system identity"`
	Template     string            `json:"template"`
	Algorithm    string            `json:"algorithm"`
	KeySHA256    string            `json:"keySha256"`
	Actor        string            `json:"actor" doc:"who asked for it"`
	NotBefore    time.Time         `json:"notBefore"`
	NotAfter     time.Time         `json:"notAfter"`
	RenewTime    time.Time         `json:"renewTime,omitzero"`
	RevokeTime   time.Time         `json:"revokeTime,omitzero"`
	RevokeReason string            `json:"revokeReason,omitempty"`
	PEM          string            `json:"pem,omitempty" doc:"the certificate; in the answer to one, not in lists"`
	Chain        string            `json:"chain,omitempty" doc:"PEM, leaf first, without the root; in the answer to :issue"`
}

func (s *server) certificateOf(c ledger.Certificate) Certificate {
	out := Certificate{Name: c.Name, UID: resource.Last(c.Name), ETag: etag(c.Revision), Revision: c.Revision, CreateTime: c.CreateTime,
		UpdateTime: c.CreateTime, State: string(c.State), Serial: c.Serial, Subject: c.Subject, DNS: c.Names.DNS, IPs: c.Names.IPStrings(),
		URIs: c.Names.URIs, Issuer: c.Issuer, Cluster: c.Cluster, Node: c.Node, Store: c.Store, Incarnation: c.Incarnation,
		Identity: c.Identity, Template: c.Template, Algorithm: c.Algorithm, KeySHA256: c.KeySHA256, Actor: c.Actor,
		NotBefore: c.NotBefore, NotAfter: c.NotAfter, RenewTime: c.RenewAt}
	if c.State == ledger.Revoked {
		out.RevokeTime, out.RevokeReason, out.UpdateTime = c.RevokeTime, c.Reason.String(), c.RevokeTime
	}
	if out.State == string(ledger.Active) && s.Clock.Now().After(c.NotAfter) {
		out.State = string(ledger.Expired)
	}
	return out
}

func (s *server) wholeCertificate(c *ledger.Certificate) Certificate {
	out := s.certificateOf(*c)
	out.PEM = string(certificate.EncodeDER(c.DER))
	return out
}

type TenantPath struct {
	Tenant string `path:"tenant" maxLength:"63" doc:"a tenant; - reads across all"`
}

type CertificatePath struct {
	TenantPath
	Certificate string `path:"certificate" pattern:"^[0-9a-f]{64}$" doc:"SHA-256 of the DER in hex"`
}

func (p CertificatePath) name() string {
	return resource.Certificate(p.Tenant, p.Certificate)
}

func (s *server) certificates() {
	list := func(ctx context.Context, l List, f ledger.Filter) (*PageOutput[Certificate], error) {
		if err := s.certificateFilter(&f, l.Filter); err != nil {
			return nil, err
		}
		if err := certificateOrder(&f, l.OrderBy); err != nil {
			return nil, err
		}
		return paged(ctx, s, l, s.certificateOf, func(token string) ([]ledger.Certificate, string, error) {
			return s.Ledger.List(ctx, f, ledger.Page{Size: l.size(), Token: token})
		})
	}
	handle(s, s.watchable(huma.Operation{OperationID: "listCertificates", Method: http.MethodGet, Path: "/v1/tenants/{tenant}/certificates", Tags: []string{"certificates"},
		Summary: "List issued certificates", Description: "Filter fields: " + certificateFields + ". Order: createTime, createTime desc (default), notAfter, notAfter desc."}), "certificate:list",
		func(ctx context.Context, in *struct {
			TenantPath
			List
		}) (*PageOutput[Certificate], error) {
			return list(ctx, in.List, ledger.Filter{Tenant: anyOf(in.Tenant)})
		})
	handle(s, huma.Operation{OperationID: "listSystemCertificates", Method: http.MethodGet, Path: "/v1/system/certificates", Tags: []string{"certificates"},
		Summary: "List certificates of the platform itself: controllers, agents, administrators"}, "certificate:list",
		func(ctx context.Context, in *struct{ List }) (*PageOutput[Certificate], error) {
			return list(ctx, in.List, ledger.Filter{System: true})
		})
	handle(s, huma.Operation{OperationID: "searchCertificates", Method: http.MethodGet, Path: "/v1/tenants/{tenant}/certificates:search", Tags: []string{"certificates"},
		Summary: "Search certificates by a part of a name, or the beginning of a serial or fingerprint"}, "certificate:list",
		func(ctx context.Context, in *struct {
			TenantPath
			List
			Query string `query:"query" required:"true" minLength:"1" maxLength:"256" doc:"what to look for"`
		}) (*PageOutput[Certificate], error) {
			l := in.List
			l.Filter = strings.TrimSpace(l.Filter)
			f := ledger.Filter{Tenant: anyOf(in.Tenant), Text: in.Query}
			return list(ctx, l, f)
		})
	handle(s, huma.Operation{OperationID: "getCertificate", Method: http.MethodGet, Path: "/v1/tenants/{tenant}/certificates/{certificate}", Tags: []string{"certificates"},
		Summary: "Get a certificate"}, "certificate:get",
		func(ctx context.Context, in *struct {
			CertificatePath
			Read
		}) (*One[Certificate], error) {
			return s.oneCertificate(ctx, in.name())
		})
	handle(s, huma.Operation{OperationID: "getSystemCertificate", Method: http.MethodGet, Path: "/v1/system/certificates/{certificate}", Tags: []string{"certificates"},
		Summary: "Get a certificate of the platform itself"}, "certificate:get",
		func(ctx context.Context, in *struct {
			Certificate string `path:"certificate" pattern:"^[0-9a-f]{64}$"`
			Read
		}) (*One[Certificate], error) {
			return s.oneCertificate(ctx, "system/certificates/"+in.Certificate)
		})
	s.issuing()
	s.found()
}

func (s *server) oneCertificate(ctx context.Context, name string) (*One[Certificate], error) {
	c, err := s.Ledger.Get(ctx, name)
	if err != nil {
		return nil, err
	}
	out := s.wholeCertificate(c)
	return &One[Certificate]{ETag: out.ETag, Body: out}, nil
}

// anyOf makes the "-" of a path the empty wish of a filter.
func anyOf(tenant string) string {
	if tenant == "-" {
		return ""
	}
	return tenant
}

const certificateFields = "state, cluster, node, store, issuer, authority, template, identity, serial, sha256, notAfter, dns (or a bare word)"

func (s *server) certificateFilter(f *ledger.Filter, filter string) error {
	return applyFilter(filter, certificateFields, func(t Term) (bool, error) {
		if t.Field == "" {
			f.NameContains = t.Value
			return true, nil
		}
		if t.Field == "notAfter" {
			at, err := timeOf(s.Clock.Now(), t.Value)
			switch t.Op {
			case "<":
				f.ExpiresBefore = at
			case ">":
				f.ExpiresAfter = at
			}
			return t.Op == "<" || t.Op == ">", err
		}
		if t.Field == "dns" || t.Field == "names" {
			if t.Op == "=" {
				f.NamePrefix = t.Value
			} else {
				f.NameContains = t.Value
			}
			return t.Op == "=" || t.Op == ":", nil
		}
		if t.Op != "=" {
			return false, nil
		}
		switch t.Field {
		case "state":
			f.State = ledger.State(t.Value)
			return f.State == ledger.Active || f.State == ledger.Revoked || f.State == ledger.Expired, nil
		case "sha256":
			f.Text = t.Value
			return true, nil
		}
		into := map[string]*string{"cluster": &f.Cluster, "node": &f.Node, "store": &f.Store, "issuer": &f.Issuer,
			"authority": &f.Authority, "template": &f.Template, "identity": &f.Identity, "serial": &f.Serial}[t.Field]
		if into == nil {
			return false, nil
		}
		*into = s.fullName(f.Tenant, t.Field, t.Value)
		return true, nil
	})
}

// fullName lets a filter name clusters, nodes ("cluster/node") and authorities shortly.
func (s *server) fullName(tenant, field, v string) string {
	if tenant == "" {
		tenant = resource.DefaultTenant
	}
	if strings.HasPrefix(v, "tenants/") || strings.HasPrefix(v, "system/") {
		return v
	}
	switch field {
	case "cluster":
		return resource.Cluster(tenant, v)
	case "authority":
		return resource.Authority(tenant, v)
	case "node":
		if c, n, ok := strings.Cut(v, "/"); ok {
			return resource.Node(tenant, c, n)
		}
	}
	return v
}

func certificateOrder(f *ledger.Filter, by string) error {
	o, ok := map[string]ledger.Order{"": ledger.ByNewest, "createTime desc": ledger.ByNewest, "createTime": ledger.ByOldest,
		"notAfter": ledger.ByExpiry, "notAfter desc": ledger.ByExpiryLast}[by]
	if !ok {
		return fault.New(fault.Invalid, "bad-order", "certificates cannot be ordered by %.40q", by).Do("use createTime, createTime desc, notAfter or notAfter desc")
	}
	f.Order = o
	return nil
}

// FoundCertificate is one that an agent saw in a file or store of its node.
type FoundCertificate struct {
	Name          string    `json:"name"`
	Node          string    `json:"node"`
	Path          string    `json:"path"`
	Entry         string    `json:"entry,omitempty" doc:"alias inside a store, index inside a PEM file"`
	Format        string    `json:"format"`
	SHA256        string    `json:"sha256"`
	Subject       string    `json:"subject"`
	Issuer        string    `json:"issuer"`
	Serial        string    `json:"serial"`
	Algorithm     string    `json:"algorithm"`
	NotAfter      time.Time `json:"notAfter"`
	HasPrivateKey bool      `json:"hasPrivateKey"`
	Mode          string    `json:"mode" doc:"octal"`
	Owner         string    `json:"owner,omitempty"`
	Known         string    `json:"known,omitempty" doc:"name of the certificate, when CSM issued it"`
	SeenTime      time.Time `json:"seenTime"`
}

const foundFields = "cluster, node, known=true, known=false, notAfter<, or a bare word (part of path or subject, beginning of the fingerprint)"

func (s *server) found() {
	handle(s, huma.Operation{OperationID: "listFoundCertificates", Method: http.MethodGet, Path: "/v1/tenants/{tenant}/foundCertificates", Tags: []string{"certificates"},
		Summary: "List certificates that agents found on their nodes, whoever issued them", Description: "Filter fields: " + foundFields + "."}, "certificate:list",
		func(ctx context.Context, in *struct {
			TenantPath
			List
		}) (*PageOutput[FoundCertificate], error) {
			f := ledger.FoundFilter{Tenant: anyOf(in.Tenant)}
			if err := s.foundFilter(&f, in.Filter); err != nil {
				return nil, err
			}
			return paged(ctx, s, in.List, foundOf, func(token string) ([]ledger.Found, string, error) {
				return s.Ledger.Found(ctx, f, ledger.Page{Size: in.size(), Token: token})
			})
		})
}

func (s *server) foundFilter(f *ledger.FoundFilter, filter string) error {
	return applyFilter(filter, foundFields, func(t Term) (bool, error) {
		switch {
		case t.Field == "":
			f.Text = t.Value
		case t.Field == "notAfter" && t.Op == "<":
			at, err := timeOf(s.Clock.Now(), t.Value)
			f.ExpiresBefore = at
			return true, err
		case t.Field == "cluster" && t.Op == "=":
			f.Cluster = s.fullName(f.Tenant, "cluster", t.Value)
		case t.Field == "node" && t.Op == "=":
			f.Node = s.fullName(f.Tenant, "node", t.Value)
		case t.Field == "known" && t.Op == "=":
			f.Known, f.Unknown = t.Value == "true", t.Value == "false"
			return f.Known || f.Unknown, nil
		default:
			return false, nil
		}
		return true, nil
	})
}

func foundOf(f ledger.Found) FoundCertificate {
	return FoundCertificate{Name: f.Node + "/foundCertificates/" + f.SHA256,
		Node: f.Node, Path: f.Path, Entry: f.Entry, Format: f.Format, SHA256: f.SHA256,
		Subject: f.Subject, Issuer: f.Issuer, Serial: f.Serial, Algorithm: f.Algorithm, NotAfter: f.NotAfter, HasPrivateKey: f.HasPrivateKey,
		Mode: octal(f.Mode), Owner: f.Owner, Known: f.Known, SeenTime: f.SeenTime}
}

func octal(mode uint32) string { return fmt.Sprintf("%04o", mode&0o7777) }
