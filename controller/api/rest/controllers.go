package rest

import (
	"context"
	"encoding/hex"
	"net/http"
	"time"

	"github.com/danielgtaylor/huma/v2"

	"github.com/cassandra-security-manager/csm/controller/consensus"
	"github.com/cassandra-security-manager/csm/controller/fleet"
	"github.com/cassandra-security-manager/csm/controller/grace"
	"github.com/cassandra-security-manager/csm/shared/fault"
	"github.com/cassandra-security-manager/csm/shared/resource"
)

// Controller is one member of the control plane, as the controller that answers sees it.
type Controller struct {
	Name     string            `json:"name"`
	UID      string            `json:"uid"`
	Revision uint64            `json:"revision" doc:"index that it has applied"`
	ETag     string            `json:"etag"`
	Labels   map[string]string `json:"labels,omitempty"`
	State    string            `json:"state" doc:"pending, approved, unsealed; or once it takes part: leader, voter, non-voter"`
	Region   string            `json:"region"`
	Zone     string            `json:"zone"`
	Address  string            `json:"address"`
	Voter    bool              `json:"voter"`
	Leader   bool              `json:"leader"`
	// Reachable from the controller that answers, just now.
	Reachable      bool    `json:"reachable"`
	Applied        uint64  `json:"applied"`
	Lag            uint64  `json:"lag" doc:"entries behind the leader"`
	Version        string  `json:"version,omitempty"`
	FeatureLevel   uint32  `json:"featureLevel"`
	ClockOffsetMs  float64 `json:"clockOffsetMs" doc:"its clock minus that of the controller that answers"`
	LastContactMs  float64 `json:"lastContactMs" doc:"since it heard a leader; negative when unknown"`
	DiskFree       float64 `json:"diskFree" doc:"share of its disk that is free, 0 to 1"`
	KeyFingerprint string  `json:"keyFingerprint" doc:"SHA-256 of its public key, to compare before approving"`
}

// Status is the control plane as the controller that answers sees it.
type Status struct {
	Name        string       `json:"name"`
	ClusterID   string       `json:"clusterId"`
	TrustDomain string       `json:"trustDomain"`
	Controller  string       `json:"controller" doc:"that answers"`
	Leader      string       `json:"leader,omitempty"`
	Term        uint64       `json:"term"`
	Applied     uint64       `json:"applied"`
	AgeMs       float64      `json:"ageMs" doc:"age of the state of the controller that answers; negative when unknown"`
	Quorum      bool         `json:"quorum"`
	State       string       `json:"state" enum:"healthy,degraded,no-quorum,frozen"`
	Problems    []string     `json:"problems" doc:"each with what to do"`
	Controllers []Controller `json:"controllers"`
	Freezes     []FreezeView `json:"freezes"`
	Grace       *grace.Given `json:"grace,omitempty" doc:"while it is in force, agents may renew an identity that expired however long ago"`
	Pin         string       `json:"caPin,omitempty" doc:"of the system CA: for agents, joining controllers and contexts of csm"`
}

// FreezeView is a freeze in force.
type FreezeView = fleet.Freeze

// Verification compares the state of all controllers at one index.
type Verification struct {
	Consistent  bool       `json:"consistent" doc:"every controller answered with the same checksum"`
	Index       uint64     `json:"index"`
	Controllers []Checksum `json:"controllers"`
}

// Checksum of one controller's state.
type Checksum struct {
	Controller string `json:"controller"`
	Index      uint64 `json:"index"`
	SHA256     string `json:"sha256,omitempty"`
	Rows       int64  `json:"rows"`
	Error      string `json:"error,omitempty"`
}

func controllerOf(m consensus.MemberStatus) Controller {
	return Controller{Name: resource.Controller(m.Name), UID: m.ID, Revision: m.Applied, ETag: etag(m.Applied), State: m.State, Region: m.Region,
		Zone: m.Zone, Address: m.Address, Voter: m.Voter, Leader: m.State == "leader", Reachable: m.Reachable, Applied: m.Applied, Lag: m.Lag,
		Version: m.Version, FeatureLevel: m.FeatureLevel, ClockOffsetMs: millis(m.ClockOffset), LastContactMs: millis(m.LastContact),
		DiskFree: m.DiskFree, KeyFingerprint: m.KeyFingerprint}
}

