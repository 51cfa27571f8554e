package rest

import (
	"context"
	"encoding/hex"
	"net/http"
	"strings"
	"time"

	"github.com/danielgtaylor/huma/v2"

	"github.com/cassandra-security-manager/csm/controller/fleet/rollout"
	"github.com/cassandra-security-manager/csm/shared/fault"
	"github.com/cassandra-security-manager/csm/shared/resource"
)

// Rollout is a change of many nodes, wave by wave.
type Rollout struct {
	rollout.Rollout
	ETag   string            `json:"etag"`
	Labels map[string]string `json:"labels,omitempty"`
}

func rolloutOf(r rollout.Rollout) Rollout { return Rollout{Rollout: r, ETag: etag(r.Revision)} }

type RolloutPath struct {
	ClusterPath
	Rollout string `path:"rollout" maxLength:"63"`
}

func (p RolloutPath) name() string { return p.ClusterPath.name() + "/rollouts/" + p.Rollout }

// RolloutBody is what is asked for.
type RolloutBody struct {
	Kind           string    `json:"kind,omitempty" enum:"renew,trust,leaf,shrink,back" doc:"default renew; the others are steps of a rotation"`
	Nodes          []string  `json:"nodes,omitempty" maxItems:"1000" doc:"short names; each node that can when empty"`
	Width          int       `json:"width,omitempty" minimum:"0" maximum:"64" doc:"nodes of a wave that may be on the move at once; default 1"`
	MaxUnavailable int       `json:"maxUnavailable,omitempty" minimum:"0" maximum:"1000" doc:"members that may be down or unproved while further nodes begin; default 0"`
	Canary         *int      `json:"canary,omitempty" minimum:"0" maximum:"1000" doc:"nodes of the first wave; default 1"`
	Bake           string    `json:"bake,omitempty" doc:"rest between waves; default 1m" example:"10m"`
	FailureBudget  int       `json:"failureBudget,omitempty" minimum:"0" maximum:"1000" doc:"failed nodes that do not halt it; default 0"`
	Windows        []string  `json:"windows,omitempty" maxItems:"32" doc:"nodes begin only then, UTC" example:"Mon-Fri 01:00-05:00"`
	Blackouts      []string  `json:"blackouts,omitempty" maxItems:"32" doc:"no node begins then: two RFC 3339 times with a slash between"`
	Start          time.Time `json:"startTime,omitzero" required:"false" doc:"no node begins before"`
}

// RolloutStart begins a plan that was looked at.
type RolloutStart struct {
	RolloutBody
	PlanHash string `json:"planHash" minLength:"64" maxLength:"64" doc:"of rollouts:plan for the same body"`
	Reason   string `json:"reason" minLength:"1" maxLength:"1024"`
}

func (b RolloutBody) spec(cluster string) (rollout.Spec, error) {
	s := rollout.Usual(cluster, rollout.Renew)
	if b.Kind != "" {
		s = rollout.Usual(cluster, b.Kind)
	}
	s.Nodes, s.MaxUnavailable, s.FailureBudget, s.Windows, s.Blackouts, s.Start = b.Nodes, b.MaxUnavailable, b.FailureBudget, b.Windows, b.Blackouts, b.Start.UTC()
	if b.Start.IsZero() {
		s.Start = time.Time{}
	} else {
		s.Start = s.Start.Truncate(time.Millisecond)
	}
	if b.Width > 0 {
		s.Width = b.Width
	}
	if b.Canary != nil {
		s.Canary = *b.Canary
	}
	if b.Bake != "" {
		d, err := time.ParseDuration(b.Bake)
		if err != nil {
			return s, fault.New(fault.Invalid, "bad-bake", "bake: %.40q is not a time span", b.Bake).Do("write it like 0s, 10m or 1h")
		}
		s.Bake = d.Truncate(time.Millisecond)
	}
	return s, nil
}

func (s *server) rollouts() {
	tags := []string{"rollouts"}
	const base = "/v1/tenants/{tenant}/clusters/{cluster}/rollouts"
	handle(s, s.watchable(huma.Operation{OperationID: "listRollouts", Method: http.MethodGet, Path: base, Tags: tags, Summary: "List the rollouts of a cluster, the newest thousand; - as the cluster reads across all"}), "rollout:list",
		func(ctx context.Context, in *struct {
			ClusterPath
			List
		}) (*PageOutput[Rollout], error) {
			if err := plainList(in.List, "rollouts"); err != nil {
				return nil, err
			}
			all, err := s.Rollouts.List(ctx, in.ClusterPath.name(), 1000)
			return listed(ctx, s, in.List, all, err, rolloutOf, func(r rollout.Rollout) string { return r.Name })
		})
	handle(s, huma.Operation{OperationID: "getRollout", Method: http.MethodGet, Path: base + "/{rollout}", Tags: tags, Summary: "Get a rollout: its waves, each node's phase, what it waits for and what comes next"}, "rollout:get",
		func(ctx context.Context, in *struct {
			RolloutPath
			Read
		}) (*One[Rollout], error) {
			return s.oneRollout(ctx, in.name())
		})
	handle(s, huma.Operation{OperationID: "explainRollout", Method: http.MethodGet, Path: base + "/{rollout}:explain", Tags: tags, Summary: "Say what a rollout waits for, since when, and what to do about it"}, "rollout:get",
		func(ctx context.Context, in *struct {
			RolloutPath
			Read
		}) (*body[Explanation], error) {
			r, err := s.Rollouts.Get(ctx, in.name())
			return &body[Explanation]{Explanation{Name: r.Name, State: r.State, Note: r.Note, Awaits: r.Awaits, Since: r.AwaitsSince, Next: r.Next}}, err
		})
	handle(s, huma.Operation{OperationID: "planRollout", Method: http.MethodPost, Path: base + ":plan", Tags: tags,
		Summary: "Say which node would go in which wave, why, and how long it would take; nothing is changed or kept"}, "rollout:plan",
		func(ctx context.Context, in *struct {
			ClusterPath
			Body RolloutBody
		}) (*body[rollout.Plan], error) {
			spec, err := in.Body.spec(in.name())
			if err != nil {
				return nil, err
			}
			if _, err := s.Fleet.GetCluster(ctx, in.name()); err != nil {
				return nil, err
			}
			p, err := s.Rollouts.Plan(ctx, spec)
			return &body[rollout.Plan]{p}, err
		})
	handle(s, huma.Operation{OperationID: "startRollout", Method: http.MethodPost, Path: base + ":start", Tags: tags, DefaultStatus: http.StatusCreated,
		Summary: "Begin a rollout whose plan was looked at; refused as stale when the plan would be another by now"}, "rollout:start",
		func(ctx context.Context, in *struct {
			ClusterPath
			Created
			Body RolloutStart
		}) (*One[Rollout], error) {
			return s.startRollout(ctx, in.name(), in.Body, in.ValidateOnly)
		})
	s.rolloutVerb(rollout.Pause, "Let no further node begin; what is on the move ends")
	s.rolloutVerb(rollout.Resume, "Let a paused or halted rollout go on; what failed is tried again")
	s.rolloutVerb(rollout.AbortIt, "End a rollout: what has not begun is taken back, what moved stays")
	s.rolloutVerb(rollout.Rollback, "Take a rollout back: the nodes that moved move again, in reverse order, to a leaf of the authority that signed for them before")
}

