// Package tickets owns the keys of TLS session tickets that all controllers share, so that an agent's session with one of them is
// resumed at any other, and after a restart of all: a tenth of a full handshake, when thousands of agents come back at once.
//
// It refuses a key that replaces one younger than Fresh, unless it is to be the only one. It keeps these invariants: a key lies in the
// state only sealed; a controller that is removed can open no ticket made after that; a key is gone after three turns.
package tickets

import (
	"context"
	"crypto/rand"
	"crypto/tls"
	"fmt"
	"sync/atomic"
	"time"

	"github.com/jonboulle/clockwork"

	"github.com/cassandra-security-manager/csm/controller/keyring"
	"github.com/cassandra-security-manager/csm/controller/state"
	clusterv1 "github.com/cassandra-security-manager/csm/protocol/cluster/v1"
	"github.com/cassandra-security-manager/csm/shared/fault"
)

const (
	// Turn is how old a key becomes before another takes its place.
	Turn = 12 * time.Hour
	// Fresh is how old a key must be before another may: of two leaders that turn it at a time one is refused.
	Fresh = Turn / 2
	// keySize is what crypto/tls takes.
	keySize = 32
	// kept is how many keys there are; a ticket lives for kept-1 turns at least.
	kept = 3
)

// Name of the one resource of this package, as watches name it.
const Name = "system/ticketKeys"

// sealedAs binds a sealed key to what it is for.
const sealedAs = "csm session ticket key v1"

// Keyring seals and opens; *keyring.Keyring is one.
type Keyring interface {
	Unsealed() bool
	Seal(ctx context.Context, aad string, plaintext keyring.Secret) ([]byte, error)
	Open(ctx context.Context, aad string, blob []byte) (keyring.Secret, error)
	// Current says whether a blob is sealed under the active data encryption key.
	Current(ctx context.Context, blob []byte) (bool, error)
}

// Reader reads the replicated state; *state.Store is one.
type Reader interface {
	View(ctx context.Context, read func(ctx context.Context, q state.Querier) error) error
}

// Tickets are the keys as this controller knows them.
type Tickets struct {
	read  Reader
	log   state.Log
	ring  Keyring
	clock clockwork.Clock
	conf  atomic.Pointer[tls.Config]
}

// New makes Tickets. Until Load has found a key, sessions are resumed at this process only.
func New(read Reader, log state.Log, ring Keyring, clock clockwork.Clock) *Tickets {
	t := &Tickets{read: read, log: log, ring: ring, clock: clock}
	t.conf.Store(&tls.Config{})
	return t
}

// Config seals and opens tickets with the keys of now: its EncryptTicket and DecryptTicket are for a tls.Config's WrapSession and
// UnwrapSession. It serves nothing else.
func (t *Tickets) Config() *tls.Config { return t.conf.Load() }

// row is a key, newest first.
type row struct {
	sealed  []byte
	created time.Time
}

func (t *Tickets) rows(ctx context.Context) (out []row, err error) {
	err = t.read.View(ctx, func(ctx context.Context, q state.Querier) error {
		rows, err := q.QueryContext(ctx, `SELECT sealed, create_ms FROM ticket_keys ORDER BY id DESC`)
		if err != nil {
			return err
		}
		defer rows.Close()
		for rows.Next() {
			var r row
			var ms int64
			if err := rows.Scan(&r.sealed, &ms); err != nil {
				return err
			}
			r.created = time.UnixMilli(ms)
			out = append(out, r)
		}
		return rows.Err()
	})
	return out, err
}

// Load takes the keys of the state into use.
func (t *Tickets) Load(ctx context.Context) error {
	rows, err := t.rows(ctx)
	if err != nil || len(rows) == 0 {
		return err
	}
	var keys [][keySize]byte
	defer func() { clear(keys) }()
	for _, r := range rows {
		plain, err := t.ring.Open(ctx, sealedAs, r.sealed)
		if err != nil {
			return err
		}
		if plain.Len() != keySize {
			return fault.New(fault.Internal, "bad-ticket-key", "a session ticket key has %d bytes, not %d", plain.Len(), keySize).Do("compare the state of all controllers with `csm status --verify`")
		}
		keys = append(keys, [keySize]byte(plain.Reveal()))
		plain.Zero()
	}
	c := &tls.Config{Time: t.clock.Now}
	c.SetSessionTicketKeys(keys)
	t.conf.Store(c)
	return nil
}

// Turn adds a key when it is time. Any controller may call it; the leader does. After the data encryption key was replaced, because a
// controller was removed, the new key is the only one.
func (t *Tickets) Turn(ctx context.Context) error {
	if !t.ring.Unsealed() {
		return nil
	}
	rows, err := t.rows(ctx)
	if err != nil {
		return err
	}
	alone := false
	if len(rows) > 0 {
		current, err := t.ring.Current(ctx, rows[0].sealed)
		if err != nil {
			return err
		}
		if alone = !current; current && t.clock.Since(rows[0].created) < Turn {
			return nil
		}
	}
	key := keyring.NewSecret(make([]byte, keySize))
	defer key.Zero()
	if _, err := rand.Read(key.Reveal()); err != nil {
		return fmt.Errorf("tickets: draw a key: %w", err)
	}
	sealed, err := t.ring.Seal(ctx, sealedAs, key)
	if err != nil {
		return err
	}
	_, err = t.log.Propose(ctx, state.Proposal{Actor: "system", Reason: "a new session ticket key", Command: &clusterv1.AddTicketKey{Sealed: sealed, Alone: alone}})
	if fault.HasReason(err, "ticket-key-fresh") {
		return nil
	}
	return err
}
