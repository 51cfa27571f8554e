// Package rollout owns changes of many nodes: the plan in waves, its run, and when the next node may begin.
//
// It refuses a plan that the state has left behind, a second rollout on one ring, and every claim of a store whose turn has
// not come. It keeps these invariants: nothing begins while a member of the ring is down, unsettled or unproved beyond what
// the plan bears; never more nodes are on the move than the plan's width; a failure beyond the budget halts all that has
// not begun; what is stopped takes back the wishes that no node has taken up.
//
// What comes next is decided by a pure function of facts; Apply reads the facts from the state alone, so it does not matter
// who asks.
package rollout

import (
	"context"
	"strings"
	"time"

	"github.com/jonboulle/clockwork"
	"google.golang.org/protobuf/proto"

	clusterv1 "github.com/cassandra-security-manager/csm/protocol/cluster/v1"

	"github.com/cassandra-security-manager/csm/controller/state"
	"github.com/cassandra-security-manager/csm/shared/fault"
	"github.com/cassandra-security-manager/csm/shared/resource"
)

// Kinds of rollouts.
const (
	Renew  = "renew"  // a new leaf of the same authority
	Trust  = "trust"  // anchors are added
	Leaf   = "leaf"   // a new leaf of another authority
	Shrink = "shrink" // anchors go
	Back   = "back"   // the leaf of another CA that was kept at a take-over
)

// States of a rollout.
const (
	Running     = "running"
	Paused      = "paused"
	Halted      = "halted"
	Aborting    = "aborting"
	Aborted     = "aborted"
	RollingBack = "rolling-back"
	RolledBack  = "rolled-back"
	Done        = "done"
)

// live says whether a rollout in this state still owns its stores.
func live(st string) bool {
	switch st {
	case Running, Paused, Halted, Aborting, RollingBack:
		return true
	}
	return false
}

// Spec is what is asked for.
type Spec struct {
	Cluster string `json:"cluster"`
	Kind    string `json:"kind" enum:"renew,trust,leaf,shrink,back"`
	// Nodes by short name; empty: each that can.
	Nodes []string `json:"nodes,omitempty"`
	// Width is how many nodes of a wave may be on the move at once.
	Width int `json:"width"`
	// MaxUnavailable is how many members may be down or unproved while further nodes begin.
	MaxUnavailable int `json:"maxUnavailable"`
	// Canary is how many nodes make up the first wave.
	Canary int `json:"canary"`
	// Bake is the rest between two waves.
	Bake time.Duration `json:"-"`
	// FailureBudget is how many failed nodes do not halt it.
	FailureBudget int `json:"failureBudget"`
	// Windows are when nodes may begin, Blackouts when none may.
	Windows   []string `json:"windows,omitempty"`
	Blackouts []string `json:"blackouts,omitempty"`
	// Start: nothing begins before.
	Start time.Time `json:"startTime,omitzero"`
	// Authority signs the leaves of kind leaf.
	Authority string `json:"authority,omitempty"`
	// Owner is the rotation that it is a part of.
	Owner string `json:"owner,omitempty"`
	// Undo: it takes back what its owner has done. Members that are down, and a ring that does not agree on itself, do not hold it:
	// they may be so because of what is taken back.
	Undo bool `json:"undo,omitempty"`
	// Aside are the members that its owner has set aside while they are down, by host id and by full name of the node: nothing
	// waits for them.
	Aside []string `json:"setAside,omitempty"`
}

// Usual gives the figures of a kind: trust may go wide, leaves go one after the other.
func Usual(cluster, kind string) Spec {
	s := Spec{Cluster: cluster, Kind: kind, Width: 1, Canary: 1, Bake: time.Minute}
	if kind == Trust {
		s.Width = 16
	}
	return s
}

// Bounds of a spec.
const (
	maxWidth = 64
	maxBake  = 7 * 24 * time.Hour
)

// check refuses what no plan can be made of.
func (s Spec) check() error {
	switch {
	case s.Kind != Renew && s.Kind != Trust && s.Kind != Leaf && s.Kind != Shrink && s.Kind != Back:
		return fault.New(fault.Invalid, "bad-kind", "there is no rollout of kind %.40q", s.Kind).Do("use renew; trust, leaf, shrink and back are steps of a rotation")
	case s.Width < 1 || s.Width > maxWidth:
		return fault.New(fault.Invalid, "bad-width", "%d nodes at once cannot be", s.Width).Do("use 1 to %d", maxWidth)
	case s.MaxUnavailable < 0 || s.Canary < 0 || s.FailureBudget < 0:
		return fault.New(fault.Invalid, "bad-figure", "a figure below zero")
	case s.Bake < 0 || s.Bake > maxBake:
		return fault.New(fault.Invalid, "bad-bake", "a rest of %s between waves", s.Bake).Do("use 0s to %s", maxBake)
	case (s.Kind == Leaf) != (s.Authority != ""):
		return fault.New(fault.Invalid, "bad-authority", "kind leaf, and no other, names the authority that signs")
	}
	_, err := calendarOf(s)
	return err
}

