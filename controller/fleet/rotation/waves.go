package rotation

import (
	"context"
	"strings"
	"time"

	"github.com/cassandra-security-manager/csm/controller/fleet/rollout"
	"github.com/cassandra-security-manager/csm/controller/state"
)

// Rollouts are the waves of package rollout, with its usual figures for each kind.
type Rollouts struct{}

var _ Waves = Rollouts{}

// Begin starts a rollout that belongs to the rotation.
func (Rollouts) Begin(a *state.Apply, w Wave) (string, error) {
	s := rollout.Usual(w.Cluster, w.Kind)
	s.Owner, s.Authority, s.Bake, s.Undo, s.Aside = w.Owner, w.Authority, w.Bake, w.Undo, w.Aside
	if w.Width > 0 {
		s.Width = w.Width
	}
	for _, n := range w.Members {
		s.Nodes = append(s.Nodes, short(n))
	}
	return rollout.Begin(a, s)
}

// Set pauses, resumes or aborts it.
func (Rollouts) Set(a *state.Apply, name, verb, reason string) error {
	r, err := rollout.Get(a.Context(), a.Querier(), name, a.Now)
	if err != nil || !r.Live() || r.State == rollout.Aborting || verb == "pause" && r.State != rollout.Running {
		return err
	}
	return rollout.SetState(a, name, verb, reason)
}

// Excuse names the members that are set aside.
func (Rollouts) Excuse(a *state.Apply, name string, members []string) error {
	return rollout.Excuse(a, name, members)
}

// Holds says whether a rollout moves a store, or is about to.
func (Rollouts) Holds(ctx context.Context, q state.Querier, cluster, node, store string) (bool, error) {
	return rollout.Holds(ctx, q, cluster, node, store)
}

// Stand says where it stands.
func (Rollouts) Stand(ctx context.Context, q state.Querier, name string, now time.Time) (Rollout, error) {
	r, err := rollout.Get(ctx, q, name, now)
	if err != nil {
		return Rollout{}, err
	}
	var words []string
	if r.Note != "" {
		words = append(words, r.Note)
	}
	for i, x := range r.Awaits {
		if i == 3 {
			words = append(words, "and more")
			break
		}
		words = append(words, x.Message)
	}
	return Rollout{Name: name, State: r.State, Detail: strings.Join(words, "; ")}, nil
}
