package rotation

import (
	"context"
	"encoding/hex"
	"slices"
	"time"

	"github.com/jonboulle/clockwork"
	"google.golang.org/protobuf/proto"

	clusterv1 "github.com/cassandra-security-manager/csm/protocol/cluster/v1"

	"github.com/cassandra-security-manager/csm/controller/fleet"
	"github.com/cassandra-security-manager/csm/controller/state"
	"github.com/cassandra-security-manager/csm/shared/fault"
	"github.com/cassandra-security-manager/csm/shared/resource"
)

// Rotations forms commands and reads. It holds no state.
type Rotations struct {
	read  fleet.Reader
	log   state.Log
	clock clockwork.Clock
	machine
}

// New makes Rotations over the waves that Module was given.
func New(read fleet.Reader, log state.Log, clock clockwork.Clock, w Waves) *Rotations {
	return &Rotations{read: read, log: log, clock: clock, machine: machine{All(), w}}
}

// Rotation is one change of the CA of a ring, with why it waits.
type Rotation struct {
	Name        string `json:"name"`
	Cluster     string `json:"cluster"`
	TrustDomain string `json:"trustDomain"`
	Kind        Kind   `json:"kind" enum:"root,rekey,takeover,algorithm"`
	Phase       Phase  `json:"phase" enum:"distribute,reissue,reissued,retire,done,undo-reissue,undo-distribute,rolled-back"`
	// State is running, waiting (for a gate), paused, halted, done or rolled-back.
	State string `json:"state" enum:"running,waiting,paused,halted,done,rolled-back"`
	// Emergency: what Relaxed names is given up.
	Emergency  bool      `json:"emergency,omitempty"`
	Relaxed    []string  `json:"relaxed,omitempty" doc:"what this emergency gives up, as the plan named it"`
	Before     string    `json:"authorityBefore"`
	After      string    `json:"authorityAfter"`
	Rollout    string    `json:"rollout,omitempty" doc:"the waves of this phase"`
	Reason     string    `json:"reason"`
	Creator    string    `json:"creator"`
	CreateTime time.Time `json:"createTime"`
	PhaseTime  time.Time `json:"phaseTime" doc:"since when it is in this phase"`
	EndTime    time.Time `json:"endTime,omitzero"`
	Revision   uint64    `json:"revision"`
	// Reasons are what it waits for, as the gates say it; Next is what happens when they hold.
	Reasons []Reason `json:"reasons,omitempty"`
	Next    string   `json:"next,omitempty"`
	// WayBack is what would refuse a rollback now.
	WayBack  []Reason        `json:"wayBack,omitempty" doc:"what is in the way of a rollback now"`
	Members  []MemberState   `json:"members,omitempty"`
	Asides   []Aside         `json:"setAside,omitempty"`
	Timeline []TimelineEntry `json:"timeline,omitempty"`
}

// MemberState is how one member stands.
type MemberState struct {
	Name string `json:"name"`
	Node string `json:"node,omitempty"`
	// HostID and Incarnation are what `:setAside` asks for; a node that never started has no host id of its own.
	HostID      string `json:"hostId,omitempty"`
	Incarnation uint64 `json:"incarnation,omitempty"`
	Up          bool   `json:"up"`
	State       string `json:"state"`
	// Datacenter and Rack are empty for a member that CSM does not know.
	Datacenter string       `json:"datacenter,omitempty"`
	Rack       string       `json:"rack,omitempty"`
	Aside      string       `json:"setAside,omitempty"`
	Stores     []StoreState `json:"stores,omitempty"`
	// OldLinks and Links are about its connections to other nodes.
	OldLinks int    `json:"oldLinks" doc:"connections to other nodes from before the swap; -1: nobody can tell"`
	Links    string `json:"links,omitempty" doc:"why nobody can tell, or what is in the way of cycling them"`
}

// StoreState is how one store stands: which CA its served leaf is of, and which ports are proved to trust the new one.
type StoreState struct {
	Name     string   `json:"name"`
	Leaf     Side     `json:"leaf" enum:"before,after,neither,unknown"`
	Moving   bool     `json:"moving,omitempty"`
	Trusts   []string `json:"trusts,omitempty" doc:"ports where a neighbour's certificate of the new CA was accepted"`
	Unproved []string `json:"unproved,omitempty" doc:"ports where it was not yet"`
	Behind   bool     `json:"behind,omitempty" doc:"its files are older than what this phase asks for"`
}

// TimelineEntry is one line of the timeline.
type TimelineEntry struct {
	Time    time.Time `json:"time"`
	Phase   Phase     `json:"phase"`
	Message string    `json:"message"`
	Actor   string    `json:"actor,omitempty"`
}

