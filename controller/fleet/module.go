package fleet

import "github.com/cassandra-security-manager/csm/controller/state"

// Module brings the tables and commands of this package (migrations 500 to 559). asked are those above it who have a say
// in what moves.
func Module(asked ...Gates) state.Module {
	g := gates(asked)
	return state.Module{
		Name: "fleet",
		Migrations: []state.Migration{
			{Number: 500, SQL: schema},
			{Number: 510, SQL: joinSchema},
			{Number: 530, SQL: ringSchema},
			{Number: 531, SQL: freezeSchema},
			{Number: 532, SQL: livesSchema},
			{Number: 540, SQL: withdrawnSchema},
			{Number: 541, SQL: provenSchema},
			{Number: 550, SQL: linksSchema},
			{Number: 555, SQL: healthSchema},
		},
		Commands: func(r *state.Registry) {
			state.Handle(r, applyCreateCluster)
			state.Handle(r, g.applyGrowTrust)
			state.Handle(r, applyCreateNodeToken)
			state.Handle(r, applyRevokeNodeToken)
			state.Handle(r, applyJoinNode)
			state.Handle(r, applyAgentConnected)
			state.Handle(r, applyAgentReported)
			state.Handle(r, applyAgentDisconnected)
			state.Handle(r, applySetAgentState)
			state.Handle(r, g.applyRequestRenewal)
			state.Handle(r, applySetNodeNames)
			state.Handle(r, g.applyClaimMove)
			state.Handle(r, g.applyCompleteMove)
			state.Handle(r, g.applyAskProofs)
			state.Handle(r, applyRecordProof)
			state.Handle(r, applySetFreeze)
			state.Handle(r, applyRaiseTargets)
			state.Handle(r, applyAlarmFreeze)
			state.Handle(r, applyReplaceNode)
			state.Handle(r, applyCycleLinks)
			state.Handle(r, applyAskHealth)
			joinCommands(r)
		},
	}
}

