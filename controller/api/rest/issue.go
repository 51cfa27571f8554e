package rest

import (
	"context"
	"encoding/base64"
	"net/http"
	"strings"
	"time"

	"github.com/danielgtaylor/huma/v2"

	"github.com/cassandra-security-manager/csm/controller/issuance"
	"github.com/cassandra-security-manager/csm/controller/ledger"
	"github.com/cassandra-security-manager/csm/shared/certificate"
	"github.com/cassandra-security-manager/csm/shared/fault"
	"github.com/cassandra-security-manager/csm/shared/resource"
)

// IssueBody asks for a certificate.
type IssueBody struct {
	CSR       string   `json:"csr" minLength:"1" maxLength:"65536" doc:"PKCS#10 request: PEM, or base64 of its DER. Its key and signature count; its names are asked for, unless names are given here"`
	Authority string   `json:"authority" minLength:"1" maxLength:"256" doc:"name or id"`
	Region    string   `json:"region,omitempty" maxLength:"63" doc:"prefer the issuer of this region; default the region of the controller"`
	DNS       []string `json:"dns,omitempty" maxItems:"64"`
	IPs       []string `json:"ips,omitempty" maxItems:"64"`
	URIs      []string `json:"uris,omitempty" maxItems:"8"`
	Subject   string   `json:"subject,omitempty" maxLength:"64" doc:"common name"`
	Validity  string   `json:"validity,omitempty" doc:"time span; the template's default when empty, never beyond its most" example:"720h"`
	Renews    string   `json:"renews,omitempty" maxLength:"256" doc:"name or id of the certificate that this one replaces: before a busy signer, what ends sooner goes first. What replaces nothing goes before all that can wait"`
}

// RevokeBody asks for a revocation.
type RevokeBody struct {
	Reason string `json:"reason,omitempty" doc:"a reason of RFC 5280, 5.3.1: unspecified, keyCompromise, affiliationChanged, superseded, cessationOfOperation, privilegeWithdrawn"`
}

// issueCertificate is the one operation that answers before its effect can be read here: it answers with all of it.
const issueCertificate = "issueCertificate"

// Revocation says what was done, and what was not.
type Revocation struct {
	Certificate Certificate `json:"certificate"`
	Notice      string      `json:"notice" doc:"what a revocation does not do"`
}

func (s *server) issuing() {
	tags := []string{"certificates"}
	handle(s, huma.Operation{OperationID: issueCertificate, Method: http.MethodPost, Path: "/v1/tenants/{tenant}/certificates:issue", Tags: tags, DefaultStatus: http.StatusCreated,
		Summary: "Issue a certificate for an application from a request", Description: "Certificates of nodes are asked for by their agents, under a claim."}, "certificate:issue",
		func(ctx context.Context, in *struct {
			TenantPath
			Created
			Body IssueBody
		}) (*One[Certificate], error) {
			req, err := s.issueRequest(ctx, in.Tenant, in.Body)
			if err != nil {
				return nil, err
			}
			if req.Due, err = s.dueOf(ctx, in.Tenant, in.Body.Renews); err != nil {
				return nil, err
			}
			if in.ValidateOnly {
				p, err := s.Issuance.Validate(ctx, req)
				if err != nil {
					return nil, err
				}
				return &One[Certificate]{Body: Certificate{State: "active", DNS: p.Names.DNS, IPs: p.Names.IPStrings(), URIs: p.Names.URIs,
					Template: req.Template, Subject: p.Subject, Issuer: p.Issuer}}, nil
			}
			req.Examined = requestOf(ctx).leave
			issued, err := s.Issuance.Issue(ctx, req)
			if err != nil {
				return nil, err
			}
			c := issued.Record
			if c == nil {
				_ = s.Quorum.CatchUp(ctx)
				if c, err = s.Ledger.Get(ctx, issued.Name); err != nil {
					return nil, err
				}
			}
			out := s.wholeCertificate(c)
			out.Chain = string(certificate.EncodeDER(issued.Chain...))
			return &One[Certificate]{ETag: out.ETag, Body: out}, nil
		})
	handle(s, huma.Operation{OperationID: "importCertificate", Method: http.MethodPost, Path: "/v1/tenants/{tenant}/certificates:import", Tags: tags,
		Summary: "Record a certificate that was signed offline with the recovery share"}, "certificate:import",
		func(ctx context.Context, in *struct {
			TenantPath
			Body struct {
				Record []byte `json:"record" maxLength:"131072" doc:"the record of the entry that csm offline issue wrote"`
			}
		}) (*body[Certificate], error) {
			name, err := s.Issuance.Import(ctx, in.Tenant, in.Body.Record, actor(ctx))
			if err != nil {
				return nil, err
			}
			c, err := s.oneCertificate(ctx, name)
			if err != nil {
				return nil, err
			}
			return &body[Certificate]{c.Body}, nil
		})
	handle(s, huma.Operation{OperationID: "revokeCertificate", Method: http.MethodPost, Path: "/v1/tenants/{tenant}/certificates/{certificate}:revoke", Tags: tags,
		Summary: "Revoke a certificate", Description: issuance.RevocationNote}, "certificate:revoke",
		func(ctx context.Context, in *struct {
			CertificatePath
			Created
			Body RevokeBody
		}) (*body[Revocation], error) {
			reason, err := ledger.ParseReason(in.Body.Reason)
			if err != nil {
				return nil, err
			}
			if !in.ValidateOnly {
				if _, err := s.Issuance.Revoke(ctx, in.name(), reason, actor(ctx)); err != nil {
					return nil, err
				}
			}
			c, err := s.oneCertificate(ctx, in.name())
			if err != nil {
				return nil, err
			}
			return &body[Revocation]{Revocation{Certificate: c.Body, Notice: issuance.RevocationNote}}, nil
		})
}

