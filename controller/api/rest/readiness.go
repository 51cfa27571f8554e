package rest

import (
	"context"
	"net/http"

	"github.com/danielgtaylor/huma/v2"

	controller "github.com/cassandra-security-manager/csm/controller/readiness"
	"github.com/cassandra-security-manager/csm/shared/readiness"
)

// Readiness is how a cluster stands before CSM manages it, or at any later time.
type Readiness struct {
	Name string `json:"name"`
	readiness.Report
}

func (s *server) readiness() {
	handle(s, huma.Operation{OperationID: "checkClusterReadiness", Method: http.MethodGet, Path: "/v1/tenants/{tenant}/clusters/{cluster}:checkReadiness", Tags: []string{"clusters"},
		Summary:     "Report what stands in the way of managing each node, and what is wrong there today",
		Description: "Judged from what agents told and found. Blockers are what would break, or cannot be managed; nothing is changed."}, "cluster:checkReadiness",
		func(ctx context.Context, in *struct {
			ClusterPath
			Read
		}) (*body[Readiness], error) {
			r, err := controller.Cluster(ctx, s.Fleet, s.Ledger, in.name(), s.Clock.Now().UTC())
			return &body[Readiness]{Readiness{Name: in.name(), Report: r}}, err
		})
}
