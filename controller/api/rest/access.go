package rest

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"io"
	"log/slog"
	"net"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/danielgtaylor/huma/v2"
	"github.com/danielgtaylor/huma/v2/adapters/humachi"
	"github.com/jonboulle/clockwork"
	"golang.org/x/time/rate"

	"github.com/cassandra-security-manager/csm/controller/consensus"
	"github.com/cassandra-security-manager/csm/shared/fault"
)

// permissionOf is the key of an operation's permission in its metadata; an operation without one is open to all.
const permissionOf = "csm-permission"

// admit runs before each operation: who is it, how often did he ask, may he, and how fresh must the answer be.
func (s *server) admit(ctx huma.Context, next func(huma.Context)) {
	r, w := humachi.Unwrap(ctx)
	if err := s.admitted(ctx, r, w); err != nil {
		writeProblem(w, r, err)
		return
	}
	next(ctx)
}

func (s *server) admitted(ctx huma.Context, r *http.Request, w http.ResponseWriter) error {
	q := requestOf(r.Context())
	permission, closed := ctx.Operation().Metadata[permissionOf].(string)
	key := "address " + host(r.RemoteAddr)
	if closed {
		who, err := s.authenticate(r)
		if err != nil {
			if wait := s.callers.take(key + " refused"); wait > 0 {
				return tooMany(w, wait)
			}
			return err
		}
		q.caller = who
		key = who.Actor
	}
	if wait := s.callers.take(key); wait > 0 {
		return tooMany(w, wait)
	}
	if !closed {
		return nil
	}
	if err := s.People.Allowed(r.Context(), q.caller.Actor, permission, scopeOf(r.URL.Path)); err != nil {
		return err
	}
	if err := s.readBody(q, r); err != nil {
		return err
	}
	if err := q.identify(r); err != nil {
		return err
	}
	if isWatch(r) {
		q.leave()
	}
	return s.freshness(r, w)
}

// readBody reads the body of a caller who is known, in his own time.
func (s *server) readBody(q *request, r *http.Request) error {
	if r.ContentLength == 0 || r.Body == nil || r.Body == http.NoBody {
		return nil
	}
	q.leave()
	body, err := io.ReadAll(r.Body)
	if err != nil {
		return fault.New(fault.Invalid, "too-large", "the request is too large or broken").Do("send less")
	}
	r.Body = io.NopCloser(bytes.NewReader(body))
	q.body = sha256.Sum256(body)
	leave, err := s.room.enter(r.Context(), true)
	if err != nil {
		return err
	}
	q.leave = leave
	return nil
}

// identify reads the Idempotency-Key. A repeat of a command must have the same body too: another body is another command.
// Issuing goes by the key alone, because issuance itself refuses the same id with another key.
func (q *request) identify(r *http.Request) error {
	k := r.Header.Get(HeaderIdempotency)
	if k == "" || r.Method != http.MethodPost {
		return nil
	}
	if len(k) > 128 {
		return fault.New(fault.Invalid, "bad-idempotency-key", "the Idempotency-Key is longer than 128 bytes").Do("use a random UUID")
	}
	sum := sha256.Sum256([]byte(strings.Join([]string{q.caller.Actor, r.Method, r.URL.Path, k}, "\x00")))
	q.idempotency = hex.EncodeToString(sum[:16])
	return nil
}

// freshness reads "stale" (the default) or "linearizable", and says how old the state is that answers.
func (s *server) freshness(r *http.Request, w http.ResponseWriter) error {
	switch c := r.URL.Query().Get("consistency"); c {
	case "", "stale":
	case "linearizable":
		requestOf(r.Context()).leave()
		if err := s.linearize(r.Context()); err != nil {
			return err
		}
	default:
		return fault.New(fault.Invalid, "bad-consistency", "there is no consistency %.40q", c).Do("use stale or linearizable")
	}
	if age := s.Quorum.Age(); age != consensus.AgeUnknown {
		w.Header().Set(HeaderAge, strconv.FormatFloat(max(age, 0).Seconds(), 'f', 3, 64))
	} else {
		w.Header().Set(HeaderAge, "unknown")
	}
	return nil
}

// linearize waits until this controller has all that was written before now. It waits shorter than any client's patience, so that who lost
// the quorum is told which controllers to start.
func (s *server) linearize(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, consensus.DefaultTimeout)
	defer cancel()
	return s.Quorum.Linearize(ctx)
}