func view[T any](ctx context.Context, r *Rotations, read func(ctx context.Context, q state.Querier) (T, error)) (T, error) {
	var out T
	err := r.read.View(ctx, func(ctx context.Context, q state.Querier) (err error) {
		out, err = read(ctx, q)
		return err
	})
	return out, err
}

// Plan says what a rotation would do, and changes nothing.
func (r *Rotations) Plan(ctx context.Context, w Wanted) (RotationPlan, error) {
	return view(ctx, r, func(ctx context.Context, q state.Querier) (RotationPlan, error) {
		p, _, err := look(ctx, q, r.clock.Now(), row{cluster: w.Cluster}).plan(w, r.gates)
		return p, err
	})
}

// Start begins the rotation of a plan that a person has read; bake is the rest between two waves. Stale when the plan would be another one now.
// except names clients that may break.
func (r *Rotations) Start(ctx context.Context, w Wanted, planHash string, bake time.Duration, reason, actor string, except ...string) (Rotation, error) {
	hash, err := hashFrom(planHash)
	if err != nil {
		return Rotation{}, err
	}
	out, err := state.Reply[*clusterv1.StartRotationReply](ctx, r.log, proposal(w.Cluster, actor, reason,
		&clusterv1.StartRotation{Cluster: w.Cluster, Authority: w.Authority, PlanHash: hash, BakeMs: bake.Milliseconds(), Reason: reason, Exceptions: except,
			Emergency: w.Emergency, Keep: w.Keep}))
	if err != nil {
		return Rotation{}, err
	}
	return r.Get(ctx, out.Name)
}

func hashFrom(text string) ([]byte, error) {
	b, err := hex.DecodeString(text)
	if err != nil || len(b) != 32 {
		return nil, fault.New(fault.Invalid, "bad-plan-hash", "%.80q is not the hash of a plan", text).Do("take it from `csm rotation plan`")
	}
	return b, nil
}

func proposal(name, actor, reason string, c proto.Message) state.Proposal {
	return state.Proposal{Command: c, Actor: actor, Tenant: resource.Segment(name, "tenants"), Reason: reason}
}

func (r *Rotations) propose(ctx context.Context, name, actor, reason string, c proto.Message) error {
	_, err := r.log.Propose(ctx, proposal(name, actor, reason, c))
	return err
}

// Control pauses, resumes or turns a rotation round: verb is pause, resume or rollback. except names clients that a resume does not
// wait for any more.
func (r *Rotations) Control(ctx context.Context, name, verb, reason, actor string, except ...string) (Rotation, error) {
	if err := r.propose(ctx, name, actor, reason, &clusterv1.ControlRotation{Name: name, Verb: verb, Reason: reason, Exceptions: except}); err != nil {
		return Rotation{}, err
	}
	return r.Get(ctx, name)
}

// SetAside takes a member that is down out of the count. member is the full name of its node, or a host id.
func (r *Rotations) SetAside(ctx context.Context, name, member string, incarnation uint64, reason, actor string) (Rotation, error) {
	if err := r.propose(ctx, name, actor, reason, &clusterv1.SetAsideMember{Name: name, Member: member, Incarnation: incarnation, Reason: reason}); err != nil {
		return Rotation{}, err
	}
	return r.Get(ctx, name)
}

// PlanRetire says what a retire would do and who would break.
func (r *Rotations) PlanRetire(ctx context.Context, name string) (RetirePlan, error) {
	return view(ctx, r, func(ctx context.Context, q state.Querier) (RetirePlan, error) {
		x, err := get(ctx, q, name)
		if err != nil {
			return RetirePlan{}, err
		}
		v, err := look(ctx, q, r.clock.Now(), x).view(r.waves)
		return retirePlan(x, v, r.gates), err
	})
}

// Retire withdraws the anchors of the CA before. except names clients that may break.
func (r *Rotations) Retire(ctx context.Context, name, planHash string, except []string, reason, actor string) (Rotation, error) {
	hash, err := hashFrom(planHash)
	if err != nil {
		return Rotation{}, err
	}
	if err := r.propose(ctx, name, actor, reason, &clusterv1.RetireRotation{Name: name, PlanHash: hash, Reason: reason, Exceptions: except}); err != nil {
		return Rotation{}, err
	}
	return r.Get(ctx, name)
}

// Watch lets each rotation that has something to do decide anew. The leader calls it now and then; what is decided, Apply
// decides again.
func (r *Rotations) Watch(ctx context.Context) error {
	due, err := view(ctx, r, r.due)
	for _, c := range due {
		if err == nil {
			err = r.propose(ctx, c.of, "rotation watch", "", c.command)
		}
	}
	return err
}

