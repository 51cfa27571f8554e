package cli

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strings"
	"sync"
	"time"

	ui "github.com/cassandra-security-manager/csm/shared/cli"
	"github.com/cassandra-security-manager/csm/shared/fault"
	"github.com/cassandra-security-manager/csm/shared/identity"
)

// maxAnswer bounds an answer, in bytes.
const maxAnswer = 64 << 20

// client asks controllers over REST, the next one when one cannot be reached.
type client struct {
	servers []*url.URL
	http    *http.Client
	g       *ui.Global
	reason  string

	mu sync.Mutex
	// first is asked before the others: who answered last. by is its name.
	first int
	by    string
}

// answeredBy names the controller that answered last.
func (c *client) answeredBy() string {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.by
}

// prefer asks this server first from now on.
func (c *client) prefer(server int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.first = server % len(c.servers)
}

// order of the servers: who answered last, then the others as the context names them.
func (c *client) order() []int {
	c.mu.Lock()
	defer c.mu.Unlock()
	out := []int{c.first}
	for i := range c.servers {
		if i != c.first {
			out = append(out, i)
		}
	}
	return out
}

func newClient(c Context, g *ui.Global) (*client, error) {
	if len(c.Servers) == 0 {
		return nil, fault.New(fault.Invalid, "no-server", "no controller is named").
			Do("make a context: csm context set NAME --server https://HOST:9640 --ca-pin sha256:… --cert FILE --key FILE")
	}
	cl := &client{g: g}
	for _, s := range c.Servers {
		if !strings.Contains(s, "://") {
			s = "https://" + s
		}
		u, err := url.Parse(strings.TrimSpace(s))
		if err != nil || u.Scheme != "https" || u.Host == "" {
			return nil, fault.New(fault.Invalid, "bad-server", "%.200q is not the address of a controller", s).Do("write https://HOST:9640")
		}
		if u.Port() == "" {
			u.Host = net.JoinHostPort(u.Hostname(), "9640")
		}
		cl.servers = append(cl.servers, u)
	}
	t, err := tlsOf(c, g.Now)
	if err != nil {
		return nil, err
	}
	cl.http = &http.Client{Transport: &http.Transport{TLSClientConfig: t, ForceAttemptHTTP2: true, MaxIdleConnsPerHost: 4,
		DialContext: (&net.Dialer{Timeout: 5 * time.Second}).DialContext, TLSHandshakeTimeout: 10 * time.Second}}
	return cl, nil
}

// tlsOf trusts the system CA whose pin the context holds, which controllers send with their chain, and no other.
func tlsOf(c Context, now func() time.Time) (*tls.Config, error) {
	if c.CAPin == "" {
		return nil, fault.New(fault.Invalid, "no-pin", "the context holds no pin of the system CA").
			Do("set it: csm context set %s --ca-pin sha256:… (a controller prints it at init)", pick(c.Name, "NAME"))
	}
	pin, err := identity.ParsePin(c.CAPin)
	if err != nil {
		return nil, err
	}
	var own func() (*tls.Certificate, error)
	if c.Auth.Cert != "" || c.Auth.Key != "" {
		pair, err := tls.LoadX509KeyPair(c.Auth.Cert, c.Auth.Key)
		if err != nil {
			return nil, fault.Wrap(err, fault.Unauthenticated, "no-client-certificate", "the client certificate of the context cannot be used").
				Do("check auth.cert and auth.key of context %q", c.Name)
		}
		own = func() (*tls.Certificate, error) { return &pair, nil }
	}
	t := identity.ClientConfig(own, identity.Verifier{})
	t.VerifyConnection = func(cs tls.ConnectionState) error {
		root, err := identity.PinnedRoot(cs.PeerCertificates, pin)
		if err != nil {
			return err
		}
		v := identity.Verifier{Roots: func() []*x509.Certificate { return []*x509.Certificate{root} }, Kinds: []identity.Kind{identity.Controller}, Now: now}
		return v.VerifyConnection(cs)
	}
	return t, nil
}

