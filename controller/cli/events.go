package cli

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"
	"time"

	"github.com/spf13/cobra"

	ui "github.com/cassandra-security-manager/csm/shared/cli"
	"github.com/cassandra-security-manager/csm/shared/fault"
)

// event of a watch.
type event struct {
	Type     string          `json:"type"`
	Revision uint64          `json:"revision"`
	Object   json.RawMessage `json:"object,omitempty"`
	raw      json.RawMessage
}

// errDone ends a watch that has seen enough.
var errDone = errors.New("done")

// watchFrom reads a collection's events after a revision, from the next controller when one goes away, until see answers an error.
func (s *session) watchFrom(ctx context.Context, collection string, since uint64, see func(event) error) error {
	for {
		q := url.Values{"watch": {"true"}, "since": {fmt.Sprint(since)}}
		a, err := s.client.do(ctx, call{method: http.MethodGet, path: "/v1/" + collection, query: q, stream: true})
		if err != nil {
			return err
		}
		err = readEvents(a.stream, func(e event) error {
			if e.Revision > since {
				since = e.Revision
			}
			return see(e)
		})
		a.stream.Close()
		switch {
		case errors.Is(err, errDone):
			return nil
		case ctx.Err() != nil:
			return timedOut(ctx, cmpErr(err, ctx.Err()))
		case err != nil && !errors.Is(err, io.EOF) && !errors.Is(err, io.ErrUnexpectedEOF):
			var f *fault.Error
			if errors.As(err, &f) {
				return err
			}
		}
		s.Detail("the stream ended (%v), going on after revision %d", err, since)
		select { // a controller that closes at once is not asked in a tight loop
		case <-ctx.Done():
		case <-time.After(500 * time.Millisecond):
		}
	}
}

func cmpErr(a, b error) error {
	if a != nil {
		return a
	}
	return b
}

func readEvents(r io.Reader, see func(event) error) error {
	in := bufio.NewScanner(r)
	in.Buffer(make([]byte, 0, 64<<10), 8<<20)
	for in.Scan() {
		data, ok := bytes.CutPrefix(in.Bytes(), []byte("data: "))
		if !ok {
			continue
		}
		e := event{raw: bytes.Clone(data)}
		if err := json.Unmarshal(e.raw, &e); err != nil {
			return fault.Wrap(err, fault.Internal, "answer", "an event cannot be read")
		}
		if e.Type == "ERROR" {
			return problem(&http.Response{Status: "an error", Request: &http.Request{URL: &url.URL{}}}, e.Object)
		}
		if err := see(e); err != nil {
			return err
		}
	}
	if err := in.Err(); err != nil {
		return err
	}
	return io.EOF
}

// revision to begin a watch from.
func (s *session) revision() (uint64, error) {
	v, _, err := read[struct{ Revision uint64 }](s, "events", url.Values{"pageSize": {"1"}})
	return v.Revision, err
}

// follow shows events until it is interrupted.
func (s *session) follow(collection string, show func(event) error) error {
	since, err := s.revision()
	if err != nil {
		return err
	}
	return s.watchFrom(s.cmd.Context(), collection, since, func(e event) error {
		if e.Type == "BOOKMARK" {
			return nil
		}
		return show(e)
	})
}

func (s *session) printEvent(e event) error {
	if s.Machine() {
		_, err := fmt.Fprintf(s.Out, "%s\n", e.raw)
		return err
	}
	var o struct{ Name, State, Why string }
	_ = json.Unmarshal(e.Object, &o)
	if s.Format() == "name" {
		_, err := fmt.Fprintln(s.Out, o.Name)
		return err
	}
	_, err := fmt.Fprintf(s.Out, "%s  %-8s  %s  %s\n", s.Now().Format(time.TimeOnly), strings.ToLower(e.Type), o.Name, strings.TrimSpace(o.State+"  "+o.Why))
	return err
}

func (s *session) copyStream(q call) error {
	q.stream = true
	a, err := s.client.do(s.cmd.Context(), q)
	if err != nil {
		return err
	}
	defer a.stream.Close()
	_, err = io.Copy(s.Out, a.stream)
	return err
}

func (a *app) eventsCommand() *cobra.Command {
	var follow bool
	var limit int
	c := &cobra.Command{Use: "events", Short: "What happened lately; with -f, what happens", Args: cobra.NoArgs,
		Example: "  csm events\n  csm events -f\n  csm events -f -o jsonl"}
	c.Flags().BoolVarP(&follow, "follow", "f", false, "go on until interrupted")
	c.Flags().IntVar(&limit, "limit", 20, "how many")
	return a.run(c, func(s *session, _ []string) error {
		if follow {
			return s.follow("events", s.printEvent)
		}
		return s.printAudit("", limit)
	})
}

func (a *app) auditCommand() *cobra.Command {
	var filter string
	var limit int
	c := &cobra.Command{Use: "search", Short: "Search what was asked, by whom, and what came of it", Args: cobra.NoArgs,
		Example: "  csm audit search --filter 'refused=true'\n  csm audit search --filter 'time>-2h AND resource=tenants/default/clusters/prod-eu/'"}
	c.Flags().StringVar(&filter, "filter", "", "actor=, tenant=, command=, resource=, refused=true, time<, time>")
	c.Flags().IntVar(&limit, "limit", 100, "how many; 0 for all")
	return group("audit", "The audit log", a.run(c, func(s *session, _ []string) error { return s.printAudit(filter, limit) }))
}

func (s *session) printAudit(filter string, limit int) error {
	q := url.Values{}
	if filter != "" {
		q.Set("filter", filter)
	}
	type entry struct {
		Revision                                uint64
		Time                                    time.Time
		Actor, Command, Reason, Refused, Tenant string
		Touched                                 []struct{ Type, Name string }
	}
	items, raws, doc, err := list[entry](s, "system/auditEntries", q, limit)
	if err != nil {
		return err
	}
	t := &ui.Table{Columns: []ui.Column{{Name: "WHEN"}, {Name: "WHO"}, {Name: "COMMAND"}, {Name: "RESOURCE"}, {Name: "RESULT", Style: stateStyle}, {Name: "REASON"}, {Name: "REVISION", Wide: true, Right: true}}}
	for i := len(items) - 1; i >= 0; i-- { // the newest last, as in a log
		e := items[i]
		what, result := "", "done"
		if len(e.Touched) > 0 {
			what = e.Touched[0].Name
			if n := len(e.Touched); n > 1 {
				what += fmt.Sprintf(" +%d", n-1)
			}
		}
		if e.Refused != "" {
			result = "refused: " + e.Refused
		}
		command := e.Command[strings.LastIndexByte(e.Command, '.')+1:]
		t.Add(s.ago(e.Time), actorName(e.Actor), command, what, result, e.Reason, fmt.Sprint(e.Revision))
	}
	return s.Print(ui.View{Object: doc, Items: raws, Table: t})
}
