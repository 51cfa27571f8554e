package rest

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/danielgtaylor/huma/v2"
	"github.com/danielgtaylor/huma/v2/adapters/humachi"

	"github.com/cassandra-security-manager/csm/controller/state"
	"github.com/cassandra-security-manager/csm/shared/fault"
)

// Event is one message of a watch.
type Event struct {
	Type     string `json:"type" enum:"ADDED,MODIFIED,DELETED,BOOKMARK,ERROR" doc:"BOOKMARK says that all up to revision was told"`
	Revision uint64 `json:"revision" doc:"raft index; begin again after it"`
	Object   any    `json:"object,omitempty" doc:"the resource as a read gives it now; only its name when it is gone"`
}

// Named is the object of an event whose resource is gone.
type Named struct {
	Name string `json:"name"`
}

// watchable lets a list be watched: its operation answers ?watch=true with events of the resources that belong to it.
// collection is "" for a list of everything.
func (s *server) watchable(op huma.Operation) huma.Operation {
	op.Middlewares = append(op.Middlewares, func(ctx huma.Context, next func(huma.Context)) {
		r, w := humachi.Unwrap(ctx)
		if !isWatch(r) {
			next(ctx)
			return
		}
		if err := s.watch(w, r); err != nil {
			writeProblem(w, r, err)
		}
	})
	op.Description = strings.TrimSpace(op.Description + "\n\nWith watch=true: server-sent events, each `{type, revision, object}`; BOOKMARK events say that all up to a revision was told, 410 that `since` is too old and the list must be read again.")
	op.Responses = map[string]*huma.Response{"200": {Description: "a page, or with watch=true a stream of events",
		Content: map[string]*huma.MediaType{"text/event-stream": {Schema: &huma.Schema{Type: "string"}}}}}
	return op
}

// member says whether a changed resource belongs to the collection whose path was asked for. "-" stands for any tenant or cluster.
func member(collection, name string) bool {
	if collection == "events" || strings.HasSuffix(collection, "/events") {
		return true
	}
	c, n := strings.Split(collection, "/"), strings.Split(name, "/")
	if len(n) != len(c)+1 {
		return false
	}
	for i := range c {
		if c[i] != n[i] && c[i] != "-" {
			return false
		}
	}
	return true
}

// prefixOf is the longest name prefix that holds all of a collection.
func prefixOf(collection string) string {
	if collection == "events" || strings.HasSuffix(collection, "/events") {
		return state.Everything
	}
	if i := strings.Index(collection, "/-"); i >= 0 {
		return collection[:i+1]
	}
	return collection + "/"
}

// maxChanges are read at once.
const maxChanges = 512

func (s *server) watch(w http.ResponseWriter, r *http.Request) error {
	ctx := r.Context()
	collection := scopeOf(r.URL.Path)
	since := s.State.Applied()
	if v := r.URL.Query().Get("since"); v != "" {
		n, err := strconv.ParseUint(v, 10, 63)
		if err != nil {
			return fault.New(fault.Invalid, "bad-since", "%.40q is not a revision", v).Do("use the revision of a list or of an event")
		}
		since = n
	}
	done, err := s.callers.openWatch(actor(ctx))
	if err != nil {
		return err
	}
	defer done()
	wake := s.State.Watch(prefixOf(collection))
	defer wake.Close()
	if _, oldest, err := s.State.Changes(ctx, prefixOf(collection), since, 1); err != nil {
		return err
	} else if since < oldest {
		return gone(since, oldest)
	}
	st := &stream{server: s, w: w, flush: http.NewResponseController(w), collection: collection, since: since}
	st.begin()
	tick := s.Clock.NewTicker(s.Limits.Bookmark)
	defer tick.Stop()
	for {
		if err := st.send(ctx); err != nil {
			st.end(err)
			return nil
		}
		select {
		case <-ctx.Done():
			return nil
		case <-wake.C():
		case <-tick.Chan():
			if err := st.event(Event{Type: "BOOKMARK", Revision: st.since}); err != nil {
				return nil
			}
		}
	}
}