// call is one request.
type call struct {
	method, path string
	query        url.Values
	body         any
	header       http.Header
	// stream keeps the answer open and without a time limit.
	stream bool
}

// answer of a controller.
type answer struct {
	body   json.RawMessage
	header http.Header
	stream io.ReadCloser
}

// do asks the first controller that can be reached and has a quorum. A request that may have arrived is repeated elsewhere only when it
// changes nothing or carries an Idempotency-Key, which every POST does.
func (c *client) do(ctx context.Context, q call) (*answer, error) {
	var payload []byte
	if q.body != nil {
		var err error
		if raw, ok := q.body.(json.RawMessage); ok {
			payload = raw
		} else if payload, err = json.Marshal(q.body); err != nil {
			return nil, fault.Wrap(err, fault.Internal, "request", "encode the request")
		}
	}
	if q.header == nil {
		q.header = http.Header{}
	}
	if q.method == http.MethodPost && q.header.Get("Idempotency-Key") == "" {
		q.header.Set("Idempotency-Key", rand.Text())
	}
	var last error
	for n, i := range c.order() {
		server := c.servers[i]
		a, err := c.ask(ctx, server, q, payload)
		if err == nil {
			c.prefer(i)
			return a, nil
		}
		f := fault.From(err)
		if f.Code != fault.Unavailable {
			return nil, err
		}
		if ctx.Err() != nil {
			c.prefer(i + 1) // it may hang: who asks again begins elsewhere
			return nil, timedOut(ctx, err)
		}
		// What a controller answers says more than that another is away.
		if last == nil || f.Reason != "unreachable" {
			last = err
		}
		if n+1 < len(c.servers) {
			c.g.Detail("%s: %s; asking the next controller", server.Host, f.Message)
		}
	}
	return nil, last
}

func timedOut(ctx context.Context, err error) error {
	if errors.Is(ctx.Err(), context.Canceled) {
		return fmt.Errorf("interrupted: %w", ctx.Err())
	}
	late := fault.Wrap(err, fault.Unavailable, "timeout", "no answer in time")
	var waited *url.Error
	if errors.Is(err, context.DeadlineExceeded) && errors.As(err, &waited) {
		late = fault.New(fault.Unavailable, "timeout", "no answer in time to %s %s", strings.ToUpper(waited.Op), waited.URL)
	}
	return late.Do("ask again with a longer --timeout; `csm status` shows whether there is a quorum")
}