func millis(d time.Duration) float64 { return float64(d.Microseconds()) / 1000 }

func (s *server) controllers() {
	tags := []string{"controllers"}
	name := func(c Controller) string { return c.Name }
	handle(s, s.watchable(huma.Operation{OperationID: "listControllers", Method: http.MethodGet, Path: "/v1/system/controllers", Tags: tags, Summary: "List controllers"}), "controller:list",
		func(ctx context.Context, in *struct{ List }) (*PageOutput[Controller], error) {
			if err := plainList(in.List, "controllers"); err != nil {
				return nil, err
			}
			all, err := s.allControllers(ctx)
			if err != nil {
				return nil, err
			}
			return paged(ctx, s, in.List, func(c Controller) Controller { return c }, func(token string) ([]Controller, string, error) {
				page, next := slicePage(byName(all, name), name, in.size(), token)
				return page, next, nil
			})
		})
	type Path struct {
		Controller string `path:"controller" maxLength:"63"`
	}
	handle(s, huma.Operation{OperationID: "getController", Method: http.MethodGet, Path: "/v1/system/controllers/{controller}", Tags: tags, Summary: "Get a controller"}, "controller:get",
		func(ctx context.Context, in *struct {
			Path
			Read
		}) (*One[Controller], error) {
			return s.oneController(ctx, in.Controller)
		})
	handle(s, huma.Operation{OperationID: "approveController", Method: http.MethodPost, Path: "/v1/system/controllers/{controller}:approve", Tags: tags,
		Summary: "Let a controller in that asks to join, after comparing its key's fingerprint with what it prints"}, "controller:approve",
		func(ctx context.Context, in *struct {
			Path
			Created
			Body struct {
				Fingerprint string `json:"fingerprint" pattern:"^[0-9a-fA-F]{64}$" doc:"SHA-256 of its public key, as the joining controller prints it"`
			}
		}) (*One[Controller], error) {
			if in.ValidateOnly {
				return s.oneController(ctx, in.Controller)
			}
			m, err := s.Quorum.Approve(ctx, in.Controller, in.Body.Fingerprint, actor(ctx))
			if err != nil {
				return nil, err
			}
			if s.AfterApprove != nil {
				if err := s.AfterApprove(ctx, m, actor(ctx)); err != nil {
					return nil, err
				}
			}
			return s.oneController(ctx, in.Controller)
		})
	handle(s, huma.Operation{OperationID: "removeController", Method: http.MethodPost, Path: "/v1/system/controllers/{controller}:remove", Tags: tags, DefaultStatus: http.StatusNoContent,
		Summary: "Remove a controller for good; it may come back only under a new id"}, "controller:remove",
		func(ctx context.Context, in *struct {
			Path
			Created
			Body struct {
				Reason string `json:"reason" minLength:"1" maxLength:"1024"`
			}
		}) (*struct{}, error) {
			if in.ValidateOnly {
				_, err := s.oneController(ctx, in.Controller)
				return nil, err
			}
			return nil, s.Quorum.Remove(ctx, in.Controller, actor(ctx), in.Body.Reason)
		})
	s.controllerTokens()
}

func (s *server) allControllers(ctx context.Context) ([]Controller, error) {
	st, err := s.Quorum.Status(ctx)
	if err != nil {
		return nil, err
	}
	out := make([]Controller, 0, len(st.Members))
	for _, m := range st.Members {
		out = append(out, controllerOf(m))
	}
	return out, nil
}

func (s *server) oneController(ctx context.Context, short string) (*One[Controller], error) {
	all, err := s.allControllers(ctx)
	if err != nil {
		return nil, err
	}
	for _, c := range all {
		if c.Name == resource.Controller(short) {
			return &One[Controller]{ETag: c.ETag, Body: c}, nil
		}
	}
	return nil, fault.New(fault.NotFound, "no-controller", "there is no controller %.80q", short).Do("`csm system controllers` lists them")
}

