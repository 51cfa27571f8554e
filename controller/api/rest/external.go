package rest

import (
	"context"
	"encoding/pem"
	"net/http"

	"github.com/danielgtaylor/huma/v2"

	"github.com/cassandra-security-manager/csm/controller/authority"
	"github.com/cassandra-security-manager/csm/shared/algorithm"
	"github.com/cassandra-security-manager/csm/shared/certificate"
	"github.com/cassandra-security-manager/csm/shared/fault"
)

// external are the two halves of an issuing CA whose certificate a CA elsewhere signs.
func (s *server) external(base string, tags []string) {
	pemOf := map[string]*huma.Response{"200": {Description: "PEM", Content: map[string]*huma.MediaType{"application/x-pem-file": {Schema: &huma.Schema{Type: "string"}}}}}
	handle(s, huma.Operation{OperationID: "requestIssuer", Method: http.MethodPost, Path: base + "/{authority}:csr", Tags: tags, Responses: pemOf,
		Summary: "Make a key for an issuing CA and the request that a CA elsewhere is to sign; the authority need not exist yet"}, "issuer:create",
		func(ctx context.Context, in *struct {
			AuthorityPath
			Created
			Body struct {
				Region    string `json:"region" maxLength:"63"`
				Algorithm string `json:"algorithm,omitempty" maxLength:"16" doc:"default P-384"`
			}
		}) (*pemOutput, error) {
			if in.ValidateOnly {
				return &pemOutput{ContentType: "application/x-pem-file"}, nil
			}
			der, err := s.Authorities.Request(ctx, in.name(), in.Body.Region, algorithm.Key(in.Body.Algorithm), actor(ctx))
			return &pemOutput{ContentType: "application/x-pem-file", Body: pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: der})}, err
		})
	handle(s, huma.Operation{OperationID: "installIssuer", Method: http.MethodPost, Path: base + "/{authority}:install", Tags: tags,
		Summary: "Install the certificate that answers a request, with all that is above it; makes the authority if there is none"}, "issuer:create",
		func(ctx context.Context, in *struct {
			AuthorityPath
			Created
			Body struct {
				Chain string `json:"chain" maxLength:"65536" doc:"PEM: the issuing CA's certificate first, the root last"`
			}
		}) (*One[Issuer], error) {
			chain, err := certificate.DecodePEM([]byte(in.Body.Chain))
			if err != nil {
				return nil, err
			}
			if len(chain) == 0 {
				return nil, fault.New(fault.Invalid, "bad-chain", "there is no certificate in what was sent").Do("send PEM, the issuing CA first, the root last")
			}
			if in.ValidateOnly {
				return &One[Issuer]{}, authority.CheckInstalled(chain, s.Clock.Now())
			}
			i, err := s.Authorities.Install(ctx, in.name(), chain, actor(ctx))
			if err != nil {
				return nil, err
			}
			v := issuerOf(*i)
			return &One[Issuer]{ETag: v.ETag, Body: v}, nil
		})
}