// Times are unix milliseconds. "changed" is the index of the newest entry that changed what an agent is told.
const schema = `
CREATE TABLE clusters (
	name TEXT PRIMARY KEY,
	uid TEXT NOT NULL UNIQUE,
	cassandra_name TEXT NOT NULL,
	authority TEXT NOT NULL,
	region TEXT NOT NULL,
	trust_domain TEXT NOT NULL,
	bundle_version INTEGER NOT NULL,
	changed INTEGER NOT NULL,
	created_ms INTEGER NOT NULL,
	updated_ms INTEGER NOT NULL,
	revision INTEGER NOT NULL
) STRICT, WITHOUT ROWID;
CREATE TABLE trust_anchors (
	trust_domain TEXT NOT NULL,
	sha256 BLOB NOT NULL,
	der BLOB NOT NULL,
	added INTEGER NOT NULL,
	PRIMARY KEY (trust_domain, sha256)
) STRICT, WITHOUT ROWID;
CREATE TABLE nodes (
	name TEXT PRIMARY KEY,
	cluster TEXT NOT NULL,
	uid TEXT NOT NULL UNIQUE,
	incarnation INTEGER NOT NULL,
	names TEXT NOT NULL,
	instance BLOB,
	running INTEGER NOT NULL,
	changed INTEGER NOT NULL,
	created_ms INTEGER NOT NULL,
	updated_ms INTEGER NOT NULL,
	revision INTEGER NOT NULL
) STRICT, WITHOUT ROWID;
CREATE INDEX nodes_cluster ON nodes (cluster, name);
CREATE TABLE agents (
	uid TEXT NOT NULL,
	incarnation INTEGER NOT NULL,
	node TEXT NOT NULL,
	state TEXT NOT NULL,
	reason TEXT NOT NULL,
	mode INTEGER NOT NULL,
	hold TEXT NOT NULL,
	machine BLOB,
	counter INTEGER NOT NULL,
	facts BLOB,
	key_sha256 BLOB NOT NULL,
	connected INTEGER NOT NULL,
	controller TEXT NOT NULL,
	stream TEXT NOT NULL,
	transition_ms INTEGER NOT NULL,
	joined_ms INTEGER NOT NULL,
	pinned INTEGER NOT NULL DEFAULT 0,
	asked INTEGER NOT NULL,
	PRIMARY KEY (uid, incarnation)
) STRICT, WITHOUT ROWID;
CREATE INDEX agents_key ON agents (key_sha256);
CREATE TABLE node_tokens (
	name TEXT PRIMARY KEY,
	cluster TEXT NOT NULL,
	node TEXT NOT NULL,
	sha256 BLOB NOT NULL UNIQUE,
	method TEXT NOT NULL,
	uses INTEGER NOT NULL,
	used INTEGER NOT NULL,
	rejoin INTEGER NOT NULL,
	revoked INTEGER NOT NULL,
	expires_ms INTEGER NOT NULL,
	creator TEXT NOT NULL,
	created_ms INTEGER NOT NULL,
	revision INTEGER NOT NULL,
	replaces INTEGER NOT NULL DEFAULT 0
) STRICT, WITHOUT ROWID;
CREATE TABLE node_token_uses (
	token TEXT NOT NULL,
	key_sha256 BLOB NOT NULL,
	uid TEXT NOT NULL,
	incarnation INTEGER NOT NULL,
	used_ms INTEGER NOT NULL,
	confirmed TEXT NOT NULL,
	PRIMARY KEY (token, key_sha256)
) STRICT, WITHOUT ROWID;
CREATE TABLE stores (
	name TEXT PRIMARY KEY,
	node TEXT NOT NULL,
	store TEXT NOT NULL,
	generation INTEGER NOT NULL,
	installed INTEGER NOT NULL,
	reason TEXT NOT NULL,
	state INTEGER NOT NULL,
	keystore_sha256 BLOB,
	truststore_sha256 BLOB,
	wanted_sha256 BLOB,
	leaf_sha256 BLOB,
	proven_sha256 BLOB,
	issuer TEXT NOT NULL DEFAULT '',
	not_after_ms INTEGER NOT NULL,
	renew_at_ms INTEGER NOT NULL,
	unproved INTEGER NOT NULL,
	facts BLOB,
	wish_move INTEGER NOT NULL DEFAULT 0,
	wish_authority TEXT NOT NULL DEFAULT '',
	plan_hash BLOB,
	kept_sha256 BLOB,
	kept_done INTEGER NOT NULL DEFAULT 0
) STRICT, WITHOUT ROWID;
CREATE INDEX stores_node ON stores (node, store);
CREATE TABLE moves (
	claim TEXT PRIMARY KEY,
	node TEXT NOT NULL,
	cluster TEXT NOT NULL,
	uid TEXT NOT NULL,
	incarnation INTEGER NOT NULL,
	counter INTEGER NOT NULL,
	store TEXT NOT NULL,
	kind INTEGER NOT NULL,
	generation INTEGER NOT NULL,
	request_id TEXT NOT NULL,
	state TEXT NOT NULL,
	alone INTEGER NOT NULL,
	unproved_before INTEGER NOT NULL,
	opened INTEGER NOT NULL,
	opened_ms INTEGER NOT NULL,
	expires_ms INTEGER NOT NULL,
	closed_ms INTEGER NOT NULL,
	issued_sha256 BLOB,
	issued_issuer TEXT NOT NULL DEFAULT '',
	issued_issuer_sha256 BLOB,
	issued_renew_at_ms INTEGER NOT NULL,
	outcome INTEGER NOT NULL,
	before_sha256 BLOB,
	after_sha256 BLOB,
	detail TEXT NOT NULL,
	took_ms INTEGER NOT NULL,
	plan_hash BLOB
) STRICT, WITHOUT ROWID;
CREATE UNIQUE INDEX moves_request ON moves (node, request_id);
CREATE INDEX moves_open ON moves (cluster, state) WHERE state = 'open';
CREATE INDEX moves_node ON moves (node, opened);
CREATE INDEX moves_closed ON moves (cluster, closed_ms);
CREATE TABLE proof_tasks (
	task TEXT PRIMARY KEY,
	claim TEXT NOT NULL,
	node TEXT NOT NULL,
	prober TEXT NOT NULL,
	kind INTEGER NOT NULL,
	address TEXT NOT NULL,
	port INTEGER NOT NULL,
	leaf_sha256 BLOB,
	asked INTEGER NOT NULL,
	asked_ms INTEGER NOT NULL,
	deadline_ms INTEGER NOT NULL,
	recorded INTEGER NOT NULL,
	verdict INTEGER NOT NULL,
	served_sha256 BLOB,
	took_ms INTEGER NOT NULL,
	detail TEXT NOT NULL,
	time_ms INTEGER NOT NULL,
	store TEXT NOT NULL DEFAULT '',
	authority TEXT NOT NULL DEFAULT '',
	asks INTEGER NOT NULL DEFAULT 0,
	issuer_sha256 BLOB,
	anchor_sha256 BLOB
) STRICT, WITHOUT ROWID;
CREATE INDEX proof_tasks_claim ON proof_tasks (claim, asked, task);
CREATE INDEX proof_tasks_prober ON proof_tasks (prober, recorded, asked);
CREATE INDEX proof_tasks_node ON proof_tasks (node, recorded);
CREATE TABLE freezes (
	scope TEXT PRIMARY KEY,
	active INTEGER NOT NULL,
	actor TEXT NOT NULL,
	reason TEXT NOT NULL,
	since_ms INTEGER NOT NULL,
	until_ms INTEGER NOT NULL,
	changed INTEGER NOT NULL
) STRICT, WITHOUT ROWID;
CREATE TABLE fleet_alarms (
	idx INTEGER PRIMARY KEY,
	kind TEXT NOT NULL,
	resource TEXT NOT NULL,
	message TEXT NOT NULL,
	time_ms INTEGER NOT NULL
) STRICT;
`

// freezeSchema: what the newest alarm of a freeze spoke of.
const freezeSchema = `
CREATE TABLE freeze_alarms (
	scope TEXT PRIMARY KEY,
	since_ms INTEGER NOT NULL,
	stores INTEGER NOT NULL
) STRICT, WITHOUT ROWID;
`
