package fleet

import (
	"context"
	"crypto/sha256"
	"database/sql"
	"encoding/base64"
	"strings"

	clusterv1 "github.com/cassandra-security-manager/csm/protocol/cluster/v1"

	"github.com/cassandra-security-manager/csm/controller/state"
	"github.com/cassandra-security-manager/csm/shared/fault"
	"github.com/cassandra-security-manager/csm/shared/resource"
)

const tokenPrefix = "csmt_"

// tokenBytes is the length of the random part of a token.
const tokenBytes = 32

// CreateToken makes a join token for a node of the cluster, and the node if it is new. The secret is given once, here;
// only its SHA-256 is kept.
func (f *Fleet) CreateToken(ctx context.Context, cluster string, spec TokenSpec, actor string) (secret string, t Token, err error) {
	if err := resource.CheckID("node", spec.Node); err != nil {
		return "", Token{}, err
	}
	names, err := spec.Names.Normalise()
	if err != nil {
		return "", Token{}, err
	}
	spec.Names = names
	secret, c, err := f.tokenCommand(cluster, spec)
	if err != nil {
		return "", Token{}, err
	}
	if _, err := f.propose(ctx, cluster, actor, "", c); err != nil {
		return "", Token{}, err
	}
	t, err = f.GetToken(ctx, resource.JoinToken(cluster, c.Id))
	return secret, t, err
}

// RevokeToken makes a token useless; who has joined by it stays.
func (f *Fleet) RevokeToken(ctx context.Context, name, actor string) error {
	_, err := f.propose(ctx, name, actor, "", &clusterv1.RevokeNodeToken{Name: name})
	return err
}

// HashToken gives what the state knows a token by, or refuses what cannot be one.
func HashToken(secret string) ([sha256.Size]byte, error) {
	body, ok := strings.CutPrefix(secret, tokenPrefix)
	raw, err := base64.RawURLEncoding.Strict().DecodeString(body)
	if !ok || err != nil || len(raw) != tokenBytes {
		return [sha256.Size]byte{}, fault.New(fault.Unauthenticated, "token-malformed", "this is not a join token").
			Do("a join token begins with %s and has %d characters; make one with `csm cluster join-command`", tokenPrefix, len(tokenPrefix)+base64.RawURLEncoding.EncodedLen(tokenBytes))
	}
	return sha256.Sum256([]byte(secret)), nil
}

// GetToken reads one token.
func (f *Fleet) GetToken(ctx context.Context, name string) (Token, error) {
	return view(ctx, f.read, func(ctx context.Context, q state.Querier) (Token, error) {
		ts, err := f.tokens(ctx, q, `t.name = ?`, name)
		if err != nil {
			return Token{}, err
		}
		if len(ts) == 0 {
			return Token{}, noToken(name)
		}
		return ts[0], nil
	})
}

// ListTokens reads the tokens of a cluster, newest first.
func (f *Fleet) ListTokens(ctx context.Context, cluster string) ([]Token, error) {
	return view(ctx, f.read, func(ctx context.Context, q state.Querier) ([]Token, error) {
		return f.tokens(ctx, q, `t.cluster = ?`, cluster)
	})
}

func (f *Fleet) tokens(ctx context.Context, q state.Querier, where string, args ...any) ([]Token, error) {
	now := f.clock.Now().UnixMilli()
	return collect(ctx, q, func(r *sql.Rows) (t Token, err error) {
		var names string
		var revoked, rejoin bool
		var expires, created int64
		if err := r.Scan(&t.Name, &t.Node, &t.Method, &names, &t.Uses, &t.Used, &rejoin, &revoked, &expires, &t.Creator, &created, &t.Confirmed); err != nil {
			return t, err
		}
		t.Rejoin, t.Created, t.Expires, t.State = rejoin, at(created), at(expires), "open"
		switch {
		case revoked:
			t.State = "revoked"
		case t.Used >= t.Uses:
			t.State = "used"
		case expires <= now:
			t.State = "expired"
		}
		t.Names, err = namesFrom(names)
		return t, err
	}, `SELECT t.name, t.node, t.method, n.names, t.uses, t.used, t.rejoin, t.revoked, t.expires_ms, t.creator, t.created_ms,
			coalesce((SELECT u.confirmed FROM node_token_uses u WHERE u.token = t.name ORDER BY u.used_ms DESC, u.key_sha256 LIMIT 1), '')
		FROM node_tokens t JOIN nodes n ON n.name = t.node WHERE `+where+` ORDER BY t.created_ms DESC, t.name LIMIT 1000`, args...)
}

