package rest

import (
	"context"
	"fmt"
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
	Remedy string `json:"remedy,omitempty" doc:"what to do when it is not ok"`
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

// healthAnswer is a Health under its status.
type healthAnswer struct {
	Status int
	Body   Health
}

// staleAfter is how old the state may be, and lagging how many entries behind, for a controller that calls itself ready.
const (
	staleAfter = 10 * time.Second
	lagging    = 10_000
)

func (s *server) health() {
	type verbose struct {
		Verbose string `query:"verbose" doc:"list each check"`
	}
	handle(s, huma.Operation{OperationID: "livez", Method: http.MethodGet, Path: "/livez", Tags: []string{"health"},
		Summary: "Does the process answer"}, "",
		func(context.Context, *verbose) (*body[Health], error) { return &body[Health]{Health{OK: true}}, nil })
	handle(s, huma.Operation{OperationID: "readyz", Method: http.MethodGet, Path: "/readyz", Tags: []string{"health"},
		Summary:     "Can this controller take requests: leader, lag, keys, disk, clock",
		Description: "200 when it can, 503 when it cannot. With verbose both list every check; without it the 503 is a problem document that names the first one that failed."}, "",
		func(_ context.Context, in *verbose) (*healthAnswer, error) {
			h := Health{OK: true, Checks: s.checks()}
			out := &healthAnswer{Status: http.StatusOK}
			every := in.Verbose != "" && in.Verbose != "false"
			for _, c := range h.Checks {
				if c.OK {
					continue
				}
				if !every {
					return nil, fault.New(fault.Unavailable, "not-ready", "%s: %s", c.Name, c.Detail).Do("%s", c.Remedy)
				}
				h.OK, out.Status = false, http.StatusServiceUnavailable
			}
			if !every {
				h.Checks = nil
			}
			out.Body = h
			return out, nil
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
	h := s.Quorum.Health()
	checks := []Check{leaderCheck(h), lagCheck(h)}
	if s.Unsealed != nil {
		c := Check{Name: "keys", OK: s.Unsealed(), Detail: "unsealed"}
		if !c.OK {
			c.Detail, c.Remedy = "the keys are sealed", "look at seal in controller.yaml; a new controller must be approved first: csm system approve"
		}
		checks = append(checks, c)
	}
	return append(checks, diskCheck(h), clockCheck(h))
}

func leaderCheck(h consensus.Health) Check {
	c := Check{Name: "leader", OK: true, Detail: "follows " + h.Leader}
	switch {
	case h.ShutOut != nil:
		c.OK, c.Detail, c.Remedy = false, h.ShutOut.Message, h.ShutOut.Remedy
	case h.Age == consensus.AgeUnknown:
		c.OK, c.Detail, c.Remedy = false, "no leader has been heard since the start", noLeaderRemedy
	case h.Age > staleAfter:
		c.OK, c.Detail, c.Remedy = false, "the state is "+cli.Span(h.Age)+" old: no leader, or cut off", noLeaderRemedy
	case h.Leader == "":
		c.Detail = "an election is under way"
	}
	return c
}

const noLeaderRemedy = "`csm status` on any controller says which ones are missing; start them, or mend the network on port 9642"

func lagCheck(h consensus.Health) Check {
	c := Check{Name: "applied", OK: h.Lag <= lagging, Detail: fmt.Sprintf("index %d, %d behind the leader", h.Applied, h.Lag)}
	if !c.OK {
		c.Remedy = "wait: it catches up by itself; if the number does not fall, look at the disk of this controller"
	}
	return c
}

func diskCheck(h consensus.Health) Check {
	c := Check{Name: "disk", OK: h.DiskLow == nil, Detail: fmt.Sprintf("%.0f %% free", h.DiskFree*100)}
	if !c.OK {
		c.Detail, c.Remedy = h.DiskLow.Message, h.DiskLow.Remedy
	}
	return c
}

func clockCheck(h consensus.Health) Check {
	c := Check{Name: "clock", OK: true, Detail: "agrees with the other controllers"}
	switch {
	case h.ClockWrong != nil:
		c.OK, c.Detail, c.Remedy = false, h.ClockWrong.Message, h.ClockWrong.Remedy
	case h.ClockAhead > consensus.MaxClockOffset:
		c.Detail = "the clock of the state is " + cli.Span(h.ClockAhead) + " ahead: writes are dated with it until this clock has caught up"
	}
	return c
}
