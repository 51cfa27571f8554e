package systemca

import (
	"github.com/cassandra-security-manager/csm/controller/state"
)

// machine is the state machine with the gates that it asks.
type machine struct{ gates Gates }

// Module brings the tables and commands of this package (migrations 718 to 721).
func Module() state.Module { return machine{All()}.module() }

func (m machine) module() state.Module {
	return state.Module{
		Name:       "systemca",
		Migrations: []state.Migration{{Number: 718, SQL: schema}},
		Commands: func(r *state.Registry) {
			state.Handle(r, m.applyStart)
			state.Handle(r, m.applyAdvance)
			state.Handle(r, m.applyControl)
			state.Handle(r, m.applyRetire)
			state.Handle(r, applySaw)
		},
	}
}

// Times are unix milliseconds; ended_ms is 0 while it runs, and one at most runs. issuer_before and issuer_after are full names of
// issuers. system_rotation_exceptions names by SPIFFE ID: who joins anew is somebody else. identity_sightings holds what was seen since the newest rotation began: identity is a SPIFFE ID, issuer that of the leaf
// (empty when the ledger does not know it), trusts a JSON array of SHA-256 in hex.
const schema = `
CREATE TABLE system_rotations (
	name TEXT PRIMARY KEY,
	phase TEXT NOT NULL,
	paused INTEGER NOT NULL,
	issuer_before TEXT NOT NULL,
	issuer_after TEXT NOT NULL,
	new_with_old BLOB NOT NULL,
	old_with_new BLOB NOT NULL,
	turn TEXT NOT NULL,
	plan_hash BLOB NOT NULL,
	reason TEXT NOT NULL,
	actor TEXT NOT NULL,
	created_ms INTEGER NOT NULL,
	phase_ms INTEGER NOT NULL,
	ended_ms INTEGER NOT NULL,
	revision INTEGER NOT NULL
) STRICT, WITHOUT ROWID;
CREATE TABLE system_rotation_events (
	rotation TEXT NOT NULL,
	idx INTEGER NOT NULL,
	part INTEGER NOT NULL,
	time_ms INTEGER NOT NULL,
	phase TEXT NOT NULL,
	message TEXT NOT NULL,
	actor TEXT NOT NULL,
	PRIMARY KEY (rotation, idx, part)
) STRICT, WITHOUT ROWID;
CREATE TABLE system_rotation_exceptions (
	rotation TEXT NOT NULL,
	identity TEXT NOT NULL,
	reason TEXT NOT NULL,
	actor TEXT NOT NULL,
	PRIMARY KEY (rotation, identity)
) STRICT, WITHOUT ROWID;
CREATE TABLE identity_sightings (
	identity TEXT PRIMARY KEY,
	issuer TEXT NOT NULL,
	leaf_sha256 BLOB NOT NULL,
	trusts TEXT NOT NULL,
	by TEXT NOT NULL,
	seen_ms INTEGER NOT NULL,
	revision INTEGER NOT NULL
) STRICT, WITHOUT ROWID;
`
