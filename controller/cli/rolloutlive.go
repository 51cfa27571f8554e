package cli

import (
	"context"
	"encoding/json"
	"fmt"
	"strings"
	"time"

	ui "github.com/cassandra-security-manager/csm/shared/cli"
	"github.com/cassandra-security-manager/csm/shared/fault"
	"github.com/cassandra-security-manager/csm/shared/resource"
)

// lookEvery is how often something that is followed is read again.
const lookEvery = time.Second

// showUntil shows what look gives until it says that it is over. Without --timeout it follows for as long as it takes. running
// says what still runs when the time is over.
func (s *session) showUntil(look func() (picture, facts []string, over bool, err error), running func() error) error {
	ctx := s.cmd.Context()
	if s.cmd.Flags().Changed("timeout") {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, s.Timeout)
		defer cancel()
	}
	screen := s.Screen()
	for {
		picture, facts, over, err := look()
		if err != nil && !fault.Is(err, fault.Unavailable) { // without an answer it goes on there all the same
			return err
		}
		if err == nil {
			screen.Show(picture, facts)
			if over {
				return nil
			}
		}
		select {
		case <-ctx.Done():
			if s.cmd.Context().Err() != nil {
				return fmt.Errorf("interrupted: %w", context.Canceled)
			}
			return running()
		case <-time.After(lookEvery):
		}
	}
}

// followRollout shows a rollout until it is at its end, or halted.
func (s *session) followRollout(name string) error {
	var r rolloutView
	var raw json.RawMessage
	err := s.showUntil(func() ([]string, []string, bool, error) {
		x, b, err := read[rolloutView](s, name, nil)
		if err == nil {
			r, raw = x, b
		}
		return rolloutLines(r, s.Now()), rolloutFacts(r), r.over(), err
	}, func() error {
		return fault.New(fault.Running, "still-running", "%s is %s%s", short(name), r.State, firstAwait(r)).Do("it goes on by itself; see `csm rollout explain %s`", short(name))
	})
	if err != nil {
		return err
	}
	if f := s.Format(); f != "table" && f != "wide" { // what it came to, for scripts
		if err := s.Print(ui.View{Object: raw, Name: func(any) string { return r.Name }}); err != nil {
			return err
		}
	}
	return r.ended()
}

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

// ended is how a command ends that waited for it.
func (r rolloutView) ended() error {
	switch {
	case r.State == "done" || r.State == "rolled-back":
		if n := r.phases()["failed"]; n > 0 {
			return fault.New(fault.Partial, "partly-done", "%s is %s: %s", short(r.Name), r.State, r.Note).Do("see which with `csm rollout status %s`", short(r.Name))
		}
		return nil
	case r.State == "paused":
		return fault.New(fault.Running, "paused", "%s is paused: %s", short(r.Name), r.Note).Do("`csm rollout resume %s`", short(r.Name))
	}
	return fault.New(fault.Internal, r.State, "%s is %s: %s", short(r.Name), r.State, r.Note).Do("see `csm rollout explain %s`", short(r.Name))
}

// marks of the phases in the picture.
var marks = map[string]string{"pending": "·", "told": "○", "moving": "→", "unproved": "?", "proved": "✓", "failed": "✗", "gone": "-"}

// rolloutLines is the picture: the ring by racks, then what is waited for, what comes next, how to stop it.
func rolloutLines(r rolloutView, now time.Time) []string {
	n := r.phases()
	out := []string{fmt.Sprintf("%s on %s: %s since %s, %d of %d proved%s", short(r.Name), resource.Last(r.Spec.Cluster), r.State, ui.Span(now.Sub(r.StateTime)), n["proved"], n["all"], noted(r))}
	out = append(out, ringLines(r.Waves, now)...)
	for _, w := range r.Awaits {
		out = append(out, "waits: "+w.Message+sinceWhen(w, r, now))
	}
	if r.Next != "" {
		out = append(out, "next:  "+r.Next)
	}
	if r.EndTime.IsZero() {
		out = append(out, "stop:  csm rollout pause "+short(r.Name)+" --reason …   (Ctrl-C only ends this view)")
	}
	return out
}

func noted(r rolloutView) string {
	if r.Note == "" {
		return ""
	}
	return ": " + r.Note
}

// ringLines are the racks with their nodes, each with the mark of its phase; nodes that are under way in words too.
func ringLines(waves []waveView, now time.Time) (out []string) {
	racks := map[string][]string{}
	var order []string
	for _, w := range waves {
		for _, x := range w.Nodes {
			rack := strings.Trim(x.Datacenter+"/"+x.Rack, "/")
			if racks[rack] == nil {
				order = append(order, rack)
			}
			word := ""
			switch x.Phase {
			case "told", "moving", "unproved", "failed":
				word = " " + x.Phase + " " + ui.Span(now.Sub(x.Since))
			}
			racks[rack] = append(racks[rack], marks[x.Phase]+" "+resource.Last(x.Node)+word)
		}
	}
	for _, rack := range order {
		line := fmt.Sprintf("  %-14s", rack)
		for _, cell := range racks[rack] {
			if len(line) > 14 && len([]rune(line))+len([]rune(cell)) > 96 {
				out = append(out, line)
				line = strings.Repeat(" ", 16)
			}
			line += "  " + cell
		}
		out = append(out, line)
	}
	return out
}

// rolloutFacts are what is true now, one line each, for logs and pipes.
func rolloutFacts(r rolloutView) []string {
	out := []string{fmt.Sprintf("%s: %s%s", short(r.Name), r.State, noted(r))}
	for _, w := range r.Waves {
		for _, x := range w.Nodes {
			if x.Phase != "pending" {
				line := fmt.Sprintf("%s: %s", short(x.Node), x.Phase)
				if x.Detail != "" {
					line += ": " + x.Detail
				}
				out = append(out, line)
			}
		}
	}
	for _, w := range r.Awaits {
		switch w.Code {
		case "told", "moving", "unproved": // said of the node already
		default:
			out = append(out, "waits: "+w.Message)
		}
	}
	return out
}
