package rest

import (
	"context"
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/danielgtaylor/huma/v2"

	"github.com/cassandra-security-manager/csm/controller/consensus"
	"github.com/cassandra-security-manager/csm/controller/fleet"
	"github.com/cassandra-security-manager/csm/controller/state"
	"github.com/cassandra-security-manager/csm/shared/fault"
	"github.com/cassandra-security-manager/csm/shared/identity"
	"github.com/cassandra-security-manager/csm/shared/resource"
)

func (s *server) system() {
	tags := []string{"system"}
	handle(s, huma.Operation{OperationID: "getSystem", Method: http.MethodGet, Path: "/v1/system", Tags: tags, Summary: "Status of the control plane"}, "system:get",
		func(ctx context.Context, _ *struct{ Read }) (*body[Status], error) {
			st, err := s.status(ctx)
			return &body[Status]{st}, err
		})
	handle(s, huma.Operation{OperationID: "verifySystem", Method: http.MethodPost, Path: "/v1/system:verify", Tags: tags,
		Summary: "Let every controller compute the checksum of its state at one index, and compare"}, "system:verify",
		func(ctx context.Context, _ *struct{}) (*body[Verification], error) {
			v, err := s.verify(ctx)
			return &body[Verification]{v}, err
		})
	s.systemVerb("freezeSystem", "freeze", "Let no effect begin on any node", func(ctx context.Context, w Why) error {
		return s.Fleet.Freeze(ctx, fleet.System, w.Reason, w.Until, actor(ctx))
	})
	s.systemVerb("unfreezeSystem", "unfreeze", "Lift the freeze of the system; narrower ones stay", func(ctx context.Context, w Why) error {
		return s.Fleet.Unfreeze(ctx, fleet.System, w.Reason, actor(ctx))
	})
	s.systemVerb("giveGrace", "grace", "Let agents renew an identity that expired however long ago, until a time; revoked stays revoked", func(ctx context.Context, w Why) error {
		return s.Grace.Give(ctx, w.Until, w.Reason, actor(ctx))
	})
	s.systemVerb("endGrace", "endGrace", "Take a grace back before its end", func(ctx context.Context, w Why) error {
		return s.Grace.End(ctx, w.Reason, actor(ctx))
	})
	handle(s, s.watchable(huma.Operation{OperationID: "watchEvents", Method: http.MethodGet, Path: "/v1/events", Tags: tags,
		Summary: "Watch every change (watch=true); without watch, the current revision to begin from"}), "event:watch",
		func(ctx context.Context, in *struct{ List }) (*PageOutput[Named], error) {
			if err := plainList(in.List, "events"); err != nil {
				return nil, err
			}
			return paged(ctx, s, in.List, func(n Named) Named { return n }, func(string) ([]Named, string, error) { return nil, "", nil })
		})
	s.audit()
}

func (s *server) systemVerb(id, verb, summary string, do func(ctx context.Context, w Why) error) {
	handle(s, huma.Operation{OperationID: id, Method: http.MethodPost, Path: "/v1/system:" + verb, Tags: []string{"system"}, Summary: summary}, "system:"+verb,
		func(ctx context.Context, in *struct {
			Created
			Body Why
		}) (*body[Status], error) {
			if !in.ValidateOnly {
				if err := do(ctx, in.Body); err != nil {
					return nil, err
				}
			}
			st, err := s.status(ctx)
			return &body[Status]{st}, err
		})
}

func (s *server) status(ctx context.Context) (Status, error) {
	st, err := s.Quorum.Status(ctx)
	if err != nil {
		return Status{}, err
	}
	freezes, err := s.Fleet.ListFreezes(ctx)
	if err != nil {
		return Status{}, err
	}
	out := Status{Name: "system", ClusterID: st.ClusterID, TrustDomain: s.TrustDomain, Controller: st.Name, Leader: st.Leader, Term: st.Term,
		Applied: st.Applied, AgeMs: -1, Quorum: st.Quorum, Problems: append([]string{}, st.Problems...), Controllers: []Controller{},
		Freezes: append([]FreezeView{}, freezes...), Pin: s.pin(ctx)}
	if out.Grace, err = s.Grace.Current(ctx); err != nil {
		return Status{}, err
	}
	if st.Age != consensus.AgeUnknown {
		out.AgeMs = millis(st.Age)
	}
	for _, f := range freezes {
		if f.Alarm != "" {
			out.Problems = append(out.Problems, f.Alarm)
		}
	}
	for _, m := range st.Members {
		out.Controllers = append(out.Controllers, controllerOf(m))
	}
	out.State = stateOf(out)
	return out, nil
}

// stateOf sums a status up: the worst comes first.
func stateOf(s Status) string {
	switch {
	case !s.Quorum:
		return "no-quorum"
	case len(s.Problems) > 0:
		return "degraded"
	}
	for _, f := range s.Freezes {
		if f.Scope == fleet.System {
			return "frozen"
		}
	}
	return "healthy"
}

// pin of the root of the system CA that signs identities now.
func (s *server) pin(ctx context.Context) string {
	if s.SystemCA == nil {
		return ""
	}
	w, err := s.SystemCA.Wish(ctx)
	if err != nil || w.Signing == nil {
		return ""
	}
	return identity.Pin(w.Signing.Certificate)
}

