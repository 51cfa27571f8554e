package rest

import (
	"context"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"net/http"
	"strings"

	"github.com/danielgtaylor/huma/v2"

	"github.com/cassandra-security-manager/csm/shared/fault"
)

// Sizes of a page.
const (
	DefaultPage = 100
	MaxPage     = 1000
)

// Read are the parameters of every read.
type Read struct {
	Consistency string `query:"consistency" enum:"stale,linearizable" default:"stale" doc:"stale answers from this controller, linearizable as of now"`
}

// List are the parameters of every list.
type List struct {
	Read
	PageSize  int    `query:"pageSize" minimum:"0" maximum:"1000" doc:"at most so many; 100 when 0"`
	PageToken string `query:"pageToken" maxLength:"1024" doc:"nextPageToken of the page before; all other parameters must be the same"`
	Filter    string `query:"filter" maxLength:"2048" doc:"conditions joined by AND: field=value, field!=value, field<value, field>value, field:part; values may be quoted"`
	OrderBy   string `query:"orderBy" maxLength:"64" doc:"a field, or a field and desc"`
	Watch     bool   `query:"watch" doc:"answer with server-sent events instead: {type, revision, object}"`
	Since     uint64 `query:"since" doc:"with watch: begin after this revision (of a list, or of the last event); 410 when it is too old"`
}

func (l List) size() int {
	if l.PageSize == 0 {
		return DefaultPage
	}
	return l.PageSize
}

// token is a page token: what the package below gave, bound to the question it belongs to.
type token struct {
	Question string `json:"q"`
	Inner    string `json:"t"`
}

// question is what must be the same on each page.
func question(path string, l List) string {
	sum := sha256.Sum256([]byte(strings.Join([]string{path, l.Filter, l.OrderBy}, "\x00")))
	return hex.EncodeToString(sum[:8])
}

func sealToken(q, inner string) string {
	if inner == "" {
		return ""
	}
	b, _ := json.Marshal(token{q, inner})
	return base64.RawURLEncoding.EncodeToString(b)
}

func openToken(q, sealed string) (string, error) {
	if sealed == "" {
		return "", nil
	}
	var t token
	b, err := base64.RawURLEncoding.DecodeString(sealed)
	if err == nil {
		err = json.Unmarshal(b, &t)
	}
	if err != nil || t.Inner == "" {
		return "", fault.New(fault.Invalid, "bad-page-token", "the page token cannot be read").Do("pass nextPageToken on as it was, or begin without one")
	}
	if t.Question != q {
		return "", fault.New(fault.Invalid, "bad-page-token", "the page token belongs to another list").Do("keep filter and orderBy the same from page to page, or begin without a token")
	}
	return t.Inner, nil
}

// Page of a list.
type Page[T any] struct {
	Items         []T    `json:"items"`
	NextPageToken string `json:"nextPageToken,omitempty" doc:"empty on the last page"`
	Revision      uint64 `json:"revision" doc:"begin a watch after it to miss nothing"`
}

// PageOutput is the answer of a list.
type PageOutput[T any] struct{ Body Page[T] }

// paged asks for a page with the token unwrapped, and wraps the next one. The revision is read before the items, so
// a watch from there may repeat a change but never misses one.
func paged[S, T any](ctx context.Context, s *server, l List, each func(S) T, ask func(token string) ([]S, string, error)) (*PageOutput[T], error) {
	q := question(requestOf(ctx).path, l)
	inner, err := openToken(q, l.PageToken)
	if err != nil {
		return nil, err
	}
	out := &PageOutput[T]{Body: Page[T]{Items: []T{}, Revision: s.State.Applied()}}
	items, next, err := ask(inner)
	if err != nil {
		return nil, err
	}
	for _, it := range items {
		out.Body.Items = append(out.Body.Items, each(it))
	}
	out.Body.NextPageToken = sealToken(q, next)
	return out, nil
}

// slicePage cuts a short list that is held whole: the token is the name of the last item given. Items are in the order
// of their names.
func slicePage[S any](all []S, name func(S) string, size int, token string) ([]S, string) {
	start := 0
	for start < len(all) && token != "" && name(all[start]) <= token {
		start++
	}
	end := min(start+size, len(all))
	next := ""
	if end < len(all) && end > start {
		next = name(all[end-1])
	}
	return all[start:end], next
}

// One is the answer with one resource.
type One[T any] struct {
	ETag string `header:"ETag"`
	Body T
}

// permit marks an operation with its permission, "resource:verb".
func permit(op huma.Operation, permission string) huma.Operation {
	op.Metadata = map[string]any{permissionOf: permission}
	op.Security = []map[string][]string{{"administrator": {}}}
	op.Extensions = map[string]any{"x-csm-permission": permission}
	return op
}

// handle registers an operation whose errors are faults.
func handle[I, O any](s *server, op huma.Operation, permission string, fn func(context.Context, *I) (*O, error)) {
	if permission != "" {
		op = permit(op, permission)
	}
	op.Errors = []int{http.StatusBadRequest, http.StatusServiceUnavailable}
	if permission != "" {
		op.Errors = append(op.Errors, http.StatusUnauthorized, http.StatusForbidden, http.StatusTooManyRequests)
	}
	op.MaxBodyBytes = s.Limits.Body
	// The body was read before this (readBody), within the server's ReadTimeout. huma's own limit, 5 s by default, would be set on a connection
	// whose next byte net/http waits for already: over HTTP/1.1 it would end a request that works for longer, and all that follow on it.
	op.BodyReadTimeout = -1
	huma.Register(s.api, op, func(ctx context.Context, in *I) (*O, error) {
		var behind error
		if op.OperationID != issueCertificate { // that comes by the thousand, and says itself when it begins to wait
			if q := requestOf(ctx); q != nil && q.leave != nil {
				q.leave()
			}
			if permission != "" { // who was given a certificate by this controller finds it there
				behind = s.Quorum.CatchUp(ctx)
			}
		}
		out, err := fn(ctx, in)
		if behind != nil && fault.Is(err, fault.NotFound) {
			err = behind // it may be there
		}
		if err != nil {
			p := problemOf(ctx, err)
			if p.Status == http.StatusInternalServerError {
				s.Logger.Error("request failed", "error", err, "requestId", p.RequestID, "path", p.Instance)
			}
			return nil, p
		}
		return out, nil
	})
}
