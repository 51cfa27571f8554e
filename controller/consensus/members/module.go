package members

import (
	"database/sql"
	"errors"
	"time"

	"github.com/cassandra-security-manager/csm/controller/state"
	clusterv1 "github.com/cassandra-security-manager/csm/protocol/cluster/v1"
	"github.com/cassandra-security-manager/csm/shared/fault"
	"github.com/cassandra-security-manager/csm/shared/resource"
)

// MaxTokenTTL bounds the life of a join token.
const MaxTokenTTL = 7 * 24 * time.Hour

const schema = `
CREATE TABLE members (
	name TEXT PRIMARY KEY,
	id TEXT NOT NULL UNIQUE,
	address TEXT NOT NULL,
	region TEXT NOT NULL,
	zone TEXT NOT NULL,
	key BLOB NOT NULL UNIQUE,
	kek_public BLOB,
	state TEXT NOT NULL,
	voter INTEGER NOT NULL,
	version TEXT NOT NULL,
	token_id TEXT NOT NULL,
	joined_ms INTEGER NOT NULL,
	approved_ms INTEGER NOT NULL,
	unsealed_ms INTEGER NOT NULL
) STRICT;
CREATE TABLE removed_members (
	key BLOB PRIMARY KEY,
	id TEXT NOT NULL,
	name TEXT NOT NULL,
	removed_ms INTEGER NOT NULL
) STRICT;
CREATE TABLE controller_join_tokens (
	id TEXT PRIMARY KEY,
	hash BLOB NOT NULL UNIQUE,
	name TEXT NOT NULL,
	created_ms INTEGER NOT NULL,
	expires_ms INTEGER NOT NULL,
	uses INTEGER NOT NULL,
	used INTEGER NOT NULL,
	created_by TEXT NOT NULL
) STRICT;`

// Module is the tables and commands of this package; migrations 100 to 199.
func Module() state.Module {
	return state.Module{
		Name:       "consensus",
		Migrations: []state.Migration{{Number: 100, SQL: schema}, {Number: 110, SQL: eraSchema}},
		Commands: func(r *state.Registry) {
			state.Handle(r, admitFirst)
			state.Handle(r, requestAdmission)
			state.Handle(r, approve)
			state.Handle(r, reportUnsealed)
			state.Handle(r, remove)
			state.Handle(r, move)
			state.Handle(r, createToken)
			state.Handle(r, revokeToken)
			state.Handle(r, beginEra)
		},
	}
}

// check refuses a member that cannot be one.
func check(m Member) error {
	if err := resource.CheckID("controller", m.Name); err != nil {
		return err
	}
	switch {
	case m.ID == "" || len(m.ID) > 64:
		return fault.New(fault.Invalid, "bad-member", "the controller %q gave no id", m.Name)
	case m.Key == [32]byte{}:
		return fault.New(fault.Invalid, "bad-member", "the controller %q gave no key", m.Name)
	case m.Address == "" || len(m.Address) > 261:
		return fault.New(fault.Invalid, "bad-member", "the controller %q gave no address", m.Name)
	case len(m.Region) > 63 || len(m.Zone) > 63 || len(m.Version) > 64 || len(m.KEKPublic) > 4096:
		return fault.New(fault.Invalid, "bad-member", "a field of the controller %q is too long", m.Name)
	}
	return nil
}

func admitFirst(a *state.Apply, c *clusterv1.AdmitFirst) (*clusterv1.MemberReply, error) {
	m := FromProto(c.GetMember())
	if err := check(m); err != nil {
		return nil, err
	}
	all, err := List(a.Context(), a.Querier())
	if err != nil {
		return nil, err
	}
	if len(all) == 1 && all[0].Key == m.Key && all[0].ID == m.ID {
		return &clusterv1.MemberReply{Member: all[0].Proto(), Repeated: true}, nil
	}
	if len(all) > 0 {
		return nil, fault.New(fault.Conflict, "not-first", "the system has controllers already").Do("join with a token: `csm system join-token`")
	}
	m.State, m.Voter = Unsealed, true
	m.Joined, m.Approved, m.Unsealed = a.Now, a.Now, a.Now
	if err := insert(a, m, ""); err != nil {
		return nil, err
	}
	a.Touch(state.Created, resource.Controller(m.Name))
	return &clusterv1.MemberReply{Member: m.Proto()}, nil
}

