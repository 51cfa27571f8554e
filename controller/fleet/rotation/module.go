package rotation

import (
	"context"
	"time"

	"github.com/cassandra-security-manager/csm/controller/state"
)

// Waves move the stores of a ring: package rollout is one. What they move, in which order and how many at once is theirs.
type Waves interface {
	// Begin raises the stores wave by wave. It gives the name of what began.
	Begin(a *state.Apply, w Wave) (string, error)
	// Set pauses, resumes or aborts what has not ended: verb is pause, resume or abort. What has ended stays as it is.
	Set(a *state.Apply, name, verb, reason string) error
	// Excuse names the members that are set aside, by host id and by full name of the node. What has ended stays as it is.
	Excuse(a *state.Apply, name string, members []string) error
	// Holds says whether waves of a cluster move a store, or are about to.
	Holds(ctx context.Context, q state.Querier, cluster, node, store string) (bool, error)
	// Stand says where it stands.
	Stand(ctx context.Context, q state.Querier, name string, now time.Time) (Rollout, error)
}

// Wave asks for all that a phase moves.
type Wave struct {
	Cluster, Owner string
	// Kind is trust, leaf or shrink; renew where a newer leaf of the CA before is the proof; back where agents kept the leaves of before.
	Kind string
	// Authority signs, for leaves.
	Authority string
	// Members are the nodes that are to move, by full name.
	Members []string
	// PlanHash is that of the rotation's plan.
	PlanHash []byte
	Reason   string
	// Bake is the rest between two waves.
	Bake time.Duration
	// Width is how many nodes move at once; 0: as usual for the kind.
	Width int
	// Undo: members that are down do not hold it.
	Undo bool
	// Aside are the members that are set aside, by host id and by full name of the node.
	Aside []string
}

// The kinds of waves.
const (
	waveTrust  = "trust"
	waveLeaf   = "leaf"
	waveShrink = "shrink"
	waveRenew  = "renew"
	waveBack   = "back"
)

// machine is the state machine with the gates that it asks.
type machine struct {
	gates Gates
	waves Waves
}

// Module brings the tables and commands of this package (migrations 570 to 579).
func Module(w Waves) state.Module { return machine{All(), w}.module() }

// Guard is what fleet asks about moves: fleet.Module(rotation.Guard()).
func Guard() Asked { return Asked{All()} }

func (m machine) module() state.Module {
	return state.Module{
		Name:       "rotation",
		Migrations: []state.Migration{{Number: 570, SQL: schema}},
		Commands: func(r *state.Registry) {
			state.Handle(r, m.applyStart)
			state.Handle(r, m.applyAdvance)
			state.Handle(r, m.applyControl)
			state.Handle(r, m.applyRetire)
			state.Handle(r, m.applySetAside)
		},
	}
}

// Times are unix milliseconds; ended_ms is 0 while it runs, and one at most runs for each cluster. Sums are JSON arrays of
// SHA-256 in hex. generation is the index since which the present phase asks for files. relaxed is a JSON array of
// what an emergency gives up.
const schema = `
CREATE TABLE rotations (
	name TEXT PRIMARY KEY,
	cluster TEXT NOT NULL,
	trust_domain TEXT NOT NULL,
	kind TEXT NOT NULL,
	phase TEXT NOT NULL,
	paused INTEGER NOT NULL,
	authority_before TEXT NOT NULL,
	authority_after TEXT NOT NULL,
	sums_before TEXT NOT NULL,
	sums_after TEXT NOT NULL,
	plan_hash BLOB NOT NULL,
	rollout TEXT NOT NULL,
	canary TEXT NOT NULL,
	rounds INTEGER NOT NULL,
	generation INTEGER NOT NULL,
	bake_ms INTEGER NOT NULL,
	emergency INTEGER NOT NULL,
	relaxed TEXT NOT NULL,
	reason TEXT NOT NULL,
	actor TEXT NOT NULL,
	created_ms INTEGER NOT NULL,
	phase_ms INTEGER NOT NULL,
	updated_ms INTEGER NOT NULL,
	ended_ms INTEGER NOT NULL,
	revision INTEGER NOT NULL
) STRICT, WITHOUT ROWID;
CREATE UNIQUE INDEX rotations_running ON rotations (cluster) WHERE ended_ms = 0;
CREATE INDEX rotations_cluster ON rotations (cluster, created_ms);
CREATE TABLE rotation_asides (
	rotation TEXT NOT NULL,
	host_id TEXT NOT NULL,
	node TEXT NOT NULL,
	incarnation INTEGER NOT NULL,
	reason TEXT NOT NULL,
	actor TEXT NOT NULL,
	time_ms INTEGER NOT NULL,
	PRIMARY KEY (rotation, host_id)
) STRICT, WITHOUT ROWID;
CREATE TABLE rotation_exceptions (
	rotation TEXT NOT NULL,
	client TEXT NOT NULL,
	reason TEXT NOT NULL,
	actor TEXT NOT NULL,
	PRIMARY KEY (rotation, client)
) STRICT, WITHOUT ROWID;
CREATE TABLE rotation_events (
	rotation TEXT NOT NULL,
	idx INTEGER NOT NULL,
	part INTEGER NOT NULL,
	time_ms INTEGER NOT NULL,
	phase TEXT NOT NULL,
	message TEXT NOT NULL,
	actor TEXT NOT NULL,
	PRIMARY KEY (rotation, idx, part)
) STRICT, WITHOUT ROWID;
`
