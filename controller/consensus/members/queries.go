package members

import (
	"context"
	"database/sql"
	"errors"

	"github.com/cassandra-security-manager/csm/controller/state"
	"github.com/cassandra-security-manager/csm/shared/fault"
)

const columns = "name, id, address, region, zone, key, kek_public, state, voter, version, joined_ms, approved_ms, unsealed_ms"

func scan(row interface{ Scan(...any) error }) (Member, error) {
	var m Member
	var key []byte
	var st string
	var joined, approved, unsealed int64
	if err := row.Scan(&m.Name, &m.ID, &m.Address, &m.Region, &m.Zone, &key, &m.KEKPublic, &st, &m.Voter, &m.Version, &joined, &approved, &unsealed); err != nil {
		return Member{}, err
	}
	copy(m.Key[:], key)
	m.State, m.Joined, m.Approved, m.Unsealed = State(st), fromMilli(joined), fromMilli(approved), fromMilli(unsealed)
	return m, nil
}

// List is all members by name.
func List(ctx context.Context, q state.Querier) ([]Member, error) {
	rows, err := q.QueryContext(ctx, "SELECT "+columns+" FROM members ORDER BY name")
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	var out []Member
	for rows.Next() {
		m, err := scan(rows)
		if err != nil {
			return nil, err
		}
		out = append(out, m)
	}
	return out, rows.Err()
}

// Get is one member by name, or NotFound.
func Get(ctx context.Context, q state.Querier, name string) (Member, error) {
	m, err := scan(q.QueryRowContext(ctx, "SELECT "+columns+" FROM members WHERE name = ?", name))
	if errors.Is(err, sql.ErrNoRows) {
		return Member{}, fault.New(fault.NotFound, "no-such-controller", "there is no controller %q", name).Do("list them: `csm system controllers`")
	}
	return m, err
}

func byKey(a *state.Apply, key [32]byte) (*Member, string, error) {
	var name, token string
	err := a.QueryRow("SELECT name, token_id FROM members WHERE key = ?", key[:]).Scan(&name, &token)
	if errors.Is(err, sql.ErrNoRows) {
		return nil, "", nil
	}
	if err != nil {
		return nil, "", err
	}
	m, err := Get(a.Context(), a.Querier(), name)
	return &m, token, err
}

// Removed says whether the key belonged to a controller that was removed.
func Removed(ctx context.Context, q state.Querier, key [32]byte) (bool, error) {
	var n int
	err := q.QueryRowContext(ctx, "SELECT count(*) FROM removed_members WHERE key = ?", key[:]).Scan(&n)
	return n > 0, err
}

// RemovedKeys are the keys of all controllers that were removed.
func RemovedKeys(ctx context.Context, q state.Querier) (map[[32]byte]bool, error) {
	rows, err := q.QueryContext(ctx, "SELECT key FROM removed_members ORDER BY key")
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	out := map[[32]byte]bool{}
	for rows.Next() {
		var key []byte
		if err := rows.Scan(&key); err != nil {
			return nil, err
		}
		out[[32]byte(key)] = true
	}
	return out, rows.Err()
}

// Tokens is all join tokens by id.
func Tokens(ctx context.Context, q state.Querier) ([]Token, error) {
	rows, err := q.QueryContext(ctx, "SELECT id, name, created_ms, expires_ms, uses, used, created_by FROM controller_join_tokens ORDER BY id")
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	var out []Token
	for rows.Next() {
		var t Token
		var created, expires int64
		if err := rows.Scan(&t.ID, &t.Name, &created, &expires, &t.Uses, &t.Used, &t.CreatedBy); err != nil {
			return nil, err
		}
		t.Created, t.Expires = fromMilli(created), fromMilli(expires)
		out = append(out, t)
	}
	return out, rows.Err()
}

func insert(a *state.Apply, m Member, token string) error {
	_, err := a.Exec("INSERT INTO members ("+columns+", token_id) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
		m.Name, m.ID, m.Address, m.Region, m.Zone, m.Key[:], m.KEKPublic, string(m.State), m.Voter, m.Version,
		milli(m.Joined), milli(m.Approved), milli(m.Unsealed), token)
	return err
}

// Admitted is the member that a token let in with this key; false when there is none.
func Admitted(ctx context.Context, q state.Querier, tokenHash, key [32]byte) (Member, bool, error) {
	m, err := scan(q.QueryRowContext(ctx, "SELECT "+columns+" FROM members WHERE key = ? AND token_id = (SELECT id FROM controller_join_tokens WHERE hash = ?)", key[:], tokenHash[:]))
	if errors.Is(err, sql.ErrNoRows) {
		return Member{}, false, nil
	}
	return m, err == nil, err
}