func requestAdmission(a *state.Apply, c *clusterv1.RequestAdmission) (*clusterv1.MemberReply, error) {
	m := FromProto(c.GetMember())
	if err := check(m); err != nil {
		return nil, err
	}
	var t Token
	var expires, used, uses int64
	err := a.QueryRow("SELECT id, name, expires_ms, uses, used FROM controller_join_tokens WHERE hash = ?", c.GetTokenHash()).
		Scan(&t.ID, &t.Name, &expires, &uses, &used)
	if errors.Is(err, sql.ErrNoRows) {
		return nil, fault.New(fault.Unauthenticated, "wrong-token", "the join token is not known").
			Do("ask an administrator for a new one: `csm system join-token`")
	}
	if err != nil {
		return nil, err
	}
	if t.Name != "" && t.Name != m.Name {
		return nil, fault.New(fault.Refused, "token-of-another", "the join token %s is for the controller %q, not %q", t.ID, t.Name, m.Name).
			Do("use the token made for this controller")
	}
	known, token, err := byKey(a, m.Key)
	if err != nil {
		return nil, err
	}
	if known != nil {
		if token != t.ID || known.ID != m.ID || known.Name != m.Name {
			return nil, fault.New(fault.Conflict, "key-in-use", "the key of this controller already belongs to %q", known.Name).
				Do("wipe the data folder, so that a new key and id are made, and join with a new token")
		}
		return &clusterv1.MemberReply{Member: known.Proto(), Repeated: true}, nil
	}
	if used >= uses {
		return nil, fault.New(fault.Refused, "token-used", "the join token %s is used up, by another key", t.ID).
			Do("if nobody of yours used it, remove the controller that did (`csm system controllers`); then make a new token")
	}
	if a.Now.UnixMilli() > expires {
		return nil, fault.New(fault.Refused, "token-expired", "the join token %s expired at %s", t.ID, fromMilli(expires).Format(time.RFC3339)).
			Do("make a new one: `csm system join-token`")
	}
	if err := unused(a, m); err != nil {
		return nil, err
	}
	if _, err := a.Exec("UPDATE controller_join_tokens SET used = used + 1 WHERE id = ?", t.ID); err != nil {
		return nil, err
	}
	m.State, m.Voter, m.Joined, m.Approved, m.Unsealed = Pending, true, a.Now, time.Time{}, time.Time{}
	if err := insert(a, m, t.ID); err != nil {
		return nil, err
	}
	a.Touch(state.Created, resource.Controller(m.Name))
	a.Touch(state.Updated, resource.ControllerJoinToken(t.ID))
	return &clusterv1.MemberReply{Member: m.Proto()}, nil
}

// unused refuses a name or id in use and a key that was removed.
func unused(a *state.Apply, m Member) error {
	if other, err := Get(a.Context(), a.Querier(), m.Name); err == nil {
		return fault.New(fault.Conflict, "name-in-use", "the controller %q exists, with another key (%s)", m.Name, other.Fingerprint()).
			Do("choose another name, or remove the old one first: `csm system remove %s`", m.Name)
	} else if !fault.Is(err, fault.NotFound) {
		return err
	}
	var at string
	switch err := a.QueryRow("SELECT name FROM members WHERE address = ? ORDER BY name LIMIT 1", m.Address).Scan(&at); {
	case err == nil:
		return fault.New(fault.Conflict, "address-in-use", "the controller %q stands at %s already", at, m.Address).
			Do("give this one another address, or remove the old one first: `csm system remove %s`", at)
	case !errors.Is(err, sql.ErrNoRows):
		return err
	}
	var n int
	if err := a.QueryRow("SELECT (SELECT count(*) FROM members WHERE id = ?) + (SELECT count(*) FROM removed_members WHERE id = ?)", m.ID, m.ID).Scan(&n); err != nil {
		return err
	}
	if n > 0 {
		return fault.New(fault.Refused, "id-in-use", "the id of this controller was used before").Do("wipe its data folder, so that a new one is made")
	}
	if gone, err := Removed(a.Context(), a.Querier(), m.Key); err != nil {
		return err
	} else if gone {
		return fault.New(fault.Refused, "removed-member", "the key of this controller belonged to one that was removed").
			Do("wipe its data folder, so that a new key is made, and join with a new token")
	}
	return nil
}