// comers are what is to be asked for members that come back after the end of the rotation in which they were set aside.
func (r *Rotations) comers(ctx context.Context, q state.Querier) (out []due, err error) {
	ended, err := late(ctx, q)
	if err != nil {
		return nil, err
	}
	for _, x := range ended {
		switch here, err := x.heard(ctx, q); {
		case err != nil:
			return nil, err
		case !here:
			continue
		}
		v, err := look(ctx, q, r.clock.Now(), x).view(r.waves)
		if err != nil {
			return nil, err
		}
		untold, err := x.untold(ctx, q, r.waves, v)
		if err != nil {
			return nil, err
		}
		if len(untold)+len(x.arrived(v)) > 0 {
			out = append(out, due{x.name, &clusterv1.AdvanceRotation{Name: x.name}})
		}
	}
	return out, nil
}

// due is what is to be asked for now. of names what it is about.
type due struct {
	of      string
	command proto.Message
}

func (r *Rotations) due(ctx context.Context, q state.Querier) (out []due, err error) {
	rows, err := many(ctx, q, `WHERE ended_ms = 0 ORDER BY name`)
	if err != nil {
		return nil, err
	}
	if out, err = r.comers(ctx, q); err != nil {
		return nil, err
	}
	for _, x := range rows {
		v, err := look(ctx, q, r.clock.Now(), x).view(r.waves)
		if err != nil {
			return nil, err
		}
		d := r.gates.Decide(v)
		untold, err := x.untold(ctx, q, r.waves, v)
		if err != nil {
			return nil, err
		}
		if d.Action == Begin || d.Action == Enter || d.Action == Cycle || slices.ContainsFunc(v.Members, Member.back) || len(untold) > 0 {
			out = append(out, due{x.name, &clusterv1.AdvanceRotation{Name: x.name}})
			continue
		}
		if !slices.ContainsFunc(d.Reasons, Reason.OfRing) {
			continue
		}
		switch again, err := fleet.MayLookAgain(ctx, q, x.cluster, r.clock.Now()); {
		case err != nil:
			return nil, err
		case again:
			out = append(out, due{x.cluster, &clusterv1.AskHealth{Cluster: x.cluster}})
		}
	}
	return out, err
}

// Get reads a rotation with why it waits and its timeline.
func (r *Rotations) Get(ctx context.Context, name string) (Rotation, error) {
	return view(ctx, r, func(ctx context.Context, q state.Querier) (Rotation, error) {
		x, err := get(ctx, q, name)
		if err != nil {
			return Rotation{}, err
		}
		return r.whole(ctx, q, x)
	})
}

// RotationPart is what a rotation that is under way says of one node.
type RotationPart struct {
	Rotation string   `json:"rotation"`
	Phase    Phase    `json:"phase"`
	State    string   `json:"state"`
	Reasons  []Reason `json:"reasons,omitempty" doc:"of this node, or of none in particular"`
}

// PartOf finds the rotation that a node's ring is in now, with what is waited for at the node; nil when there is none.
func (r *Rotations) PartOf(ctx context.Context, cluster, node string) (*RotationPart, error) {
	return view(ctx, r, func(ctx context.Context, q state.Querier) (*RotationPart, error) {
		rows, err := many(ctx, q, `WHERE cluster = ? AND ended_ms = 0`, cluster)
		if err != nil || len(rows) == 0 {
			return nil, err
		}
		x, err := r.whole(ctx, q, rows[0])
		if err != nil {
			return nil, err
		}
		out := &RotationPart{Rotation: x.Name, Phase: x.Phase, State: x.State}
		for _, reason := range x.Reasons {
			if reason.Node == "" || reason.Node == short(node) {
				out.Reasons = append(out.Reasons, reason)
			}
		}
		return out, nil
	})
}

// List reads the rotations of a trust domain, the newest first, without members and timelines.
func (r *Rotations) List(ctx context.Context, trustDomain string) ([]Rotation, error) {
	return view(ctx, r, func(ctx context.Context, q state.Querier) ([]Rotation, error) {
		rows, err := many(ctx, q, `WHERE trust_domain = ? ORDER BY created_ms DESC, name LIMIT 1000`, trustDomain)
		out := make([]Rotation, len(rows))
		for i, x := range rows {
			out[i] = plain(x)
		}
		return out, err
	})
}

// Phases give the number of the phase of each rotation that runs, by trust domain: for the metric csm_rotation_phase.
func (r *Rotations) Phases(ctx context.Context) (map[string]int, error) {
	return view(ctx, r, func(ctx context.Context, q state.Querier) (map[string]int, error) {
		rows, err := many(ctx, q, `WHERE ended_ms = 0 ORDER BY name`)
		out := map[string]int{}
		for _, x := range rows {
			out[x.trust] = x.phase.Number()
		}
		return out, err
	})
}