// Explanation is what a rollout waits for.
type Explanation struct {
	Name   string           `json:"name"`
	State  string           `json:"state"`
	Note   string           `json:"note,omitempty"`
	Awaits []rollout.Reason `json:"awaits"`
	Since  time.Time        `json:"awaitsSince,omitzero"`
	Next   string           `json:"next,omitempty"`
}

func (s *server) startRollout(ctx context.Context, cluster string, b RolloutStart, validateOnly bool) (*One[Rollout], error) {
	spec, err := b.spec(cluster)
	if err != nil {
		return nil, err
	}
	hash, err := hex.DecodeString(b.PlanHash)
	if err != nil {
		return nil, fault.New(fault.Invalid, "bad-hash", "planHash is not hexadecimal").Do("use the planHash of rollouts:plan")
	}
	if validateOnly {
		p, err := s.Rollouts.Plan(ctx, spec)
		if err == nil && p.Hash != b.PlanHash {
			err = fault.New(fault.Stale, "plan-stale", "the plan is no longer what would be done").Do("make it again with `csm rollout plan`")
		}
		return &One[Rollout]{}, err
	}
	name, err := s.Rollouts.Start(ctx, spec, hash, b.Reason, actor(ctx))
	if err != nil {
		return nil, err
	}
	return s.oneRollout(ctx, name)
}

func (s *server) rolloutVerb(verb, summary string) {
	handle(s, huma.Operation{OperationID: verb + "Rollout", Method: http.MethodPost, Path: "/v1/tenants/{tenant}/clusters/{cluster}/rollouts/{rollout}:" + verb, Tags: []string{"rollouts"}, Summary: summary}, "rollout:"+verb,
		func(ctx context.Context, in *struct {
			RolloutPath
			Created
			IfMatch string `header:"If-Match" doc:"etag that the rollout must still have"`
			Body    struct {
				Reason string `json:"reason" minLength:"1" maxLength:"1024"`
			}
		}) (*One[Rollout], error) {
			r, err := s.Rollouts.Get(ctx, in.name())
			if err != nil {
				return nil, err
			}
			if in.IfMatch != "" && in.IfMatch != "*" && in.IfMatch != etag(r.Revision) {
				return nil, fault.New(fault.Stale, "etag", "the rollout changed since you read it").Do("read it again, then decide")
			}
			if !in.ValidateOnly {
				if err := s.Rollouts.Set(ctx, in.name(), verb, in.Body.Reason, actor(ctx)); err != nil {
					return nil, err
				}
			}
			return s.oneRollout(ctx, in.name())
		})
}

func (s *server) oneRollout(ctx context.Context, name string) (*One[Rollout], error) {
	r, err := s.Rollouts.Get(ctx, name)
	out := rolloutOf(r)
	return &One[Rollout]{ETag: out.ETag, Body: out}, err
}

// underWay adds to a node what the rollout and the rotation that it takes part in say of it.
func (s *server) underWay(ctx context.Context, n *Node) (err error) {
	if n.Rollout, err = s.Rollouts.PartOf(ctx, n.Cluster, n.Name); err != nil {
		return err
	}
	if p := n.Rollout; p != nil {
		n.Why += "; rollout " + resource.Last(p.Rollout) + " (" + p.State + "), wave " + p.Wave + ": " + p.Phase
		for _, r := range p.Awaits {
			n.Why += "; " + r.Message
		}
	}
	if n.Rotation, err = s.Rotations.PartOf(ctx, n.Cluster, n.Name); err != nil || n.Rotation == nil {
		return err
	}
	p := n.Rotation
	n.Why += "; rotation " + resource.Last(p.Rotation) + " (" + p.State + "), phase " + string(p.Phase)
	for _, r := range p.Reasons {
		if r.Code == "waves" && n.Rollout != nil {
			continue // said of the rollout already
		}
		n.Why += "; " + strings.TrimSpace(r.Node+" "+r.Message)
	}
	return nil
}
