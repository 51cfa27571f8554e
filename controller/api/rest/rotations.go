package rest

import (
	"context"
	"net/http"
	"time"

	"github.com/danielgtaylor/huma/v2"

	"github.com/cassandra-security-manager/csm/controller/fleet/rotation"
	"github.com/cassandra-security-manager/csm/shared/fault"
	"github.com/cassandra-security-manager/csm/shared/resource"
)

// Rotation is a change of the CA of a ring.
type Rotation struct {
	rotation.Rotation
	ETag   string            `json:"etag"`
	Labels map[string]string `json:"labels,omitempty"`
}

func rotationOf(r rotation.Rotation) Rotation { return Rotation{Rotation: r, ETag: etag(r.Revision)} }

type RotationPath struct {
	TrustDomainPath
	Rotation string `path:"rotation" maxLength:"63"`
}

func (p RotationPath) name() string { return p.TrustDomainPath.name() + "/rotations/" + p.Rotation }

// RotationBody says to which CA.
type RotationBody struct {
	Authority string `json:"authority" minLength:"1" maxLength:"256" doc:"authority that signs from then on; name or id. The present one: its newest issuer, or, where leaves are another CA's, the take-over"`
	// Emergency is for a CA whose key may be in other hands.
	Emergency bool     `json:"emergency,omitempty" doc:"what the plan lists under relaxed is given up, and the old CA is withdrawn by itself"`
	Keep      []string `json:"keep,omitempty" maxItems:"16" doc:"with emergency: what is not given up all the same" enum:"width,canary,seen,by-hand"`
}

func (b RotationBody) wanted(s *server, p TrustDomainPath) rotation.Wanted {
	return rotation.Wanted{Cluster: p.cluster(), Authority: s.fullName(p.Tenant, "authority", b.Authority), Emergency: b.Emergency, Keep: b.Keep}
}

// RotationStart begins a plan that was looked at.
type RotationStart struct {
	RotationBody
	PlanHash string `json:"planHash" minLength:"64" maxLength:"64" doc:"of rotations:plan for the same body"`
	Bake     string `json:"bake,omitempty" doc:"rest between two waves; default 1m, in an emergency none" example:"10m"`
	Reason   string `json:"reason" minLength:"1" maxLength:"1024"`
	// Except is asked for where nobody can tell who speaks CQL to the ring.
	Except []string `json:"except,omitempty" maxItems:"1000" doc:"clients that may break, as the plan names them"`
}

// RotationControl is why, and who is not waited for.
type RotationControl struct {
	Why
	Except []string `json:"except,omitempty" maxItems:"1000" doc:"with resume: clients that are not waited for any more, as the reasons name them; on the way back of a take-over leaf-NODE lets a node keep our certificate"`
}

// RotationAside names a member that is down.
type RotationAside struct {
	Member      string `json:"member" minLength:"1" maxLength:"512" doc:"full name of its node, or the host id of a member that has none"`
	Incarnation uint64 `json:"incarnation,omitempty" doc:"of that node, as the rotation shows it"`
	Reason      string `json:"reason" minLength:"1" maxLength:"1024"`
}

// RotationRetire withdraws the CA before.
type RotationRetire struct {
	PlanHash string   `json:"planHash" minLength:"64" maxLength:"64" doc:"of the rotation's :planRetire"`
	Except   []string `json:"except,omitempty" maxItems:"1000" doc:"clients that may break, as the plan names them"`
	Reason   string   `json:"reason" minLength:"1" maxLength:"1024"`
}

func (s *server) rotations() {
	tags := []string{"rotations"}
	const base = "/v1/tenants/{tenant}/trustDomains/{trustDomain}/rotations"
	handle(s, s.watchable(huma.Operation{OperationID: "listRotations", Method: http.MethodGet, Path: base, Tags: tags, Summary: "List the rotations of a trust domain, without members and timelines"}), "rotation:list",
		func(ctx context.Context, in *struct {
			TrustDomainPath
			List
		}) (*PageOutput[Rotation], error) {
			if err := plainList(in.List, "rotations"); err != nil {
				return nil, err
			}
			all, err := s.Rotations.List(ctx, in.name())
			return listed(ctx, s, in.List, all, err, rotationOf, func(r rotation.Rotation) string { return r.Name })
		})
	handle(s, huma.Operation{OperationID: "getRotation", Method: http.MethodGet, Path: base + "/{rotation}", Tags: tags, Summary: "Get a rotation: its phase, what each gate waits for, each member, and the timeline"}, "rotation:get",
		func(ctx context.Context, in *struct {
			RotationPath
			Read
		}) (*One[Rotation], error) {
			r, err := s.Rotations.Get(ctx, in.name())
			return oneRotation(r, err)
		})
	handle(s, huma.Operation{OperationID: "planRotation", Method: http.MethodPost, Path: base + ":plan", Tags: tags,
		Summary: "Say what a rotation would do, who would break, and what cannot be proved; nothing is changed or kept"}, "rotation:plan",
		func(ctx context.Context, in *struct {
			TrustDomainPath
			Body RotationBody
		}) (*body[rotation.RotationPlan], error) {
			p, err := s.Rotations.Plan(ctx, in.Body.wanted(s, in.TrustDomainPath))
			return &body[rotation.RotationPlan]{p}, err
		})
	handle(s, huma.Operation{OperationID: "startRotation", Method: http.MethodPost, Path: base, Tags: tags, DefaultStatus: http.StatusCreated,
		Summary: "Begin a rotation whose plan was looked at; refused as stale when the plan would be another by now"}, "rotation:start",
		func(ctx context.Context, in *struct {
			TrustDomainPath
			Created
			Body RotationStart
		}) (*One[Rotation], error) {
			return s.startRotation(ctx, in.TrustDomainPath, in.Body, in.ValidateOnly)
		})
	s.rotationVerb("pause", "Let no further node begin; what is on the move ends")
	s.rotationVerb("resume", "Let a paused or halted rotation go on")
	s.rotationVerb("rollback", "Turn round: leaves of the CA before again, then the new anchors go. Until the retire begins")
	s.rotationHands(tags, base+"/{rotation}")
}

