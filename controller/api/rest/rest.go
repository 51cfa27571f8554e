// Package rest is the REST door of a controller: decode, authenticate, authorise, call a domain package, encode.
//
// It owns no state and decides nothing about certificates, clusters or controllers. It refuses whoever shows no client
// certificate of an administrator (but for liveness, readiness and version), requests that are too large or too many,
// and parameters it does not know: a misspelt filter must not answer with everything. It keeps these promises: an error is a
// problem document (RFC 9457) that says what to do next; the resources of README.md look the same in every list, answer and
// event; the OpenAPI document is made from the code that serves.
package rest

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"log/slog"
	"net/http"
	"runtime"
	"time"

	"github.com/danielgtaylor/huma/v2"
	"github.com/danielgtaylor/huma/v2/adapters/humachi"
	"github.com/go-chi/chi/v5"
	"github.com/jonboulle/clockwork"

	"github.com/cassandra-security-manager/csm/controller/authority"
	"github.com/cassandra-security-manager/csm/controller/backup"
	"github.com/cassandra-security-manager/csm/controller/consensus"
	"github.com/cassandra-security-manager/csm/controller/fleet"
	"github.com/cassandra-security-manager/csm/controller/fleet/rollout"
	"github.com/cassandra-security-manager/csm/controller/fleet/rotation"
	"github.com/cassandra-security-manager/csm/controller/grace"
	"github.com/cassandra-security-manager/csm/controller/issuance"
	"github.com/cassandra-security-manager/csm/controller/ledger"
	"github.com/cassandra-security-manager/csm/controller/people"
	"github.com/cassandra-security-manager/csm/controller/state"
	"github.com/cassandra-security-manager/csm/controller/systemca"
	"github.com/cassandra-security-manager/csm/shared/identity"
)

// Quorum is what this door needs of consensus; *consensus.Node is one.
type Quorum interface {
	Linearize(ctx context.Context) error
	CatchUp(ctx context.Context) error
	Age() time.Duration
	IsLeader() bool
	Health() consensus.Health
	Status(ctx context.Context) (consensus.Status, error)
	Verify(ctx context.Context, actor string) ([]consensus.MemberChecksum, error)
	CreateJoinToken(ctx context.Context, spec consensus.TokenSpec, actor string) (token string, info consensus.Token, err error)
	JoinTokens(ctx context.Context) ([]consensus.Token, error)
	RevokeJoinToken(ctx context.Context, id, actor string) error
	Approve(ctx context.Context, name, fingerprint, actor string) (consensus.Member, error)
	Remove(ctx context.Context, name, actor, reason string) error
}

// State is what watches and the audit list need; *state.Store is one.
type State interface {
	people.Reader
	Applied() uint64
	WaitApplied(ctx context.Context, index uint64) error
	Watch(names ...string) *state.Watch
	Changes(ctx context.Context, prefix string, since uint64, limit int) (changes []state.Change, oldest uint64, err error)
	Audit(ctx context.Context, f state.AuditFilter, p state.AuditPage) (entries []state.AuditEntry, next string, err error)
}

// Deps are the packages behind the door. All are required but those said to be optional.
type Deps struct {
	// Name of this controller, Region it stands in, TrustDomain of the system.
	Name, Region, TrustDomain string
	// Roots is the system bundle: who may be a client.
	Roots func() []*x509.Certificate

	People      *people.People
	Grace       *grace.Grace
	Fleet       *fleet.Fleet
	Rollouts    *rollout.Rollouts
	Rotations   *rotation.Rotations
	SystemCA    *systemca.Rotations
	Issuance    *issuance.Issuance
	Authorities *authority.Authorities
	Ledger      ledger.Ledger
	Quorum      Quorum
	State       State
	// Unsealed says whether this controller can use its keys; optional, then it is not part of readiness.
	Unsealed func() bool
	// Backups of this controller; optional.
	Backups *backup.Backups
	// AfterApprove runs after a controller was approved: it wraps the data key to it. Optional.
	AfterApprove func(ctx context.Context, m consensus.Member, actor string) error

	Clock  clockwork.Clock
	Logger *slog.Logger
	Limits Limits
}

// Limits bound what a caller may ask. Zero values are the defaults of DefaultLimits.
type Limits struct {
	// Body bounds a request's body, in bytes.
	Body int64
	// Timeout of one request, watches excepted.
	Timeout time.Duration
	// PerSecond requests and a Burst of them for each caller; above it 429.
	PerSecond float64
	Burst     int
	// Watches open at once, for each caller.
	Watches int
	// Bookmark is how often a silent watch says that it lives.
	Bookmark time.Duration
}

