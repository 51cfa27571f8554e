package fleet

import "github.com/cassandra-security-manager/csm/controller/state"

// joinCommands are those about joining without a token, anchors of other CAs, and rings taken on and let go.
func joinCommands(r *state.Registry) {
	state.Handle(r, applyAddExternalAnchor)
	state.Handle(r, applyRemoveExternalAnchor)
	state.Handle(r, applyJoinByPossession)
	state.Handle(r, applyDecideJoinRequest)
	state.Handle(r, applyOnboardCluster)
	state.Handle(r, applyReleaseCluster)
}

// joinSchema is migration 510. Times are unix milliseconds.
const joinSchema = `
CREATE TABLE external_anchors (
	name TEXT PRIMARY KEY,
	trust_domain TEXT NOT NULL,
	cluster TEXT NOT NULL,
	sha256 BLOB NOT NULL,
	der BLOB NOT NULL,
	owner TEXT NOT NULL,
	reason TEXT NOT NULL,
	rule TEXT NOT NULL,
	expires_ms INTEGER NOT NULL,
	creator TEXT NOT NULL,
	created_ms INTEGER NOT NULL,
	revision INTEGER NOT NULL
) STRICT, WITHOUT ROWID;
CREATE INDEX external_anchors_cluster ON external_anchors (cluster);
CREATE TABLE join_challenges (
	challenge BLOB PRIMARY KEY,
	key_sha256 BLOB NOT NULL,
	used_ms INTEGER NOT NULL
) STRICT, WITHOUT ROWID;
CREATE INDEX join_challenges_used ON join_challenges (used_ms);
CREATE TABLE possessions (
	key_sha256 BLOB PRIMARY KEY,
	uid TEXT NOT NULL,
	incarnation INTEGER NOT NULL,
	node TEXT NOT NULL,
	cassandra_key_sha256 BLOB NOT NULL,
	anchor TEXT NOT NULL,
	joined_ms INTEGER NOT NULL
) STRICT, WITHOUT ROWID;
CREATE INDEX possessions_key ON possessions (cassandra_key_sha256);
CREATE TABLE join_requests (
	name TEXT PRIMARY KEY,
	method TEXT NOT NULL,
	cluster TEXT NOT NULL,
	node TEXT NOT NULL,
	key_sha256 BLOB NOT NULL UNIQUE,
	cassandra_key_sha256 BLOB NOT NULL,
	anchor TEXT NOT NULL,
	token TEXT NOT NULL,
	names TEXT NOT NULL,
	attested TEXT NOT NULL,
	doubts TEXT NOT NULL,
	peer TEXT NOT NULL,
	instance BLOB NOT NULL,
	state TEXT NOT NULL,
	decider TEXT NOT NULL,
	reason TEXT NOT NULL,
	created_ms INTEGER NOT NULL,
	seen_ms INTEGER NOT NULL,
	decided_ms INTEGER NOT NULL,
	revision INTEGER NOT NULL
) STRICT, WITHOUT ROWID;
CREATE INDEX join_requests_cluster ON join_requests (cluster, state);
CREATE INDEX join_requests_token ON join_requests (token);
CREATE TABLE cluster_lives (
	cluster TEXT PRIMARY KEY,
	onboarded_ms INTEGER NOT NULL,
	onboarder TEXT NOT NULL,
	released_ms INTEGER NOT NULL,
	releaser TEXT NOT NULL,
	reason TEXT NOT NULL
) STRICT, WITHOUT ROWID;
`