// Emergency says whether an emergency rotation of a cluster is under way: what it replaces must not be relied on, however long it lasts.
func (r *Rotations) Emergency(ctx context.Context, cluster string) (bool, error) {
	return view(ctx, r, func(ctx context.Context, q state.Querier) (bool, error) {
		rows, err := many(ctx, q, `WHERE cluster = ? AND ended_ms = 0 AND emergency = 1`, cluster)
		return len(rows) > 0, err
	})
}

func many(ctx context.Context, q state.Querier, where string, args ...any) ([]row, error) {
	rows, err := q.QueryContext(ctx, columns+where, args...)
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	var out []row
	for rows.Next() {
		x, err := scan(rows)
		if err != nil {
			return nil, err
		}
		out = append(out, x)
	}
	return out, rows.Err()
}

func plain(x row) Rotation {
	out := Rotation{Name: x.name, Cluster: x.cluster, TrustDomain: x.trust, Kind: x.kind, Phase: x.phase, State: "running", Before: x.before, After: x.after, Reason: x.reason, Emergency: x.emergency, Relaxed: x.relaxed,
		Creator: x.actor, CreateTime: x.created, PhaseTime: x.since, EndTime: x.ended, Revision: x.revision}
	if x.rollout != nothing {
		out.Rollout = x.rollout
	}
	switch {
	case x.phase.Ended():
		out.State = string(x.phase)
	case x.paused:
		out.State = "paused"
	case x.phase == Reissued:
		out.State = "waiting"
	}
	return out
}

// whole adds what the gates say now, the members, and the timeline.
func (r *Rotations) whole(ctx context.Context, q state.Querier, x row) (Rotation, error) {
	out := plain(x)
	var err error
	if out.Asides, err = asidesOf(ctx, q, x.name); err != nil {
		return out, err
	}
	if out.Timeline, err = timeline(ctx, q, x.name); err != nil || x.phase.Ended() {
		return out, err
	}
	v, err := look(ctx, q, r.clock.Now(), x).view(r.waves)
	if err != nil {
		return out, err
	}
	d := r.gates.Decide(v)
	out.Reasons, out.Next, out.WayBack = d.Reasons, next(v, d), r.gates.wayBack(v)
	switch d.Action {
	case Halt:
		out.State = "halted"
	case Wait:
		if !x.paused && v.Rollout.State != rolloutRunning {
			out.State = "waiting"
		}
	}
	for _, m := range v.Members {
		out.Members = append(out.Members, m.shown())
	}
	return out, nil
}

func (m Member) shown() MemberState {
	out := MemberState{Name: m.Name, Node: m.Node, HostID: m.HostID, Incarnation: m.Incarnation, Up: m.Up, State: m.State, Datacenter: m.Datacenter, Rack: m.Rack, Aside: m.Aside, OldLinks: m.OldLinks, Links: m.Links}
	if m.Waiting {
		out.HostID = "" // it stands under its name until it has one
	}
	for _, s := range m.Stores {
		x := StoreState{Name: s.Name, Leaf: s.Leaf, Moving: s.Moving, Behind: s.Behind}
		for _, p := range s.Ports {
			switch {
			case p.Trusts:
				x.Trusts = append(x.Trusts, p.Name)
			case p.Exempt == "":
				x.Unproved = append(x.Unproved, p.Name)
			}
		}
		out.Stores = append(out.Stores, x)
	}
	return out
}

// next says what happens when nothing is in the way any more.
func next(v View, d Decision) string {
	switch {
	case d.Action == Halt:
		return "nothing, until a person resumes it or turns it round"
	case v.Paused:
		return "nothing, until a person resumes it"
	case v.Phase == Reissued && v.relaxes(relaxByHand):
		return "phase " + string(Retire) + ", without a person"
	case v.Phase == Reissued:
		return "a person withdraws the CA before: csm rotation retire"
	}
	_, to := leaving(v)
	return "phase " + string(to)
}

func timeline(ctx context.Context, q state.Querier, name string) ([]TimelineEntry, error) {
	rows, err := q.QueryContext(ctx, `SELECT time_ms, phase, message, actor FROM rotation_events WHERE rotation = ? ORDER BY idx, part`, name)
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	var out []TimelineEntry
	for rows.Next() {
		var e TimelineEntry
		var ms int64
		if err := rows.Scan(&ms, &e.Phase, &e.Message, &e.Actor); err != nil {
			return nil, err
		}
		e.Time = at(ms)
		out = append(out, e)
	}
	return out, rows.Err()
}
