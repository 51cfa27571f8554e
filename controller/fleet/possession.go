package fleet

import (
	"bytes"
	"context"
	"crypto/sha256"
	"time"

	"google.golang.org/protobuf/proto"

	agentv1 "github.com/cassandra-security-manager/csm/protocol/agent/v1"
	clusterv1 "github.com/cassandra-security-manager/csm/protocol/cluster/v1"

	"github.com/cassandra-security-manager/csm/controller/state"
	"github.com/cassandra-security-manager/csm/shared/fault"
	"github.com/cassandra-security-manager/csm/shared/resource"
)

// challengeKept is how long a used challenge is remembered: far longer than the connection lives that it is bound to.
const challengeKept = 24 * time.Hour

// PossessionSpec is a proof of possession whose signature and chain were checked.
type PossessionSpec struct {
	// Anchor is the external anchor that the chain was verified against; it says the cluster.
	Anchor Anchor
	// Key is the SHA-256 of the SubjectPublicKeyInfo of the new key, CassandraKey that of the key in use.
	Key, CassandraKey [sha256.Size]byte
	// Challenge is what bound the signature to the connection.
	Challenge [sha256.Size]byte
	// NotAfter of the certificate in use, and the names it carries.
	NotAfter time.Time
	Attested Names
	// Node and Names are what the agent asks for.
	Node  string
	Names Names
	// Agent, Instance and Peer as in JoinSpec.
	Agent    *agentv1.AgentFacts
	Instance *agentv1.InstanceFacts
	Peer     string
}

// JoinByPossession gives an identity to who holds Cassandra's key, if the anchor's rule and the gossip of two peers cover the
// names, or if a person approved it. Else the fault "approval-pending" says why not yet: the same agent asks again.
func (f *Fleet) JoinByPossession(ctx context.Context, s PossessionSpec) (Joined, error) {
	c, err := f.possessionCommand(s)
	if err != nil {
		return Joined{}, err
	}
	// Who waits for a person asks again and again: that costs no command while nothing has changed.
	waits, err := view(ctx, f.read, func(ctx context.Context, q state.Querier) (error, error) {
		return possessionWaits(ctx, q, c, f.clock.Now())
	})
	if err != nil {
		return Joined{}, err
	}
	if waits != nil {
		return Joined{}, waits
	}
	r, err := reply[*clusterv1.JoinNodeReply](f.propose(ctx, c.Cluster, "joining:"+s.Peer, "", c))
	if err != nil {
		return Joined{}, err
	}
	if err := fromFault(r.Refused); err != nil {
		return Joined{}, err
	}
	return Joined{Node: r.Node, UID: r.Uid, Incarnation: r.Incarnation, Repeated: r.Repeated}, nil
}

func (f *Fleet) possessionCommand(s PossessionSpec) (*clusterv1.JoinByPossession, error) {
	if err := resource.CheckID("node", s.Node); err != nil {
		return nil, err
	}
	names, err := s.Names.Normalise()
	if err != nil {
		return nil, err
	}
	if names.Empty() {
		return nil, fault.New(fault.Invalid, "no-names", "the agent asks for no name").Do("check listen_address in cassandra.yaml")
	}
	agent, instance, err := encodeFacts(s.Agent, s.Instance)
	if err != nil {
		return nil, err
	}
	id, err := f.id()
	if err != nil {
		return nil, err
	}
	uid, err := f.id()
	if err != nil {
		return nil, err
	}
	return &clusterv1.JoinByPossession{KeySha256: s.Key[:], Challenge: s.Challenge[:], Cluster: s.Anchor.Cluster, Anchor: s.Anchor.Name, CassandraKeySha256: s.CassandraKey[:],
		NotAfterMs: s.NotAfter.UnixMilli(), Attested: s.Attested.wire(), Node: s.Node, Names: names.wire(), Agent: agent, Instance: instance, Peer: s.Peer, Id: id, NodeUid: uid}, nil
}

func applyJoinByPossession(a *state.Apply, c *clusterv1.JoinByPossession) (*clusterv1.JoinNodeReply, error) {
	rule, err := anchorInForce(a, c)
	if err != nil {
		return nil, err
	}
	if again, err := possessedBefore(a, c); again != nil || err != nil {
		return again, err
	}
	if refused, err := useChallenge(a, c); refused != nil || err != nil {
		return refused, err
	}
	if c.NotAfterMs <= a.Now.UnixMilli() {
		return nil, leafExpired(at(c.NotAfterMs))
	}
	var instance agentv1.InstanceFacts
	if err := proto.Unmarshal(c.Instance, &instance); err != nil {
		return nil, fault.Wrap(err, fault.Invalid, "bad-facts", "the instance's facts cannot be read")
	}
	if instance.ClusterName == "" {
		return nil, fault.New(fault.Invalid, "no-cluster-name", "the agent does not know the cluster_name of its Cassandra").Do("let it read cassandra.yaml: `csm-agent inspect`")
	}
	if err := sameRing(a, c.Cluster, &instance); err != nil {
		return nil, err
	}
	if twin, err := twinKey(a, c.KeySha256); err != nil {
		return nil, err
	} else if twin {
		return nil, keyReused()
	}
	req, asked, err := requestOfKey(a.Context(), a.Querier(), c.KeySha256)
	if err != nil {
		return nil, err
	}
	if asked && req.state == requestDenied {
		return nil, req.denied()
	}
	x, err := possessionAsking(c)
	if err != nil {
		return nil, err
	}
	if !asked || !req.approves(x, a.Now) {
		why, err := doubtsOf(a.Context(), a.Querier(), c, rule)
		if err != nil {
			return nil, err
		}
		if len(why) > 0 {
			return queue(a, x, req, why)
		}
	}
	return possess(a, c, &instance)
}

