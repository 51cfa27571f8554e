package rollout

import "github.com/cassandra-security-manager/csm/controller/state"

// Module brings the tables and commands of this package (migrations 560 to 569).
func Module() state.Module {
	return state.Module{
		Name:       "rollout",
		Migrations: []state.Migration{{Number: 560, SQL: schema}},
		Commands: func(r *state.Registry) {
			state.Handle(r, applyStart)
			state.Handle(r, applyAdvance)
			state.Handle(r, applySet)
		},
	}
}

// Times are unix milliseconds. "spec" is a cluster/v1 RolloutSpec. "awaits" is the key of what is waited for since "awaits_ms".
const schema = `
CREATE TABLE rollouts (
	name TEXT PRIMARY KEY,
	cluster TEXT NOT NULL,
	kind TEXT NOT NULL,
	owner TEXT NOT NULL,
	state TEXT NOT NULL,
	back INTEGER NOT NULL,
	spec BLOB NOT NULL,
	plan_hash BLOB NOT NULL,
	reason TEXT NOT NULL,
	note TEXT NOT NULL,
	creator TEXT NOT NULL,
	failures INTEGER NOT NULL,
	awaits TEXT NOT NULL,
	awaits_ms INTEGER NOT NULL,
	created_ms INTEGER NOT NULL,
	state_ms INTEGER NOT NULL,
	look INTEGER NOT NULL DEFAULT 0,
	look_wave INTEGER NOT NULL DEFAULT -1,
	end_ms INTEGER NOT NULL,
	revision INTEGER NOT NULL
) STRICT, WITHOUT ROWID;
CREATE INDEX rollouts_cluster ON rollouts (cluster, created_ms);
CREATE UNIQUE INDEX rollouts_live ON rollouts (cluster) WHERE end_ms = 0;
CREATE TABLE rollout_waves (
	rollout TEXT NOT NULL,
	wave INTEGER NOT NULL,
	title TEXT NOT NULL,
	why TEXT NOT NULL,
	PRIMARY KEY (rollout, wave)
) STRICT, WITHOUT ROWID;
CREATE TABLE rollout_stores (
	rollout TEXT NOT NULL,
	wave INTEGER NOT NULL,
	node TEXT NOT NULL,
	store TEXT NOT NULL,
	incarnation INTEGER NOT NULL,
	datacenter TEXT NOT NULL,
	rack TEXT NOT NULL,
	state TEXT NOT NULL,
	generation INTEGER NOT NULL,
	before_generation INTEGER NOT NULL,
	before_authority TEXT NOT NULL,
	named_before TEXT NOT NULL,
	refusals INTEGER NOT NULL,
	since_ms INTEGER NOT NULL,
	told_ms INTEGER NOT NULL,
	detail TEXT NOT NULL,
	PRIMARY KEY (rollout, node, store)
) STRICT, WITHOUT ROWID;
`