func (s *server) issueRequest(ctx context.Context, tenant string, b IssueBody) (issuance.Request, error) {
	der, err := requestDER(b.CSR)
	if err != nil {
		return issuance.Request{}, err
	}
	names, err := certificate.ParseNames(b.DNS, b.IPs, b.URIs)
	if err != nil {
		return issuance.Request{}, err
	}
	validity, err := span("validity", b.Validity)
	if err != nil {
		return issuance.Request{}, err
	}
	if b.Region == "" {
		b.Region = s.Region
	}
	return issuance.Request{RequestID: requestOf(ctx).idempotency, Actor: actor(ctx), Reason: requestOf(ctx).reason, Tenant: tenant, Authority: s.fullName(tenant, "authority", b.Authority), Region: b.Region,
		Template: "application", CSR: der, FromCSR: true, Names: names, Subject: b.Subject, Validity: validity}, nil
}

// dueOf is when the certificate ends that is to be replaced; zero when it is none, or one that must not be relied on.
func (s *server) dueOf(ctx context.Context, tenant, renews string) (time.Time, error) {
	if renews == "" {
		return time.Time{}, nil
	}
	if !strings.Contains(renews, "/") {
		renews = resource.Certificate(tenant, renews)
	}
	c, err := s.Ledger.Get(ctx, renews)
	if err != nil {
		return time.Time{}, err
	}
	if c.Tenant != tenant || c.Template != "application" {
		return time.Time{}, fault.New(fault.Refused, "not-an-application", "%.200s is not a certificate of an application of this tenant", renews).Do("name the one that this certificate replaces, or leave renews out")
	}
	if c.State != ledger.Active {
		return time.Time{}, nil
	}
	return c.NotAfter, nil
}

// requestDER takes PEM or base64; PEM may hold other blocks before it, as openssl writes them.
func requestDER(s string) ([]byte, error) {
	bad := fault.New(fault.Invalid, "bad-csr", "the request is neither PEM nor base64 of DER").
		Do("make one with: openssl req -new -newkey ec -pkeyopt ec_paramgen_curve:P-384 -nodes -keyout key.pem -out request.pem -subj /CN=app -addext subjectAltName=DNS:app.example")
	s = strings.TrimSpace(s)
	if strings.Contains(s, "-----BEGIN") {
		_, rest, ok := strings.Cut(s, "CERTIFICATE REQUEST-----")
		text, _, end := strings.Cut(rest, "-----END")
		if !ok || !end {
			return nil, bad
		}
		s = text
	}
	der, err := base64.StdEncoding.DecodeString(strings.Join(strings.Fields(s), ""))
	if err != nil || len(der) == 0 {
		return nil, bad
	}
	return der, nil
}