func approve(a *state.Apply, c *clusterv1.ApproveMember) (*clusterv1.MemberReply, error) {
	m, err := Get(a.Context(), a.Querier(), c.GetName())
	if err != nil {
		return nil, err
	}
	if string(m.Key[:]) != string(c.GetKey()) {
		return nil, fault.New(fault.Refused, "fingerprint-differs", "the key of %q is not the one you compared; recorded is %s", m.Name, m.Fingerprint()).
			Do("compare with what the new controller prints; if they differ, somebody else used the token: `csm system remove %s`", m.Name)
	}
	if m.State != Pending {
		return &clusterv1.MemberReply{Member: m.Proto(), Repeated: true}, nil
	}
	m.State, m.Approved = Approved, a.Now
	if _, err := a.Exec("UPDATE members SET state = ?, approved_ms = ? WHERE name = ?", string(m.State), milli(m.Approved), m.Name); err != nil {
		return nil, err
	}
	a.Touch(state.Updated, resource.Controller(m.Name))
	return &clusterv1.MemberReply{Member: m.Proto()}, nil
}

func reportUnsealed(a *state.Apply, c *clusterv1.ReportUnsealed) (*clusterv1.MemberReply, error) {
	m, err := Get(a.Context(), a.Querier(), c.GetName())
	if err != nil {
		return nil, err
	}
	if m.ID != c.GetId() || !m.Trusted() {
		return nil, fault.New(fault.Refused, "not-approved", "the controller %q is not approved", m.Name).Do("approve it first: `csm system approve %s --fingerprint …`", m.Name)
	}
	if m.State == Unsealed {
		return &clusterv1.MemberReply{Member: m.Proto(), Repeated: true}, nil
	}
	m.State, m.Unsealed = Unsealed, a.Now
	if _, err := a.Exec("UPDATE members SET state = ?, unsealed_ms = ? WHERE name = ?", string(m.State), milli(m.Unsealed), m.Name); err != nil {
		return nil, err
	}
	a.Touch(state.Updated, resource.Controller(m.Name))
	return &clusterv1.MemberReply{Member: m.Proto()}, nil
}

func remove(a *state.Apply, c *clusterv1.RemoveMember) (*clusterv1.MemberReply, error) {
	m, err := Get(a.Context(), a.Querier(), c.GetName())
	if err != nil {
		return nil, err
	}
	var others int
	if err := a.QueryRow("SELECT count(*) FROM members WHERE state = ? AND name <> ?", string(Unsealed), m.Name).Scan(&others); err != nil {
		return nil, err
	}
	if others == 0 {
		return nil, fault.New(fault.Refused, "last-controller", "%q is the last controller that holds the keys", m.Name).Do("add another one first")
	}
	if _, err := a.Exec("DELETE FROM members WHERE name = ?", m.Name); err != nil {
		return nil, err
	}
	if _, err := a.Exec("INSERT INTO removed_members (key, id, name, removed_ms) VALUES (?, ?, ?, ?)", m.Key[:], m.ID, m.Name, a.Now.UnixMilli()); err != nil {
		return nil, err
	}
	a.Touch(state.Deleted, resource.Controller(m.Name))
	return &clusterv1.MemberReply{Member: m.Proto()}, nil
}

