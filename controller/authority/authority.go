// Package authority owns the CA hierarchy: authorities, their roots, their issuing CAs per region, and the revocation
// lists. The system authority makes identities of controllers, agents and administrators; tenant authorities make what
// Cassandra uses; no certificate chains to both.
//
// It refuses to sign anything but CA certificates and revocation lists: leaves go through package issuance. Its
// invariants: every CA certificate stands in the ledger; an issuer's key, shards and public URLs never change; a
// revocation list that is newer in number holds at least the revocations of every older one.
package authority

import (
	"context"
	"crypto/x509"
	"io"
	"sync"
	"time"

	"github.com/jonboulle/clockwork"

	"github.com/cassandra-security-manager/csm/controller/keyring"
	"github.com/cassandra-security-manager/csm/controller/state"
	"github.com/cassandra-security-manager/csm/shared/algorithm"
	"github.com/cassandra-security-manager/csm/shared/fault"
	"github.com/cassandra-security-manager/csm/shared/resource"
)

// SystemName is the resource name of the system authority.
const SystemName = "system/authorities/system"

// Lifetimes: the defaults, and the tolerance for clocks that are behind.
const (
	RootValidity   = 15 * 365 * 24 * time.Hour
	IssuerValidity = 3 * 365 * 24 * time.Hour
	Backdate       = 10 * time.Minute
)

// State of an authority or issuer.
type State string

// The states. A retired issuer signs revocation lists and nothing else. Trusted is a root of the system authority beside the active
// one while they change places: it is an anchor and signs no identity.
const (
	Active  State = "active"
	Trusted State = "trusted"
	Retired State = "retired"
)

// Kind of an issuer.
type Kind string

// The kinds. The root of the system authority signs identities itself.
const (
	Root    Kind = "root"
	Issuing Kind = "issuing"
)

// Authority is one logical CA.
type Authority struct {
	Name        string
	Tenant      string
	Zone        string
	DisplayName string
	Algorithm   algorithm.Key
	// TrustDomain of all system identities ("<system id>.csm"); empty for tenant authorities.
	TrustDomain string
	State       State
	CreateTime  time.Time
	Revision    uint64
	// Issuers, the root first, then by name.
	Issuers []Issuer
}

// Issuer is one certificate that signs. With software keys "issuer per region" is a policy: the sealed keys are on
// every controller.
type Issuer struct {
	Name      string
	Authority string
	// PublicID names it in URLs: 20 hex digits of the SHA-256 of its public key.
	PublicID string
	Kind     Kind
	Region   string
	Zone     string
	// Key is the name in the keyring.
	Key string
	// Parent is the issuer that signed it; its own name for a root.
	Parent      string
	State       State
	Shards      int
	BaseURLs    []string
	Certificate *x509.Certificate
	CreateTime  time.Time
	Revision    uint64
}

// Keys is what authorities need of the keyring.
type Keys interface {
	CreateKey(ctx context.Context, name string, alg algorithm.Key, actor string) (keyring.KeyInfo, error)
	Signer(ctx context.Context, name string) (keyring.Signer, error)
}

// Store is what authorities need of the state machine.
type Store interface {
	View(ctx context.Context, fn func(ctx context.Context, q state.Querier) error) error
	Watch(names ...string) *state.Watch
}

// DefaultCRLValidity is how long a revocation list is valid if nothing else is said.
const DefaultCRLValidity = 7 * 24 * time.Hour

// Options of one controller.
type Options struct {
	// BaseURLs of the public listeners ("http://csm1.example:9643"), written into every certificate of issuers made from now
	// on. Without any, certificates carry no pointers to revocation lists and issuers.
	BaseURLs []string
	// CRLShards for issuers made from now on: a power of two, 8 when zero.
	CRLShards int
	// CRLValidity is nextUpdate minus thisUpdate, DefaultCRLValidity when zero. A list is built again after half of it.
	CRLValidity time.Duration
	// AllowBenchmark lets authorities be made with P-256.
	AllowBenchmark bool
}

