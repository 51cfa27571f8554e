package ledger

import (
	"github.com/cassandra-security-manager/csm/controller/state"
)

// Module registers the tables and commands. Apply asks issuers (authority.Issuers{}) and then the guards in order before
// a certificate is recorded: the fleet's looks at claim, incarnation and suspension.
func Module(issuers Issuers, guards ...Guard) state.Module {
	guards = append([]Guard{issuers.CheckIssuer}, guards...)
	return state.Module{
		Name:       "ledger",
		Migrations: []state.Migration{{Number: 400, SQL: schema}},
		Commands: func(r *state.Registry) {
			state.Handle(r, recorder(guards))
			state.Handle(r, revoke)
			state.Handle(r, upsertFound)
		},
	}
}

// seq is the raft index that recorded the row, so newest-first is the primary key backwards, and every index ends in a
// total order without a word more. Names are kept once however often they are renewed: a search looks through the
// distinct names, not through the certificates.
const schema = `
CREATE TABLE certificates (
  seq INTEGER PRIMARY KEY,
  sha256 BLOB NOT NULL UNIQUE,
  serial BLOB NOT NULL UNIQUE,
  request BLOB UNIQUE,
  tenant TEXT NOT NULL,
  zone TEXT NOT NULL,
  issuer TEXT NOT NULL,
  cluster TEXT NOT NULL,
  node TEXT NOT NULL,
  store TEXT NOT NULL,
  incarnation INTEGER NOT NULL,
  identity TEXT NOT NULL,
  template TEXT NOT NULL,
  template_version INTEGER NOT NULL,
  algorithm TEXT NOT NULL,
  key_sha256 BLOB NOT NULL,
  subject TEXT NOT NULL,
  actor TEXT NOT NULL,
  not_before INTEGER NOT NULL,
  not_after INTEGER NOT NULL,
  renew_at INTEGER NOT NULL,
  create_time INTEGER NOT NULL,
  state TEXT NOT NULL,
  revoke_time INTEGER NOT NULL,
  reason INTEGER NOT NULL,
  revision INTEGER NOT NULL,
  request_id TEXT NOT NULL,
  der BLOB NOT NULL
);
CREATE INDEX certificates_expiry ON certificates (not_after);
CREATE INDEX certificates_issuer ON certificates (issuer, not_after);
CREATE INDEX certificates_cluster ON certificates (cluster) WHERE cluster <> '';
CREATE INDEX certificates_cluster_expiry ON certificates (cluster, not_after) WHERE cluster <> '';
CREATE INDEX certificates_node ON certificates (node) WHERE node <> '';
CREATE INDEX certificates_identity ON certificates (identity) WHERE identity <> '';
CREATE INDEX certificates_revoked ON certificates (state) WHERE state <> 'active';
CREATE TABLE certificate_names (
  id INTEGER PRIMARY KEY,
  kind TEXT NOT NULL,
  value TEXT NOT NULL,
  UNIQUE (value, kind)
);
CREATE TABLE certificate_name_uses (
  name INTEGER NOT NULL,
  seq INTEGER NOT NULL,
  PRIMARY KEY (name, seq)
) WITHOUT ROWID;
CREATE TABLE issue_counts (
  scope TEXT PRIMARY KEY,
  hour INTEGER NOT NULL,
  count INTEGER NOT NULL
) WITHOUT ROWID;
CREATE TABLE revocations (
  issuer TEXT NOT NULL,
  serial BLOB NOT NULL,
  serial_low INTEGER NOT NULL,
  revoke_time INTEGER NOT NULL,
  reason INTEGER NOT NULL,
  not_after INTEGER NOT NULL,
  revision INTEGER NOT NULL,
  PRIMARY KEY (issuer, serial)
) WITHOUT ROWID;
CREATE INDEX revocations_revision ON revocations (issuer, revision);
CREATE TABLE found_certificates (
  node TEXT NOT NULL,
  path TEXT NOT NULL,
  entry TEXT NOT NULL,
  sha256 BLOB NOT NULL,
  tenant TEXT NOT NULL,
  cluster TEXT NOT NULL,
  format TEXT NOT NULL,
  subject TEXT NOT NULL,
  issuer_subject TEXT NOT NULL,
  serial BLOB NOT NULL,
  algorithm TEXT NOT NULL,
  not_after INTEGER NOT NULL,
  has_private_key INTEGER NOT NULL,
  mode INTEGER NOT NULL,
  owner TEXT NOT NULL,
  scan BLOB NOT NULL,
  seen_time INTEGER NOT NULL,
  revision INTEGER NOT NULL,
  PRIMARY KEY (node, path, entry, sha256)
) WITHOUT ROWID;
CREATE INDEX found_certificates_body ON found_certificates (sha256);
CREATE TABLE found_bodies (
  sha256 BLOB PRIMARY KEY,
  der BLOB NOT NULL
) WITHOUT ROWID;
CREATE TABLE found_scans (
  node TEXT PRIMARY KEY,
  scan BLOB NOT NULL,
  seen_time INTEGER NOT NULL
) WITHOUT ROWID;
`
