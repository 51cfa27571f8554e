package keyring

import (
	"bytes"
	"database/sql"
	"errors"

	"github.com/cassandra-security-manager/csm/controller/state"
	clusterv1 "github.com/cassandra-security-manager/csm/protocol/cluster/v1"
	"github.com/cassandra-security-manager/csm/shared/fault"
	"github.com/cassandra-security-manager/csm/shared/resource"
)

// Module registers the tables and commands.
func Module() state.Module {
	return state.Module{
		Name:       "keyring",
		Migrations: []state.Migration{{Number: 200, SQL: schema}},
		Commands: func(r *state.Registry) {
			state.Handle(r, initialise)
			state.Handle(r, wrapDeks)
			state.Handle(r, rotate)
			state.Handle(r, resealKeys)
			state.Handle(r, createKey)
		},
	}
}

const schema = `
CREATE TABLE deks (
  id TEXT PRIMARY KEY,
  zone TEXT NOT NULL,
  state TEXT NOT NULL,
  canary BLOB NOT NULL,
  create_time INTEGER NOT NULL
) WITHOUT ROWID;
CREATE UNIQUE INDEX deks_active ON deks (zone) WHERE state = 'active';
CREATE TABLE dek_wraps (
  dek TEXT NOT NULL,
  recipient TEXT NOT NULL,
  recipient_public BLOB NOT NULL,
  wrapped BLOB NOT NULL,
  create_time INTEGER NOT NULL,
  PRIMARY KEY (dek, recipient)
) WITHOUT ROWID;
CREATE TABLE keys (
  name TEXT PRIMARY KEY,
  tenant TEXT NOT NULL,
  zone TEXT NOT NULL,
  kind TEXT NOT NULL,
  algorithm TEXT NOT NULL,
  public BLOB NOT NULL,
  dek TEXT NOT NULL,
  sealed BLOB NOT NULL,
  create_time INTEGER NOT NULL,
  revision INTEGER NOT NULL
) WITHOUT ROWID;
`

func activeDEK(a *state.Apply) (string, error) {
	var id string
	err := a.QueryRow(`SELECT id FROM deks WHERE state = 'active' ORDER BY id`).Scan(&id)
	if errors.Is(err, sql.ErrNoRows) {
		return "", nil
	}
	return id, err
}

func insertDEK(a *state.Apply, id, zone string, canary []byte, wraps []*clusterv1.DekWrap) error {
	if id == "" || len(canary) == 0 || len(wraps) == 0 {
		return fault.New(fault.Invalid, "bad-dek", "a data encryption key needs an id, a canary and a recipient")
	}
	now := a.Now.UnixMilli()
	if _, err := a.Exec(`INSERT INTO deks (id, zone, state, canary, create_time) VALUES (?, ?, 'active', ?, ?)`, id, zone, canary, now); err != nil {
		return err
	}
	for _, w := range wraps {
		if w.Dek != id {
			return fault.New(fault.Invalid, "bad-dek", "a wrap names another data encryption key")
		}
		if err := insertWrap(a, w); err != nil {
			return err
		}
	}
	a.Touch(state.Created, dekName(id))
	return nil
}

func dekName(id string) string { return "system/deks/" + id }

func insertWrap(a *state.Apply, w *clusterv1.DekWrap) error {
	_, err := a.Exec(`INSERT OR REPLACE INTO dek_wraps (dek, recipient, recipient_public, wrapped, create_time) VALUES (?, ?, ?, ?, ?)`,
		w.Dek, w.Recipient, w.RecipientPublic, w.Wrapped, a.Now.UnixMilli())
	return err
}

func initialise(a *state.Apply, c *clusterv1.InitialiseKeyring) (*clusterv1.Empty, error) {
	id, err := activeDEK(a)
	if err != nil {
		return nil, err
	}
	if id != "" {
		return nil, fault.New(fault.Conflict, "keyring-initialised", "the keyring has a data encryption key").Do("join this controller to the system instead of making a new one")
	}
	return &clusterv1.Empty{}, insertDEK(a, c.Dek, c.Zone, c.Canary, c.Wraps)
}

func wrapDeks(a *state.Apply, c *clusterv1.WrapDeks) (*clusterv1.Empty, error) {
	for _, w := range c.Wraps {
		var n int
		if err := a.QueryRow(`SELECT count(*) FROM deks WHERE id = ?`, w.Dek).Scan(&n); err != nil {
			return nil, err
		}
		if n == 0 {
			return nil, fault.New(fault.Stale, "dek-rotated", "there is no data encryption key %.64q", w.Dek).Do("try again")
		}
		var public []byte
		err := a.QueryRow(`SELECT recipient_public FROM dek_wraps WHERE recipient = ? ORDER BY dek LIMIT 1`, w.Recipient).Scan(&public)
		if err != nil && !errors.Is(err, sql.ErrNoRows) {
			return nil, err
		}
		if err == nil && !bytes.Equal(public, w.RecipientPublic) {
			return nil, fault.New(fault.Refused, "kek-changed", "%s had another key encryption key before", w.Recipient).
				Do("remove that controller first: it may be an impostor under its name")
		}
		if err := insertWrap(a, w); err != nil {
			return nil, err
		}
		a.Touch(state.Signalled, resource.Controller(w.Recipient))
	}
	return &clusterv1.Empty{}, nil
}

