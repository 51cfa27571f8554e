package rest

import (
	"html/template"
	"net/http"
	"slices"
	"strings"

	"github.com/danielgtaylor/huma/v2"
)

// docs is a page made of the same document; it loads nothing from anywhere.
func (s *server) docs(w http.ResponseWriter, r *http.Request) {
	type operation struct{ Method, Path, Summary, Description, Permission, ID string }
	groups := map[string][]operation{}
	var names []string
	for path, item := range s.api.OpenAPI().Paths {
		for method, op := range map[string]*huma.Operation{"GET": item.Get, "POST": item.Post, "PATCH": item.Patch, "DELETE": item.Delete} {
			if op == nil {
				continue
			}
			group := strings.Join(op.Tags, ", ")
			if groups[group] == nil {
				names = append(names, group)
			}
			permission, _ := op.Metadata[permissionOf].(string)
			groups[group] = append(groups[group], operation{method, path, op.Summary, op.Description, permission, op.OperationID})
		}
	}
	slices.Sort(names)
	for _, g := range groups {
		slices.SortFunc(g, func(a, b operation) int { return strings.Compare(a.Path+a.Method, b.Path+b.Method) })
	}
	w.Header().Set("Content-Type", "text/html; charset=utf-8")
	if err := page.Execute(w, map[string]any{"Info": s.api.OpenAPI().Info, "Names": names, "Groups": groups}); err != nil {
		s.Logger.Error("documentation page", "error", err)
	}
}

var page = template.Must(template.New("docs").Parse(`<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width"><title>{{.Info.Title}} API</title>
<style>
:root{color-scheme:light dark}body{font:15px/1.5 system-ui,sans-serif;max-width:64rem;margin:2rem auto;padding:0 1rem}
h2{margin-top:2rem;text-transform:capitalize}article{border-top:1px solid #8884;padding:.6rem 0}code{font:13px ui-monospace,monospace}
.m{display:inline-block;min-width:4rem;font-weight:600}p{margin:.2rem 0 0 4rem;white-space:pre-line}.d{opacity:.75}
</style></head><body>
<h1>{{.Info.Title}} API {{.Info.Version}}</h1><div>{{.Info.Description}}</div>
<div>The whole document: <a href="/v1/openapi.json">/v1/openapi.json</a> (OpenAPI 3.1), <a href="/v1/openapi.yaml">/v1/openapi.yaml</a></div>
{{range $n := .Names}}<h2>{{$n}}</h2>{{range index $.Groups $n}}<article id="{{.ID}}"><code><span class="m">{{.Method}}</span>{{.Path}}</code>
<p>{{.Summary}}{{if .Permission}} <span class="d">({{.Permission}})</span>{{end}}</p>{{if .Description}}<p class="d">{{.Description}}</p>{{end}}</article>
{{end}}{{end}}</body></html>
`))
