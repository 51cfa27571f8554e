package consensus

import (
	"context"
	"crypto/x509"
	"sync"
	"time"

	"github.com/cassandra-security-manager/csm/controller/consensus/members"
	"github.com/cassandra-security-manager/csm/controller/consensus/transport"
	"github.com/cassandra-security-manager/csm/controller/state"
	"github.com/cassandra-security-manager/csm/shared/fault"
	"github.com/cassandra-security-manager/csm/shared/identity"
)

// directory is the members table in memory, and the guard of the cluster port.
//
// While the table is known to be current (a leader confirmed it in the last seconds) only keys that stand in it are let
// in. A controller that was away, or is new, cannot know who was admitted meanwhile: it lets in any controller whose
// certificate the system CA signed, whose certificate has not expired, and whose key is not known as removed. Raft
// itself asks for no more: votes and entries of such a peer count only within raft's own configuration.
type directory struct {
	identity Identity
	now      func() time.Time
	// current says whether a leader confirmed our table just now.
	current func() bool

	mu      sync.RWMutex
	list    []Member
	byKey   map[[32]byte]Member
	removed map[[32]byte]bool
}

// reload reads the table; it reports whether anything changed.
func (d *directory) reload(ctx context.Context, store *state.Store) error {
	var list []Member
	var removed map[[32]byte]bool
	err := store.View(ctx, func(ctx context.Context, q state.Querier) (err error) {
		if list, err = members.List(ctx, q); err != nil {
			return err
		}
		removed, err = members.RemovedKeys(ctx, q)
		return err
	})
	if err != nil {
		return err
	}
	byKey := map[[32]byte]Member{}
	for _, m := range list {
		byKey[m.Key] = m
	}
	d.mu.Lock()
	d.list, d.byKey, d.removed = list, byKey, removed
	d.mu.Unlock()
	return nil
}

// all is every member by name, pending ones too.
func (d *directory) all() []Member {
	d.mu.RLock()
	defer d.mu.RUnlock()
	return d.list
}

// trusted is every approved member.
func (d *directory) trusted() []Member {
	var out []Member
	for _, m := range d.all() {
		if m.Trusted() {
			out = append(out, m)
		}
	}
	return out
}

func (d *directory) find(match func(Member) bool) (Member, bool) {
	for _, m := range d.all() {
		if match(m) {
			return m, true
		}
	}
	return Member{}, false
}

func (d *directory) name(id string) string {
	m, _ := d.find(func(m Member) bool { return m.ID == id })
	return m.Name
}

// Verify implements transport.Guard.
func (d *directory) Verify(chain []*x509.Certificate) (transport.Peer, error) {
	var p transport.Peer
	if len(chain) > 0 {
		p.Key = transport.KeyOf(chain[0])
	}
	d.mu.RLock()
	m, known := d.byKey[p.Key]
	gone := d.removed[p.Key]
	d.mu.RUnlock()
	v := identity.Verifier{
		Roots: d.identity.Roots, TrustDomain: d.identity.TrustDomain, Kinds: []identity.Kind{identity.Controller}, Now: d.now,
		IgnoreExpiry: func(*x509.Certificate) bool { return known && m.Trusted() || p.Key == d.identity.Key },
		Check: func(_ *x509.Certificate, id identity.ID) error {
			switch {
			case gone:
				return fault.New(fault.Refused, "removed-member", "the controller %s was removed from the system", id.Path).
					Do("wipe its data folder and let it join again with a new token")
			case known && m.Name != id.Path:
				return fault.New(fault.Unauthenticated, "wrong-identity", "the key of %q came with the name %s", m.Name, id)
			case !d.Allowed(p.Key):
				return fault.New(fault.Refused, "not-a-member", "the controller %s is not in the members table", id.Path).
					Do("list them: `csm system controllers`")
			}
			return nil
		},
	}
	id, err := v.Verify(chain)
	p.ID = id
	return p, err
}

// Allowed implements transport.Guard.
func (d *directory) Allowed(key [32]byte) bool {
	d.mu.RLock()
	m, known := d.byKey[key]
	gone := d.removed[key]
	d.mu.RUnlock()
	switch {
	case gone:
		return false
	case key == d.identity.Key:
		return true
	case known:
		return m.Trusted()
	}
	return !d.current()
}

// KeyAt implements transport.Guard.
func (d *directory) KeyAt(address string) ([32]byte, bool) {
	m, ok := d.find(func(m Member) bool { return m.Address == address && m.Trusted() })
	return m.Key, ok
}