// DefaultLimits are generous for people and tools, and tight for a loop gone wild.
func DefaultLimits() Limits {
	return Limits{Body: 256 << 10, Timeout: 30 * time.Second, PerSecond: 100, Burst: 300, Watches: 32, Bookmark: 15 * time.Second}
}

func (l Limits) fill() Limits {
	d := DefaultLimits()
	if l.Body == 0 {
		l.Body = d.Body
	}
	if l.Timeout == 0 {
		l.Timeout = d.Timeout
	}
	if l.PerSecond == 0 {
		l.PerSecond = d.PerSecond
	}
	if l.Burst == 0 {
		l.Burst = d.Burst
	}
	if l.Watches == 0 {
		l.Watches = d.Watches
	}
	if l.Bookmark == 0 {
		l.Bookmark = d.Bookmark
	}
	return l
}

type server struct {
	Deps
	api      huma.API
	verifier *identity.Remembering
	callers  *callers
	room     room
}

// New makes the handler of the API port. Serve it with TLSConfig.
func New(d Deps) http.Handler {
	h, _ := build(d)
	return h
}

// OpenAPI is the OpenAPI 3.1 document of this API, as YAML.
func OpenAPI() ([]byte, error) {
	_, api := build(Deps{Clock: clockwork.NewRealClock(), Logger: slog.New(slog.DiscardHandler)})
	return api.OpenAPI().YAML()
}

func build(d Deps) (http.Handler, huma.API) {
	if d.Clock == nil {
		d.Clock = clockwork.NewRealClock()
	}
	if d.Logger == nil {
		d.Logger = slog.New(slog.DiscardHandler)
	}
	d.Limits = d.Limits.fill()
	s := &server{Deps: d, callers: newCallers(d.Limits, d.Clock), room: room{free: roomPerCore * runtime.GOMAXPROCS(0)}}
	s.verifier = &identity.Remembering{Verifier: identity.Verifier{Roots: d.Roots, TrustDomain: d.TrustDomain, Kinds: []identity.Kind{identity.Admin}, Now: d.Clock.Now}}
	r := chi.NewRouter()
	r.Use(s.begin, s.recoverPanic, s.bound, s.enter)
	r.NotFound(s.notFound)
	r.MethodNotAllowed(s.methodNotAllowed)
	s.api = humachi.New(r, apiConfig())
	s.api.UseMiddleware(s.admit)
	s.routes()
	r.Get("/docs", s.docs)
	return r, s.api
}

func (s *server) routes() {
	s.health()
	s.certificates()
	s.tenants()
	s.clusters()
	s.readiness()
	s.seen()
	s.trust()
	s.requests()
	s.nodes()
	s.rollouts()
	s.rotations()
	s.systemRotations()
	s.authorities()
	s.controllers()
	s.backups()
	s.system()
}

func apiConfig() huma.Config {
	c := huma.DefaultConfig("Cassandra Security Manager", "v1")
	c.Info.Description = "Resources are named after Google's AIP-122: the name of a resource is its path under /v1/. " +
		"Errors are problem documents (RFC 9457) with a stable reason and a remedy. " +
		"Reads answer from the controller asked (header CSM-Age says how old that is) or, with consistency=linearizable, as of now. " +
		"A client certificate of an administrator is needed but where it says otherwise."
	c.OpenAPIPath = "/v1/openapi"
	c.DocsPath = ""
	c.SchemasPath = ""
	c.CreateHooks = nil // no $schema links in the answers: a resource is the same wherever it is read
	c.RejectUnknownQueryParameters = true
	c.Components.SecuritySchemes = map[string]*huma.SecurityScheme{"administrator": {Type: "mutualTLS", Description: "client certificate made by `csm-controller admin add NAME`"}}
	return c
}

// TLSConfig is the TLS of the API port: 1.3, hybrid key exchange first. A client certificate is asked for, and looked at by
// the handler, so that who has the wrong one gets an answer that says what to do instead of an alert. Browsers and tools
// that have no hybrid key exchange yet are let in with a classical one; csm always uses a hybrid one.
func TLSConfig(own func() (*tls.Certificate, error)) *tls.Config {
	c := identity.Base()
	c.CurvePreferences = append(append([]tls.CurveID{}, identity.Hybrid...), tls.X25519, tls.CurveP384, tls.CurveP256)
	c.GetCertificate = func(*tls.ClientHelloInfo) (*tls.Certificate, error) { return own() }
	c.ClientAuth = tls.RequestClientCert
	c.NextProtos = []string{"h2", "http/1.1"}
	return c
}
