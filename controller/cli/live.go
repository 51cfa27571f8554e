package cli

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"time"

	"github.com/cassandra-security-manager/csm/controller/cli/ringview"
	ui "github.com/cassandra-security-manager/csm/shared/cli"
	"github.com/cassandra-security-manager/csm/shared/fault"
	"github.com/cassandra-security-manager/csm/shared/resource"
)

// How what is followed is read: at once when an event tells that it changed, and now and then all the same, for what gates say depends
// on the time and on what agents report. A picture is drawn anew each second, so that its times go on.
const (
	drawEvery  = time.Second
	lookEvery  = 3 * drawEvery
	eventPause = 250 * time.Millisecond
	readWithin = 5 * time.Second
)

// followed is something that is shown until it is over.
type followed struct {
	// collection whose events say that it changed.
	collection string
	// read gets it anew: the resource, and how it is drawn.
	read func(ctx context.Context) error
	raw  func() json.RawMessage
	view func(now time.Time) ringview.View
	// over: nothing more happens without a person.
	over func() bool
	// again is the command that shows it again.
	again string
	// running is the error when --timeout ended first.
	running func() error
}

// show follows something until it is over. Without --timeout it does so for as long as it takes. What is shown goes on when the view
// ends, and when the controller that was asked dies: the next one is asked.
func (s *session) show(f followed) error {
	ctx := s.cmd.Context()
	if s.cmd.Flags().Changed("timeout") {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, s.Timeout)
		defer cancel()
	}
	watching, stop := context.WithCancel(ctx)
	defer stop()
	changed := s.changes(watching, f.collection)
	tick := time.NewTicker(drawEvery)
	defer tick.Stop()
	p := &presenter{session: s, followed: f, screen: s.Screen()}
	var read time.Time
	for {
		if time.Since(read) >= lookEvery || !p.lost.IsZero() {
			if err := p.look(ctx); err != nil {
				return err
			}
			read = time.Now()
		}
		if err := p.present(); err != nil || p.lost.IsZero() && f.over() {
			return err
		}
		select {
		case <-ctx.Done():
			if s.cmd.Context().Err() == nil {
				return f.running()
			}
			s.Say("")
			s.Say("only the view has ended; to see it again: %s", f.again)
			return fmt.Errorf("interrupted: %w", context.Canceled)
		case <-changed:
			read = time.Time{}
		case <-tick.C:
		}
	}
}

// presenter shows what is followed in the form that is asked for.
type presenter struct {
	*session
	followed
	screen *ui.Screen
	// asked is the controller that answers, lost since when none does, notice what was said of that last.
	asked, notice string
	lost          time.Time
	// told is what the last JSON object said.
	told []string
}

// look reads it anew. That no controller answers is no error: what was begun goes on there.
func (p *presenter) look(ctx context.Context) error {
	within, cancel := context.WithTimeout(ctx, readWithin)
	defer cancel()
	err := p.read(within)
	switch {
	case err == nil:
		p.answered(p.client.answeredBy())
	case ctx.Err() != nil: // the time is over, or a person has ended it
	case fault.Is(err, fault.Unavailable):
		if p.lost.IsZero() {
			p.lost = p.Now()
		}
	default:
		return err
	}
	return nil
}

func (p *presenter) answered(by string) {
	if p.asked != "" && by != p.asked {
		p.notice = fmt.Sprintf("%s does not answer any more; %s is asked", p.asked, by)
	}
	p.asked, p.lost = by, time.Time{}
}

func (p *presenter) present() error {
	now := p.Now()
	v := p.view(now)
	v.Lost, v.Notice = p.lost, p.notice
	switch p.Format() {
	case "json", "jsonl":
		facts := ringview.Facts(v)
		if slices.Equal(facts, p.told) || !p.lost.IsZero() {
			return nil
		}
		p.told = facts
		return ui.WriteLine(p.Out, p.raw())
	case "yaml", "name":
		return nil
	}
	p.screen.Show(func(width, height int) []ui.Line { return ringview.Lines(v, now, width, height) }, func() []string { return ringview.Facts(v) })
	return nil
}

// ended prints what it came to, in the forms that showed nothing on the way.
func (s *session) ended(raw json.RawMessage, name, text string) error {
	if f := s.Format(); f == "yaml" || f == "name" || s.Quiet && !s.Machine() {
		return s.Print(ui.View{Object: raw, Text: text, Name: func(any) string { return name }})
	}
	return nil
}

// changes tells when a collection has changed, a few times a second at most. When events cannot be had it tells nothing.
func (s *session) changes(ctx context.Context, collection string) <-chan struct{} {
	out := make(chan struct{}, 1)
	tell := func(event) error {
		select {
		case out <- struct{}{}:
		default: // it is to be read already
		}
		return pause(ctx, eventPause)
	}
	go func() {
		for ctx.Err() == nil {
			since, err := s.revisionWithin(ctx)
			if err == nil {
				err = s.watchFrom(ctx, collection, since, tell)
			}
			if f := fault.From(err); f != nil && f.Code != fault.Unavailable && f.Reason != "gone" {
				return
			}
			_ = pause(ctx, drawEvery)
		}
	}()
	return out
}

func (s *session) revisionWithin(ctx context.Context) (uint64, error) {
	within, cancel := context.WithTimeout(ctx, readWithin)
	defer cancel()
	v, _, err := readIn[struct{ Revision uint64 }](within, s, "events", url.Values{"pageSize": {"1"}})
	return v.Revision, err
}

func pause(ctx context.Context, d time.Duration) error {
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-time.After(d):
		return nil
	}
}

// readIn gets a resource as of now: a controller that has lost the others does not show what was.
func readIn[T any](ctx context.Context, s *session, path string, query url.Values) (v T, raw json.RawMessage, err error) {
	if query == nil {
		query = url.Values{}
	}
	query.Set("consistency", "linearizable")
	a, err := s.client.do(ctx, call{method: http.MethodGet, path: "/v1/" + path, query: query})
	if err != nil {
		return v, nil, err
	}
	return v, a.body, decode(a.body, &v)
}

// hand is a command with the names that make it mean the same in any context.
func hand(does, noun, verb, name, flags string) ringview.Hand {
	if strings.HasPrefix(name, systemRotations+"/") {
		return ringview.Hand{Does: does, Command: strings.TrimSpace("csm " + noun + " " + verb + " " + resource.Last(name) + " --system " + flags)}
	}
	cluster := resource.Segment(name, "clusters")
	if cluster == "" {
		cluster = resource.Segment(name, "trustDomains")
	}
	line := "csm " + noun + " " + verb + " " + resource.Last(name) + " -c " + cluster
	if t := resource.Segment(name, "tenants"); t != "default" {
		line += " -T " + t
	}
	return ringview.Hand{Does: does, Command: strings.TrimSpace(line + " " + flags)}
}

// reasonFlag stands where a person says why.
const reasonFlag = "--reason '…'"