// Authorities is the door to all of them.
type Authorities struct {
	store   Store
	log     state.Log
	keys    Keys
	clock   clockwork.Clock
	rand    io.Reader
	options Options

	// clockDoubt says why lists must not be dated now.
	clockDoubt func() error

	mu     sync.RWMutex
	cached map[string]remembered
	crls   *crlCache
}

// remembered is an authority read before its watch last woke.
type remembered struct {
	authority *Authority
	watch     *state.Watch
}

// JudgeClock makes the door ask before it dates a revocation list: a controller whose clock is wrong would leave out what it
// takes for expired, and relying parties would refuse the list. It is called before the door is used.
func (s *Authorities) JudgeClock(doubt func() error) { s.clockDoubt = doubt }

// New makes the door. rand gives serial numbers.
func New(store Store, log state.Log, keys Keys, clock clockwork.Clock, rand io.Reader, o Options) *Authorities {
	if o.CRLShards == 0 {
		o.CRLShards = 8
	}
	if o.CRLValidity == 0 {
		o.CRLValidity = DefaultCRLValidity
	}
	if o.AllowBenchmark {
		algorithm.AllowBenchmark()
	}
	return &Authorities{clockDoubt: func() error { return nil }, store: store, log: log, keys: keys, clock: clock, rand: rand, options: o,
		cached: map[string]remembered{}, crls: newCRLCache()}
}

// Get reads one authority with its issuers.
func (s *Authorities) Get(ctx context.Context, name string) (*Authority, error) {
	var out []Authority
	err := s.store.View(ctx, func(ctx context.Context, q state.Querier) (err error) {
		out, err = read(ctx, q, `a.name = ?`, name)
		return err
	})
	if err != nil {
		return nil, err
	}
	if len(out) == 0 {
		return nil, noAuthority(name)
	}
	return &out[0], nil
}

func noAuthority(name string) error {
	return fault.New(fault.NotFound, "no-authority", "there is no authority %.200q", name).Do("list what there is with `csm ca list`")
}

// List reads the authorities of a tenant, by name; the system authority for an empty tenant.
func (s *Authorities) List(ctx context.Context, tenant string) ([]Authority, error) {
	var out []Authority
	err := s.store.View(ctx, func(ctx context.Context, q state.Querier) (err error) {
		out, err = read(ctx, q, `a.tenant = ?`, tenant)
		return err
	})
	return out, err
}

// forSigning is Get from memory, read again only when the state says that the authority or one of its issuers changed.
// What is left of a race costs a refusal by Apply and a second look, never a wrong certificate.
func (s *Authorities) forSigning(ctx context.Context, name string) (*Authority, error) {
	s.mu.RLock()
	r, known := s.cached[name]
	s.mu.RUnlock()
	if known {
		select {
		case <-r.watch.C():
		default:
			return r.authority, nil
		}
	}
	return s.remember(ctx, name)
}

func (s *Authorities) remember(ctx context.Context, name string) (*Authority, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	r, known := s.cached[name]
	if !known {
		r.watch = s.store.Watch(name, name+"/")
	}
	a, err := s.Get(ctx, name)
	if err != nil {
		r.watch.Close()
		delete(s.cached, name)
		return nil, err
	}
	r.authority = a
	s.cached[name] = r
	return a, nil
}

// Forget drops what is remembered of an authority: issuance calls it when Apply refused its issuer.
func (s *Authorities) Forget(name string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if r, known := s.cached[name]; known {
		r.watch.Close()
		delete(s.cached, name)
	}
}

// minRemaining is how long an issuer must still be valid to be chosen: a leaf of a day, which is the shortest.
const minRemaining = 24 * time.Hour

// IssuerFor chooses who signs: the newest active issuer of the region, else the newest active one of any region. The
// system authority signs by its root.
func (s *Authorities) IssuerFor(ctx context.Context, authority, region string) (*Issuer, error) {
	a, err := s.forSigning(ctx, authority)
	if err != nil {
		return nil, err
	}
	if best := choose(a, region, s.clock.Now()); best != nil {
		return best, nil
	}
	s.Forget(authority)
	if a, err = s.forSigning(ctx, authority); err != nil {
		return nil, err
	}
	if best := choose(a, region, s.clock.Now()); best != nil {
		return best, nil
	}
	return nil, fault.New(fault.Unavailable, "no-issuer", "%s has no active issuer that is valid for another day", authority).
		Do("make one with `csm ca create --issuer`")
}