// possessionWaits gives the answer to a repeat that would change nothing.
func possessionWaits(ctx context.Context, q state.Querier, c *clusterv1.JoinByPossession, now time.Time) (error, error) {
	x, err := possessionAsking(c)
	if err != nil {
		return nil, err
	}
	var rule string
	if ok, err := found(q.QueryRowContext(ctx, `SELECT rule FROM external_anchors WHERE name = ?`, c.Anchor).Scan(&rule)); err != nil || !ok {
		return nil, err
	}
	parsed, err := ruleFrom(rule)
	if err != nil {
		return nil, err
	}
	return stillPending(ctx, q, x, now, func() ([]string, error) { return doubtsOf(ctx, q, c, parsed) })
}

// anchorInForce finds the rule of the anchor, or refuses one that was removed or has ended.
func anchorInForce(a *state.Apply, c *clusterv1.JoinByPossession) (Rule, error) {
	var rule string
	var expires int64
	ok, err := found(a.QueryRow(`SELECT rule, expires_ms FROM external_anchors WHERE name = ? AND cluster = ?`, c.Anchor, c.Cluster).Scan(&rule, &expires))
	switch {
	case err != nil:
		return Rule{}, err
	case !ok:
		return Rule{}, noAnchor(c.Anchor)
	case expires <= a.Now.UnixMilli():
		return Rule{}, anchorEnded(c.Anchor, at(expires))
	}
	return ruleFrom(rule)
}

func anchorEnded(name string, end time.Time) error {
	return fault.New(fault.Refused, "anchor-expired", "the registration of the anchor %.12s ended at %s", resource.Last(name), end.Format(time.RFC3339)).
		Do("register it again with `csm trust anchor-add`, or join by a token")
}

func leafExpired(end time.Time) error {
	return fault.New(fault.Refused, "leaf-expired", "the certificate that Cassandra uses expired at %s, so it proves nothing", end.Format(time.RFC3339)).
		Do("join this node by a token: `csm cluster join-command`")
}

// possessedBefore answers a repeat whose first answer was lost: the same new key and the same key of Cassandra's.
func possessedBefore(a *state.Apply, c *clusterv1.JoinByPossession) (*clusterv1.JoinNodeReply, error) {
	var uid, node, st string
	var incarnation uint64
	var key []byte
	ok, err := found(a.QueryRow(`SELECT p.uid, p.incarnation, p.node, p.cassandra_key_sha256, g.state FROM possessions p JOIN agents g ON g.uid = p.uid AND g.incarnation = p.incarnation
		WHERE p.key_sha256 = ?`, c.KeySha256).Scan(&uid, &incarnation, &node, &key, &st))
	switch {
	case err != nil || !ok:
		return nil, err
	case !bytes.Equal(key, c.CassandraKeySha256):
		return nil, keyReused()
	case st != Active:
		return nil, fault.New(fault.Refused, "agent-"+st, "the identity that this key got for %s is %s", short(node), st).Do("see `csm node get %s`", short(node))
	}
	return &clusterv1.JoinNodeReply{Node: node, Uid: uid, Incarnation: incarnation, Repeated: true}, nil
}

// useChallenge records what bound the evidence. The same evidence with another key is a replay: a refusal that is recorded.
func useChallenge(a *state.Apply, c *clusterv1.JoinByPossession) (*clusterv1.JoinNodeReply, error) {
	if len(c.Challenge) != sha256.Size {
		return nil, fault.New(fault.Invalid, "no-challenge", "the evidence is bound to nothing")
	}
	var key []byte
	used, err := found(a.QueryRow(`SELECT key_sha256 FROM join_challenges WHERE challenge = ?`, c.Challenge).Scan(&key))
	switch {
	case err != nil:
		return nil, err
	case used && bytes.Equal(key, c.KeySha256):
		return nil, nil
	case used:
		refused := fault.New(fault.Refused, "evidence-replayed", "this proof of possession was used before, for another key").
			Do("an agent makes a new one at each attempt; if it was not yours, look at who asked from %s", c.Peer)
		return &clusterv1.JoinNodeReply{Refused: toFault(refused)}, alarm(a, "evidence-replayed", c.Cluster, "a proof of possession came again with another key from "+c.Peer)
	}
	now := a.Now.UnixMilli()
	if _, err := a.Exec(`DELETE FROM join_challenges WHERE challenge IN (SELECT challenge FROM join_challenges WHERE used_ms < ? ORDER BY used_ms, challenge LIMIT 10)`,
		now-challengeKept.Milliseconds()); err != nil {
		return nil, err
	}
	_, err = a.Exec(`INSERT INTO join_challenges (challenge, key_sha256, used_ms) VALUES (?,?,?)`, c.Challenge, c.KeySha256, now)
	return nil, err
}