// TokenKnown says whether the state at hand knows the token: an unknown one costs no command.
func (f *Fleet) TokenKnown(ctx context.Context, sum [sha256.Size]byte) (bool, error) {
	return view(ctx, f.read, func(ctx context.Context, q state.Querier) (bool, error) {
		var n int
		err := q.QueryRowContext(ctx, `SELECT count(*) FROM node_tokens WHERE sha256 = ?`, sum[:]).Scan(&n)
		return n > 0, err
	})
}

func noToken(name string) error {
	return fault.New(fault.NotFound, "no-token", "there is no join token %.300q", name)
}

func applyCreateNodeToken(a *state.Apply, c *clusterv1.CreateNodeToken) (*clusterv1.Empty, error) {
	var n int
	if err := a.QueryRow(`SELECT count(*) FROM clusters WHERE name = ?`, c.Cluster).Scan(&n); err != nil {
		return nil, err
	}
	if n == 0 {
		return nil, noCluster(c.Cluster)
	}
	node, now := c.Cluster+"/nodes/"+c.Node, a.Now.UnixMilli()
	if err := tokenNode(a, c, node); err != nil {
		return nil, err
	}
	name := resource.JoinToken(c.Cluster, c.Id)
	if _, err := a.Exec(`INSERT INTO node_tokens (name, cluster, node, sha256, method, uses, used, rejoin, revoked, expires_ms, creator, created_ms, revision)
		VALUES (?,?,?,?,?,?,0,?,0,?,?,?,?)`, name, c.Cluster, node, c.Sha256, c.Method, c.Uses, flag(c.Rejoin), now+c.TtlMs, a.Envelope.GetActor(), now, a.Index); err != nil {
		return nil, err
	}
	// Tokens that nobody can use any more are forgotten, a few at a time.
	if _, err := a.Exec(`DELETE FROM node_tokens WHERE name IN (SELECT name FROM node_tokens WHERE expires_ms < ? ORDER BY expires_ms, name LIMIT 10)`, now-keep.Milliseconds()); err != nil {
		return nil, err
	}
	if _, err := a.Exec(`DELETE FROM node_token_uses WHERE token NOT IN (SELECT name FROM node_tokens) AND used_ms < ?`, now-keep.Milliseconds()); err != nil {
		return nil, err
	}
	a.Touch(state.Created, name)
	return &clusterv1.Empty{}, nil
}

// tokenNode makes the node that the token is bound to, or checks that the token may be made for the one there is.
func tokenNode(a *state.Apply, c *clusterv1.CreateNodeToken, node string) error {
	names := namesOf(c.Names)
	column, err := names.column()
	if err != nil {
		return err
	}
	var held string
	var incarnation uint64
	known, err := found(a.QueryRow(`SELECT names, incarnation FROM nodes WHERE name = ?`, node).Scan(&held, &incarnation))
	switch {
	case err != nil:
		return err
	case !known && names.Empty():
		return fault.New(fault.Invalid, "no-names", "the new node %s needs the names that its certificates may carry", short(node)).
			Do("give its addresses and host names with --ip and --dns; `csm-agent inspect` on the node lists them")
	case !known:
		now := a.Now.UnixMilli()
		_, err := a.Exec(`INSERT INTO nodes (name, cluster, uid, incarnation, names, running, changed, created_ms, updated_ms, revision)
			VALUES (?,?,?,0,?,0,?,?,?,?)`, node, c.Cluster, c.NodeUid, column, a.Index, now, now, a.Index)
		a.Touch(state.Created, node)
		return err
	case !names.Empty() && held != column:
		return fault.New(fault.Conflict, "names-differ", "the node %s exists with other names", short(node)).
			Do("leave the names out, or change them first with `csm node set-names %s`", short(node))
	case incarnation > 0 && !c.Rejoin:
		return fault.New(fault.Conflict, "node-joined", "the node %s has joined already", short(node)).
			Do("use `csm cluster join-command %s --rejoin` if its host was replaced or lost its state: the old identity is revoked when the new one joins", short(node))
	}
	return nil
}

func applyRevokeNodeToken(a *state.Apply, c *clusterv1.RevokeNodeToken) (*clusterv1.Empty, error) {
	res, err := a.Exec(`UPDATE node_tokens SET revoked = 1, revision = ? WHERE name = ?`, a.Index, c.Name)
	if err != nil {
		return nil, err
	}
	if n, err := res.RowsAffected(); err != nil || n == 0 {
		if err != nil {
			return nil, err
		}
		return nil, noToken(c.Name)
	}
	a.Touch(state.Updated, c.Name)
	return &clusterv1.Empty{}, nil
}
