package cli

import (
	"context"
	"encoding/json"
	"slices"
	"strings"
	"time"

	"github.com/cassandra-security-manager/csm/controller/cli/ringview"
	"github.com/cassandra-security-manager/csm/shared/fault"
	"github.com/cassandra-security-manager/csm/shared/resource"
)

// followRotation shows a rotation until a person is needed or it ends. want is the phase that it is to come to.
func (s *session) followRotation(r rotationView, raw json.RawMessage, want string) error {
	name := r.Name
	again := hand("", "rotation", "status", name, "--wait").Command
	var waves *rolloutView
	held := holds{began: s.Now(), since: map[string]time.Time{}}
	err := s.show(followed{collection: collectionOf(name), again: again,
		read: func(ctx context.Context) error {
			x, b, err := readIn[rotationView](ctx, s, name, nil)
			if err != nil {
				return err
			}
			if len(x.Members) == 0 { // of one that has ended only its end is told
				x.Members = r.Members
			}
			r, raw = x, b
			held.look(r.Reasons, s.Now())
			waves, err = s.waves(ctx, r)
			return err
		},
		raw:  func() json.RawMessage { return raw },
		view: func(time.Time) ringview.View { return r.picture(waves) },
		over: func() bool { return r.over() },
		running: func() error {
			return fault.New(fault.Running, "still-running", "%s is in phase %s%s", short(name), r.Phase, r.firstReason()).Do("it goes on by itself; see `%s`", again)
		}})
	if err != nil {
		return err
	}
	if err := s.ended(raw, name, r.text(s.Now())); err != nil {
		return err
	}
	return r.ended(want)
}

// holds remembers since when each reason holds: gates are asked anew each time, and do not know it.
type holds struct {
	began  time.Time
	looked bool
	since  map[string]time.Time
}

// look notes since when each of the reasons of now holds. What held at the first look may have held for long.
func (h *holds) look(reasons []rotationReason, now time.Time) {
	if !h.looked {
		h.looked, now = true, h.began
	}
	was := h.since
	h.since = map[string]time.Time{}
	for i := range reasons {
		r := &reasons[i]
		k := r.Code + " " + r.Node
		if h.since[k] = now; !was[k].IsZero() {
			h.since[k] = was[k]
		}
		if r.Since.IsZero() {
			r.Since, r.atLeast = h.since[k], h.since[k].Equal(h.began)
		}
	}
}

// waves are those of the phase, nil when none are under way.
func (s *session) waves(ctx context.Context, r rotationView) (*rolloutView, error) {
	if r.Rollout == "" || !r.EndTime.IsZero() {
		return nil, nil
	}
	w, _, err := readIn[rolloutView](ctx, s, r.Rollout, nil)
	return &w, err
}

func (r rotationView) firstReason() string {
	if len(r.Reasons) == 0 {
		return ""
	}
	return ": " + r.Reasons[0].sentence()
}

// sentence of a reason: who, and what.
func (r rotationReason) sentence() string { return strings.TrimSpace(r.Node + " " + r.Message) }

// over: a person is needed, or it has ended.
func (r rotationView) over() bool {
	return !r.EndTime.IsZero() || r.State == "halted" || r.State == "paused" || r.needsAPerson()
}

// ended is how a command ends that waited for it to come to a phase.
func (r rotationView) ended(want string) error {
	name := short(r.Name)
	switch {
	case r.State == "paused":
		return fault.New(fault.Running, "paused", "%s is paused in phase %s", name, r.Phase).Do("`%s`", hand("", "rotation", "resume", r.Name, reasonFlag).Command)
	case r.State == "halted":
		return fault.New(fault.Internal, "rotation-halted", "%s is halted%s", name, r.firstReason()).Do("see `csm rotation explain`, then `csm rotation resume` or `csm rotation rollback`")
	case r.Phase == "rolled-back" && want != r.Phase:
		return fault.New(fault.Internal, "rolled-back", "%s was rolled back", name).Do("see why: `%s`", hand("", "rotation", "explain", r.Name, "").Command)
	}
	return nil
}

// The phases, forward and back.
var (
	phasesForward = []string{"distribute", "reissue", "reissued", "retire", "done"}
	phasesBack    = []string{"undo-reissue", "undo-distribute", "rolled-back"}
)