func gone(since, oldest uint64) error {
	return fault.New(fault.Stale, "gone", "changes up to revision %d are forgotten, %d was asked for", oldest, since).
		Do("list again, and watch from the revision of that list")
}

type stream struct {
	*server
	w          http.ResponseWriter
	flush      *http.ResponseController
	collection string
	since      uint64
}

func (st *stream) begin() {
	h := st.w.Header()
	h.Set("Content-Type", "text/event-stream")
	h.Set("X-Accel-Buffering", "no")
	_ = st.flush.SetWriteDeadline(time.Time{})
	_ = st.flush.SetReadDeadline(time.Time{}) // HTTP/1.1: a server's ReadTimeout would end the stream
	st.w.WriteHeader(http.StatusOK)
	_ = st.flush.Flush()
}

// send tells all changes up to now, each part if the caller may still know it: a revoked administrator's watch ends here.
func (st *stream) send(ctx context.Context) error {
	limit, told := maxChanges, false
	for {
		upTo := st.State.Applied()
		changes, oldest, err := st.State.Changes(ctx, prefixOf(st.collection), st.since, limit)
		if err != nil {
			return err
		}
		if st.since < oldest {
			return gone(st.since, oldest)
		}
		if err := st.allowed(ctx, upTo, changes); err != nil {
			return err
		}
		whole := len(changes) < limit
		if !whole {
			// The last revision may go on beyond the limit: it is told with the next part.
			if changes = withoutLast(changes); len(changes) == 0 {
				limit *= 2
				continue
			}
		}
		for _, c := range changes {
			if c.Verb == state.Signalled || !member(st.collection, c.Resource) {
				continue
			}
			if err := st.change(ctx, c); err != nil {
				return err
			}
			told = true
		}
		if !whole {
			st.since = changes[len(changes)-1].Revision
			continue
		}
		st.since = max(st.since, upTo)
		if n := len(changes); n > 0 {
			st.since = max(st.since, changes[n-1].Revision)
		}
		if told {
			return st.event(Event{Type: "BOOKMARK", Revision: st.since})
		}
		return nil
	}
}

// allowed asks for the permission as it is after the changes that were read. What wakes this stream also makes the people
// forget what they remember, in no order: so it is asked once all that had to be woken was.
func (st *stream) allowed(ctx context.Context, upTo uint64, changes []state.Change) error {
	if n := len(changes); n > 0 {
		upTo = max(upTo, changes[n-1].Revision)
	}
	if err := st.State.WaitApplied(ctx, upTo); err != nil {
		return err
	}
	return st.People.Allowed(ctx, actor(ctx), "event:watch", st.collection)
}

func withoutLast(changes []state.Change) []state.Change {
	last := changes[len(changes)-1].Revision
	n := len(changes)
	for n > 0 && changes[n-1].Revision == last {
		n--
	}
	return changes[:n]
}

func (st *stream) change(ctx context.Context, c state.Change) error {
	e := Event{Type: string(c.Verb), Revision: c.Revision, Object: Named{c.Resource}}
	if c.Verb != state.Deleted {
		o, err := st.object(ctx, c.Resource)
		if err != nil && !fault.Is(err, fault.NotFound) {
			return err
		}
		if err == nil {
			e.Object = o
		}
	}
	return st.event(e)
}

func (st *stream) event(e Event) error {
	b, err := json.Marshal(e)
	if err != nil {
		return err
	}
	_ = st.flush.SetWriteDeadline(time.Now().Add(time.Minute)) // a reader that does not read holds no stream
	if _, err := fmt.Fprintf(st.w, "id: %d\nevent: %s\ndata: %s\n\n", e.Revision, e.Type, b); err != nil {
		return err
	}
	return st.flush.Flush()
}

// end tells why the stream ends; the client may be gone already.
func (st *stream) end(err error) {
	_ = st.event(Event{Type: "ERROR", Revision: st.since, Object: problemOf(context.Background(), err)})
}