func (c *client) ask(ctx context.Context, server *url.URL, q call, payload []byte) (*answer, error) {
	u := *server
	path, query, _ := strings.Cut(q.path, "?")
	u.Path = "/" + strings.TrimPrefix(path, "/")
	u.RawQuery = query
	if len(q.query) > 0 {
		u.RawQuery = strings.Trim(u.RawQuery+"&"+q.query.Encode(), "&")
	}
	req, err := http.NewRequestWithContext(ctx, q.method, u.String(), bytes.NewReader(payload))
	if err != nil {
		return nil, fault.Wrap(err, fault.Invalid, "bad-path", "%s %s", q.method, q.path)
	}
	req.Header = q.header.Clone()
	req.Header.Set("User-Agent", "csm/"+ui.Version)
	if c.reason != "" {
		req.Header.Set("CSM-Reason", c.reason)
	}
	if payload != nil && req.Header.Get("Content-Type") == "" {
		req.Header.Set("Content-Type", "application/json")
	}
	resp, err := c.http.Do(req)
	if err != nil {
		return nil, unreachable(server, err)
	}
	c.g.Detail("%s %s: %d from %s, request %s", q.method, u.RequestURI(), resp.StatusCode, resp.Header.Get("CSM-Controller"), resp.Header.Get("X-Request-Id"))
	if resp.StatusCode < 300 && q.stream {
		return &answer{header: resp.Header, stream: resp.Body}, nil
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(io.LimitReader(resp.Body, maxAnswer))
	if err != nil {
		return nil, unreachable(server, err)
	}
	if resp.StatusCode >= 300 {
		return nil, problem(resp, b)
	}
	c.mu.Lock()
	c.by = resp.Header.Get("CSM-Controller")
	c.mu.Unlock()
	return &answer{body: b, header: resp.Header}, nil
}

// unreachable tells apart who is not there from who is not trusted: asking another does not heal the latter.
func unreachable(server *url.URL, err error) error {
	var f *fault.Error
	if errors.As(err, &f) {
		return f
	}
	return fault.Wrap(err, fault.Unavailable, "unreachable", "the controller %s cannot be reached", server.Host).
		Do("check that csm-controller runs there and that its API port is open; name more controllers with --server")
}

// problem reads a problem document back into the fault it was.
func problem(resp *http.Response, b []byte) error {
	var p struct {
		Code, Reason, Detail, Remedy, RequestID string
		Status                                  int
	}
	if json.Unmarshal(b, &p) != nil || p.Reason == "" {
		return fault.New(fault.Internal, "no-problem", "%s answered %s", resp.Request.URL.Host, resp.Status).Do("check that this is the API port of a controller")
	}
	f := fault.New(fault.ParseCode(p.Code), p.Reason, "%s", p.Detail)
	if f.Code == fault.Internal {
		f.Message += " (request " + p.RequestID + ")"
	}
	if p.Remedy != "" {
		f = f.Do("%s", p.Remedy)
	}
	return f
}

func (s *session) get(path string, query url.Values) (*answer, error) {
	ctx, cancel := s.Global.Context(s.cmd.Context())
	defer cancel()
	if s.consistent {
		if query == nil {
			query = url.Values{}
		}
		query.Set("consistency", "linearizable")
	}
	return s.client.do(ctx, call{method: http.MethodGet, path: "/v1/" + path, query: query})
}

// post asks for a change, or for its check with --dry-run.
func (s *session) post(path string, body any) (*answer, error) {
	ctx, cancel := s.Global.Context(s.cmd.Context())
	defer cancel()
	q := call{method: http.MethodPost, path: "/v1/" + path, body: body}
	if s.dryRun {
		q.query = url.Values{"validateOnly": {"true"}}
	}
	a, err := s.client.do(ctx, q)
	if err == nil && s.dryRun {
		s.Say("checked; nothing was changed (--dry-run)")
	}
	return a, err
}

// read gets a resource into a value.
func read[T any](s *session, path string, query url.Values) (T, json.RawMessage, error) {
	var v T
	a, err := s.get(path, query)
	if err != nil {
		return v, nil, err
	}
	return v, a.body, decode(a.body, &v)
}

func decode(b []byte, v any) error {
	if err := json.Unmarshal(b, v); err != nil {
		return fault.Wrap(err, fault.Internal, "answer", "the answer cannot be read").Do("compare versions: csm version, csm api GET /v1/version")
	}
	return nil
}

// list reads the pages of a list, up to limit items (all when 0). raw is one document as REST gives it.
func list[T any](s *session, path string, query url.Values, limit int) (items []T, raws []any, doc json.RawMessage, err error) {
	type page struct {
		Items         []json.RawMessage `json:"items"`
		NextPageToken string            `json:"nextPageToken,omitempty"`
		Revision      uint64            `json:"revision"`
	}
	if query == nil {
		query = url.Values{}
	}
	all := page{Items: []json.RawMessage{}}
	raws = []any{}
	for {
		query.Set("pageSize", "1000")
		if limit > 0 {
			query.Set("pageSize", fmt.Sprint(min(limit-len(all.Items), 1000)))
		}
		p, _, err := read[page](s, path, query)
		if err != nil {
			return nil, nil, nil, err
		}
		all.Items = append(all.Items, p.Items...)
		all.NextPageToken, all.Revision = p.NextPageToken, p.Revision
		if p.NextPageToken == "" || (limit > 0 && len(all.Items) >= limit) {
			break
		}
		query.Set("pageToken", p.NextPageToken)
	}
	for _, raw := range all.Items {
		var v T
		if err := decode(raw, &v); err != nil {
			return nil, nil, nil, err
		}
		items = append(items, v)
		raws = append(raws, raw)
	}
	doc, err = json.Marshal(all)
	return items, raws, doc, err
}