func (s Spec) wire() *clusterv1.RolloutSpec {
	w := &clusterv1.RolloutSpec{Cluster: s.Cluster, Kind: s.Kind, Nodes: s.Nodes, Width: uint32(s.Width), MaxUnavailable: uint32(s.MaxUnavailable), Canary: uint32(s.Canary),
		BakeMs: s.Bake.Milliseconds(), FailureBudget: uint32(s.FailureBudget), Windows: s.Windows, Blackouts: s.Blackouts, Authority: s.Authority, Owner: s.Owner, Undo: s.Undo, Aside: s.Aside}
	if !s.Start.IsZero() {
		w.StartMs = s.Start.UnixMilli()
	}
	return w
}

func (s Spec) encoded() ([]byte, error) {
	b, err := proto.MarshalOptions{Deterministic: true}.Marshal(s.wire())
	if err != nil {
		return nil, fault.Wrap(err, fault.Internal, "bad-spec", "the spec cannot be encoded")
	}
	return b, nil
}

func specOf(w *clusterv1.RolloutSpec) Spec {
	s := Spec{Cluster: w.GetCluster(), Kind: w.GetKind(), Nodes: w.GetNodes(), Width: int(w.GetWidth()), MaxUnavailable: int(w.GetMaxUnavailable()), Canary: int(w.GetCanary()),
		Bake: time.Duration(w.GetBakeMs()) * time.Millisecond, FailureBudget: int(w.GetFailureBudget()), Windows: w.GetWindows(), Blackouts: w.GetBlackouts(),
		Authority: w.GetAuthority(), Owner: w.GetOwner(), Undo: w.GetUndo(), Aside: w.GetAside()}
	if w.GetStartMs() != 0 {
		s.Start = time.UnixMilli(w.StartMs).UTC()
	}
	return s
}

// Reader reads the replicated state; *state.Store is one.
type Reader interface {
	View(ctx context.Context, read func(ctx context.Context, q state.Querier) error) error
}

// Rollouts forms commands and reads. It holds no state.
type Rollouts struct {
	read  Reader
	log   state.Log
	clock clockwork.Clock
}

// New makes Rollouts.
func New(read Reader, log state.Log, clock clockwork.Clock) *Rollouts {
	return &Rollouts{read: read, log: log, clock: clock}
}

func (r *Rollouts) propose(ctx context.Context, cluster, actor, reason string, c proto.Message) (*clusterv1.RolloutReply, error) {
	return state.Reply[*clusterv1.RolloutReply](ctx, r.log, state.Proposal{Command: c, Actor: actor, Tenant: resource.Segment(cluster, "tenants"), Reason: reason})
}

// Plan makes the plan of the state as this controller knows it, and changes nothing.
func (r *Rollouts) Plan(ctx context.Context, s Spec) (Plan, error) {
	var p Plan
	err := r.read.View(ctx, func(ctx context.Context, q state.Querier) (err error) {
		p, err = planned(ctx, q, s, r.clock.Now())
		return err
	})
	return p, err
}

// Start begins the rollout of a plan; hash is that of the plan, and a plan that the state has left behind is refused as stale.
func (r *Rollouts) Start(ctx context.Context, s Spec, hash []byte, reason, actor string) (name string, err error) {
	if reason == "" {
		return "", fault.NoReason()
	}
	if err := s.check(); err != nil {
		return "", err
	}
	out, err := r.propose(ctx, s.Cluster, actor, reason, &clusterv1.StartRollout{Spec: s.wire(), PlanHash: hash})
	return out.GetRollout(), err
}

// Set pauses, resumes, aborts or rolls back.
func (r *Rollouts) Set(ctx context.Context, name, verb, reason, actor string) error {
	if reason == "" {
		return fault.NoReason()
	}
	_, err := r.propose(ctx, name, actor, reason, &clusterv1.SetRollout{Rollout: name, Verb: verb, Reason: reason})
	return err
}

// Watch lets each rollout that is under way decide anew, if it would not decide to wait for what it waits for already. The
// leader calls it now and then: time passes without commands, and agents report what no rollout is told of.
func (r *Rollouts) Watch(ctx context.Context) error {
	var due due
	err := r.read.View(ctx, func(ctx context.Context, q state.Querier) (err error) {
		due, err = dueNow(ctx, q, r.clock.Now())
		return err
	})
	for _, c := range due.clusters {
		if err == nil {
			_, err = state.Reply[*clusterv1.AskedHealth](ctx, r.log, state.Proposal{Command: &clusterv1.AskHealth{Cluster: c}, Actor: "rollout watch", Tenant: resource.Segment(c, "tenants")})
		}
	}
	for _, name := range due.rollouts {
		if err != nil {
			return err
		}
		_, err = r.propose(ctx, name, "rollout watch", "", &clusterv1.AdvanceRollout{Rollout: name})
	}
	return err
}

// Name of a rollout of a cluster.
func nameOf(cluster, id string) string { return cluster + "/rollouts/" + id }

func noRollout(name string) error {
	return fault.New(fault.NotFound, "no-rollout", "there is no rollout %.200q", strings.TrimPrefix(name, "tenants/")).Do("see `csm rollout list`")
}
