package cli

import (
	"context"
	"encoding/json"
	"strings"
	"time"

	"github.com/cassandra-security-manager/csm/controller/cli/ringview"
	ui "github.com/cassandra-security-manager/csm/shared/cli"
	"github.com/cassandra-security-manager/csm/shared/fault"
	"github.com/cassandra-security-manager/csm/shared/resource"
)

// followRollout shows a rollout until it is at its end, halted or paused. want is the state that it is to come to.
func (s *session) followRollout(r rolloutView, raw json.RawMessage, want string) error {
	name := r.Name
	again := hand("", "rollout", "status", name, "--wait").Command
	err := s.show(followed{collection: collectionOf(name), again: again,
		read: func(ctx context.Context) error {
			x, b, err := readIn[rolloutView](ctx, s, name, nil)
			if err == nil {
				r, raw = x, b
			}
			return err
		},
		raw:  func() json.RawMessage { return raw },
		view: func(time.Time) ringview.View { return r.picture() },
		over: func() bool { return r.over() },
		running: func() error {
			return fault.New(fault.Running, "still-running", "%s is %s%s", short(name), r.State, firstAwait(r)).Do("it goes on by itself; see `%s`", again)
		}})
	if err != nil {
		return err
	}
	if err := s.ended(raw, name, pictureText(r.picture(), s.Now())); err != nil {
		return err
	}
	return r.ended(want)
}

// collectionOf is the collection of a resource.
func collectionOf(name string) string { return name[:strings.LastIndexByte(name, '/')] }

func firstAwait(r rolloutView) string {
	if len(r.Awaits) == 0 {
		return ""
	}
	return ": " + r.Awaits[0].Message
}

// over: nothing more happens without a person.
func (r rolloutView) over() bool {
	return r.Name != "" && (!r.EndTime.IsZero() || r.State == "halted" || r.State == "paused")
}

// ended is how a command ends that waited for it to come to a state.
func (r rolloutView) ended(want string) error {
	switch {
	case r.State == "done" || r.State == want:
		if n := r.phases()["failed"]; n > 0 && r.State != "aborted" {
			return fault.New(fault.Partial, "partly-done", "%s is %s: %s", short(r.Name), r.State, r.Note).Do("see which with `csm rollout status %s`", short(r.Name))
		}
		return nil
	case r.State == "paused":
		return fault.New(fault.Running, "paused", "%s is paused: %s", short(r.Name), r.Note).Do("`csm rollout resume %s`", short(r.Name))
	}
	return fault.New(fault.Internal, r.State, "%s is %s: %s", short(r.Name), r.State, r.Note).Do("see `csm rollout explain %s`", short(r.Name))
}

// picture of a rollout.
func (r rolloutView) picture() ringview.View {
	v := ringview.View{Title: short(r.Name) + " on " + resource.Last(r.Spec.Cluster), State: r.State, Since: r.StateTime, Note: r.Note, Waits: r.waits(), Next: r.Next,
		Until: r.ExpectedEnd, What: "the end", More: hand("", "rollout", "explain", r.Name, "").Command}
	for _, w := range r.Waves {
		for _, x := range w.Nodes {
			v.Nodes = append(v.Nodes, x.drawn())
		}
	}
	if !r.EndTime.IsZero() {
		return v
	}
	v.Leave = "Ctrl-C ends this view only; the rollout goes on"
	if r.Spec.Owner != "" { // who stops the waves of a rotation stops the rotation
		v.Hands = []ringview.Hand{hand("stop", "rotation", "pause", r.Spec.Owner, reasonFlag)}
		return v
	}
	hands := map[string]ringview.Hand{}
	for does, verb := range map[string]string{"stop": "pause", "go on": "resume", "end": "abort", "back": "rollback"} {
		hands[does] = hand(does, "rollout", verb, r.Name, reasonFlag)
	}
	switch r.State {
	case "paused", "halted":
		v.Hands = []ringview.Hand{hands["go on"], hands["end"], hands["back"]}
	case "running":
		v.Hands = []ringview.Hand{hands["stop"], hands["back"]}
	case "rolling-back":
		v.Hands = []ringview.Hand{hands["stop"]}
	}
	return v
}

func (n rolloutNodeView) drawn() ringview.Node {
	return ringview.Node{Name: resource.Last(n.Node), Datacenter: n.Datacenter, Rack: n.Rack, Phase: n.Phase, Since: n.Since, Detail: n.Detail}
}

// waits are the reasons as the server says them.
func (r rolloutView) waits() (out []ringview.Wait) {
	for _, w := range r.Awaits {
		since := w.Since
		if since.IsZero() {
			since = r.AwaitsSince
		}
		out = append(out, ringview.Wait{Code: w.Code, Text: w.Message, Remedy: w.Remedy, Since: since, Until: w.Until})
	}
	return out
}

// pictureText is a picture of any size without colours.
func pictureText(v ringview.View, now time.Time) string {
	return linesText(ringview.Lines(v, now, 0, 0))
}

func linesText(lines []ui.Line) string {
	var b strings.Builder
	for _, l := range lines {
		b.WriteString(l.String() + "\n")
	}
	return b.String()
}
