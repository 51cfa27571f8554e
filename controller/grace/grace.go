// Package grace owns one exception: for a limited time, agents whose identity expired longer ago than its renewal grace may
// renew it. A site that was powered off for a year comes back by it, with its data and without a new join of every node.
//
// It refuses an exception without a reason, without an end, or that lasts longer than Longest. It keeps this invariant:
// expired is not revoked, and revoked stays revoked; who was suspended, replaced or revoked gets nothing from it.
package grace

import (
	"context"
	"database/sql"
	"errors"
	"sync/atomic"
	"time"

	"github.com/jonboulle/clockwork"

	"github.com/cassandra-security-manager/csm/controller/state"
	clusterv1 "github.com/cassandra-security-manager/csm/protocol/cluster/v1"
	"github.com/cassandra-security-manager/csm/shared/fault"
)

// Longest is how far in the future a grace may end.
const Longest = 30 * 24 * time.Hour

// Name of the one resource of this package, as audit entries and watches name it.
const Name = "system/grace"

// Given is a grace in force.
type Given struct {
	Actor  string    `json:"actor"`
	Reason string    `json:"reason"`
	Since  time.Time `json:"since"`
	Until  time.Time `json:"until"`
}

// Reader reads the replicated state; *state.Store is one.
type Reader interface {
	View(ctx context.Context, read func(ctx context.Context, q state.Querier) error) error
}

// Grace forms commands and reads.
type Grace struct {
	read  Reader
	log   state.Log
	clock clockwork.Clock
	// last answer of Open, so that a crowd of expired agents costs one read a second.
	last atomic.Pointer[answer]
}

type answer struct {
	at   time.Time
	open bool
}

// New makes a Grace.
func New(read Reader, log state.Log, clock clockwork.Clock) *Grace {
	return &Grace{read: read, log: log, clock: clock}
}

// Give lets agents renew until a time.
func (g *Grace) Give(ctx context.Context, until time.Time, reason, actor string) error {
	if until.IsZero() {
		return fault.New(fault.Invalid, "bad-until", "a grace needs an end").Do("say --until, at most %d days ahead", int(Longest.Hours()/24))
	}
	return g.set(ctx, until.UnixMilli(), reason, actor)
}

// End takes it back.
func (g *Grace) End(ctx context.Context, reason, actor string) error {
	return g.set(ctx, 0, reason, actor)
}

func (g *Grace) set(ctx context.Context, untilMs int64, reason, actor string) error {
	if reason == "" {
		return fault.NoReason()
	}
	_, err := g.log.Propose(ctx, state.Proposal{Actor: actor, Reason: reason, Command: &clusterv1.SetGrace{UntilMs: untilMs, Reason: reason}})
	g.last.Store(nil)
	return err
}

// Current is the grace in force; nil when there is none.
func (g *Grace) Current(ctx context.Context) (*Given, error) {
	var out *Given
	err := g.read.View(ctx, func(ctx context.Context, q state.Querier) error {
		var v Given
		var since, until int64
		err := q.QueryRowContext(ctx, `SELECT actor, reason, since_ms, until_ms FROM renewal_grace WHERE id = 1`).Scan(&v.Actor, &v.Reason, &since, &until)
		if errors.Is(err, sql.ErrNoRows) {
			return nil
		}
		if v.Since, v.Until = time.UnixMilli(since).UTC(), time.UnixMilli(until).UTC(); err == nil && v.Until.After(g.clock.Now()) {
			out = &v
		}
		return err
	})
	return out, err
}

// Open says whether a grace is in force; it is asked in handshakes, and an answer is kept for a second. What cannot be read
// is no grace.
func (g *Grace) Open() bool {
	now := g.clock.Now()
	if a := g.last.Load(); a != nil && now.Sub(a.at).Abs() < time.Second {
		return a.open
	}
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	given, err := g.Current(ctx)
	a := &answer{at: now, open: err == nil && given != nil}
	g.last.Store(a)
	return a.open
}

// Module is what this package puts into the state machine (migrations 610 to 619).
func Module() state.Module {
	return state.Module{
		Name: "grace",
		Migrations: []state.Migration{{Number: 610, SQL: `
CREATE TABLE renewal_grace (
	id INTEGER PRIMARY KEY CHECK (id = 1),
	actor TEXT NOT NULL,
	reason TEXT NOT NULL,
	since_ms INTEGER NOT NULL,
	until_ms INTEGER NOT NULL
) STRICT;`}},
		Commands: func(r *state.Registry) { state.Handle(r, apply) },
	}
}

func apply(a *state.Apply, c *clusterv1.SetGrace) (*clusterv1.Empty, error) {
	until := time.UnixMilli(c.UntilMs)
	switch {
	case c.UntilMs != 0 && !until.After(a.Now):
		return nil, fault.New(fault.Invalid, "bad-until", "%s is past", until.UTC().Format(time.RFC3339)).Do("name a time to come")
	case until.After(a.Now.Add(Longest)):
		return nil, fault.New(fault.Refused, "grace-too-long", "a grace may last %d days at most", int(Longest.Hours()/24)).Do("name an earlier end, and give it again if it must be")
	}
	if _, err := a.Exec(`INSERT INTO renewal_grace (id, actor, reason, since_ms, until_ms) VALUES (1,?,?,?,?)
		ON CONFLICT (id) DO UPDATE SET actor = excluded.actor, reason = excluded.reason, since_ms = excluded.since_ms, until_ms = excluded.until_ms`,
		a.Envelope.GetActor(), c.Reason, a.Now.UnixMilli(), c.UntilMs); err != nil {
		return nil, err
	}
	a.Touch(state.Updated, Name)
	return &clusterv1.Empty{}, nil
}
