package rest

import (
	"context"
	"encoding/json"
	"errors"
	"math"
	"net/http"
	"strconv"
	"strings"

	"github.com/danielgtaylor/huma/v2"

	"github.com/cassandra-security-manager/csm/shared/fault"
)

// Problem is an error as RFC 9457 has it, with what csm needs to act: a stable reason and a remedy.
type Problem struct {
	Type      string              `json:"type" doc:"urn:csm:problem: and the reason"`
	Title     string              `json:"title"`
	Status    int                 `json:"status"`
	Detail    string              `json:"detail" doc:"what happened"`
	Instance  string              `json:"instance,omitempty" doc:"path of the request"`
	Code      string              `json:"code" doc:"class of the fault; the exit code of csm follows from it"`
	Reason    string              `json:"reason" doc:"stable word for machines, kebab-case"`
	Remedy    string              `json:"remedy,omitempty" doc:"what to do next"`
	RequestID string              `json:"requestId,omitempty"`
	Errors    []*huma.ErrorDetail `json:"errors,omitempty" doc:"each wrong parameter or field"`

	retryAfter int
}

func (p *Problem) Error() string  { return p.Detail }
func (p *Problem) GetStatus() int { return p.Status }

// ContentType is huma's hook for the media type of problems.
func (p *Problem) ContentType(string) string { return "application/problem+json" }

// GetHeaders is huma's hook for headers of an error.
func (p *Problem) GetHeaders() http.Header {
	h := http.Header{}
	if p.retryAfter > 0 {
		h.Set("Retry-After", strconv.Itoa(p.retryAfter))
	}
	return h
}

// problemOf tells a fault. What is internal stays in the log; the request id leads there.
func problemOf(ctx context.Context, err error) *Problem {
	f := fault.From(err)
	p := &Problem{Type: "urn:csm:problem:" + f.Reason, Status: f.Code.HTTPStatus(), Detail: f.Message, Code: f.Code.String(), Reason: f.Reason, Remedy: f.Remedy}
	if f.Code == fault.Internal && f.Reason == "internal" {
		p.Detail = "the controller failed to answer"
		p.Remedy = "look for the request id in the controller's log"
	}
	switch f.Reason {
	case "gone":
		p.Status = http.StatusGone
	case "too-large":
		p.Status = http.StatusRequestEntityTooLarge
	case "method-not-allowed":
		p.Status = http.StatusMethodNotAllowed
	}
	if p.Status < 400 {
		p.Status = http.StatusInternalServerError
	}
	if p.Status == http.StatusServiceUnavailable || p.Status == http.StatusTooManyRequests {
		p.retryAfter = max(1, int(math.Ceil(f.RetryAfter.Seconds())))
	}
	p.Title = http.StatusText(p.Status)
	if r := requestOf(ctx); r != nil {
		p.RequestID, p.Instance = r.id, r.path
	}
	return p
}

// The hooks of huma are variables of the package; nothing else in this program uses huma.
func init() {
	huma.NewErrorWithContext = func(c huma.Context, status int, msg string, errs ...error) huma.StatusError {
		return foreign(c.Context(), status, msg, errs)
	}
	huma.NewError = func(status int, msg string, errs ...error) huma.StatusError {
		return foreign(context.Background(), status, msg, errs)
	}
}

// foreign tells an error that huma found: a body that is no JSON, a field that is missing.
func foreign(ctx context.Context, status int, msg string, errs []error) huma.StatusError {
	var p *Problem
	for _, err := range errs {
		if errors.As(err, &p) {
			return p
		}
	}
	f := fault.New(fault.Invalid, "bad-request", "%s", msg).Do("see /v1/openapi.json or /docs for what this takes")
	switch {
	case status == http.StatusRequestEntityTooLarge:
		f = fault.New(fault.Invalid, "too-large", "the request is too large").Do("send less")
	case status == http.StatusRequestTimeout:
		f = fault.New(fault.Unavailable, "timeout", "the request came too slowly").Do("send it again")
	case status >= 500:
		f = fault.New(fault.Internal, "internal", "%s", msg)
	}
	p = problemOf(ctx, f)
	var said []string
	for _, err := range errs {
		var d huma.ErrorDetailer
		switch {
		case err == nil:
		case errors.As(err, &d):
			detail := *d.ErrorDetail()
			detail.Value = nil // what was sent may be a secret
			p.Errors = append(p.Errors, &detail)
			said = append(said, strings.TrimPrefix(detail.Location, "body.")+": "+detail.Message)
		default:
			p.Errors = append(p.Errors, &huma.ErrorDetail{Message: err.Error()})
			said = append(said, err.Error())
		}
	}
	if len(said) > 0 && status < 500 {
		p.Detail += ": " + strings.Join(said, "; ")
	}
	return p
}

// writeProblem answers outside of huma.
func writeProblem(w http.ResponseWriter, r *http.Request, err error) {
	p := problemOf(r.Context(), err)
	for k, v := range p.GetHeaders() {
		w.Header()[k] = v
	}
	w.Header().Set("Content-Type", "application/problem+json")
	w.WriteHeader(p.Status)
	_ = json.NewEncoder(w).Encode(p)
}
