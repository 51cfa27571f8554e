// Package issuance is the one door through which a leaf certificate is signed: request -> template -> names -> lint with a
// throw-away key -> sign -> verify -> record -> hand out. It owns the templates and the rules of what may be signed,
// and keeps no state: the record belongs to the ledger.
//
// It refuses every name that its caller did not allow, keys below the floor, requests without proof of possession,
// lives that outlast the issuer. Its invariant: what is handed out was recorded by Apply before, and what Apply refused
// is thrown away. Who may ask, and which names are a node's, is decided by the callers and by the Guards in Apply.
package issuance

import (
	"context"
	"crypto/x509"
	"io"
	"runtime"
	"sync"
	"time"

	"github.com/jonboulle/clockwork"

	"github.com/cassandra-security-manager/csm/controller/authority"
	"github.com/cassandra-security-manager/csm/controller/issuance/turns"
	"github.com/cassandra-security-manager/csm/controller/keyring"
	"github.com/cassandra-security-manager/csm/controller/ledger"
	"github.com/cassandra-security-manager/csm/controller/state"
	"github.com/cassandra-security-manager/csm/shared/algorithm"
	"github.com/cassandra-security-manager/csm/shared/certificate"
)

// Request asks for a leaf of a tenant's authority.
type Request struct {
	// RequestID makes a repeat safe: the same id with the same key, for the same node, returns the recorded certificate. At most
	// 64 bytes; empty for an application whose caller cannot repeat.
	RequestID string
	// Actor who asks: a SPIFFE ID or name.
	Actor  string
	Reason string
	Tenant string
	// Authority is a full resource name; Region prefers one of its issuers.
	Authority, Region string
	// Template is "node", "application" or "probe".
	Template string
	// CSR is a PKCS#10 request, DER, at most 16 KiB. Its key counts; each of its names must be one of Names.
	CSR []byte
	// Names are what the certificate carries: exactly these.
	Names certificate.Names
	// FromCSR takes the names that the request asks for when Names is empty, and its common name when Subject is: for a caller
	// who may ask for any name.
	FromCSR bool
	// Subject is the common name, at most 64 bytes; the node's id, else the first name, when empty.
	Subject string
	// Node (full name), Incarnation, Store and Claim of a node's certificate: Apply looks at them again.
	Node        string
	Incarnation uint64
	Store       string
	Claim       string
	// Task that a certificate of template "probe" is for: Apply looks at it again.
	Task string
	// Validity is the template's when zero. Below 24 h is refused; it is cut at the issuer's end.
	Validity time.Duration
	Zone     string
	// Due is when the certificate that this one replaces ends, for its place before a signer of known rate; zero: it is needed now,
	// because there is none or it must not be relied on.
	Due time.Time
	// Examined is called, if it is not nil, when the request was found lawful: what follows may wait, for a turn, a key, the log.
	Examined func()
}

// Issued is a recorded certificate.
type Issued struct {
	// Name is the full resource name.
	Name string
	// Serial in lower-case hex, whole bytes (as openssl prints it).
	Serial string
	// Chain is DER, leaf first, without the root.
	Chain    [][]byte
	Issuer   string
	NotAfter time.Time
	// RenewAt was drawn once and is recorded.
	RenewAt time.Time
	// Repeated: the same request had been answered before.
	Repeated bool
	// Record is what the ledger keeps of it, so that nobody reads back what was just written; nil when Repeated.
	Record *ledger.Certificate
}

// Leaf is the certificate itself, DER.
func (i *Issued) Leaf() []byte { return i.Chain[0] }

// Authorities is what issuance needs of package authority.
type Authorities interface {
	IssuerFor(ctx context.Context, authority, region string) (*authority.Issuer, error)
	Issuer(ctx context.Context, name string) (*authority.Issuer, error)
	Signer(ctx context.Context, i *authority.Issuer) (keyring.Signer, error)
	Chain(ctx context.Context, i *authority.Issuer) ([]*x509.Certificate, error)
	SystemBundle(ctx context.Context) ([]*x509.Certificate, error)
	TrustDomain(ctx context.Context) (string, error)
	Forget(authority string)
}

// Options of one controller.
type Options struct {
	// HourlyCap replaces the templates' caps on certificates per node (or identity, or subject) and hour; negative: none.
	HourlyCap int
	// AllowBenchmark lets P-256 pass. Benchmarks only.
	AllowBenchmark bool
	// Observe is told of each request: the template, the fault's reason ("" for success) and how long it took.
	Observe func(template, reason string, took time.Duration)
	// Turns is the line before the signer; nil: there is none.
	Turns *turns.Queue
}

// Issuance is the door.
type Issuance struct {
	authorities Authorities
	log         state.Log
	clock       clockwork.Clock
	rand        io.Reader
	options     Options
	linter      *linter
	// verified holds the fingerprints of issuer certificates whose chain was verified on this controller.
	verified sync.Map
	// room is for who examines a request: thousands that come at once must not take the processor from what applies the log.
	room chan struct{}
}

// New makes the door. rand gives serial numbers and renewal times.
func New(authorities Authorities, log state.Log, clock clockwork.Clock, rand io.Reader, o Options) *Issuance {
	if o.AllowBenchmark {
		algorithm.AllowBenchmark()
	}
	return &Issuance{authorities: authorities, log: log, clock: clock, rand: rand, options: o, linter: newLinter(), room: make(chan struct{}, 2*runtime.GOMAXPROCS(0))}
}