// ControllerToken is what is known of a controller's join token; Secret is set in the answer that made it.
type ControllerToken struct {
	Name       string    `json:"name"`
	Controller string    `json:"controller,omitempty" doc:"the only one that may use it"`
	CreateTime time.Time `json:"createTime"`
	ExpireTime time.Time `json:"expireTime"`
	Uses       int       `json:"uses"`
	Used       int       `json:"used"`
	Creator    string    `json:"creator"`
	State      string    `json:"state" enum:"open,used,expired"`
	Secret     string    `json:"token,omitempty" doc:"shown once"`
	Pin        string    `json:"caPin,omitempty" doc:"of the system CA, for the joining controller"`
}

func (s *server) tokenOf(t consensus.Token) ControllerToken {
	out := ControllerToken{Name: resource.ControllerJoinToken(t.ID), Controller: t.Name, CreateTime: t.Created, ExpireTime: t.Expires,
		Uses: t.Uses, Used: t.Used, Creator: t.CreatedBy, State: "open"}
	switch {
	case t.Used >= t.Uses:
		out.State = "used"
	case s.Clock.Now().After(t.Expires):
		out.State = "expired"
	}
	return out
}

func (s *server) controllerTokens() {
	tags := []string{"controllers"}
	handle(s, huma.Operation{OperationID: "listControllerJoinTokens", Method: http.MethodGet, Path: "/v1/system/controllerJoinTokens", Tags: tags, Summary: "List join tokens of controllers"}, "controllerJoinToken:list",
		func(ctx context.Context, in *struct{ List }) (*PageOutput[ControllerToken], error) {
			if err := plainList(in.List, "join tokens"); err != nil {
				return nil, err
			}
			all, err := s.Quorum.JoinTokens(ctx)
			if err != nil {
				return nil, err
			}
			id := func(t consensus.Token) string { return t.ID }
			return paged(ctx, s, in.List, s.tokenOf, func(token string) ([]consensus.Token, string, error) {
				page, next := slicePage(byName(all, id), id, in.size(), token)
				return page, next, nil
			})
		})
	handle(s, huma.Operation{OperationID: "createControllerJoinToken", Method: http.MethodPost, Path: "/v1/system/controllerJoinTokens", Tags: tags, DefaultStatus: http.StatusCreated,
		Summary: "Create a token by which a controller asks to join; an administrator approves it then"}, "controllerJoinToken:create",
		func(ctx context.Context, in *struct {
			Created
			Body struct {
				Controller string `json:"controller,omitempty" maxLength:"63" doc:"the only controller that may use it"`
				TTL        string `json:"ttl,omitempty" doc:"time span; default 1h, at most 168h"`
				Uses       int    `json:"uses,omitempty" minimum:"0" maximum:"100" doc:"default 1"`
			}
		}) (*body[ControllerToken], error) {
			ttl, err := span("ttl", in.Body.TTL)
			if err != nil {
				return nil, err
			}
			if in.ValidateOnly {
				return &body[ControllerToken]{}, nil
			}
			secret, t, err := s.Quorum.CreateJoinToken(ctx, consensus.TokenSpec{TTL: ttl, Uses: in.Body.Uses, Name: in.Body.Controller}, actor(ctx))
			if requestOf(ctx).repeated.Load() {
				return nil, fault.New(fault.Conflict, "token-shown", "this request made a token before, and a token is shown once").
					Do("revoke that token and ask with a new Idempotency-Key")
			}
			if err != nil {
				return nil, err
			}
			out := s.tokenOf(t)
			out.Secret, out.Pin = secret, s.pin(ctx)
			return &body[ControllerToken]{out}, nil
		})
	handle(s, huma.Operation{OperationID: "revokeControllerJoinToken", Method: http.MethodPost, Path: "/v1/system/controllerJoinTokens/{token}:revoke", Tags: tags, DefaultStatus: http.StatusNoContent,
		Summary: "Make a controller's join token useless"}, "controllerJoinToken:revoke",
		func(ctx context.Context, in *struct {
			Token string `path:"token" maxLength:"63"`
		}) (*struct{}, error) {
			return nil, s.Quorum.RevokeJoinToken(ctx, in.Token, actor(ctx))
		})
}

func checksumOf(c consensus.MemberChecksum) Checksum {
	out := Checksum{Controller: resource.Controller(c.Name), Index: c.Index, Rows: c.Rows}
	if c.Err != nil {
		out.Error = fault.From(c.Err).Error()
	} else {
		out.SHA256 = hex.EncodeToString(c.Sum[:])
	}
	return out
}