func (s *server) verify(ctx context.Context) (Verification, error) {
	sums, err := s.Quorum.Verify(ctx, actor(ctx))
	if err != nil {
		return Verification{}, err
	}
	v := Verification{Consistent: len(sums) > 0, Controllers: []Checksum{}}
	for _, c := range sums {
		v.Index = max(v.Index, c.Index)
		v.Controllers = append(v.Controllers, checksumOf(c))
		if c.Err != nil || c.Sum != sums[0].Sum || c.Index != sums[0].Index {
			v.Consistent = false
		}
	}
	return v, nil
}

// object reads one resource by its name, as the list it belongs to shows it: watches need it.
func (s *server) object(ctx context.Context, name string) (any, error) {
	switch collectionOf(name) {
	case "clusters":
		c, err := s.Fleet.GetCluster(ctx, name)
		return clusterOf(c), err
	case "tenants":
		t, err := s.Fleet.GetTenant(ctx, name)
		return tenantOf(t), err
	case "nodes":
		n, err := s.Fleet.GetNode(ctx, name)
		return nodeOf(n), err
	case "joinTokens":
		t, err := s.Fleet.GetToken(ctx, name)
		return JoinToken{Token: t}, err
	case "trustDomains":
		d, err := s.Fleet.GetTrustDomain(ctx, name)
		return trustDomainOf(d), err
	case "anchors":
		x, err := s.Fleet.GetAnchor(ctx, name)
		return anchorOf(x), err
	case "requests":
		r, err := s.Fleet.GetJoinRequest(ctx, name)
		return joinRequestOf(r), err
	case "certificates":
		c, err := s.Ledger.Get(ctx, name)
		if err != nil {
			return nil, err
		}
		return s.certificateOf(*c), nil
	case "authorities":
		return s.authority(ctx, name)
	case "admins":
		return s.People.Admin(ctx, resource.Last(name))
	case "backups":
		b, err := s.Backups.Get(ctx, resource.Last(name))
		return backupOf(b), err
	case "controllers":
		c, err := s.oneController(ctx, resource.Last(name))
		if err != nil {
			return nil, err
		}
		return c.Body, nil
	}
	return Named{name}, nil
}

// collectionOf is the last but one segment of a name.
func collectionOf(name string) string {
	p := strings.Split(name, "/")
	if len(p) < 2 {
		return ""
	}
	return p[len(p)-2]
}

// AuditEntry is one command as it was decided.
type AuditEntry struct {
	Name          string        `json:"name"`
	Revision      uint64        `json:"revision"`
	Time          time.Time     `json:"time"`
	Actor         string        `json:"actor"`
	Tenant        string        `json:"tenant,omitempty"`
	Command       string        `json:"command"`
	CorrelationID string        `json:"correlationId,omitempty"`
	Reason        string        `json:"reason,omitempty"`
	Touched       []AuditChange `json:"touched"`
	Refused       string        `json:"refused,omitempty" doc:"why it was refused; empty when it took effect"`
	RefusedReason string        `json:"refusedReason,omitempty"`
}

// AuditChange is one resource that a command touched.
type AuditChange struct {
	Type string `json:"type"`
	Name string `json:"name"`
}

func (s *server) audit() {
	const fields = "actor, tenant, command, resource, refused=true, time< and time>"
	handle(s, huma.Operation{OperationID: "listAuditEntries", Method: http.MethodGet, Path: "/v1/system/auditEntries", Tags: []string{"system"},
		Summary: "List what was asked, by whom, and what came of it, newest first", Description: "Filter fields: " + fields + "."}, "auditEntry:list",
		func(ctx context.Context, in *struct{ List }) (*PageOutput[AuditEntry], error) {
			var f state.AuditFilter
			if err := s.auditFilter(&f, in.Filter, fields); err != nil {
				return nil, err
			}
			return paged(ctx, s, in.List, auditOf, func(token string) ([]state.AuditEntry, string, error) {
				return s.State.Audit(ctx, f, state.AuditPage{Size: in.size(), Token: token})
			})
		})
}

func (s *server) auditFilter(f *state.AuditFilter, filter, fields string) error {
	return applyFilter(filter, fields, func(t Term) (bool, error) {
		if t.Field == "time" && (t.Op == "<" || t.Op == ">") {
			at, err := timeOf(s.Clock.Now(), t.Value)
			if t.Op == "<" {
				f.To = at
			} else {
				f.From = at
			}
			return true, err
		}
		if t.Op != "=" {
			return false, nil
		}
		switch t.Field {
		case "actor":
			f.Actor = t.Value
		case "tenant":
			f.Tenant = t.Value
		case "command":
			f.Kind = t.Value
		case "resource":
			f.Resource = t.Value
		case "refused":
			f.Refused = true
			if t.Value != "true" {
				return false, fault.New(fault.Invalid, "bad-filter", "refused can only be true").Do("leave it out for all")
			}
		default:
			return false, nil
		}
		return true, nil
	})
}

func auditOf(e state.AuditEntry) AuditEntry {
	out := AuditEntry{Name: "system/auditEntries/" + strconv.FormatUint(e.Index, 10), Revision: e.Index, Time: e.Time, Actor: e.Actor, Tenant: e.Tenant, Command: e.Kind,
		CorrelationID: e.CorrelationID, Reason: e.Reason, Touched: []AuditChange{}}
	for _, c := range e.Touched {
		out.Touched = append(out.Touched, AuditChange{Type: string(c.Verb), Name: c.Resource})
	}
	if e.Fault != nil {
		out.Refused, out.RefusedReason = e.Fault.Message, e.Fault.Reason
	}
	return out
}
