package rest

import (
	"context"
	"net/http"

	"github.com/danielgtaylor/huma/v2"

	"github.com/cassandra-security-manager/csm/controller/systemca"
)

// SystemRotation is a change of the root of the system CA.
type SystemRotation struct {
	systemca.Rotation
	ETag   string            `json:"etag"`
	Labels map[string]string `json:"labels,omitempty"`
}

func systemRotationOf(r systemca.Rotation) SystemRotation {
	return SystemRotation{Rotation: r, ETag: etag(r.Revision)}
}

// SystemRotationPath is that of one rotation.
type SystemRotationPath struct {
	Rotation string `path:"rotation" maxLength:"63"`
}

const systemRotations = "/v1/system/authorities/system/rotations"

func (p SystemRotationPath) name() string { return systemRotations[len("/v1/"):] + "/" + p.Rotation }

// SystemRotationStart begins a plan that was looked at.
type SystemRotationStart struct {
	PlanHash string `json:"planHash" minLength:"64" maxLength:"64" doc:"of rotations:plan"`
	Reason   string `json:"reason" minLength:"1" maxLength:"1024"`
}

// SystemRotationControl is why, and who is not waited for.
type SystemRotationControl struct {
	Why
	Except []string `json:"except,omitempty" maxItems:"1000" doc:"with resume: nodes and administrators that are not waited for any more, by full name"`
}

// SystemRotationRetire withdraws the root before.
type SystemRotationRetire struct {
	PlanHash string   `json:"planHash" minLength:"64" maxLength:"64" doc:"of the rotation's :planRetire"`
	Except   []string `json:"except,omitempty" maxItems:"1000" doc:"nodes and administrators that are not waited for, by full name"`
	Reason   string   `json:"reason" minLength:"1" maxLength:"1024"`
}

func oneSystemRotation(r systemca.Rotation, err error) (*One[SystemRotation], error) {
	out := systemRotationOf(r)
	return &One[SystemRotation]{ETag: out.ETag, Body: out}, err
}

func (s *server) systemRotations() {
	tags := []string{"rotations"}
	handle(s, s.watchable(huma.Operation{OperationID: "listSystemRotations", Method: http.MethodGet, Path: systemRotations, Tags: tags,
		Summary: "List the rotations of the system CA, without identities and timelines"}), "systemRotation:list",
		func(ctx context.Context, in *struct{ List }) (*PageOutput[SystemRotation], error) {
			if err := plainList(in.List, "rotations"); err != nil {
				return nil, err
			}
			all, err := s.SystemCA.List(ctx)
			return listed(ctx, s, in.List, all, err, systemRotationOf, func(r systemca.Rotation) string { return r.Name })
		})
	handle(s, huma.Operation{OperationID: "getSystemRotation", Method: http.MethodGet, Path: systemRotations + "/{rotation}", Tags: tags,
		Summary: "Get a rotation of the system CA: its phase, what each gate waits for, each controller, how many agents, and the timeline"}, "systemRotation:get",
		func(ctx context.Context, in *struct {
			SystemRotationPath
			Read
		}) (*One[SystemRotation], error) {
			return oneSystemRotation(s.SystemCA.Get(ctx, in.name()))
		})
	handle(s, huma.Operation{OperationID: "planSystemRotation", Method: http.MethodPost, Path: systemRotations + ":plan", Tags: tags,
		Summary: "Say what a rotation of the system CA would do; nothing is changed or kept"}, "systemRotation:plan",
		func(ctx context.Context, _ *struct{}) (*body[systemca.SystemPlan], error) {
			p, err := s.SystemCA.Plan(ctx)
			return &body[systemca.SystemPlan]{p}, err
		})
	handle(s, huma.Operation{OperationID: "startSystemRotation", Method: http.MethodPost, Path: systemRotations, Tags: tags, DefaultStatus: http.StatusCreated,
		Summary: "Begin a rotation of the system CA whose plan was looked at; refused as stale when the plan would be another by now"}, "systemRotation:start",
		func(ctx context.Context, in *struct {
			Created
			Body SystemRotationStart
		}) (*One[SystemRotation], error) {
			if in.ValidateOnly {
				_, err := s.SystemCA.Plan(ctx)
				return oneSystemRotation(systemca.Rotation{}, err)
			}
			return oneSystemRotation(s.SystemCA.Start(ctx, in.Body.PlanHash, in.Body.Reason, actor(ctx)))
		})
	s.systemRotationVerb("pause", "Let nobody else begin")
	s.systemRotationVerb("resume", "Let a paused rotation go on")
	s.systemRotationVerb("rollback", "Turn round: identities of the root before again, then the new root goes. Until the retire")
	s.systemRotationRetire(tags, systemRotations+"/{rotation}")
}

func (s *server) systemRotationVerb(verb, summary string) {
	handle(s, huma.Operation{OperationID: verb + "SystemRotation", Method: http.MethodPost, Path: systemRotations + "/{rotation}:" + verb,
		Tags: []string{"rotations"}, Summary: summary}, "systemRotation:"+verb,
		func(ctx context.Context, in *struct {
			SystemRotationPath
			Created
			Body SystemRotationControl
		}) (*One[SystemRotation], error) {
			if in.ValidateOnly {
				return oneSystemRotation(s.SystemCA.Get(ctx, in.name()))
			}
			return oneSystemRotation(s.SystemCA.Control(ctx, in.name(), verb, in.Body.Reason, actor(ctx), in.Body.Except...))
		})
}

func (s *server) systemRotationRetire(tags []string, base string) {
	handle(s, huma.Operation{OperationID: "planRetireSystemRotation", Method: http.MethodPost, Path: base + ":planRetire", Tags: tags,
		Summary: "Say what a retire of the root before would do, and what is in the way; nothing is changed or kept"}, "systemRotation:get",
		func(ctx context.Context, in *struct{ SystemRotationPath }) (*body[systemca.SystemRetirePlan], error) {
			p, err := s.SystemCA.PlanRetire(ctx, in.name())
			return &body[systemca.SystemRetirePlan]{p}, err
		})
	handle(s, huma.Operation{OperationID: "retireSystemRotation", Method: http.MethodPost, Path: base + ":retire", Tags: tags,
		Summary: "Withdraw the root before: there is no way back from here"}, "systemRotation:retire",
		func(ctx context.Context, in *struct {
			SystemRotationPath
			Created
			Body SystemRotationRetire
		}) (*One[SystemRotation], error) {
			if in.ValidateOnly {
				return oneSystemRotation(s.SystemCA.Get(ctx, in.name()))
			}
			return oneSystemRotation(s.SystemCA.Retire(ctx, in.name(), in.Body.PlanHash, in.Body.Except, in.Body.Reason, actor(ctx)))
		})
}