// authenticate finds the administrator behind the client certificate, at each request: a revocation holds from the next one on.
func (s *server) authenticate(r *http.Request) (caller, error) {
	if r.TLS == nil || len(r.TLS.PeerCertificates) == 0 {
		return caller{}, fault.New(fault.Unauthenticated, "no-certificate", "a client certificate of an administrator is needed").
			Do("make one with `csm-controller admin add NAME` on a controller and name it in the context of csm (auth.cert, auth.key)")
	}
	id, err := s.verifier.Verify(r.TLS.PeerCertificates)
	if err != nil {
		return caller{}, err
	}
	a, err := s.People.Authenticate(r.Context(), r.TLS.PeerCertificates[0], id)
	if fault.HasReason(err, "unknown-admin") {
		// A controller that has just joined knows nobody yet: it is no refusal before its state is that of the others.
		requestOf(r.Context()).leave()
		if err := s.linearize(r.Context()); err != nil {
			return caller{}, err
		}
		a, err = s.People.Authenticate(r.Context(), r.TLS.PeerCertificates[0], id)
	}
	if err != nil {
		return caller{}, err
	}
	if s.SystemCA != nil {
		s.SystemCA.Use(id.String(), sha256.Sum256(r.TLS.PeerCertificates[0].Raw))
	}
	return caller{Actor: id.String(), Name: a.Name, NotAfter: r.TLS.PeerCertificates[0].NotAfter}, nil
}

// scopeOf is the resource or collection that a path is about: without /v1/ and the verb.
func scopeOf(path string) string {
	name := strings.TrimPrefix(path, "/v1/")
	if i := strings.LastIndexByte(name, ':'); i > strings.LastIndexByte(name, '/') {
		name = name[:i]
	}
	return name
}

func host(addr string) string {
	h, _, err := net.SplitHostPort(addr)
	if err != nil {
		return addr
	}
	return h
}

func tooMany(w http.ResponseWriter, wait time.Duration) error {
	secs := int(wait.Seconds()) + 1
	w.Header().Set("Retry-After", strconv.Itoa(secs))
	return fault.New(fault.Exhausted, "rate-limit", "too many requests").Do("ask again in %d s", secs)
}

// callers holds a bucket for each caller; those who were silent for a while are forgotten.
type callers struct {
	mu     sync.Mutex
	limits Limits
	clock  clockwork.Clock
	all    map[string]*bucket
}

type bucket struct {
	limit   *rate.Limiter
	seen    time.Time
	watches int
}

const maxCallers = 10_000

func newCallers(l Limits, c clockwork.Clock) *callers {
	return &callers{limits: l, clock: c, all: map[string]*bucket{}}
}

func (c *callers) get(key string, now time.Time) *bucket {
	b := c.all[key]
	if b == nil {
		if len(c.all) >= maxCallers {
			for k, old := range c.all {
				if old.watches == 0 && now.Sub(old.seen) > time.Minute {
					delete(c.all, k)
				}
			}
		}
		b = &bucket{limit: rate.NewLimiter(rate.Limit(c.limits.PerSecond), c.limits.Burst)}
		if len(c.all) < maxCallers {
			c.all[key] = b
		}
	}
	b.seen = now
	return b
}

// take one request out of the caller's bucket; when it is empty it says how long to wait.
func (c *callers) take(key string) time.Duration {
	c.mu.Lock()
	defer c.mu.Unlock()
	now := c.clock.Now()
	res := c.get(key, now).limit.ReserveN(now, 1)
	wait := res.DelayFrom(now)
	if wait > 0 {
		res.CancelAt(now)
	}
	return wait
}

// openWatch counts a watch of a caller; done ends it.
func (c *callers) openWatch(key string) (done func(), err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	b := c.get(key, c.clock.Now())
	if b.watches >= c.limits.Watches {
		return nil, fault.New(fault.Exhausted, "too-many-watches", "%d watches are open already", b.watches).Do("close some, or watch a collection above them")
	}
	b.watches++
	return func() {
		c.mu.Lock()
		b.watches--
		c.mu.Unlock()
	}, nil
}

// statusWriter remembers the status for the log.
type statusWriter struct {
	http.ResponseWriter
	status int
}

func (w *statusWriter) WriteHeader(code int) {
	w.status = code
	w.ResponseWriter.WriteHeader(code)
}

// Unwrap lets http.ResponseController find the writer below.
func (w *statusWriter) Unwrap() http.ResponseWriter { return w.ResponseWriter }

func levelOf(status int, path string) slog.Level {
	switch {
	case status >= 500 && status != http.StatusServiceUnavailable:
		return slog.LevelError
	case strings.HasSuffix(path, "z"):
		return slog.LevelDebug
	}
	return slog.LevelInfo
}

func logAttrs(q *request, r *http.Request, status int, took time.Duration) []slog.Attr {
	return []slog.Attr{slog.String("method", r.Method), slog.String("path", r.URL.Path), slog.Int("status", status),
		slog.Float64("ms", float64(took.Microseconds())/1000), slog.String("actor", q.caller.Actor),
		slog.String("remote", host(r.RemoteAddr)), slog.String("requestId", q.id), slog.String("correlationId", q.correlation)}
}
