package rest

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"net/http"
	"regexp"
	"runtime/debug"
	"strings"
	"sync/atomic"
	"time"

	"github.com/cassandra-security-manager/csm/controller/state"
	clusterv1 "github.com/cassandra-security-manager/csm/protocol/cluster/v1"
	"github.com/cassandra-security-manager/csm/shared/fault"
)

// Headers of this API.
const (
	HeaderRequestID     = "X-Request-Id"
	HeaderCorrelationID = "X-Correlation-Id"
	HeaderReason        = "CSM-Reason"
	HeaderAge           = "CSM-Age"
	HeaderController    = "CSM-Controller"
	HeaderIdempotency   = "Idempotency-Key"
)

// request is what is known of one request from its first byte on.
type request struct {
	id, correlation, path string
	// reason for the audit entry, and the key under which a repeat is the same request.
	reason, idempotency string
	body                [sha256.Size]byte
	caller              caller
	start               time.Time
	// proposals counts the commands made so far: each gets an envelope id of its own out of the idempotency key.
	proposals atomic.Int64
	// repeated is set when a command was answered from the recorded outcome.
	repeated atomic.Bool
	// leave gives the place in the room to the next; more than once does nothing. nil where there is no room to be in.
	leave func()
}

// caller is who asks. Actor is empty where no certificate is needed.
type caller struct {
	Actor, Name string
	// NotAfter of the client certificate.
	NotAfter time.Time
}

type requestKey struct{}

func requestOf(ctx context.Context) *request {
	r, _ := ctx.Value(requestKey{}).(*request)
	return r
}

// actor of a request that was admitted.
func actor(ctx context.Context) string {
	if r := requestOf(ctx); r != nil {
		return r.caller.Actor
	}
	return ""
}

var plainID = regexp.MustCompile(`^[A-Za-z0-9._:-]{1,128}$`)

// begin gives the request its ids and its answer the headers that every answer has.
func (s *server) begin(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		q := &request{id: rand.Text(), path: r.URL.Path, start: s.Clock.Now()}
		q.correlation = q.id
		if c := r.Header.Get(HeaderCorrelationID); plainID.MatchString(c) {
			q.correlation = c
		}
		q.reason = strings.Map(func(c rune) rune {
			if c < 0x20 || c == 0x7f {
				return ' '
			}
			return c
		}, r.Header.Get(HeaderReason))
		h := w.Header()
		h.Set(HeaderRequestID, q.id)
		h.Set(HeaderCorrelationID, q.correlation)
		h.Set(HeaderController, s.Name)
		h.Set("Cache-Control", "no-store")
		h.Set("X-Content-Type-Options", "nosniff")
		h.Set("X-Frame-Options", "DENY")
		h.Set("Referrer-Policy", "no-referrer")
		h.Set("Content-Security-Policy", "default-src 'none'; style-src 'unsafe-inline'; frame-ancestors 'none'")
		h.Set("Strict-Transport-Security", "max-age=31536000")
		h.Set("Cross-Origin-Resource-Policy", "same-origin")
		sw := &statusWriter{ResponseWriter: w, status: http.StatusOK}
		next.ServeHTTP(sw, r.WithContext(context.WithValue(r.Context(), requestKey{}, q)))
		s.Logger.LogAttrs(r.Context(), levelOf(sw.status, r.URL.Path), "request", logAttrs(q, r, sw.status, s.Clock.Since(q.start))...)
	})
}

// bound keeps bodies small and requests short; watches have no end.
func (s *server) bound(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if len(r.URL.RawQuery) > 8<<10 || len(r.URL.Path) > 2<<10 {
			writeProblem(w, r, fault.New(fault.Invalid, "too-large", "the address is too long").Do("shorten the filter"))
			return
		}
		r.Body = http.MaxBytesReader(w, r.Body, s.Limits.Body)
		if isWatch(r) {
			next.ServeHTTP(w, r)
			return
		}
		ctx, cancel := context.WithTimeout(r.Context(), s.Limits.Timeout)
		defer cancel()
		next.ServeHTTP(w, r.WithContext(ctx))
	})
}

// enter lets a request into the room.
func (s *server) enter(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if !strings.HasPrefix(r.URL.Path, "/v1/") { // who asks how this controller is waits for nobody
			next.ServeHTTP(w, r)
			return
		}
		q := requestOf(r.Context())
		var err error
		if q.leave, err = s.room.enter(r.Context(), false); err != nil {
			writeProblem(w, r, err)
			return
		}
		defer func() { q.leave() }()
		next.ServeHTTP(w, r)
	})
}

func isWatch(r *http.Request) bool {
	return r.Method == http.MethodGet && r.URL.Query().Get("watch") == "true"
}

func (s *server) recoverPanic(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		defer func() {
			p := recover()
			if p == nil {
				return
			}
			if p == http.ErrAbortHandler {
				panic(p)
			}
			s.Logger.Error("request failed", "panic", fmt.Sprint(p), "stack", string(debug.Stack()), "requestId", requestOf(r.Context()).id)
			writeProblem(w, r, fault.New(fault.Internal, "internal", "panic"))
		}()
		next.ServeHTTP(w, r)
	})
}

func (s *server) notFound(w http.ResponseWriter, r *http.Request) {
	writeProblem(w, r, fault.New(fault.NotFound, "no-such-path", "there is no %.200q here", r.URL.Path).Do("see /v1/openapi.json for what there is"))
}

func (s *server) methodNotAllowed(w http.ResponseWriter, r *http.Request) {
	writeProblem(w, r, fault.New(fault.Invalid, "method-not-allowed", "%s does not take %s", r.URL.Path, r.Method).Do("see /v1/openapi.json for what it takes"))
}

// Log adds to each command what the request behind it says: the correlation id, the reason, and, where the caller sent an
// Idempotency-Key, an envelope id made of caller, path, key, body and the command's place in the request, so that a repeat is
// answered and not run again. The domain packages behind this door are given a log wrapped so; proposals that come from
// elsewhere pass unchanged.
func Log(inner state.Log) state.Log { return requestLog{inner} }

type requestLog struct{ inner state.Log }

func (l requestLog) Propose(ctx context.Context, p state.Proposal) (state.Result, error) {
	q := requestOf(ctx)
	if q == nil {
		return l.inner.Propose(ctx, p)
	}
	if p.CorrelationID == "" {
		p.CorrelationID = q.correlation
	}
	if p.Reason == "" {
		p.Reason = q.reason
	}
	n := q.proposals.Add(1)
	// A certificate's request id does the same with more knowledge: it sees that the key is another.
	if _, certificate := p.Command.(*clusterv1.RecordCertificate); p.ID == "" && q.idempotency != "" && !certificate {
		sum := sha256.Sum256(fmt.Appendf(nil, "%s\x00%d", q.idempotency, n))
		p.ID, p.Request = hex.EncodeToString(sum[:16]), q.body[:]
	}
	res, err := l.inner.Propose(ctx, p)
	if err != nil {
		return res, err
	}
	if res.Repeated {
		q.repeated.Store(true)
	}
	return res, nil
}
