package rest

import (
	"context"
	"net/http"
	"time"

	"github.com/danielgtaylor/huma/v2"

	"github.com/cassandra-security-manager/csm/controller/consensus"
	"github.com/cassandra-security-manager/csm/shared/cli"
	"github.com/cassandra-security-manager/csm/shared/fault"
)

// Check is one thing that readiness depends on.
type Check struct {
	Name   string `json:"name"`
	OK     bool   `json:"ok"`
	Detail string `json:"detail,omitempty"`
}

// Health is the answer of /livez and /readyz.
type Health struct {
	OK     bool    `json:"ok"`
	Checks []Check `json:"checks,omitempty" doc:"with verbose"`
}

// Version is the answer of /v1/version.
type Version struct {
	cli.Build
	API         string `json:"api" doc:"version of this API"`
	Controller  string `json:"controller"`
	Region      string `json:"region"`
	TrustDomain string `json:"trustDomain"`
}

// WhoAmI says who the controller takes the caller for.
type WhoAmI struct {
	Name           string    `json:"name" doc:"system/admins/…"`
	Actor          string    `json:"actor" doc:"SPIFFE ID, as audit entries name it"`
	Kind           string    `json:"kind"`
	CertificateEnd time.Time `json:"certificateNotAfter"`
	Permissions    []string  `json:"permissions" doc:"what may be done, on which names"`
}

type body[T any] struct{ Body T }

// staleAfter is how old the state may be for a controller that calls itself ready.
const staleAfter = 10 * time.Second

func (s *server) health() {
	type verbose struct {
		Verbose string `query:"verbose" doc:"list each check"`
	}
	handle(s, huma.Operation{OperationID: "livez", Method: http.MethodGet, Path: "/livez", Tags: []string{"health"},
		Summary: "Does the process answer"}, "",
		func(context.Context, *verbose) (*body[Health], error) { return &body[Health]{Health{OK: true}}, nil })
	handle(s, huma.Operation{OperationID: "readyz", Method: http.MethodGet, Path: "/readyz", Tags: []string{"health"},
		Summary: "Can this controller take requests: it follows a leader, and its keys are unsealed"}, "",
		func(_ context.Context, in *verbose) (*body[Health], error) {
			checks := s.checks()
			for _, c := range checks {
				if !c.OK {
					return nil, fault.New(fault.Unavailable, "not-ready", "%s: %s", c.Name, c.Detail).Do("`csm status` on any controller shows what is missing")
				}
			}
			h := Health{OK: true}
			if in.Verbose != "" && in.Verbose != "false" {
				h.Checks = checks
			}
			return &body[Health]{h}, nil
		})
	handle(s, huma.Operation{OperationID: "version", Method: http.MethodGet, Path: "/v1/version", Tags: []string{"health"},
		Summary: "Version of the controller that answers"}, "",
		func(context.Context, *struct{}) (*body[Version], error) {
			return &body[Version]{Version{Build: cli.BuildInfo(), API: "v1", Controller: s.Name, Region: s.Region, TrustDomain: s.TrustDomain}}, nil
		})
	handle(s, huma.Operation{OperationID: "whoami", Method: http.MethodGet, Path: "/v1/whoami", Tags: []string{"health"},
		Summary: "Who am I"}, "self:get",
		func(ctx context.Context, _ *struct{ Read }) (*body[WhoAmI], error) {
			q := requestOf(ctx)
			return &body[WhoAmI]{WhoAmI{Name: q.caller.Name, Actor: q.caller.Actor, Kind: "admin", CertificateEnd: q.caller.NotAfter,
				Permissions: []string{"*:* on *"}}}, nil
		})
}

// checks look at this controller alone and ask nobody: a probe each second costs nothing.
func (s *server) checks() []Check {
	follows := Check{Name: "quorum", OK: true, Detail: "follows a leader"}
	switch age := s.Quorum.Age(); {
	case age == consensus.AgeUnknown:
		follows.OK, follows.Detail = false, "no leader has been heard since the start"
	case age > staleAfter:
		follows.OK, follows.Detail = false, "the state is "+cli.Span(age)+" old: no leader, or cut off"
	}
	checks := []Check{follows}
	if s.Unsealed != nil {
		c := Check{Name: "keys", OK: s.Unsealed(), Detail: "unsealed"}
		if !c.OK {
			c.Detail = "the keys are sealed"
		}
		checks = append(checks, c)
	}
	return checks
}