// picture of a rotation, with the waves of its phase if they are known.
func (r rotationView) picture(waves *rolloutView) ringview.View {
	v := ringview.View{Title: short(r.Name) + " on " + resource.Last(r.Cluster), About: resource.Last(r.AuthorityBefore) + " → " + resource.Last(r.AuthorityAfter) + " (" + r.Kind + ")",
		State: r.State, Since: r.PhaseTime, Steps: r.steps(), Waits: r.waits(waves), Next: r.Next, Hands: r.hands(), More: hand("", "rotation", "explain", r.Name, "").Command}
	if r.Kind == "system" {
		v.Title = short(r.Name) + " of the system CA"
	}
	if r.Emergency {
		v.Title = "EMERGENCY: " + v.Title
	}
	moving := map[string]rolloutNodeView{}
	if waves != nil {
		v.Until, v.What = waves.ExpectedEnd, "this phase"
		for _, w := range waves.Waves {
			for _, n := range w.Nodes {
				moving[n.Node] = n
			}
		}
	}
	for _, m := range r.Members {
		v.Nodes = append(v.Nodes, r.drawn(m, moving))
	}
	if r.EndTime.IsZero() {
		v.Leave = "Ctrl-C ends this view only; the rotation goes on"
	}
	return v
}

func (r rotationView) steps() (out []ringview.Step) {
	names := phasesForward
	if slices.Contains(phasesBack, r.Phase) {
		names = phasesBack
	}
	now := slices.Index(names, r.Phase)
	for i, n := range names {
		s := ringview.Step{Name: n}
		switch {
		case i < now, i == now && !r.EndTime.IsZero():
			s.At = ringview.Over
		case i == now:
			s.At = ringview.Now
		}
		out = append(out, s)
	}
	return out
}

// drawn is a member as the picture shows it: what is wrong with it, what it does, or whether this phase is proved of it.
func (r rotationView) drawn(m rotationMember, moving map[string]rolloutNodeView) ringview.Node {
	w, in := moving[m.Node]
	n := ringview.Node{Name: m.Name, Datacenter: m.Datacenter, Rack: m.Rack, Phase: "pending"}
	if n.Datacenter == "" {
		n.Datacenter, n.Rack = w.Datacenter, w.Rack
	}
	switch {
	case r.Phase == "done" || r.Phase == "rolled-back":
		n.Phase = "proved"
		if !m.Up {
			n.Phase = "down"
		}
	case m.State == "not-started":
		n.Phase = "not-started"
	case !m.Up && m.SetAside != "":
		n.Phase, n.Detail = "set-aside", m.SetAside
	case !m.Up:
		n.Phase = "down"
	case m.Node == "":
		n.Phase, n.Detail = "no-agent", "a member of the ring that CSM does not know"
	case in && slices.Contains([]string{"told", "moving", "unproved", "failed"}, w.Phase):
		n.Phase, n.Since, n.Detail = w.Phase, w.Since, w.Detail
	case m.State != "normal" && m.State != "unknown":
		n.Phase, n.Detail = "unsettled", m.State
	case r.proves(m):
		n.Phase, n.Since = "proved", w.Since
	}
	return n
}

// proves says whether of a member all is proved that this phase asks for.
func (r rotationView) proves(m rotationMember) bool {
	if len(m.Stores) == 0 {
		return false
	}
	for _, s := range m.Stores {
		held := true
		switch r.Phase {
		case "distribute":
			held = len(s.Unproved) == 0
		case "reissue", "reissued":
			held = s.Leaf == "after"
		case "undo-reissue":
			held = s.Leaf == "before"
		default: // an anchor goes
			held = !s.Behind
		}
		if !held || s.Moving {
			return false
		}
	}
	return true
}

// waits are the reasons of the gates. That waves are under way is told by what those wait for.
func (r rotationView) waits(waves *rolloutView) (out []ringview.Wait) {
	for _, x := range r.Reasons {
		if x.Code == "waves" && waves != nil && len(waves.Awaits) > 0 {
			if r.State == "halted" {
				out = append(out, x.wait())
			}
			out = append(out, waves.waits()...)
			continue
		}
		out = append(out, x.wait())
	}
	return out
}

func (r rotationReason) wait() ringview.Wait {
	return ringview.Wait{Code: r.Code, Text: r.sentence(), Remedy: r.Remedy, Since: r.Since, AtLeast: r.atLeast}
}

// hands are what a person may do to it now.
func (r rotationView) hands() (out []ringview.Hand) {
	if !r.EndTime.IsZero() {
		return nil
	}
	switch {
	case r.State == "paused" || r.State == "halted":
		out = append(out, hand("go on", "rotation", "resume", r.Name, reasonFlag))
	case r.needsAPerson():
		out = append(out, hand("go on", "rotation", "retire", r.Name, "--dry-run"))
	default:
		out = append(out, hand("stop", "rotation", "pause", r.Name, reasonFlag))
	}
	if slices.Contains([]string{"distribute", "reissue", "reissued"}, r.Phase) {
		out = append(out, hand("back", "rotation", "rollback", r.Name, reasonFlag))
	}
	return out
}
