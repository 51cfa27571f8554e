package cli

import (
	"context"
	"net/http"
	"time"

	"github.com/spf13/cobra"

	"github.com/cassandra-security-manager/csm/shared/resource"
)

// completeWith offers what names gives, for the first argument.
func (a *app) completeWith(names func(*cobra.Command) []string) cobra.CompletionFunc {
	return func(cmd *cobra.Command, args []string, _ string) ([]string, cobra.ShellCompDirective) {
		if len(args) > 0 {
			return nil, cobra.ShellCompDirectiveNoFileComp
		}
		return names(cmd), cobra.ShellCompDirectiveNoFileComp
	}
}

// offered asks for the names of a collection; an error offers nothing, in two seconds at most.
func (a *app) offered(cmd *cobra.Command, path func(*session) string, shorten func(string) string) []string {
	s, err := a.open(cmd)
	if err != nil {
		return nil
	}
	ctx, cancel := context.WithTimeout(cmd.Context(), 2*time.Second)
	defer cancel()
	ans, err := s.client.do(ctx, call{method: http.MethodGet, path: "/v1/" + path(s) + "?pageSize=200"})
	if err != nil {
		return nil
	}
	var p struct{ Items []struct{ Name string } }
	if decode(ans.body, &p) != nil {
		return nil
	}
	var out []string
	for _, i := range p.Items {
		out = append(out, shorten(i.Name))
	}
	return out
}

func (a *app) clusterNames(cmd *cobra.Command) []string {
	return a.offered(cmd, func(s *session) string { return s.tenantName() + "/clusters" }, resource.Last)
}

func (a *app) nodeNames(cmd *cobra.Command) []string {
	return a.offered(cmd, func(s *session) string { return s.tenantName() + "/clusters/-/nodes" }, short)
}

func (a *app) authorityNames(cmd *cobra.Command) []string {
	return a.offered(cmd, func(s *session) string { return s.tenantName() + "/authorities" }, resource.Last)
}

func (a *app) certificateNames(cmd *cobra.Command) []string {
	return a.offered(cmd, func(s *session) string { return s.tenantName() + "/certificates" }, resource.Last)
}

func (a *app) controllerNames(cmd *cobra.Command) []string {
	return a.offered(cmd, func(*session) string { return "system/controllers" }, resource.Last)
}