func choose(a *Authority, region string, now time.Time) *Issuer {
	want := Issuing
	if a.Name == SystemName {
		want = Root
	}
	var best *Issuer
	better := func(i *Issuer) bool {
		if best == nil {
			return true
		}
		if (i.Region == region) != (best.Region == region) {
			return i.Region == region
		}
		if !i.CreateTime.Equal(best.CreateTime) {
			return i.CreateTime.After(best.CreateTime)
		}
		return i.Name < best.Name
	}
	for k := range a.Issuers {
		i := &a.Issuers[k]
		if i.Kind == want && i.State == Active && i.Certificate.NotAfter.Sub(now) >= minRemaining && !now.Before(i.Certificate.NotBefore) && better(i) {
			best = i
		}
	}
	return best
}

// Signer gives the key of an issuer.
func (s *Authorities) Signer(ctx context.Context, i *Issuer) (keyring.Signer, error) {
	return s.keys.Signer(ctx, i.Key)
}

// Chain is what a server sends after its leaf: the issuer and what is above it, without the root.
func (s *Authorities) Chain(ctx context.Context, i *Issuer) ([]*x509.Certificate, error) {
	a, err := s.forSigning(ctx, i.Authority)
	if err != nil {
		return nil, err
	}
	var out []*x509.Certificate
	for n := 0; i.Kind != Root && n < 8; n++ {
		out = append(out, i.Certificate)
		parent := a.issuer(i.Parent)
		if parent == nil {
			return nil, fault.New(fault.Internal, "broken-chain", "the parent %s of %s is gone", i.Parent, i.Name)
		}
		i = parent
	}
	return out, nil
}

// Issuer reads one issuer by its full name.
func (s *Authorities) Issuer(ctx context.Context, name string) (*Issuer, error) {
	a, err := s.forSigning(ctx, resource.Parent(name))
	if err != nil {
		return nil, err
	}
	if i := a.issuer(name); i != nil {
		return i, nil
	}
	return nil, fault.New(fault.NotFound, "no-issuer", "there is no issuer %.200q", name)
}

func (a *Authority) issuer(name string) *Issuer {
	for k := range a.Issuers {
		if a.Issuers[k].Name == name {
			return &a.Issuers[k]
		}
	}
	return nil
}

// Anchors are the roots that who trusts an authority must have: active and retired ones, while they are valid. A retired root of the
// system authority is none: package systemca has seen that nobody needs it.
func (s *Authorities) Anchors(ctx context.Context, authority string) ([]*x509.Certificate, error) {
	a, err := s.Get(ctx, authority)
	if err != nil {
		return nil, err
	}
	var out []*x509.Certificate
	for _, i := range a.Issuers {
		if i.Kind == Root && i.Certificate.NotAfter.After(s.clock.Now()) && (authority != SystemName || i.State != Retired) {
			out = append(out, i.Certificate)
		}
	}
	return out, nil
}

// SystemBundle are the anchors of the system authority.
func (s *Authorities) SystemBundle(ctx context.Context) ([]*x509.Certificate, error) {
	return s.Anchors(ctx, SystemName)
}

// TrustDomain is the trust domain of all system identities.
func (s *Authorities) TrustDomain(ctx context.Context) (string, error) {
	a, err := s.forSigning(ctx, SystemName)
	if err != nil {
		return "", err
	}
	return a.TrustDomain, nil
}

// ByPublicID finds the issuer behind an id in a public URL.
func (s *Authorities) ByPublicID(ctx context.Context, id string) (*Issuer, error) {
	var out []Issuer
	err := s.store.View(ctx, func(ctx context.Context, q state.Querier) (err error) {
		out, err = readIssuers(ctx, q, `public_id = ?`, id)
		return err
	})
	if err != nil {
		return nil, err
	}
	if len(out) == 0 {
		return nil, fault.New(fault.NotFound, "no-issuer", "there is no issuer %.64q", id)
	}
	return &out[0], nil
}

// Name is the full name of a tenant's authority, from its id.
func Name(tenant, id string) string { return resource.Authority(tenant, id) }