func rotate(a *state.Apply, c *clusterv1.RotateDek) (*clusterv1.Empty, error) {
	id, err := activeDEK(a)
	if err != nil {
		return nil, err
	}
	if id == "" || id != c.Previous {
		return nil, fault.New(fault.Stale, "dek-rotated", "the active data encryption key is another than the proposer saw").Do("try again")
	}
	for _, w := range c.Wraps {
		if w.Recipient == c.RemoveRecipient {
			return nil, fault.New(fault.Invalid, "bad-recipient", "%s is removed and cannot get the new key", w.Recipient)
		}
	}
	if c.RemoveRecipient != "" {
		if _, err := a.Exec(`DELETE FROM dek_wraps WHERE recipient = ?`, c.RemoveRecipient); err != nil {
			return nil, err
		}
	}
	if err := everyoneServed(a, id, c); err != nil {
		return nil, err
	}
	if _, err := a.Exec(`UPDATE deks SET state = 'retired' WHERE id = ?`, id); err != nil {
		return nil, err
	}
	a.Touch(state.Updated, dekName(id))
	return &clusterv1.Empty{}, insertDEK(a, c.Dek, c.Zone, c.Canary, c.Wraps)
}

// everyoneServed refuses a rotation that would leave a present recipient without the new key: it was admitted between the
// proposer's look and this entry.
func everyoneServed(a *state.Apply, previous string, c *clusterv1.RotateDek) error {
	rows, err := a.Query(`SELECT recipient FROM dek_wraps WHERE dek = ? ORDER BY recipient`, previous)
	if err != nil {
		return err
	}
	defer rows.Close()
	got := map[string]bool{}
	for _, w := range c.Wraps {
		got[w.Recipient] = true
	}
	for rows.Next() {
		var r string
		if err := rows.Scan(&r); err != nil {
			return err
		}
		if !got[r] {
			return fault.New(fault.Stale, "dek-rotated", "%s would be left without the new data encryption key", r).Do("try again")
		}
	}
	return rows.Err()
}

func resealKeys(a *state.Apply, c *clusterv1.ResealKeys) (*clusterv1.Empty, error) {
	id, err := activeDEK(a)
	if err != nil {
		return nil, err
	}
	for _, k := range c.Keys {
		if k.Dek != id {
			return nil, fault.New(fault.Stale, "dek-rotated", "keys are put under the active data encryption key only").Do("try again")
		}
		res, err := a.Exec(`UPDATE keys SET dek = ?, sealed = ?, revision = ? WHERE name = ? AND kind = 'software'`, k.Dek, k.Sealed, int64(a.Index), k.Name)
		if err != nil {
			return nil, err
		}
		if n, err := res.RowsAffected(); err != nil {
			return nil, err
		} else if n == 0 {
			return nil, fault.New(fault.NotFound, "no-key", "there is no key %.200q", k.Name)
		}
		a.Touch(state.Updated, k.Name)
	}
	return &clusterv1.Empty{}, nil
}

func createKey(a *state.Apply, c *clusterv1.CreateKey) (*clusterv1.Empty, error) {
	id, err := activeDEK(a)
	if err != nil {
		return nil, err
	}
	k := c.GetKey()
	if c.Kind != kindSoftware || k.GetName() == "" || len(k.GetSealed()) == 0 {
		return nil, fault.New(fault.Invalid, "bad-key", "a key needs a name, a known kind and sealed bytes")
	}
	if k.Dek != id {
		return nil, fault.New(fault.Stale, "dek-rotated", "a key is sealed under the active data encryption key only").Do("try again")
	}
	res, err := a.Exec(`INSERT INTO keys (name, tenant, zone, kind, algorithm, public, dek, sealed, create_time, revision)
		VALUES (?,?,?,?,?,?,?,?,?,?) ON CONFLICT DO NOTHING`, k.Name, c.Tenant, c.Zone, c.Kind, c.Algorithm, c.Public, k.Dek, k.Sealed, a.Now.UnixMilli(), int64(a.Index))
	if err != nil {
		return nil, err
	}
	if n, err := res.RowsAffected(); err != nil {
		return nil, err
	} else if n == 0 {
		return nil, fault.New(fault.Conflict, "key-exists", "there is a key %.200q", k.Name).Do("a key's name is used once; take another")
	}
	a.Touch(state.Created, k.Name)
	return &clusterv1.Empty{}, nil
}