// cluster is the one behind the trust domain.
func (p TrustDomainPath) cluster() string { return resource.Cluster(p.Tenant, p.TrustDomain) }

func oneRotation(r rotation.Rotation, err error) (*One[Rotation], error) {
	out := rotationOf(r)
	return &One[Rotation]{ETag: out.ETag, Body: out}, err
}

func (s *server) startRotation(ctx context.Context, p TrustDomainPath, b RotationStart, validate bool) (*One[Rotation], error) {
	bake := time.Minute
	if b.Emergency {
		bake = 0
	}
	if b.Bake != "" {
		d, err := time.ParseDuration(b.Bake)
		if err != nil || d < 0 {
			return nil, fault.New(fault.Invalid, "bad-bake", "bake: %.40q is not a time span", b.Bake).Do("write it like 0s, 10m or 1h")
		}
		bake = d
	}
	w := b.wanted(s, p)
	if w.Emergency { // it retires by itself: who may not do that by hand may not start it
		if err := s.People.Allowed(ctx, actor(ctx), "rotation:retire", p.name()+"/rotations"); err != nil {
			return nil, err
		}
	}
	if validate {
		_, err := s.Rotations.Plan(ctx, w)
		return oneRotation(rotation.Rotation{}, err)
	}
	return oneRotation(s.Rotations.Start(ctx, w, b.PlanHash, bake, b.Reason, actor(ctx), b.Except...))
}

func (s *server) rotationVerb(verb, summary string) {
	handle(s, huma.Operation{OperationID: verb + "Rotation", Method: http.MethodPost, Path: "/v1/tenants/{tenant}/trustDomains/{trustDomain}/rotations/{rotation}:" + verb,
		Tags: []string{"rotations"}, Summary: summary}, "rotation:"+verb,
		func(ctx context.Context, in *struct {
			RotationPath
			Created
			Body RotationControl
		}) (*One[Rotation], error) {
			if in.ValidateOnly {
				return oneRotation(s.Rotations.Get(ctx, in.name()))
			}
			return oneRotation(s.Rotations.Control(ctx, in.name(), verb, in.Body.Reason, actor(ctx), in.Body.Except...))
		})
}

// rotationHands are what a person does by hand only: leave a member out, and withdraw the CA before.
func (s *server) rotationHands(tags []string, base string) {
	handle(s, huma.Operation{OperationID: "setAsideRotation", Method: http.MethodPost, Path: base + ":setAside", Tags: tags,
		Summary: "Leave a member that is down out of the count while it is down"}, "rotation:setAside",
		func(ctx context.Context, in *struct {
			RotationPath
			Created
			Body RotationAside
		}) (*One[Rotation], error) {
			if in.ValidateOnly {
				return oneRotation(s.Rotations.Get(ctx, in.name()))
			}
			return oneRotation(s.Rotations.SetAside(ctx, in.name(), in.Body.Member, in.Body.Incarnation, in.Body.Reason, actor(ctx)))
		})
	handle(s, huma.Operation{OperationID: "planRetireRotation", Method: http.MethodPost, Path: base + ":planRetire", Tags: tags,
		Summary: "Say what a retire would withdraw, who would break, and what is in the way; nothing is changed or kept"}, "rotation:get",
		func(ctx context.Context, in *struct{ RotationPath }) (*body[rotation.RetirePlan], error) {
			p, err := s.Rotations.PlanRetire(ctx, in.name())
			return &body[rotation.RetirePlan]{p}, err
		})
	handle(s, huma.Operation{OperationID: "retireRotation", Method: http.MethodPost, Path: base + ":retire", Tags: tags,
		Summary: "Withdraw the anchors of the CA before: there is no way back from here"}, "rotation:retire",
		func(ctx context.Context, in *struct {
			RotationPath
			Created
			Body RotationRetire
		}) (*One[Rotation], error) {
			if in.ValidateOnly {
				return oneRotation(s.Rotations.Get(ctx, in.name()))
			}
			return oneRotation(s.Rotations.Retire(ctx, in.name(), in.Body.PlanHash, in.Body.Except, in.Body.Reason, actor(ctx)))
		})
}