// doubtsOf gathers what the pure decision needs.
func doubtsOf(ctx context.Context, q state.Querier, c *clusterv1.JoinByPossession, rule Rule) ([]string, error) {
	node := c.Cluster + "/nodes/" + c.Node
	w := claimant{names: namesOf(c.Names), attested: namesOf(c.Attested), peer: c.Peer, taken: map[string]string{}}
	var recorded string
	known, err := found(q.QueryRowContext(ctx, `SELECT names, incarnation FROM nodes WHERE name = ?`, node).Scan(&recorded, &w.incarnation))
	if err != nil {
		return nil, err
	}
	if known {
		if w.recorded, err = namesFrom(recorded); err != nil {
			return nil, err
		}
	}
	if _, err := found(q.QueryRowContext(ctx, `SELECT node FROM possessions WHERE cassandra_key_sha256 = ? AND node <> ? ORDER BY node LIMIT 1`, c.CassandraKeySha256, node).Scan(&w.sharedWith)); err != nil {
		return nil, err
	}
	if err := takenNames(ctx, q, c.Cluster, node, w.taken); err != nil {
		return nil, err
	}
	var instance agentv1.InstanceFacts
	if err := proto.Unmarshal(c.Instance, &instance); err != nil {
		return nil, fault.Wrap(err, fault.Invalid, "bad-facts", "the instance's facts cannot be read")
	}
	if w.enrolled, w.seenBy, err = gossip(ctx, q, c.Cluster, node, instance.HostId, w.names.IPs); err != nil {
		return nil, err
	}
	return doubts(rule, w), nil
}

func takenNames(ctx context.Context, q state.Querier, cluster, node string, taken map[string]string) error {
	rows, err := q.QueryContext(ctx, `SELECT name, names FROM nodes WHERE cluster = ? AND name <> ? ORDER BY name`, cluster, node)
	if err != nil {
		return err
	}
	defer rows.Close()
	for rows.Next() {
		var name, column string
		if err := rows.Scan(&name, &column); err != nil {
			return err
		}
		n, err := namesFrom(column)
		if err != nil {
			return err
		}
		for _, x := range n.all() {
			taken[x] = name
		}
	}
	return rows.Err()
}

// possess gives the identity: the node is made if it is new, and a request that was decided is done with.
func possess(a *state.Apply, c *clusterv1.JoinByPossession, instance *agentv1.InstanceFacts) (*clusterv1.JoinNodeReply, error) {
	var agent agentv1.AgentFacts
	if err := proto.Unmarshal(c.Agent, &agent); err != nil {
		return nil, fault.Wrap(err, fault.Invalid, "bad-facts", "the agent's facts cannot be read")
	}
	node, now := c.Cluster+"/nodes/"+c.Node, a.Now.UnixMilli()
	column, err := namesOf(c.Names).column()
	if err != nil {
		return nil, err
	}
	uid, incarnation := c.NodeUid, uint64(0)
	known, err := found(a.QueryRow(`SELECT uid, incarnation FROM nodes WHERE name = ?`, node).Scan(&uid, &incarnation))
	switch {
	case err != nil:
		return nil, err
	case !known:
		_, err = a.Exec(`INSERT INTO nodes (name, cluster, uid, incarnation, names, running, changed, created_ms, updated_ms, revision) VALUES (?,?,?,0,?,0,?,?,?,?)`,
			node, c.Cluster, uid, column, a.Index, now, now, a.Index)
		a.Touch(state.Created, node)
	default: // the names asked for are the recorded ones, some of them, or a person's word
		_, err = a.Exec(`UPDATE nodes SET names = ? WHERE name = ?`, column, node)
	}
	if err != nil {
		return nil, err
	}
	if _, err := a.Exec(`INSERT INTO possessions (key_sha256, uid, incarnation, node, cassandra_key_sha256, anchor, joined_ms) VALUES (?,?,?,?,?,?,?)`,
		c.KeySha256, uid, incarnation+1, node, c.CassandraKeySha256, c.Anchor, now); err != nil {
		return nil, err
	}
	if err := closeRequest(a, c.KeySha256); err != nil {
		return nil, err
	}
	return enrol(a, enrolment{node: node, uid: uid, incarnation: incarnation, key: c.KeySha256, facts: &agent, agent: c.Agent, instance: c.Instance, running: instance.Running})
}