func move(a *state.Apply, c *clusterv1.MoveMember) (*clusterv1.MemberReply, error) {
	m, err := Get(a.Context(), a.Querier(), c.GetName())
	if err != nil {
		return nil, err
	}
	if m.ID != c.GetId() || !m.Trusted() {
		return nil, fault.New(fault.Refused, "not-approved", "the controller %q is not approved", m.Name)
	}
	m.Address, m.Region, m.Zone = c.GetAddress(), c.GetRegion(), c.GetZone()
	if err := check(m); err != nil {
		return nil, err
	}
	if _, err := a.Exec("UPDATE members SET address = ?, region = ?, zone = ? WHERE name = ?", m.Address, m.Region, m.Zone, m.Name); err != nil {
		return nil, err
	}
	a.Touch(state.Updated, resource.Controller(m.Name))
	return &clusterv1.MemberReply{Member: m.Proto()}, nil
}

func createToken(a *state.Apply, c *clusterv1.CreateControllerToken) (*clusterv1.ControllerToken, error) {
	if err := resource.CheckID("join token", c.GetId()); err != nil {
		return nil, err
	}
	ttl := time.Duration(c.GetTtlMs()) * time.Millisecond
	switch {
	case len(c.GetHash()) != 32:
		return nil, fault.New(fault.Invalid, "bad-token", "a SHA-256 is needed in place of the token")
	case c.GetTtlMs() <= 0 || c.GetTtlMs() > MaxTokenTTL.Milliseconds():
		return nil, fault.New(fault.Invalid, "bad-ttl", "a join token cannot live for %s", ttl).Do("choose up to 168h")
	case c.GetUses() < 1 || c.GetUses() > 64:
		return nil, fault.New(fault.Invalid, "bad-uses", "a join token cannot have %d uses", c.GetUses()).Do("choose 1 to 64")
	}
	if c.GetName() != "" {
		if err := resource.CheckID("controller", c.GetName()); err != nil {
			return nil, err
		}
	}
	out := &clusterv1.ControllerToken{Id: c.GetId(), Name: c.GetName(), CreatedMs: a.Now.UnixMilli(), ExpiresMs: a.Now.Add(ttl).UnixMilli(),
		Uses: c.GetUses(), CreatedBy: a.Envelope.GetActor()}
	var n int
	if err := a.QueryRow("SELECT count(*) FROM controller_join_tokens WHERE id = ? OR hash = ?", c.GetId(), c.GetHash()).Scan(&n); err != nil {
		return nil, err
	}
	if n > 0 {
		return nil, fault.New(fault.Conflict, "token-exists", "a join token %q exists already", c.GetId()).Do("try again")
	}
	if _, err := a.Exec(`INSERT INTO controller_join_tokens (id, hash, name, created_ms, expires_ms, uses, used, created_by) VALUES (?, ?, ?, ?, ?, ?, 0, ?)`,
		out.Id, c.GetHash(), out.Name, out.CreatedMs, out.ExpiresMs, out.Uses, out.CreatedBy); err != nil {
		return nil, err
	}
	a.Touch(state.Created, resource.ControllerJoinToken(out.Id))
	return out, nil
}

func revokeToken(a *state.Apply, c *clusterv1.RevokeControllerToken) (*clusterv1.Empty, error) {
	res, err := a.Exec("DELETE FROM controller_join_tokens WHERE id = ?", c.GetId())
	if err != nil {
		return nil, err
	}
	if n, err := res.RowsAffected(); err != nil {
		return nil, err
	} else if n == 0 {
		return nil, fault.New(fault.NotFound, "no-such-token", "there is no join token %q", c.GetId()).Do("list them: `csm system join-token list`")
	}
	a.Touch(state.Deleted, resource.ControllerJoinToken(c.GetId()))
	return &clusterv1.Empty{}, nil
}
