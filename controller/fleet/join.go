package fleet

import (
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

// Ways to join.
const (
	MethodToken      = "token"
	MethodPossession = "possession"
)

// keep is how long what has ended stays in the replicated state.
const keep = 90 * 24 * time.Hour

// JoinSpec is evidence that was checked as far as it can be outside Apply.
type JoinSpec struct {
	Token string
	// Key is the SHA-256 of the SubjectPublicKeyInfo whose possession was proved.
	Key [sha256.Size]byte
	// Cluster is what the agent believes: a full name or an id.
	Cluster  string
	Agent    *agentv1.AgentFacts
	Instance *agentv1.InstanceFacts
	// Peer is the address that asked.
	Peer string
}

// Joined says which identity to sign. Repeated: the same token and key had joined before.
type Joined struct {
	Node        string
	UID         string
	Incarnation uint64
	Token       string
	Repeated    bool
}

// Join burns a token for a key. The same token and key again give the same answer. Where the ring can be asked and does not confirm
// the addresses, the fault "approval-pending" says why a person must: the same agent asks again.
func (f *Fleet) Join(ctx context.Context, s JoinSpec) (Joined, error) {
	sum, err := HashToken(s.Token)
	if err != nil {
		return Joined{}, err
	}
	agent, instance, err := encodeFacts(s.Agent, s.Instance)
	if err != nil {
		return Joined{}, err
	}
	id, err := f.id()
	if err != nil {
		return Joined{}, err
	}
	c := &clusterv1.JoinNode{TokenSha256: sum[:], KeySha256: s.Key[:], Cluster: s.Cluster, Method: MethodToken, Agent: agent, Instance: instance, Peer: s.Peer, Id: id}
	if err := f.tokenWaits(ctx, c); err != nil {
		return Joined{}, err
	}
	r, err := reply[*clusterv1.JoinNodeReply](f.propose(ctx, "", "joining:"+s.Peer, "", c))
	if err != nil {
		return Joined{}, err
	}
	if err := fromFault(r.Refused); err != nil {
		return Joined{}, err
	}
	return Joined{Node: r.Node, UID: r.Uid, Incarnation: r.Incarnation, Token: r.Token, Repeated: r.Repeated}, nil
}

// maxFacts is the most bytes of one encoded fact; a command has room for 128 KiB in all.
const maxFacts = 48 << 10

// encodeFacts gives the bytes that are kept: without the agent's clock, which is always new, and with as many findings
// as there is room for.
func encodeFacts(agent *agentv1.AgentFacts, instance *agentv1.InstanceFacts) (a, i []byte, err error) {
	if agent != nil {
		agent = proto.CloneOf(agent)
		agent.Clock = nil
	} else {
		agent = &agentv1.AgentFacts{}
	}
	if instance == nil {
		instance = &agentv1.InstanceFacts{}
	}
	if instance.Ring != nil || instance.Health != nil || len(instance.Clients.GetSeen()) > 0 { // they are kept apart from the node
		instance = proto.CloneOf(instance)
		instance.Ring, instance.Health = nil, nil
		if instance.Clients != nil {
			instance.Clients.Seen = nil
		}
	}
	if proto.Size(instance) > maxFacts {
		instance = proto.CloneOf(instance)
		instance.Findings = instance.Findings[:min(len(instance.Findings), 16)]
	}
	if a, err = proto.Marshal(agent); err != nil {
		return nil, nil, fault.Wrap(err, fault.Invalid, "bad-facts", "the agent's facts cannot be encoded")
	}
	if i, err = proto.Marshal(instance); err != nil {
		return nil, nil, fault.Wrap(err, fault.Invalid, "bad-facts", "the instance's facts cannot be encoded")
	}
	if len(a) > 16<<10 || len(i) > maxFacts {
		return nil, nil, fault.New(fault.Invalid, "facts-too-large", "what the agent says of itself is too large")
	}
	return a, i, nil
}

type tokenRow struct {
	name, cluster, node, method string
	uses, used                  int
	rejoin, revoked, replaces   bool
	expires                     int64
}

func tokenOf(ctx context.Context, q state.Querier, sum []byte) (t tokenRow, known bool, err error) {
	known, err = found(q.QueryRowContext(ctx, `SELECT name, cluster, node, method, uses, used, rejoin, revoked, replaces, expires_ms FROM node_tokens WHERE sha256 = ?`, sum).
		Scan(&t.name, &t.cluster, &t.node, &t.method, &t.uses, &t.used, &t.rejoin, &t.revoked, &t.replaces, &t.expires))
	return t, known, err
}

func applyJoinNode(a *state.Apply, c *clusterv1.JoinNode) (*clusterv1.JoinNodeReply, error) {
	t, known, err := tokenOf(a.Context(), a.Querier(), c.TokenSha256)
	if err != nil {
		return nil, err
	}
	if !known {
		return nil, UnknownToken()
	}
	if again, err := joinedBefore(a, c, t); again != nil || err != nil {
		return again, err
	}
	approved, err := approvedToken(a, c, t)
	if err != nil {
		return nil, err
	}
	newToken := "make a new token with `csm cluster join-command`"
	switch {
	case t.revoked:
		return nil, fault.New(fault.Refused, "token-revoked", "this join token was revoked").Do("%s", newToken)
	case t.used >= t.uses:
		return alarmReused(a, c, t)
	case t.expires <= a.Now.UnixMilli() && !approved:
		return nil, fault.New(fault.Refused, "token-expired", "this join token expired at %s", at(t.expires).Format(time.RFC3339)).Do("%s", newToken)
	case t.method != c.Method:
		return nil, fault.New(fault.Refused, "token-method", "this join token is not for method %.32q", c.Method)
	case c.Cluster != t.cluster && c.Cluster != resource.Last(t.cluster):
		return nil, fault.New(fault.Refused, "token-cluster", "this join token is not for cluster %.100q", c.Cluster).
			Do("set cluster in agent.yaml to the one that the token was made for")
	}
	if held, err := heldByAnother(a, c, t); held != nil || err != nil {
		return held, err
	}
	return burn(a, c, t)
}

// UnknownToken is the answer to a token that nobody made.
func UnknownToken() error {
	return fault.New(fault.Unauthenticated, "token-unknown", "this join token is not known here").
		Do("check that it was copied whole and is of this system; make one with `csm cluster join-command`")
}

// joinedBefore answers a repeat whose first answer was lost.
func joinedBefore(a *state.Apply, c *clusterv1.JoinNode, t tokenRow) (*clusterv1.JoinNodeReply, error) {
	var uid, agentState string
	var incarnation uint64
	ok, err := found(a.QueryRow(`SELECT u.uid, u.incarnation, g.state FROM node_token_uses u JOIN agents g ON g.uid = u.uid AND g.incarnation = u.incarnation
		WHERE u.token = ? AND u.key_sha256 = ?`, t.name, c.KeySha256).Scan(&uid, &incarnation, &agentState))
	if !ok || err != nil {
		return nil, err
	}
	if agentState != Active {
		return nil, fault.New(fault.Refused, "agent-"+agentState, "the identity that this token made for %s is %s", short(t.node), agentState).
			Do("see `csm node get %s`", short(t.node))
	}
	return &clusterv1.JoinNodeReply{Node: t.node, Uid: uid, Incarnation: incarnation, Token: t.name, Repeated: true}, nil
}

// alarmReused answers another key that comes with a used token: either somebody copied the token, or the host lost its
// key before it was told its identity. The answer is a refusal that is recorded.
func alarmReused(a *state.Apply, c *clusterv1.JoinNode, t tokenRow) (*clusterv1.JoinNodeReply, error) {
	err := alarm(a, "token-reused", t.node, "a used join token came again with another key from "+c.Peer)
	refused := fault.New(fault.Refused, "token-used", "this join token was used before, by another key").
		Do("if this host did not use it, somebody else did: check `csm node get %s`, revoke that agent, and make a new token", short(t.node))
	return &clusterv1.JoinNodeReply{Refused: toFault(refused)}, err
}

func alarm(a *state.Apply, kind, name, message string) error {
	_, err := a.Exec(`INSERT INTO fleet_alarms (idx, kind, resource, message, time_ms) VALUES (?,?,?,?,?)`, a.Index, kind, name, message, a.Now.UnixMilli())
	a.Touch(state.Created, alarmName(a.Index))
	return err
}

// burn uses the token: the node's next incarnation begins, and an older identity ends.
func burn(a *state.Apply, c *clusterv1.JoinNode, t tokenRow) (*clusterv1.JoinNodeReply, error) {
	var agent agentv1.AgentFacts
	var instance agentv1.InstanceFacts
	if err := proto.Unmarshal(c.Agent, &agent); err != nil {
		return nil, fault.Wrap(err, fault.Invalid, "bad-facts", "the agent's facts cannot be read")
	}
	if err := proto.Unmarshal(c.Instance, &instance); err != nil {
		return nil, fault.Wrap(err, fault.Invalid, "bad-facts", "the instance's facts cannot be read")
	}
	if err := sameRing(a, t.cluster, &instance); err != nil {
		return nil, err
	}
	var uid string
	var incarnation uint64
	if err := a.QueryRow(`SELECT uid, incarnation FROM nodes WHERE name = ?`, t.node).Scan(&uid, &incarnation); err != nil {
		return nil, err
	}
	if incarnation > 0 && !t.rejoin {
		return nil, fault.New(fault.Refused, "node-joined", "the node %s has joined already by another token", short(t.node)).
			Do("use `csm node rejoin %s` if its host was replaced", short(t.node))
	}
	if err := sameHost(a, t, instance.HostId); err != nil {
		return nil, err
	}
	if twin, err := twinKey(a, c.KeySha256); err != nil {
		return nil, err
	} else if twin {
		return nil, keyReused()
	}
	how, waits, err := confirmed(a, c, t, &instance)
	if waits != nil || err != nil {
		return waits, err
	}
	if err := closeRequest(a, c.KeySha256); err != nil {
		return nil, err
	}
	if _, err := a.Exec(`UPDATE node_tokens SET used = used + 1, revision = ? WHERE name = ?`, a.Index, t.name); err != nil {
		return nil, err
	}
	if _, err := a.Exec(`INSERT INTO node_token_uses (token, key_sha256, uid, incarnation, used_ms, confirmed) VALUES (?,?,?,?,?,?)`,
		t.name, c.KeySha256, uid, incarnation+1, a.Now.UnixMilli(), how); err != nil {
		return nil, err
	}
	a.Touch(state.Updated, t.name)
	reply, err := enrol(a, enrolment{node: t.node, uid: uid, incarnation: incarnation, key: c.KeySha256, facts: &agent, agent: c.Agent, instance: c.Instance, running: instance.Running})
	if err != nil {
		return nil, err
	}
	reply.Token = t.name
	return reply, nil
}

func keyReused() error {
	return fault.New(fault.Refused, "key-reused", "this key is already the identity of another agent").Do("let the agent make a new key: one state folder for each Cassandra")
}

// enrolment is a join that was allowed, by whatever method. incarnation is the one that ends.
type enrolment struct {
	node, uid       string
	incarnation     uint64
	key             []byte
	facts           *agentv1.AgentFacts
	agent, instance []byte
	running         bool
}

// enrol begins the node's next incarnation; an older identity ends.
func enrol(a *state.Apply, e enrolment) (*clusterv1.JoinNodeReply, error) {
	if l, err := lifeOf(a.Context(), a.Querier(), resource.Parent(e.node)); err != nil {
		return nil, err
	} else if l.released > 0 {
		return nil, l.refusal(resource.Parent(e.node))
	}
	if err := mayJoin(a, e.node); err != nil {
		return nil, err
	}
	if err := replace(a, e.uid, e.incarnation, e.node); err != nil {
		return nil, err
	}
	now := a.Now.UnixMilli()
	if _, err := a.Exec(`UPDATE nodes SET incarnation = ?, instance = ?, running = ?, changed = ?, updated_ms = ?, revision = ? WHERE name = ?`,
		e.incarnation+1, e.instance, flag(e.running), a.Index, now, a.Index, e.node); err != nil {
		return nil, err
	}
	if _, err := a.Exec(`INSERT INTO agents (uid, incarnation, node, state, reason, mode, hold, machine, counter, facts, key_sha256, connected, controller, stream, transition_ms, joined_ms, asked)
		VALUES (?,?,?,?,'',?,?,?,?,?,?,0,'','',0,?,0)`, e.uid, e.incarnation+1, e.node, Active, int(e.facts.Mode), e.facts.Hold, e.facts.Machine, e.facts.GenerationCounter, e.agent, e.key, now); err != nil {
		return nil, err
	}
	a.Touch(state.Updated, e.node)
	signalTarget(a, e.node)
	return &clusterv1.JoinNodeReply{Node: e.node, Uid: e.uid, Incarnation: e.incarnation + 1}, nil
}

// twinKey says whether an agent has this key already.
func twinKey(a *state.Apply, key []byte) (bool, error) {
	var n int
	err := a.QueryRow(`SELECT count(*) FROM agents WHERE key_sha256 = ?`, key).Scan(&n)
	return n > 0, err
}

// sameRing refuses an agent whose Cassandra belongs to another ring, and learns the ring's name from the first one.
func sameRing(a *state.Apply, cluster string, i *agentv1.InstanceFacts) error {
	var want string
	if err := a.QueryRow(`SELECT cassandra_name FROM clusters WHERE name = ?`, cluster).Scan(&want); err != nil {
		return err
	}
	switch {
	case i.ClusterName == "" || i.ClusterName == want:
		return nil
	case want == "":
		_, err := a.Exec(`UPDATE clusters SET cassandra_name = ?, updated_ms = ?, revision = ? WHERE name = ?`, i.ClusterName, a.Now.UnixMilli(), a.Index, cluster)
		a.Touch(state.Updated, cluster)
		return err
	}
	return fault.New(fault.Refused, "wrong-ring", "this Cassandra belongs to the ring %.100q, %s is the ring %.100q", i.ClusterName, short(cluster), want).
		Do("check cluster_name in cassandra.yaml and the cluster that the agent is to join")
}

// replace ends what the node's former incarnation was: its identity, its claims, what was known of its files.
func replace(a *state.Apply, uid string, incarnation uint64, node string) error {
	if incarnation == 0 {
		return nil
	}
	now := a.Now.UnixMilli()
	if _, err := a.Exec(`UPDATE agents SET state = ?, reason = 'replaced by a new incarnation', connected = 0, transition_ms = ? WHERE uid = ? AND incarnation = ?`,
		Revoked, now, uid, incarnation); err != nil {
		return err
	}
	if _, err := a.Exec(`UPDATE moves SET state = ?, closed_ms = ?, detail = 'the node was replaced' WHERE node = ? AND state = ?`, moveLapsed, now, node, moveOpen); err != nil {
		return err
	}
	if _, err := a.Exec(`DELETE FROM stores WHERE node = ?`, node); err != nil {
		return err
	}
	if _, err := a.Exec(`DELETE FROM port_proofs WHERE node = ?`, node); err != nil {
		return err
	}
	a.Touch(state.Signalled, agentSignal(uid))
	signalWave(a, resource.Parent(node))
	return dropRemoval(a, node)
}
